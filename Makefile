# Every target installs what it needs. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint lab-up lab-down

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## make .venv with the pinned controller packages and the checker
	@tools/setup.sh controller

demo: setup lab-up ## run site.yml on the lab host: a real model over two simulated GPUs, with its verdict
	@tools/demo.sh

test: ## lint, unit and contract tests, every role, and site.yml on Debian 12 and 13
	@tools/setup.sh development
	@tools/test.sh

lint: ## ruff, mypy, yamllint, ansible-lint and the syntax of site.yml
	@tools/setup.sh development
	@tools/lint.sh

lab-up: ## start the lab: a host with two simulated GPUs, and a mirror
	@tests/lab/lab.sh up

lab-down: ## stop the lab and remove its containers
	@tests/lab/lab.sh down

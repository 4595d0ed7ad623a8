#!/usr/bin/env bash
# Everything that reads the code without running it.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" ANSIBLE_CONFIG="$PWD/ansible.cfg"
ruff check .
ruff format --check .
mypy
yamllint --strict .
ansible-lint --offline
ansible-playbook --syntax-check -i inventories/lab site.yml playbooks/verify.yml playbooks/trial.yml playbooks/rollback.yml

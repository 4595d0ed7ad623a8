#!/usr/bin/env bash
# test-python.sh PYTHON: what must hold on each supported Python, which resolve to different versions of ansible-core.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${LLAMA_TIERS_CACHE:-$HOME/.cache/llama-tiers}/venv/$("$1" -c 'import platform; print(platform.python_version())')
stamp=$venv/$(sha256sum requirements/development.txt | cut -c1-16)
if [ ! -e "$stamp" ]; then
    rm -rf "$venv"
    "$1" -m venv "$venv"
    "$venv"/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/development.txt
    touch "$stamp"
fi
export PATH="$venv/bin:$PATH" PYTHONPATH=$PWD
pytest tests/module tests/contract
ansible-playbook --syntax-check -i inventories/lab site.yml

#!/usr/bin/env bash
# test-site.sh SUITE TESTS...: a fresh host, the whole site.yml on it, and these tests of tests/lab and others.
set -euo pipefail
cd "$(dirname "$0")/.."
export LAB_SUITE=$1
shift
tests/lab/lab.sh drop gpuhost
tests/lab/lab.sh up --suite "$LAB_SUITE"
# What the others stand on is tested where it is tested first.
[ "$1" = tests/lab/test_site.py ] || ansible-playbook -i inventories/lab site.yml
pytest -s -rs --durations=15 "$@"
tests/lab/lab.sh drop gpuhost

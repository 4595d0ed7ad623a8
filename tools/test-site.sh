#!/usr/bin/env bash
# test-site.sh SUITE: a fresh host, the whole site.yml on it, tiers that switch, and, on Debian 12, what it has to
# withstand, other releases and how tiers move: nothing of that depends on the suite.
set -euo pipefail
cd "$(dirname "$0")/.."
export LAB_SUITE=$1
tests=(tests/lab/test_site.py tests/lab/test_switching.py)
# The engine table is held against the sources, which are at hand then.
[ "$LAB_SUITE" != bookworm ] || tests+=(tests/lab/test_site_faults.py tests/lab/test_releases.py
    tests/lab/test_site_moves.py tests/lab/test_trial.py tests/contract/test_engines.py)
tests/lab/lab.sh drop gpuhost
tests/lab/lab.sh up --suite "$LAB_SUITE"
pytest -s -rs "${tests[@]}"
tests/lab/lab.sh drop gpuhost

#!/usr/bin/env bash
# The lab with a fresh host of the suite LAB_SUITE: its stand-ins, then the whole site.yml and what it has to withstand.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/lab/lab.sh drop gpuhost
tests/lab/lab.sh up --suite "$LAB_SUITE"
# The engine table is held against the sources, which are at hand now.
pytest -s tests/lab tests/contract/test_engines.py
tests/lab/lab.sh drop gpuhost

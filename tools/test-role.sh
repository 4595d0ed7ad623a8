#!/usr/bin/env bash
# test-role.sh ROLE SCENARIO: one molecule scenario of one role, on Debian 12 and Debian 13.
set -euo pipefail
cd "$(dirname "$0")/../roles/$1"
exec molecule test --scenario-name "$2"

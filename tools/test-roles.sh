#!/usr/bin/env bash
# test-roles.sh SCENARIO ROLE...: this molecule scenario of each role, one after another, on a host that is fresh for the
# first of them. What the others need is there then: their plays with the tag "alone" are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
scenario=$1 following=()
shift
# Molecule's memory of which hosts it made and prepared: none, the hosts are this script's.
MOLECULE_EPHEMERAL_DIRECTORY=$(mktemp -d)
export MOLECULE_EPHEMERAL_DIRECTORY
trap 'rm -rf "$MOLECULE_EPHEMERAL_DIRECTORY"' EXIT
tests/lab/lab.sh drop bookworm trixie
for role in "$@"; do
    (cd "roles/$role" && molecule test --scenario-name "$scenario" --destroy never "${following[@]}")
    rm -rf "$MOLECULE_EPHEMERAL_DIRECTORY"
    following=(-- --skip-tags alone)
done
tests/lab/lab.sh drop bookworm trixie

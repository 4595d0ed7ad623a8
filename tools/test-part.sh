#!/usr/bin/env bash
# test-part.sh 'NAME: COMMAND': one part of `make test`. Its output goes to build/test/; of a part that fails the end is
# shown. Parts that run at the same time differ in LANE, and have a lab each.
set -uo pipefail
name=${1%%: *} start=$SECONDS
read -ra command <<<"${1#*: }"
log=build/test/$(tr -cs 'a-zA-Z0-9.\n' - <<<"$name").log
export LAB_DIRECTORY=$PWD/.lab/test-$LANE
echo "=== $name"
if "${command[@]}" >"$log" 2>&1 </dev/null; then
    echo "passed $name" >>build/test/results
    echo "=== $name: passed in $((SECONDS - start)) s$(sed -n 's/^\(.*[0-9] passed.*\) in [0-9.]*s.*/ (\1)/p' "$log" | paste -sd ' ')"
else
    echo "failed $name" >>build/test/results
    echo "=== $name: FAILED after $((SECONDS - start)) s; the end of $log:"
    tail -n 80 "$log"
    echo "=== $name: FAILED (above)"
fi

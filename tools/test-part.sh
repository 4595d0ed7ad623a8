#!/usr/bin/env bash
# test-part.sh 'NAME: COMMAND': one part of `make test`. Its output goes to build/test/; of a part that fails the end is
# shown. Parts that run at the same time differ in LANE, and have a lab each. A part on a test host that has passed on this
# machine is skipped, and says so, while nothing that it can see has changed; FRESH=1 runs it all the same.
set -uo pipefail
name=${1%%: *} start=$SECONDS passed=
read -ra command <<<"${1#*: }"
log=build/test/$(tr -cs 'a-zA-Z0-9.\n' - <<<"$name").log
export LAB_DIRECTORY=$PWD/.lab/test-$LANE

content() { # one hash of the files that a test host or its tests can see
    local index tree
    index=$(mktemp --dry-run)
    export GIT_INDEX_FILE=$index
    git add --all -- . ':!*.md' ':!docs/evidence' ':!tests/unit' ':!tests/module' ':!tests/gpu' ':!tests/benchmarks' \
        ':!tests/truth' && tree=$(git write-tree)
    rm -f "$index"
    echo "${tree:?}"
}

case ${command[0]} in
tools/test-site.sh | tools/test-roles.sh)
    tree=$(content 2>/dev/null) &&
        key=$(echo "$tree" "${command[@]}" "$(uname -rm)" "$(cat /etc/os-release)" | sha256sum | cut -c1-32) &&
        passed=${LLAMA_TIERS_CACHE:-$HOME/.cache/llama-tiers}/passed/$key
    ;;
esac
if [ -z "${FRESH:-}" ] && [ -n "$passed" ] && [ -e "$passed" ]; then
    echo "skipped $name" >>build/test/results
    echo "=== $name: skipped, nothing that it can see has changed since it passed on $(date -r "$passed" '+%F %R') (FRESH=1 runs it)"
    exit
fi
echo "=== $name"
if "${command[@]}" >"$log" 2>&1 </dev/null; then
    [ -z "$passed" ] || { mkdir -p "${passed%/*}" && cp "$log" "$passed"; }
    echo "passed $name" >>build/test/results
    echo "=== $name: passed in $((SECONDS - start)) s$(sed -n 's/^\(.*[0-9] passed.*\) in [0-9.]*s.*/ (\1)/p' "$log" | paste -sd ' ')"
else
    echo "failed $name" >>build/test/results
    echo "=== $name: FAILED after $((SECONDS - start)) s; the end of $log:"
    tail -n 80 "$log"
    echo "=== $name: FAILED (above)"
fi

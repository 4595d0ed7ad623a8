#!/usr/bin/env bash
# test-part.sh 'NAME: COMMAND': one part of `make test`. Its output goes to build/test/; of a part that fails the end is
# shown. Parts that run at the same time differ in LANE, and have a lab each. A part on a test host that has passed on this
# machine in the last week is unchanged, and says so, while all that it can see is as it was; FRESH=1 runs it all the same.
set -uo pipefail
name=${1%%: *} start=$SECONDS
read -ra command <<<"${1#*: }"
log=build/test/$(tr -cs 'a-zA-Z0-9.\n' - <<<"$name").log
export LAB_DIRECTORY=$PWD/.lab/test-$LANE

# What no part on a test host reads.
unseen=('*.md' docs/evidence tests/unit tests/module tests/gpu tests/benchmarks tests/truth)

content() { # one hash of all that a part on a test host can see
    local index tree
    index=$(mktemp --dry-run)
    export GIT_INDEX_FILE=$index
    git add --all -- . "${unseen[@]/#/:!}" && tree=$(git write-tree)
    rm -f "$index"
    echo "${tree:?}" "${command[@]}" "$(uname -rm)" "$(cat /etc/os-release)" | sha256sum | cut -c1-32
}

case ${command[0]} in
tools/test-site.sh | tools/test-roles.sh) seen=$(content 2>/dev/null) || seen= ;;
*) seen= ;;
esac
verdict=${LLAMA_TIERS_CACHE:-$HOME/.cache/llama-tiers}/passed/$seen
if [ -z "${FRESH:-}" ] && [ -n "$seen" ] && [ -n "$(find "$verdict" -mtime -7 2>/dev/null)" ]; then
    echo "unchanged $name" >>build/test/results
    echo "=== $name: not run, all that it can see is as it was when it passed on $(date -r "$verdict" '+%F %R') (FRESH=1 runs it)"
    exit
fi
echo "=== $name"
if "${command[@]}" >"$log" 2>&1 </dev/null; then
    # An edit in the meantime makes it the verdict of neither.
    [ -z "$seen" ] || [ "$(content 2>/dev/null)" != "$seen" ] || { mkdir -p "${verdict%/*}" && touch "$verdict"; }
    echo "passed $name" >>build/test/results
    echo "=== $name: passed in $((SECONDS - start)) s$(sed -n 's/^\(.*[0-9] passed.*\) in [0-9.]*s.*/ (\1)/p' "$log" | paste -sd ' ')"
else
    echo "failed $name" >>build/test/results
    echo "=== $name: FAILED after $((SECONDS - start)) s; the end of $log:"
    tail -n 80 "$log"
    echo "=== $name: FAILED (above)"
fi

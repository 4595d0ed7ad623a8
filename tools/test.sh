#!/usr/bin/env bash
# Every test, part by part, in two lanes that run at the same time: one takes the whole site.yml through both suites, the
# other everything else. The output of a part goes to build/test/; of one that fails the end is shown. A part that cannot
# run says why and counts as skipped.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" ANSIBLE_CONFIG="$PWD/ansible.cfg" ANSIBLE_NOCOLOR=1 NO_COLOR=1
logs=build/test
rm -rf "$logs"
mkdir -p "$logs"
touch "$logs/results"

# A lane in the background would outlive an interrupt.
trap 'trap - TERM; kill 0' INT TERM

part() { # name command...
    local name=$1 start=$SECONDS log
    log=$logs/$(tr -cs 'a-zA-Z0-9.\n' - <<<"$name").log
    shift
    echo "=== $name"
    if "$@" >"$log" 2>&1 </dev/null; then
        echo "passed $name" >>"$logs/results"
        echo "=== $name: passed in $((SECONDS - start)) s$(sed -n 's/^\(.*[0-9] passed.*\) in [0-9.]*s.*/ (\1)/p' "$log" | paste -sd ' ')"
    else
        echo "failed $name" >>"$logs/results"
        echo "=== $name: FAILED after $((SECONDS - start)) s; the end of $log:"
        tail -n 80 "$log"
        echo "=== $name: FAILED (above)"
    fi
}

skip() { # name reason
    echo "skipped $1" >>"$logs/results"
    echo "=== $1: skipped, $2"
}

# The other supported Pythons resolve to another ansible-core; the contracts must hold on each.
contract_on() { # python
    local venv stamp
    venv=${LLAMA_TIERS_CACHE:-$HOME/.cache/llama-tiers}/venv/$("$1" -c 'import platform; print(platform.python_version())')
    stamp=$venv/$(cat requirements/development.txt | sha256sum | cut -c1-16)
    if [ ! -e "$stamp" ]; then
        rm -rf "$venv" && "$1" -m venv "$venv" &&
            "$venv"/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/development.txt &&
            touch "$stamp" || return 1
    fi
    PATH="$venv/bin:$PATH" PYTHONPATH=$PWD "$venv"/bin/python -m pytest &&
        PATH="$venv/bin:$PATH" PYTHONPATH=$PWD "$venv"/bin/ansible-playbook --syntax-check -i inventories/lab site.yml
}

site_lane() {
    local suite
    for suite in bookworm trixie; do
        part "site.yml on $suite" env LAB_SUITE=$suite tools/test-site.sh
    done
}

other_lane() {
    local own version python scenario role name
    own=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    part lint tools/lint.sh
    part "unit, module and contract tests on Python $own" pytest
    for version in 3.11 3.12 3.13; do
        [ "$version" = "$own" ] && continue
        if python=$(tools/find-python.sh "$version"); then
            part "unit, module and contract tests on Python $version" contract_on "$python"
        else
            skip "unit, module and contract tests on Python $version" "python$version with venv is not on this machine"
        fi
    done
    [ "$(id -u)" = 0 ] || return
    for scenario in roles/*/molecule/*/molecule.yml; do
        role=$(cut -d/ -f2 <<<"$scenario") name=$(cut -d/ -f4 <<<"$scenario")
        part "molecule $role $name" tools/test-role.sh "$role" "$name"
    done
}

if [ "$(id -u)" = 0 ]; then
    site_lane &
else
    skip "site.yml and every role on the lab" "test hosts with real systemd need root"
fi
other_lane
wait
[ "$(id -u)" != 0 ] || tests/lab/lab.sh down

sed -n 's/^failed /failed: /p' "$logs/results"
passed=$(grep -c ^passed "$logs/results") failed=$(grep -c ^failed "$logs/results") skipped=$(grep -c ^skipped "$logs/results")
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" != 0 ]

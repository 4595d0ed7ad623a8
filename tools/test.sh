#!/usr/bin/env bash
# Every test, part by part, several at a time (most of a part's time is waiting for a host). A part that cannot run says
# why and counts as skipped.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" ANSIBLE_CONFIG="$PWD/ansible.cfg" ANSIBLE_NOCOLOR=1 NO_COLOR=1
lanes=$(($(nproc) + 1))
rm -rf build/test
mkdir -p build/test
touch build/test/results

skip() { # name reason
    echo "skipped $1" >>build/test/results
    echo "=== $1: skipped, $2" >&2
}

molecule() { # scenario: of every role that has it
    echo "molecule $1: tools/test-roles.sh $1 $(printf '%s\n' roles/*/molecule/"$1"/molecule.yml | cut -d/ -f2 | paste -sd ' ')"
}

parts() { # the two that compile the engine first, then what needs none, then all that find it in the compiler's cache
    local own version python name
    if [ "$(id -u)" = 0 ]; then
        # Of what a host has to withstand, how tiers move and are tried, nothing depends on the suite. The engine table is
        # held against the sources, which are at hand then.
        echo "site.yml on trixie: tools/test-site.sh trixie tests/lab/test_site.py tests/lab/test_switching.py"
        echo "site.yml on bookworm: tools/test-site.sh bookworm tests/lab/test_site.py tests/lab/test_switching.py" \
            "tests/contract/test_engines.py"
    else
        skip "site.yml and every role on the lab" "test hosts with real systemd need root"
    fi
    own=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "unit, module and contract tests on Python $own: pytest"
    for version in 3.11 3.12 3.13; do
        [ "$version" = "$own" ] && continue
        if python=$(tools/find-python.sh "$version"); then
            echo "module and contract tests on Python $version: tools/test-python.sh $python"
        else
            skip "module and contract tests on Python $version" "python$version with venv is not on this machine"
        fi
    done
    echo "lint: tools/lint.sh"
    [ "$(id -u)" = 0 ] || return
    # Scenarios without an engine of that size.
    for name in driver faults; do molecule "$name"; done
    echo "faults and moves on bookworm: tools/test-site.sh bookworm tests/lab/test_site_faults.py tests/lab/test_site_moves.py"
    echo "trials and releases on bookworm: tools/test-site.sh bookworm tests/lab/test_trial.py tests/lab/test_releases.py"
    for name in $(printf '%s\n' roles/*/molecule/*/molecule.yml | cut -d/ -f4 | sort -u | grep -vx -e driver -e faults); do
        molecule "$name"
    done
}

parts | xargs -d '\n' -n 1 -P "$lanes" --process-slot-var=LANE tools/test-part.sh
for lab in .lab/test-*; do [ ! -e "$lab" ] || LAB_DIRECTORY=$PWD/$lab tests/lab/lab.sh down; done

sed -n 's/^failed /failed: /p' build/test/results
count() { grep -c "^$1 " build/test/results; }
passed=$(count passed) failed=$(count failed)
echo "$passed passed, $failed failed, $(count unchanged) unchanged since they passed, $(count skipped) skipped"
[ "$failed" = 0 ] && [ "$passed" != 0 ]

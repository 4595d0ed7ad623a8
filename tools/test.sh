#!/usr/bin/env bash
# Every test, part by part, with the seconds of each. A part that cannot run says why and counts as skipped.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" ANSIBLE_CONFIG="$PWD/ansible.cfg"
passed=0 failed=0 skipped=0 failures=()

part() { # name command...
    local name=$1 start=$SECONDS
    shift
    echo "=== $name"
    if "$@"; then
        passed=$((passed + 1))
        echo "=== $name: passed in $((SECONDS - start)) s"
    else
        failed=$((failed + 1))
        failures+=("$name")
        echo "=== $name: FAILED after $((SECONDS - start)) s"
    fi
}

skip() { # name reason
    skipped=$((skipped + 1))
    echo "=== $1: skipped, $2"
}

# The other supported Pythons resolve to another ansible-core; the contracts must hold on each.
contract_on() { # python
    local venv
    venv=${LLAMA_TIERS_CACHE:-$HOME/.cache/llama-tiers}/venv/$("$1" -c 'import platform; print(platform.python_version())')
    local stamp
    stamp=$venv/$(cat requirements/development.txt pyproject.toml | sha256sum | cut -c1-16)
    if [ ! -e "$stamp" ]; then
        rm -rf "$venv" && "$1" -m venv "$venv" &&
            "$venv"/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/development.txt &&
            touch "$stamp" || return 1
    fi
    PATH="$venv/bin:$PATH" PYTHONPATH=$PWD "$venv"/bin/python -m pytest tests/unit tests/contract tests/module &&
        PATH="$venv/bin:$PATH" PYTHONPATH=$PWD "$venv"/bin/ansible-playbook --syntax-check -i inventories/lab site.yml
}

own=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
part lint tools/lint.sh
part "unit, module and contract tests on Python $own" pytest
for version in 3.11 3.12 3.13; do
    [ "$version" = "$own" ] && continue
    python=$(tools/find-python.sh "$version") &&
        part "unit, module and contract tests on Python $version" contract_on "$python" ||
        skip "tests on Python $version" "python$version with venv is not on this machine"
done

if [ "$(id -u)" = 0 ]; then
    for suite in bookworm trixie; do
        part "site.yml on $suite" env LAB_SUITE=$suite tools/test-site.sh
    done
    for scenario in roles/*/molecule/*/molecule.yml; do
        role=$(cut -d/ -f2 <<<"$scenario") name=$(cut -d/ -f4 <<<"$scenario")
        part "molecule $role $name" tools/test-role.sh "$role" "$name"
    done
else
    skip "the lab and every role" "test hosts with real systemd need root"
fi

[ "$failed" = 0 ] || printf 'failed: %s\n' "${failures[@]}"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]

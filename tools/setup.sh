#!/usr/bin/env bash
# setup.sh controller|development: .venv with hash-locked packages and the checker, made again only when they change.
set -euo pipefail
cd "$(dirname "$0")/.."
what=$1

find_python() {
    local candidate
    for candidate in python3.13 python3.12 python3.11 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "setup: needs Python 3.11 or later (Debian 12, Ubuntu 24.04 or newer have it)" >&2
    return 1
}

install_packages() {
    [ "$(id -u)" = 0 ] || { echo "setup: needs the package(s) $*; install them, or run as root" >&2; return 1; }
    echo "setup: installing $*"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

command -v python3 >/dev/null || install_packages python3
python=$(find_python)
"$python" -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
command -v ssh >/dev/null || install_packages openssh-client

stamp=$(cat requirements/"$what".txt pyproject.toml | sha256sum | cut -c1-16)
marker=.venv/$what.$stamp
[ -e "$marker" ] && exit 0
echo "setup: making .venv with $("$python" --version) and the locked packages of requirements/$what.txt"
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
.venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/"$what".txt
.venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
rm -f .venv/"$what".*
touch "$marker"

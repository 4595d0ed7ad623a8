#!/usr/bin/env bash
# find-python.sh 3.12: prints a Python of that version that can make virtual environments; exit 1 when there is none.
set -euo pipefail
for candidate in "python$1" "$HOME"/.pyenv/versions/"$1".*/bin/python /usr/local/bin/python"$1"; do
    if "$candidate" -c "import ensurepip, sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
        command -v "$candidate"
        exit 0
    fi
done
exit 1

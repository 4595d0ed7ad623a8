#!/usr/bin/env bash
# prepare.sh: fetches into build/gpu what the GPU proof needs on a machine without network (docs/gpu.md). Run it on
# Debian 12, with network. Folders of a size that can be carried one at a time:
#   base     systemd and build tools as .deb, wheels of the locked requirements
#   source   the engine's source: a git repository that holds its one commit
#   gemma-N  with --gemma: the small real model in parts, which fill up what the steps carry besides (docs/gpu.md)
set -euo pipefail
cd "$(dirname "$0")/../.."
python_version=${GPU_PROOF_PYTHON:-3.12} # of the machine with the GPU
engine=${GPU_PROOF_ENGINE:-0c1e57098}
model=${LLAMA_TIERS_CACHE:-$HOME/.cache/llama-tiers}/mirror/models/gemma-3-270m-it-Q4_K_M.gguf
out=$PWD/build/gpu

# systemd and what it needs that a small Ubuntu has not; Debian 12's run on newer C libraries.
systemd=(systemd systemd-sysv libsystemd-shared libsystemd0 libudev1 libpam-systemd libkmod2 libfdisk1 libip4tc2
    libcryptsetup12 libjson-c5 libdevmapper1.02.1 libargon2-1 libapparmor1 dbus dbus-bin dbus-daemon
    dbus-system-bus-common dbus-session-bus-common libdbus-1-3 libexpat1)
tools=(ccache libhiredis0.14 ninja-build)

fetch_debs() { # folder package...
    rm -rf "$1" && mkdir -p "$1"
    (cd "$1" && shift && apt-get download -qq "$@")
}

# Debian's git, less what a local repository does not need (its dependencies are for the rest).
small_git() {
    local work
    work=$(mktemp -d)
    (cd "$work" && apt-get download -qq git && dpkg-deb -R git_*.deb full)
    mkdir -p "$work/git/DEBIAN" "$work/git/usr/bin" "$work/git/usr/lib/git-core"
    cp "$work/full/usr/bin/git" "$work/git/usr/bin/"
    ln -s ../../bin/git "$work/git/usr/lib/git-core/git"
    ln -s git "$work/git/usr/bin/git-upload-pack"
    ln -s git "$work/git/usr/lib/git-core/git-upload-pack"
    sed -n '/^Package\|^Version\|^Architecture\|^Maintainer/p' "$work/full/DEBIAN/control" >"$work/git/DEBIAN/control"
    echo "Description: git, only what works on local repositories" >>"$work/git/DEBIAN/control"
    dpkg-deb --build --root-owner-group -Zxz "$work/git" "$1" >/dev/null
    rm -rf "$work"
}

wheels() {
    local python
    # pip goes by the running Python's version where a requirement depends on it.
    python=$(tools/find-python.sh "$python_version") || { echo "prepare: needs python$python_version" >&2; return 1; }
    rm -rf "$out/base/wheels"
    for requirements in controller host; do
        "$python" -m pip download -q --disable-pip-version-check --no-deps --require-hashes --only-binary=:all: \
            -r "requirements/$requirements.txt" -d "$out/base/wheels"
    done
    # For a Python without it; Debian and Ubuntu have it in a package of its own.
    rm -rf "$out/base/ensurepip"
    cp -r "$("$python" -c 'import ensurepip; print(ensurepip.__path__[0])')" "$out/base/ensurepip"
    find "$out/base/ensurepip" -name __pycache__ -prune -exec rm -rf {} +
}

source_repository() {
    local work commit archive
    read -r commit archive < <(.venv/bin/python -c 'import sys, yaml
engine = yaml.safe_load(open("catalogue/engines.yml"))["engines"][sys.argv[1]]
print(engine["commit"], engine["archive"]["file"])' "$engine")
    archive=${LLAMA_TIERS_CACHE:-$HOME/.cache/llama-tiers}/mirror/sources/$archive
    [ "$(git -C "$out/source/llama.cpp.git" rev-parse HEAD 2>/dev/null)" = "$commit" ] && return
    [ -e "$archive" ] || { echo "prepare: $archive is not there; tests/lab/lab.sh up fetches it" >&2; return 1; }
    work=$(mktemp -d)
    tar --extract --gzip --file="$archive" --directory="$work" --strip-components=1
    rm -rf "$out/source" && mkdir -p "$out/source"
    git clone --quiet --depth 1 --bare "file://$work/vendor/llama.cpp" "$out/source/llama.cpp.git"
    git -C "$out/source/llama.cpp.git" update-ref --no-deref HEAD "$commit"
    git -C "$out/source/llama.cpp.git" -c core.compression=9 repack -q -adF --window=50
    rm -rf "$out/source/llama.cpp.git/hooks" "$work"
}

gemma() {
    local number=0 size
    rm -rf "$out"/gemma-*
    for size in 20MB 27MB 30MB 60MB 60MB 60MB; do
        number=$((number + 1))
        mkdir "$out/gemma-$number" && head --bytes=$size >"$out/gemma-$number/gemma.$number"
    done <"$model"
}

grep -q '^VERSION_CODENAME=bookworm' /etc/os-release || { echo "prepare: needs Debian 12 for its packages" >&2; exit 2; }
mkdir -p "$out/base"
fetch_debs "$out/base/systemd" "${systemd[@]}"
fetch_debs "$out/base/tools" "${tools[@]}"
small_git "$out/base/tools/git_small.deb"
wheels
source_repository
[ "${1:-}" != --gemma ] || gemma
du -sh "$out"/base/* "$out"/*

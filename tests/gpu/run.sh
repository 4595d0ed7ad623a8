#!/usr/bin/env bash
# run.sh STEP...: the proof on a machine with a real GPU and no network (docs/gpu.md); root, a step at a time or several.
#   boot      systemd in namespaces, the controller's environment, what stands for packages of the host
#   models    the models that the tiers serve, those of other steps, and the catalogue; or those of GPU_PROOF_MODELS
#   site      site.yml; builds the engine unless a release was carried (build/gpu/release)
#   again     site.yml once more: nothing may change
#   switching site.yml with tiers that have no room beside each other; `measure switch` then times them
#   trial     the reference host's candidates in its memory: tried, decided, served, and beside llama.cpp's default
#   real      site.yml with a small real model, whose parts have been carried by then
#   row       site.yml with row split, on the engine that has it for CUDA; two cards, and that engine's source carried
#   row_real  the same with the small real model, and how far its answers are from those of the whole model
#   verify    checker verify, with the quality of each split
#   build     the engine compiled for these cards and for llama.cpp's default architectures; goes on where it was cut off
#   measure PART...  tests/gpu/measure.py: memory speed paced load modes fit kld search two switch
#   guard PART...    tests/gpu/guard.py: sandbox faults
#   keep      puts the release into OUT, in parts
#   status    what runs, and the end of the logs
#   stop
# Evidence and logs are copied to $OUT after every call. Every step can be repeated.
set -euo pipefail
cd "$(dirname "$0")/../.."
repository=$PWD
carried=$repository/build/gpu
state=${GPU_PROOF_STATE:-/var/lib/llama-tiers-gpu}
checkout=$state/checkout
mirror_port=8099
# What the machine's own shell finds; programs outside the usual folders are linked into the namespace.
own_path=$PATH
inner_path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

say() { echo "gpu proof: $*"; }

systemd_pid() { # nothing when it does not run
    [ ! -e "$state/unshare.pid" ] || pgrep --parent "$(cat "$state/unshare.pid")" | head -n 1
}

inside() { # command...: in the namespaces, with a clean environment, in the checkout
    nsenter --target "$(systemd_pid)" --mount --pid --uts --ipc --cgroup --root --wd=/ \
        env --chdir="$checkout" -i HOME=/root LANG=C.UTF-8 PATH="$inner_path" ANSIBLE_CONFIG="$checkout/ansible.cfg" ANSIBLE_NOCOLOR=1 \
        ANSIBLE_FORCE_COLOR=0 PYTHONUNBUFFERED=1 GPU_PROOF_STATE="$state" "$@"
}

checkout() { # a copy that the namespace can see, brought up to date by every call
    mkdir -p "$checkout" "$state/parts"
    # Parts of the small real model, as they come.
    cp --no-clobber "$carried"/gemma-*/gemma.? "$state/parts/" 2>/dev/null || true
    tar c --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./.lab --exclude='*.egg-info' . | tar x -C "$checkout"
}

deliver() { # evidence and logs, out of the namespace
    [ -n "${OUT:-}" ] && [ -d "$state/evidence" ] || return 0
    mkdir -p "$OUT"
    tar c --gzip -C "$state" evidence logs >"$OUT/evidence.tar.gz"
    say "OUT has evidence.tar.gz: $(find "$state/evidence" -type f | wc -l) files of evidence"
}

boot() {
    if [ -n "$(systemd_pid)" ]; then say "is up"; return; fi
    [ -d "$carried/base" ] || { echo "run: $carried/base is not here; tests/gpu/prepare.sh makes it" >&2; return 1; }
    mkdir -p "$state"/{lib,cache,mirror,evidence,logs,checkout}
    rm -rf "$state/wheels" && cp -r "$carried/base/wheels" "$state/wheels"
    checkout
    setsid unshare --mount --pid --fork --uts --ipc --cgroup --kill-child \
        bash "$repository/tests/gpu/boot.sh" "$carried/base/systemd" "$state" >"$state/logs/boot.log" 2>&1 </dev/null &
    echo $! >"$state/unshare.pid"
    local running=none
    for _ in $(seq 300); do
        running=$(inside systemctl is-system-running 2>/dev/null || true)
        case $running in running | degraded) break ;; esac
        sleep 0.1
    done
    case $running in
    running | degraded) say "systemd is $running" ;;
    *) echo "run: systemd did not come up: $running" >&2; tail -n 30 "$state/logs/boot.log" >&2; return 1 ;;
    esac
    inside mount --make-rshared /
    furnish
    controller
}

provide() { # package program: the role asks dpkg for its build tools; the machine may have them without a package
    local program work
    inside dpkg --status "$1" 2>/dev/null | grep -qx 'Status: install ok installed' && return
    program=$(PATH=$own_path:$inner_path command -v "$2" || true)
    if [ -z "$program" ]; then
        local debs=("$carried/base/tools/$1"_*.deb)
        [ -e "${debs[0]}" ] || { echo "run: the machine has no $2, and no package of it was carried" >&2; return 1; }
        cp "${debs[0]}" "$state/carried.deb"
        inside dpkg --install --force-depends "$state/carried.deb" >/dev/null
        say "package $1: installed from what was carried"
        return
    fi
    work=$state/stand-in
    rm -rf "$work" && mkdir -p "$work/DEBIAN" "$work/usr/share/doc/$1"
    printf '%s\n' "Package: $1" "Version: 0~machine" "Architecture: all" "Maintainer: llama-tiers" \
        "Description: stands for the machine's own $program" >"$work/DEBIAN/control"
    case $program in
    /usr/bin/* | /bin/*) ;;
    *) mkdir -p "$work/usr/bin" && ln -s "$program" "$work/usr/bin/$2" ;;
    esac
    dpkg-deb --build --root-owner-group "$work" "$state/stand-in.deb" >/dev/null
    inside dpkg --install --force-depends "$state/stand-in.deb" >/dev/null
    say "package $1: stands for $program"
}

furnish() { # what an air-gapped host has: indexes and repositories of its own, libraries that are found
    printf '[global]\nno-index = true\nfind-links = %s\n' "$state/wheels" | inside tee /etc/pip.conf >/dev/null
    # Settings of root's own would go before.
    inside rm -rf /root/.config/pip /root/.pip
    [ -x /usr/bin/python3 ] || inside ln -s "$(command -v python3)" /usr/bin/python3
    if ! inside /usr/bin/python3 -I -c 'import ensurepip, venv' 2>/dev/null; then
        rm -rf "$state/ensurepip" && cp -r "$carried/base/ensurepip" "$state/ensurepip"
        inside sh -c "cp -r '$state/ensurepip' \"\$(/usr/bin/python3 -I -c 'import os; print(os.path.dirname(os.__file__))')/\""
        say "ensurepip: from what was carried"
    fi
    local hiredis=("$carried/base/tools/"libhiredis*.deb)
    cp "${hiredis[0]}" "$state/carried.deb" && inside dpkg --install --force-depends "$state/carried.deb" >/dev/null
    provide git git
    provide cmake cmake
    provide ninja-build ninja
    provide g++ g++
    provide ccache ccache
    inside git config --system safe.directory '*'
    inside git config --system "url.file://$state/source/llama.cpp.git.insteadOf" https://github.com/ggml-org/llama.cpp.git
    local nvcc
    nvcc=$(PATH=$own_path command -v nvcc || find /usr/local -maxdepth 3 -path '*/cuda*/bin/nvcc' | sed -n 1p)
    if [ -n "$nvcc" ]; then
        nvcc=$(readlink -f "$nvcc")
        inside sh -c "[ -e /usr/local/cuda ] || ln -s '${nvcc%/bin/nvcc}' /usr/local/cuda
            ls -d /usr/local/cuda/lib64 /usr/local/nvidia/lib64 /usr/local/nvidia/lib 2>/dev/null >/etc/ld.so.conf.d/gpu-proof.conf
            ldconfig"
        say "toolkit $nvcc: $("$nvcc" --version | sed -n 's/.*release //p')"
    else
        say "no nvcc on this machine: a release must be carried"
    fi
}

controller() {
    [ -e "$checkout/.venv/complete" ] && return
    inside /usr/bin/python3 -m venv --clear .venv
    inside .venv/bin/python -m pip install -qq --require-hashes -r requirements/controller.txt
    inside .venv/bin/python -m pip install -qq --no-deps --no-build-isolation --editable .
    inside touch .venv/complete
    say "controller: $(inside .venv/bin/python --version), $(inside .venv/bin/ansible --version | sed -n 1p)"
}

proof() { inside .venv/bin/python "tests/gpu/$1" "${@:2}"; } # program arguments...

carried_source() {
    [ ! -d "$carried/source" ] || [ -d "$state/source" ] || cp -r "$carried/source" "$state/source"
}

models() {
    carried_source
    proof discover.py
    # shellcheck disable=SC2086
    proof synthesize.py ${GPU_PROOF_MODELS:-}
}

mirror() {
    inside systemctl is-active --quiet gpu-proof-mirror && return
    inside systemd-run --quiet --unit=gpu-proof-mirror --collect \
        "$checkout/.venv/bin/python" "$checkout/tests/gpu/mirror.py" "$state/mirror" "$mirror_port"
}

carried_release() { # in its place, unless the host has one; the role builds anew where it is another's
    if compgen -G "$carried/release/release.tar.xz.*" >/dev/null && ! inside test -e /opt/llama-tiers/releases; then
        cat "$carried"/release/release.tar.xz.* | xz --decompress | inside tar x -C /
        say "release: $(inside ls /opt/llama-tiers/releases), carried"
    fi
}

playbook() { # name arguments...
    local start=$SECONDS log=$state/logs/$1.log code=0
    carried_release
    inside rm -f build/gpu/report/evidence/gpu.json
    inside .venv/bin/ansible-playbook -i inventories/gpu "${@:2}" site.yml 2>&1 | tee "$log" | grep --line-buffered -v '^$' || code=$?
    proof record.py "$1" "$log" "$((SECONDS - start))" "$code" "${@:2}" || code=$?
    return "$code"
}

site() { proof discover.py; mirror; playbook site; }

again() { playbook again; }

switching() { proof discover.py; mirror; playbook switching -e @tests/gpu/switching.yml; }

trial() { proof discover.py; mirror; carried_release; proof trial.py; }

real() { proof discover.py; mirror; proof synthesize.py real; playbook real -e @tests/gpu/real.yml; }

row() {
    carried_source
    proof discover.py
    proof synthesize.py deepseek-r1-distill-qwen-14b-q4_k_m
    mirror
    # A first run may fail for what row split takes of cards on which nobody has measured it; a second one knows.
    playbook row -e @tests/gpu/row.yml || playbook row_again -e @tests/gpu/row.yml
}

row_real() {
    proof discover.py
    mirror
    proof synthesize.py real
    playbook row_real -e @tests/gpu/real.yml -e @tests/gpu/row_real.yml
}

build() { carried_source; carried_release; proof build.py; }

verify() {
    local code=0
    inside .venv/bin/checker verify -i inventories/gpu --quality --format json >"$state/logs/verify.json" || code=$?
    proof record.py verify "$state/logs/verify.json" 0 "$code"
}

keep() {
    inside tar c -C / opt/llama-tiers/releases | xz --threads=1 --lzma2=preset=1,dict=192MiB |
        split --bytes=15M - "$OUT/release.tar.xz."
    ls -l "$OUT"
}

status() {
    say "state in $state"
    inside systemctl --no-pager --plain list-units 'llama-tier-*' 'gpu-proof-*' || true
    df -h "$state" /mnt 2>/dev/null || true
    free -m || true
    nvidia-smi || true
    tail -n 5 "$state"/logs/*.log || true
}

stop() {
    kill -KILL "$(cat "$state/unshare.pid")" 2>/dev/null || true
    rm -f "$state/unshare.pid"
}

trap deliver EXIT
case ${1:-} in
measure | guard)
    checkout
    carried_release
    proof "$1.py" "${@:2}"
    ;;
'')
    sed -n '2,18s/^# //p' "$0" >&2
    exit 2
    ;;
*)
    for step; do
        case $step in
        boot | models | site | again | switching | trial | real | row | row_real | verify | build | keep | status | stop) ;;
        *) echo "run: no step $step" >&2; exit 2 ;;
        esac
        start=$SECONDS
        [ "$step" = boot ] || [ "$step" = stop ] || checkout
        "$step"
        say "$step: $((SECONDS - start)) s"
    done
    ;;
esac

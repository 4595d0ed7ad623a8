#!/usr/bin/env bash
# image.sh SUITE: makes localhost/llama-tiers-lab:SUITE, a minimal Debian with systemd as PID 1, unless it is there
# already (label recipe = hash of this script and of the machine's extra CA certificates). 30 to 60 s.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
suite=$1
export CONTAINERS_CONF=$here/containers.conf
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What a guest needs for TLS: the CA certificates that this machine trusts and plain Debian does not (those of a
# private proxy, say), each as one .crt file, as update-ca-certificates wants them.
python3 - "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" /usr/share/ca-certificates/mozilla "$work/ca" <<'PYTHON'
import base64, hashlib, pathlib, re, sys

bundle, stock, out = map(pathlib.Path, sys.argv[1:])
pem = re.compile(r"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.S)


def certificates(path):
    return {base64.b64decode("".join(body.split())) for body in pem.findall(path.read_text(errors="replace"))}


known = set().union(*(certificates(path) for path in stock.glob("*.crt"))) if stock.is_dir() else set()
out.mkdir(parents=True)
for der in sorted(certificates(bundle) - known) if bundle.exists() and known else []:
    body = base64.encodebytes(der).decode()
    name = f"machine-{hashlib.sha256(der).hexdigest()[:12]}.crt"
    (out / name).write_text(f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
PYTHON
# Apt settings of this machine that concern the archive (a proxy, a date check that must be off).
apt-config dump | grep -E '^Acquire::(https?::Proxy|Check-Valid-Until|Check-Date|ForceIPv4)' | grep -v '""' >"$work/80machine" || true

packages=systemd,systemd-sysv,dbus,libpam-systemd,udev,python3,python3-apt,python3-venv,ca-certificates,sudo
packages+=,iproute2,procps,curl,kmod,openssh-server,gcc,libc6-dev,nginx-light
# What a host installs for a build is in apt's cache, not installed: every new host would download it again.
build_tools='ccache cmake g++ git ninja-build'
image=localhost/llama-tiers-lab:$suite
recipe=$({ cat "$0" "$work"/80machine "$work"/ca/* 2>/dev/null || true; } | sha256sum | cut -c1-16)
[ "$(podman image inspect "$image" --format '{{.Labels.recipe}}' 2>/dev/null)" = "$recipe" ] && exit 0

echo "lab: making the image of Debian $suite (about a minute)"
# The empty lists folder is dated 1990: Ansible's apt module goes by its age under cache_valid_time, and would take a
# fresh but empty one for an up-to-date cache ("No package matching ... is available").
mmdebstrap --quiet --variant=minbase --components=main,contrib,non-free,non-free-firmware --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --aptopt='Acquire::Languages "none"' \
    --customize-hook="mkdir -p \"\$1\"/usr/local/share/ca-certificates && cp -r $work/ca/. \"\$1\"/usr/local/share/ca-certificates/" \
    --customize-hook='chroot "$1" update-ca-certificates >/dev/null 2>&1' \
    --customize-hook="cp $work/80machine \"\$1\"/etc/apt/apt.conf.d/80machine" \
    --customize-hook='printf "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n" > "$1"/etc/pip.conf' \
    --customize-hook='echo force-unsafe-io > "$1"/etc/dpkg/dpkg.cfg.d/lab' \
    --customize-hook='chroot "$1" systemctl disable nginx >/dev/null 2>&1; chroot "$1" systemctl enable ssh >/dev/null 2>&1' \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*; mkdir -m 700 -p "$1"/root/.ssh' \
    --customize-hook='rm -f "$1"/var/cache/apt/archives/*.deb' \
    --customize-hook="chroot \"\$1\" apt-get install -qq -y --download-only --no-install-recommends $build_tools >/dev/null" \
    --skip=cleanup/apt --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/lib/apt/mirrors "$1"/var/cache/apt/*.bin; touch -d 1990-01-01 "$1"/var/lib/apt/lists' \
    --customize-hook='rm -f "$1"/etc/machine-id "$1"/etc/hostname; touch "$1"/etc/machine-id' \
    --customize-hook='chroot "$1" systemctl mask systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket systemd-udevd-control.socket getty.target console-getty.service sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount dev-hugepages.mount proc-sys-fs-binfmt_misc.automount apt-daily.timer apt-daily-upgrade.timer >/dev/null 2>&1' \
    "$suite" "$work/root.tar" ${LAB_DEBIAN_MIRROR:-} 2>&1 | { grep -v 'rehash: warning' || true; } >&2
podman import --quiet --change 'STOPSIGNAL SIGRTMIN+3' --change 'ENV container=podman' \
    --change "LABEL recipe=$recipe" "$work/root.tar" "$image" >/dev/null

#!/usr/bin/env bash
# boot.sh DEBS STATE: becomes a real systemd as PID 1 of the namespaces that it is started in, over the machine's own
# file system, of which nothing is changed: what is written goes to memory, or below STATE.
#   DEBS   folder with Debian 12's systemd and what it needs, unpacked into the overlay only; a library that the machine
#          has stays the machine's, which other programs of it were built for
#   STATE  folder on a disk; its lib/ and cache/ are /var/lib/llama-tiers and /var/cache/llama-tiers inside
# Start it with: unshare --mount --pid --fork --uts --ipc --cgroup --kill-child bash boot.sh DEBS STATE
# The network stays the machine's.
set -euo pipefail
debs=$1 state=$2 mount=/mnt/namespace
root=$mount/root
mounts=$(cut -d ' ' -f 2 /proc/self/mounts)
mkdir -p $mount
mount --make-rprivate /
mount -t tmpfs -o size=50% tmpfs $mount
mkdir -p $mount/{up,work,root}
mount -t overlay overlay -o lowerdir=/,upperdir=$mount/up,workdir=$mount/work $root
# `dpkg -x` would put a folder in the place of the merged /bin and hide /bin/sh.
for deb in "$debs"/*.deb; do
    package=$(basename "${deb%%_*}")
    case $package in
    systemd | systemd-sysv | libsystemd-shared | libpam-systemd) ;;
    *) ! dpkg --status "$package" 2>/dev/null | grep -q '^Status: install ok installed' || continue ;;
    esac
    dpkg-deb --fsys-tarfile "$deb" | tar x --keep-directory-symlink -C $root
done
mkdir -p $root/{proc,sys,run,tmp,dev}
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t tmpfs tmpfs $root/run
mount -t tmpfs tmpfs $root/tmp
mount --rbind /dev $root/dev
# Mounts that the overlay does not see through, such as a driver in a folder of its own.
for place in $mounts; do
    case $place in
    / | /proc* | /sys* | /dev* | /run* | /tmp* | /mnt* | "$state"* | /var/lib/containers* | *\\*) continue ;;
    esac
    if [ -d "$place" ]; then mkdir -p "$root$place"; else mkdir -p "$root${place%/*}" && touch "$root$place"; fi
    mount --rbind "$place" "$root$place"
done
# Everything of ours.
mkdir -p "$root$state" $root/var/{lib,cache}/llama-tiers
mount --bind "$state" "$root$state"
mount --bind "$state/lib" $root/var/lib/llama-tiers
mount --bind "$state/cache" $root/var/cache/llama-tiers
mount -t tmpfs -o size=50%,mode=755 tmpfs "$root$state/mirror"
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
: >$root/etc/machine-id
mkdir -p $root/etc/systemd/system
# What belongs to a machine of its own, not to a namespace.
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-logind.service systemd-resolved.service \
    systemd-networkd.service getty.target console-getty.service; do
    ln -sf /dev/null $root/etc/systemd/system/$unit
done
exec chroot $root /lib/systemd/systemd --system --unit=multi-user.target

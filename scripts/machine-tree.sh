#!/usr/bin/env bash
# machine-tree.sh: a small Debian with all that the package depends on, in which the testbed boots its machine nodes. Made
# once, from the address that apt is configured with, and kept beside the guests' images; from then on no network is needed.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# Another content is another tree.
name=bookworm-2
suite=${name%-*}
base=systemd,systemd-sysv,dbus,udev,kmod,iproute2,procps,ca-certificates
depends=(qemu-system-x86 qemu-utils xorriso)

cache=${STEAD_MACHINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stead/machine}
if [ -d "$cache/$name" ]; then
    exit 0
fi
give_up() { # why
    skip "machine nodes" "$1"
    exit 0
}
# Runs what it is given, with its output in the log.
logged() {
    "$@" >>"$cache/log" 2>&1 || {
        tail -n 20 "$cache/log"
        give_up "'$1' failed; its output is in $cache/log"
    }
}
[ "$(id -u)" -eq 0 ] || give_up "their tree is made by root"
have debootstrap || give_up "debootstrap is missing (make deps)"

step "a Debian tree for machine nodes (400 MB, once)"
# shellcheck disable=SC2016 # apt-get fills it in, not the shell
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' |
    awk -v suite="$suite" '$2 == suite && !seen++ { print $1 }') || mirror=''
mkdir -p "$cache"
: >"$cache/log"
work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
chmod 755 "$work"
logged debootstrap --variant=minbase --include="$base" "$suite" "$work" ${mirror:+"$mirror"}
# Nothing is started while it is made.
printf '#!/bin/sh\nexit 101\n' >"$work/usr/sbin/policy-rc.d"
chmod 755 "$work/usr/sbin/policy-rc.d"
logged chroot "$work" env DEBIAN_FRONTEND=noninteractive LC_ALL=C \
    apt-get install -y -q --no-install-recommends "${depends[@]}"
rm "$work/usr/sbin/policy-rc.d"
rm -rf "$work"/var/cache/apt/archives/*.deb "$work"/var/lib/apt/lists/*
# Each machine makes its own.
: >"$work/etc/machine-id"
# What a node's minutes need not be spent on.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer; do
    ln -sf /dev/null "$work/etc/systemd/system/$unit"
done
# Where another run was quicker, its tree is as good.
mv -T "$work" "$cache/$name" 2>/dev/null || [ -d "$cache/$name" ]

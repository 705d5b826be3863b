#!/usr/bin/env bash
# peer-tree.sh: what a machine node of the peer has beyond those of scripts/machine-tree.sh, as a layer over that tree: Debian's
# pacemaker and corosync, with fence agents. Made once, and kept beside it; `make figures` compares with what runs there.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# Another content is another layer. The tree below is machine-tree.sh's.
base=bookworm-2
name=$base-peer-1
# fence-agents only recommends what fence_ipmilan runs.
packages=(corosync pacemaker pacemaker-cli-utils fence-agents ipmitool)

cache=${STEAD_MACHINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stead/machine}
if [ -d "$cache/$name" ]; then
    exit 0
fi
give_up() { # why
    skip "the peer's nodes" "$1"
    exit 0
}
log=$cache/$name.log
# Runs what it is given, with its output in the log.
logged() {
    "$@" >>"$log" 2>&1 || {
        tail -n 20 "$log"
        give_up "'$1' failed; its output is in $log"
    }
}
scripts/machine-tree.sh
[ "$(id -u)" -eq 0 ] || give_up "their tree is made by root"
[ -d "$cache/$base" ] || give_up "the tree below it, $base, is missing"

step "pacemaker and corosync for machine nodes (300 MB, once)"
: >"$log"
work=$(mktemp -d "$cache/work.XXXXXX")
leave() {
    umount --lazy "$work/tree" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap leave EXIT
mkdir "$work/layer" "$work/aside" "$work/tree"
chmod 755 "$work/layer"
logged mount -t overlay -o "lowerdir=$cache/$base,upperdir=$work/layer,workdir=$work/aside" peer "$work/tree"
# Nothing is started while it is made.
printf '#!/bin/sh\nexit 101\n' >"$work/tree/usr/sbin/policy-rc.d"
chmod 755 "$work/tree/usr/sbin/policy-rc.d"
inside() { logged chroot "$work/tree" env DEBIAN_FRONTEND=noninteractive LC_ALL=C "$@"; }
inside apt-get update -q
inside apt-get install -y -q --no-install-recommends "${packages[@]}"
rm "$work/tree/usr/sbin/policy-rc.d"
rm -rf "$work"/tree/var/cache/apt/archives/*.deb "$work"/tree/var/lib/apt/lists/*
# Both are started when their configuration is there; no cluster has the other's state.
for unit in corosync pacemaker; do
    rm -f "$work/tree/etc/systemd/system/multi-user.target.wants/$unit.service"
done
: >"$work/tree/etc/machine-id"
umount "$work/tree"
# Where another run was quicker, its layer is as good.
mv -T "$work/layer" "$cache/$name" 2>/dev/null || [ -d "$cache/$name" ]

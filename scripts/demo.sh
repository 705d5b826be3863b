#!/usr/bin/env bash
# demo.sh demo|demo-failover: says what it will take, installs what is missing, builds, and plays.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

scripts/versions.sh
free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
say "Stead's demo: three nodes and a virtual machine on this machine, as an ordinary user."
if [ -x "$(target_dir)/debug/stead" ]; then
    say "Needs about 1 GiB of disk besides what is built already (free: $free GiB), 1.5 GiB of memory, under a minute."
else
    say "Needs about 8 GiB of disk (free: $free GiB) and 1.5 GiB of memory. The first time it compiles:"
    say "5 to 15 minutes, of which a minute downloads. After that it starts in under a minute."
fi
[ "$free" -ge 3 ] || die "only $free GiB are free here; make room or set CARGO_TARGET_DIR to a larger disk."
scripts/deps.sh demo
scripts/build.sh
exec "$(target_dir)/debug/stead" "$@"

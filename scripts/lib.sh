# shellcheck shell=bash
# What the scripts share. Sourced, never run.
set -euo pipefail

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export TOP
cd "$TOP"

say() { printf '%s\n' "$*"; }
step() { printf '\n==> %s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# skip WHAT WHY: a check that cannot be done here. Under STEAD_STRICT=1 it is a failure.
skip() {
    if [ "${STEAD_STRICT:-}" = 1 ]; then
        die "skipped although STEAD_STRICT=1: $1: $2"
    fi
    say "SKIP $1: $2"
}

# Where cargo puts what it builds.
target_dir() {
    if [ -n "${CARGO_TARGET_DIR:-}" ]; then
        say "$CARGO_TARGET_DIR"
    else
        say "$TOP/target"
    fi
}

#!/usr/bin/env bash
# long.sh bench|soak|search: what is outside `make test`, since it takes as long as it is told to.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

scripts/web.sh
case ${1:-} in
bench)
    # Figures are taken from optimised programs.
    cargo build --locked --workspace --bins --release
    STEAD_BIN_DIR=$(target_dir)/release cargo nextest run --locked -p stead-testbed --profile bench --no-capture
    ;;
soak)
    cargo build --locked --workspace --bins
    STEAD_SOAK_MINUTES=${MINUTES:-30} cargo nextest run --locked -p stead-testbed --profile soak --no-capture
    ;;
search)
    STEAD_SEEDS=${SEEDS:-100000} cargo nextest run --locked --workspace --profile search --no-capture
    ;;
*) die "usage: long.sh bench|soak|search" ;;
esac

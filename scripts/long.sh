#!/usr/bin/env bash
# long.sh bench|figures|soak|search: what is outside `make test`, since it takes as long as it is told to.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# What figures depend on, as the head of a report.
machine() {
    local cpu changed=''
    cpu=$(awk -F ': ' '/^model name/ { print $2; exit }' /proc/cpuinfo)
    git diff --quiet HEAD 2>/dev/null || changed=' with changes'
    say "Measured $(date -u +'%Y-%m-%d %H:%M') UTC, commit $(git rev-parse --short HEAD 2>/dev/null || say unknown)$changed, release profile."
    say "Machine: $(nproc) CPUs ($cpu), $(awk '/^MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo) GiB, Linux $(uname -r),"
    say "$(qemu-system-x86_64 --version | head -n 1). Load before: $(cut -d' ' -f1-3 /proc/loadavg)."
    say
}

scripts/web.sh
case ${1:-} in
bench)
    # Figures are taken from optimised programs, and nothing is compiled while they are.
    cargo build --locked --workspace --bins --release
    cargo build --locked --release -p stead-agents --example conf-bench
    cargo nextest run --locked -p stead-testbed --profile bench --no-run
    cargo run --locked -q -p stead-testbed --example guest-image
    report=$(target_dir)/bench.md
    machine >"$report"
    failed=0
    STEAD_BIN_DIR=$(target_dir)/release STEAD_BENCH_REPORT=$report \
        cargo nextest run --locked -p stead-testbed --profile bench --no-capture || failed=$?
    {
        say '### The simulator and the manager, by the size of the cluster'
        say
        cargo run --locked -q --release -p stead-sim --example growth
        say
        cargo run --locked -q --release -p stead-ha --example scale
        say
    } >>"$report"
    printf 'Load afterwards: %s.\n' "$(cut -d' ' -f1-3 /proc/loadavg)" >>"$report"
    step "the report, also in $report"
    cat "$report"
    exit "$failed"
    ;;
figures)
    cargo build --locked --workspace --bins --release
    cargo nextest run --locked -p stead-testbed --profile figures --no-run
    # Not for nothing, where the comparison is not asked for.
    peer=figures::peer::beside_pacemaker
    case $peer in
    *"${ONLY:-}"*) scripts/peer-tree.sh ;;
    esac
    # Of one commit: what was measured before it was ended early counts, what another has measured does not.
    figures=$(target_dir)/figures-$(git rev-parse --short HEAD)
    mkdir -p "$figures"
    report=$figures/report.md
    machine >"$report"
    failed=0
    STEAD_BIN_DIR=$(target_dir)/release STEAD_BENCH_REPORT=$report STEAD_FIGURES=$figures \
        cargo nextest run --locked -p stead-testbed --profile figures --no-capture ${ONLY:+"$ONLY"} || failed=$?
    step "the report and the picture are in $figures"
    cat "$report"
    exit "$failed"
    ;;
soak)
    cargo build --locked --workspace --bins
    STEAD_SOAK_MINUTES=${MINUTES:-30} STEAD_SOAK_SEED=${SEED:-} cargo nextest run --locked -p stead-testbed --profile soak --no-capture
    ;;
search)
    STEAD_SEEDS=${SEEDS:-100000} cargo nextest run --locked --workspace --profile search --no-capture
    ;;
*) die "usage: long.sh bench|figures|soak|search" ;;
esac

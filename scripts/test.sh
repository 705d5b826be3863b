#!/usr/bin/env bash
# test.sh TIER...: compiles what the tiers need, runs each within its budget, and closes with one line for them all.
#
#   tier      what                                                  budget, warm
#   check     lints, unit, property and simulation tests            240 s
#   e2e       real clusters, real guests, real faults               1900 s
#   matrix    moves, cut off at each step by each fault             1500 s
#   clients   unmodified Proxmox VE clients                         240 s
#   console   the console in Chromium                               240 s
#
# STEAD_STRICT=1 makes every skip a failure.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}

# cargo-nextest if it is here, else it is installed: its process per test, time-outs and groups are relied on.
need_nextest() {
    have cargo-nextest || cargo nextest --version >/dev/null 2>&1 || {
        step "cargo-nextest (once, some minutes)"
        cargo install --locked cargo-nextest
    }
}

prepare() {
    need_nextest
    scripts/web.sh
    step "compile"
    case $1 in
    check) cargo clippy --locked --workspace --all-targets -q -- -D warnings ;;
    *) cargo build --locked --workspace --bins ;;
    esac
    cargo nextest run --locked --workspace --no-run
    if [ "$1" = clients ]; then
        scripts/clients-env.sh
    fi
    # Downloaded once; its time is no test's.
    case $1 in
    e2e | clients | console) cargo run --locked -q -p stead-testbed --example guest-image ;;
    esac
    if [ "$1" = e2e ]; then
        scripts/machine-tree.sh
    fi
}

nextest() { # profile
    cargo nextest run --locked --workspace --profile "$1" --no-tests=warn
}

deny() {
    if cargo deny --version >/dev/null 2>&1; then
        # It looks at the crates of all platforms; a build has fetched those of this one alone.
        cargo fetch --locked --quiet
        cargo deny --offline check --hide-inclusion-graph licenses bans sources
    else
        skip "cargo-deny" "not installed (cargo install --locked cargo-deny)"
    fi
}

shell_lint() {
    if have shellcheck; then
        shellcheck -x scripts/*.sh crates/testbed/tests/tiers/figures/peer/*.sh .ci/run packaging/{host-stop,postinst,prerm,postrm}
    else
        skip shellcheck "not installed (make deps)"
    fi
}

web_lint() {
    [ -f web/package.json ] || return 0
    npm --prefix web run --silent --if-present check
}

run_check() {
    step "format"
    cargo fmt --all --check
    step "lints"
    cargo clippy --locked --workspace --all-targets -q -- -D warnings
    deny
    shell_lint
    web_lint
    step "tests"
    nextest default
}
run_e2e() { nextest e2e; }
run_matrix() { nextest matrix; }
run_clients() { nextest clients; }
run_console() { nextest console; }

budget_of() {
    case $1 in
    check) say "${STEAD_CHECK_BUDGET:-240}" ;;
    e2e) say 1900 ;;
    matrix) say 1500 ;;
    clients | console) say 240 ;;
    *) die "there is no tier '$1'" ;;
    esac
}

# Called back below, each as a process of its own: a function in a condition would go on after an error.
if [ "${1:-}" = --prepare ]; then
    prepare "$2"
    exit
fi
if [ "${1:-}" = --run ]; then
    "run_$2"
    exit
fi

failed_tiers=()
for tier in "$@"; do
    step "tier $tier"
    budget=$(budget_of "$tier")
    begin=$SECONDS
    if ! scripts/test.sh --prepare "$tier"; then
        failed_tiers+=("$tier (did not compile)")
        continue
    fi
    say "compiled in $((SECONDS - begin)) s"
    if ! scripts/budget.sh "$tier" "$budget" scripts/test.sh --run "$tier" 2>&1 | tee "$logs/$tier"; then
        failed_tiers+=("$tier")
    fi
done

# nextest's summary: "Summary [ 1.2s] 10 tests run: 9 passed (1 slow), 1 failed, 3 skipped".
count() {
    sed 's/\x1b\[[0-9;]*m//g' "$logs"/* 2>/dev/null |
        awk -v what="$1" '/Summary \[.*tests? run:/ { for (i = 2; i <= NF; i++) if ($i ~ "^" what) n += $(i - 1) } END { print n + 0 }'
}
step "result after $SECONDS s"
passed=$(count passed)
failed=$(($(count failed) + $(count timed)))
if [ ${#failed_tiers[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed_tiers[@]}"
    [ "$failed" -gt 0 ] || failed=${#failed_tiers[@]}
fi
say "$passed passed, $failed failed"
[ ${#failed_tiers[@]} -eq 0 ]

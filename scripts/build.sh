#!/usr/bin/env bash
# Builds the console, then all programs (which embed it). `--release` for optimised programs.
#
# The dev profile has optimised dependencies (Cargo.toml), so that TLS, Raft and the store run at speed, and our own
# crates compile in seconds.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

scripts/web.sh
step "programs (the first build takes some minutes)"
cargo build --locked --workspace --bins "$@"

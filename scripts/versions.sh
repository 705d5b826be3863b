#!/usr/bin/env bash
# Checks the two toolchains in the first second, and prints how to mend what is wrong.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

want_node=20
want_rust=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)
bad=0

rust_fix() {
    printf 'error: %s\n' "$1" >&2
    if have rustup; then
        printf '  fix: rustup toolchain install %s --component rustfmt --component clippy\n' "$want_rust" >&2
    else
        printf '  fix: install Rust with rustup (see the Rust project'"'"'s site); it reads rust-toolchain.toml and takes %s.\n' "$want_rust" >&2
        printf '       Debian'"'"'s own rustc is too old.\n' >&2
    fi
    bad=1
}

# Asks without letting rustup download anything by itself.
if have rustup && [ -z "${RUSTUP_TOOLCHAIN:-}" ] && ! rustup toolchain list 2>/dev/null | grep -q -e "^$want_rust" ; then
    rust_fix "Rust $want_rust is needed and rustup does not have it."
elif ! have cargo || ! have rustc; then
    rust_fix "Rust $want_rust is needed and no cargo was found."
else
    is=$(rustc --version | awk '{ print $2 }')
    oldest=$(printf '%s\n%s\n' "$want_rust" "${is%%-*}" | sort -V | head -n 1)
    [ "$oldest" = "$want_rust" ] || rust_fix "Rust $want_rust or newer is needed, this is $is."
fi

node_fix() {
    printf 'error: %s\n' "$1" >&2
    printf '  fix: install Node.js %s or newer: with Debian'"'"'s npm, "npm install --global node@24"; or from the Node.js project.\n' "$want_node" >&2
    bad=1
}
if ! have node || ! have npm; then
    node_fix "Node.js $want_node or newer, with npm, is needed to build the console; it was not found."
else
    is=$(node --version)
    major=${is#v}
    major=${major%%.*}
    [ "$major" -ge "$want_node" ] || node_fix "Node.js $want_node or newer is needed to build the console, this is $is."
fi

exit "$bad"

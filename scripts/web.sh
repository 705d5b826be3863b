#!/usr/bin/env bash
# Builds the console into web/dist if its sources are newer. npm's packages come by their lock file.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

[ -f web/package.json ] || exit 0
cd web
if [ ! -f node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
    step "console: npm packages"
    # Not `npm ci`: it refuses a lock file without the addresses of other platforms' packages. The lock file's versions
    # are installed all the same, and it stays as it is.
    npm install --no-save --no-audit --no-fund --loglevel=error
fi
newer() {
    [ ! -f dist/index.html ] || [ -n "$(find . -path ./node_modules -prune -o -path ./dist -prune -o -type f -newer dist/index.html -print -quit)" ]
}
if newer; then
    step "console: build"
    npm run --silent build
fi

#!/usr/bin/env bash
# A Python environment with the clients, at the versions of tests/clients/requirements.txt; kept until they change.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

dir=$(target_dir)/clients-venv
mark=$dir/requirements.txt
if ! cmp -s tests/clients/requirements.txt "$mark"; then
    step "client programs"
    rm -rf "$dir"
    python3 -m venv "$dir"
    "$dir/bin/pip" install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
    cp tests/clients/requirements.txt "$mark"
fi

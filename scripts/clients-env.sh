#!/usr/bin/env bash
# A Python environment with the clients, at the versions of tests/clients/requirements.txt; kept until they change.
#
# Ansible's collections come with the package `ansible`, 54 MB of which one folder is needed: it is downloaded, and that
# folder is taken out.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

list=tests/clients/requirements.txt
dir=$(target_dir)/clients-venv
mark=$dir/requirements.txt
if cmp -s "$list" "$mark"; then
    exit 0
fi
step "client programs: Python packages"
rm -rf "$dir"
mkdir -p "$(dirname "$dir")"
python3 -m venv "$dir"
"$dir/bin/pip" install --quiet --disable-pip-version-check -r "$list"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^# collections: \([^ ]*\) \(.*\)$/\1 \2/p' "$list" | while read -r package collection; do
    "$dir/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d "$work" "$package"
    "$dir/bin/python" - "$work" "$collection" <<'PYTHON'
import glob, sys, sysconfig, zipfile
work, collection = sys.argv[1:]
[wheel] = glob.glob(work + "/*.whl")
target = sysconfig.get_paths()["purelib"]
with zipfile.ZipFile(wheel) as z:
    names = [n for n in z.namelist() if n.startswith(f"ansible_collections/{collection}/")]
    assert names, f"{wheel} has no {collection}"
    z.extractall(target, names)
PYTHON
done
cp "$list" "$mark"

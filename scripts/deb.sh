#!/usr/bin/env bash
# deb.sh [--debug]: builds the Debian package from programs that `scripts/build.sh` has built (`--release` ones, unless
# `--debug` says otherwise, for tests), and prints its path. Needs dpkg-deb and nothing of debhelper.
#
# Everything that it installs is in packaging/; the lists below say where it goes.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
# What is packed is readable by all, whoever builds it.
umask 022

profile=release
pack=(-Zxz)
if [ "${1:-}" = --debug ]; then
    profile=debug
    # Installed at once and thrown away.
    pack=(-Znone)
fi
out=${STEAD_DEB_DIR:-$(target_dir)/deb}
from=${STEAD_BIN_DIR:-$(target_dir)/$profile}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
arch=$(dpkg --print-architecture)
# The same sources and programs make the same package.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date +%s)
export SOURCE_DATE_EPOCH
mkdir -p "$out"
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root

program() { # program, folder
    [ -f "$from/$1" ] || die "$from/$1 is not built: scripts/build.sh${profile:+ --$profile}"
    install -D -m 755 "$from/$1" "$root/$2/$1"
    strip --strip-unneeded --remove-section=.comment "$root/$2/$1"
}
program steadd usr/sbin
program stead usr/bin
program stead-fenced usr/libexec/stead
# Where runbooks have them. The names of what is not there yet are left out.
mkdir -p "$root/usr/bin" "$root/usr/sbin"
for name in pvesh pvecm; do ln -s stead "$root/usr/bin/$name"; done
for name in qm pvesm pveum ha-manager; do ln -s ../bin/stead "$root/usr/sbin/$name"; done

install -D -m 755 packaging/host-stop "$root/usr/libexec/stead/host-stop"
for unit in packaging/*.service; do
    install -D -m 644 "$unit" "$root/lib/systemd/system/$(basename "$unit")"
done
install -D -m 644 packaging/tmpfiles.conf "$root/usr/lib/tmpfiles.d/stead.conf"
install -D -m 644 packaging/default "$root/usr/share/stead/default"
install -D -m 644 packaging/copyright "$root/usr/share/doc/stead/copyright"
install -m 644 docs/install.md "$root/usr/share/doc/stead/install.md"
install -m 644 CHANGELOG.md "$root/usr/share/doc/stead/CHANGELOG.md"
gzip -9n "$root/usr/share/doc/stead/CHANGELOG.md"
{
    printf 'stead (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md.gz.\n\n' "$version"
    printf ' -- %s  %s\n' "$(sed -n 's/^Maintainer: //p' packaging/control)" "$(date -Ru -d "@$SOURCE_DATE_EPOCH")"
} | gzip -9n >"$root/usr/share/doc/stead/changelog.gz"
chmod 644 "$root/usr/share/doc/stead/changelog.gz"
mkdir -p "$root/usr/share/bash-completion/completions"
"$root/usr/bin/stead" completion bash >"$root/usr/share/bash-completion/completions/stead"

# The libraries that the programs were linked with, at the versions of this machine or newer.
libs=$(for package in libc6 libgcc-s1; do
    # shellcheck disable=SC2016 # dpkg-query fills it in, not the shell
    dpkg-query -W -f '${Version}' "$package" | sed "s/^[0-9]*://; s/[-+~].*//; s/^/$package (>= /; s/\$/)/"
    echo
done | paste -sd, | sed 's/,/, /')
mkdir "$root/DEBIAN"
(cd "$root" && find usr lib -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
install -m 755 packaging/postinst packaging/prerm packaging/postrm "$root/DEBIAN"
size=$(du -sk --exclude=DEBIAN "$root" | cut -f1)
sed "s/@VERSION@/$version/; s/@ARCH@/$arch/; s/@SIZE@/$size/; s/@LIBS@/$libs/" packaging/control >"$root/DEBIAN/control"
find "$root" -type d -exec chmod 755 {} +

deb=$out/stead_${version}_$arch.deb
dpkg-deb --root-owner-group "${pack[@]}" --build "$root" "$work/stead.deb" >/dev/null
mv "$work/stead.deb" "$deb"
say "$deb"

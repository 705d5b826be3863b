#!/usr/bin/env bash
# Lists the programs that are missing, says which packages have them, asks, and installs them.
#
#   deps.sh demo   what `make demo` needs
#   deps.sh all    what the tests need too
#   deps.sh bench  what `make bench` compares Stead with: libvirt and etcd, none of whose services is started
#
# YES=1 asks nothing. On Debian 12, QEMU comes from the backports (the suite is added at the address that apt is
# configured with) where they can be reached, otherwise from Debian 12 itself. Elsewhere than on Debian it only lists.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

wanted=${1:-all}

# program | Debian packages | for
demo_programs='
cc|build-essential|linking Rust programs
as|binutils|assembling the test guests'"'"' boot code
objcopy|binutils|assembling the test guests'"'"' boot code
qemu-system-x86_64|qemu-system-x86|virtual machines
qemu-img|qemu-utils|disk images
xorrisofs|xorriso|cloud-init drives
dpkg-deb|dpkg|unpacking the guest'"'"'s kernel
'
test_programs='
ip|iproute2|nodes in network namespaces
nft|nftables|cutting networks
systemd-nspawn|systemd-container|nodes that boot
debootstrap|debootstrap|the Debian that such nodes boot
cmp|diffutils|comparing images
chromium|chromium|tests of the console
python3|python3|Proxmox clients
shellcheck|shellcheck|lint of the scripts
ipmi_sim|openipmi|service processors for fence devices
ipmitool|ipmitool|fence devices that speak IPMI
openssl|openssl|certificates of emulated devices
fence_ipmilan|fence-agents|programs that speak to fence devices
qemu-ga|qemu-guest-agent|the agent in a test guest
mkfs.ext4|e2fsprogs|a file system in a test guest
swtpm|swtpm|trusted platform modules beside guests
faketime|faketime|nodes whose clocks are wrong
vim|vim|editing the configuration as files
rsync|rsync|copying the configuration as files
git|git|keeping the configuration as files
setpriv|util-linux|users who may not read all files
'
bench_programs='
ip|iproute2|nodes in network namespaces
libvirtd|libvirt-daemon libvirt-daemon-driver-qemu|what live migration is compared with
virsh|libvirt-clients|what live migration is compared with
etcd|etcd-server|what the configuration is compared with
'
programs=$demo_programs
[ "$wanted" = all ] && programs+=$test_programs
[ "$wanted" = bench ] && programs+=$bench_programs

export PATH=$PATH:/usr/sbin:/sbin
missing=()
packages=()
add_missing() { # program, packages, what for
    local all
    read -ra all <<<"$2"
    missing+=("$1 ($3)")
    packages+=("${all[@]}")
}
while IFS='|' read -r program package purpose; do
    [ -n "$program" ] || continue
    have "$program" || add_missing "$program" "$package" "$purpose"
done <<<"$programs"
if [ "$wanted" = all ] && ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    add_missing "python3's venv" python3-venv "Proxmox clients"
fi
if [ "$wanted" = all ] && ! python3 -c 'import yaml' 2>/dev/null; then
    add_missing "python3's yaml" python3-yaml "reading what cloud-init is told"
fi
if [ "$wanted" = all ] && [ ! -e /usr/share/OVMF/OVMF_CODE_4M.fd ]; then
    add_missing "the UEFI firmware" ovmf "VMs with UEFI"
fi

codename=$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}") || codename=
# Debian 12 has none of its own beside QEMU from its backports; that of its own QEMU is taken out of the package.
own_virtiofsd=/usr/local/libexec/virtiofsd
virtiofsd_missing() {
    [ "$wanted" = all ] && ! have virtiofsd && [ ! -e /usr/libexec/virtiofsd ] && [ ! -e /usr/lib/qemu/virtiofsd ] &&
        [ ! -e $own_virtiofsd ]
}
if virtiofsd_missing; then
    if [ "$codename" = bookworm ]; then
        missing+=("virtiofsd (directories of the host in guests; from Debian 12's own QEMU)")
    else
        add_missing virtiofsd virtiofsd "directories of the host in guests"
    fi
fi

# The guest's kernel and busybox are downloaded as packages without being installed; that needs apt's lists.
lists_missing() {
    have apt-cache && ! apt-cache policy linux-image-cloud-amd64 2>/dev/null | grep -v '(none)' | grep -q Candidate
}

if [ ${#missing[@]} -eq 0 ] && ! lists_missing; then
    say "All programs needed are here."
    exit 0
fi
if [ ${#missing[@]} -gt 0 ]; then
    say "Missing:"
    printf '  %s\n' "${missing[@]}"
fi
if ! have apt-get; then
    [ ${#missing[@]} -eq 0 ] && exit 0
    die "install these programs with your system's package manager (on Debian this script would do it)."
fi

mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u | sed '/^$/d')
root=()
if [ "$(id -u)" -ne 0 ]; then
    have sudo || die "root is needed to install: apt-get install ${packages[*]}"
    root=(sudo)
fi
[ ${#packages[@]} -eq 0 ] || say "Packages to install: ${packages[*]}"
[ ${#packages[@]} -gt 0 ] || ! lists_missing || say "apt's lists are missing: apt-get update is needed for the guest's kernel."
if [ "${YES:-}" != 1 ]; then
    [ -t 0 ] || die "no terminal to ask on; run with YES=1 to install without a question."
    read -r -p "Go on with apt-get? [Y/n] " answer
    case $answer in '' | y | Y | yes) ;; *) die "nothing was installed." ;; esac
fi

export DEBIAN_FRONTEND=noninteractive

# Adds the backports at the address of the source that apt has for the release itself.
add_backports() {
    local file=/etc/apt/sources.list.d/stead-backports.sources uri signed
    if grep -rqs -- "$codename-backports" /etc/apt/sources.list /etc/apt/sources.list.d; then
        return 0
    fi
    # shellcheck disable=SC2016 # apt-get fills these in, not the shell
    uri=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(CODENAME)' 'Created-By: Packages' 2>/dev/null |
        awk -v c="$codename" '($2 == c || $3 == c) && !seen++ { print $1 }')
    [ -n "$uri" ] || return 0
    signed=/usr/share/keyrings/debian-archive-keyring.gpg
    printf 'Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\nSigned-By: %s\n' "$uri" "$codename" "$signed" |
        "${root[@]}" tee "$file" >/dev/null
    if ! "${root[@]}" apt-get update -qq; then
        warn "the backports cannot be reached; QEMU comes from Debian $codename itself."
        "${root[@]}" rm -f "$file"
        "${root[@]}" apt-get update -qq
    fi
}

"${root[@]}" apt-get update -qq || warn "apt-get update failed; going on with the lists that are here."
if [ "$codename" = bookworm ] && virtiofsd_missing; then
    work=$(mktemp -d)
    if (cd "$work" && apt-get download -q qemu-system-common/bookworm && dpkg-deb -x qemu-system-common_*.deb .); then
        "${root[@]}" install -D -m 755 "$work/usr/lib/qemu/virtiofsd" $own_virtiofsd
    else
        warn "virtiofsd cannot be taken from Debian 12's qemu-system-common; tests that need it are left out."
    fi
    rm -rf "$work"
fi
[ ${#packages[@]} -gt 0 ] || exit 0
qemu=()
libvirt=()
rest=()
for p in "${packages[@]}"; do
    case $p in
    qemu-system-x86 | qemu-utils) qemu+=("$p") ;;
    libvirt-*) libvirt+=("$p") ;;
    *) rest+=("$p") ;;
    esac
done
# Benchmarks start daemons of their own: none is to run beside them, now or after the next boot.
never_start() { # units
    local unit
    for unit in "$@"; do
        [ -e "/etc/systemd/system/$unit" ] || "${root[@]}" ln -s /dev/null "/etc/systemd/system/$unit"
    done
}
if [ ${#rest[@]} -gt 0 ]; then
    case " ${rest[*]} " in *" etcd-server "*) never_start etcd.service ;; esac
    "${root[@]}" apt-get install -y -qq --no-install-recommends "${rest[@]}"
fi
if [ ${#qemu[@]} -gt 0 ]; then
    # Programs of one QEMU version cannot load the block modules of another: both are taken from one suite.
    qemu=(qemu-system-x86 qemu-utils)
    if [ "$codename" = bookworm ]; then
        add_backports
        "${root[@]}" apt-get install -y -qq --no-install-recommends -t bookworm-backports "${qemu[@]}" ||
            "${root[@]}" apt-get install -y -qq --no-install-recommends "${qemu[@]}"
    else
        "${root[@]}" apt-get install -y -qq --no-install-recommends "${qemu[@]}"
    fi
fi
if [ ${#libvirt[@]} -gt 0 ]; then
    never_start {libvirtd,virtlogd,libvirt-guests}.service libvirtd{,-ro,-admin,-tcp,-tls}.socket virtlogd{,-admin}.socket
    # As new as QEMU, of which it has to know.
    suite=()
    if [ "$codename" = bookworm ]; then
        add_backports
        suite=(-t bookworm-backports)
    fi
    "${root[@]}" apt-get install -y -qq --no-install-recommends "${suite[@]}" "${libvirt[@]}" ||
        "${root[@]}" apt-get install -y -qq --no-install-recommends "${libvirt[@]}"
fi
say "Installed."

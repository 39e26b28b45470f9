#!/bin/bash
# Prepares a Debian machine for `make test`: packages by apt, and in the tools directory a QEMU that works with vhost-user
# under emulation, a guest kernel and an initramfs. Repeating it costs a fraction of a second.
#
#   scripts/setup-tests.sh [--no-cargo-tools]
#
# SHUNT_TEST_TOOLS names the tools directory (default: target/test-tools). Nothing else is written outside of what apt and
# cargo install; apt's configuration is not touched. Without root or sudo it does what it can and says what is missing.
set -euo pipefail
REPO=$(cd "$(dirname "$0")/.." && pwd)
TOOLS=${SHUNT_TEST_TOOLS:-$REPO/target/test-tools}
CARGO_TOOLS=1
[ "${1:-}" != --no-cargo-tools ] || CARGO_TOOLS=

# What builds, what boots, what the guests and namespaces run, what measures.
PACKAGES="gcc libc6-dev binutils ca-certificates
  qemu-system-x86 seabios busybox-static cpio kmod lz4 dash
  iproute2 iputils-ping iputils-arping ethtool iperf3 tcpdump netcat-openbsd util-linux procps
  iputils-tracepath traceroute curl isc-dhcp-client systemd python3 python3-scapy python3-pyftpdlib conntrack nftables
  ipvsadm containernetworking-plugins podman crun
  dpdk-dev valgrind"
# What is copied into the guests, beside busybox and the shell.
GUEST_PROGRAMS="ip bridge ss ethtool iperf3 ping arping tcpdump nc flock setsid timeout ipvsadm"
GUEST_MODULES="virtio_pci virtio_console virtio_net 8021q veth bridge ip_vs ip_vs_rr ip_vs_wlc
  ipip ip_gre fou virtio_mem"
GUNGRAUN=0.20.0 # the same version as the library in Cargo.toml

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 1; }

mkdir -p "$TOOLS"
exec 9>"$TOOLS/.lock"
flock 9 # one at a time: test runs of the same tree may start together

"$REPO/scripts/apt-install.sh" $PACKAGES

# What the scenarios call on this machine. A package that was installed and no longer has its program is told here, not by
# a scenario that fails.
PROGRAMS="cc objcopy busybox cpio depmod lz4 dash ip bridge tc ss ping arping ethtool iperf3 tcpdump nc setpriv unshare
  timeout sysctl ps tracepath traceroute curl dhclient conntrack nft dpdk-testpmd valgrind awk sha256sum"
lacking=
for program in $PROGRAMS; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || lacking+=" $program"
done
[ -z "$lacking" ] || die "these programs are missing although their packages are installed:$lacking"
for applet in httpd udhcpc; do
  busybox --list | grep -qx "$applet" || die "this busybox has no $applet: busybox-static of Debian has"
done
/usr/bin/python3 -c 'import scapy, pyftpdlib' || die "Debian's python3 finds no scapy or no pyftpdlib"
[ -x /lib/systemd/systemd-networkd ] || die "/lib/systemd/systemd-networkd is missing: package systemd of Debian has it"

# --- QEMU and the guest kernel: downloaded with apt's own mirror and keys, unpacked, never installed ----------------------
# Debian 12's QEMU 7.2 crashes under emulation as soon as a driver starts a vhost-user device with MSI-X; the one in its
# backports does not. Later releases bring a newer QEMU by themselves.
CODENAME=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
case $CODENAME in
  bookworm) QEMU_SUITE=bookworm-backports ;;
  *) QEMU_SUITE=$CODENAME ;;
esac
APT=
private_apt() { # apt with an own list of sources, an own state and no privileges
  [ -z "$APT" ] || return 0
  local mirror state=$TOOLS/apt
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
    awk -v c="$CODENAME" '$2 == c && $3 == "main" { print $1; exit }')
  [ -n "$mirror" ] || die "apt knows no source of $CODENAME main"
  mkdir -p "$state"/{lists,cache/archives}/partial
  for suite in $(printf '%s\n' "$CODENAME" "$QEMU_SUITE" | sort -u); do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
  done >"$state/sources.list"
  APT="apt-get -qq -o Dir::Etc::sourcelist=$state/sources.list -o Dir::Etc::sourceparts=/dev/null
    -o Dir::State::lists=$state/lists -o Dir::Cache=$state/cache -o APT::Sandbox::User=$(id -un)"
  $APT update
}

QEMU=$TOOLS/qemu/usr/bin/qemu-system-x86_64
if [ ! -e "$TOOLS/qemu/.complete" ]; then
  say "fetching QEMU from $QEMU_SUITE"
  private_apt
  rm -rf "$TOOLS/qemu"; mkdir -p "$TOOLS/qemu/deb"
  (cd "$TOOLS/qemu/deb" && $APT download {qemu-system-x86,qemu-system-common,qemu-system-data}/"$QEMU_SUITE")
  for deb in "$TOOLS"/qemu/deb/*.deb; do dpkg -x "$deb" "$TOOLS/qemu"; done
  rm -rf "$TOOLS/qemu/deb"
  "$QEMU" --version >/dev/null || die "the unpacked QEMU does not start"
  touch "$TOOLS/qemu/.complete"
fi

if [ ! -e "$TOOLS/kernel/.complete" ]; then
  private_apt
  image=$(apt-cache ${APT#apt-get -qq} depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | head -1)
  say "fetching the guest kernel $image"
  rm -rf "$TOOLS/kernel"; mkdir -p "$TOOLS/kernel/deb"
  (cd "$TOOLS/kernel/deb" && $APT download "$image")
  dpkg -x "$TOOLS"/kernel/deb/*.deb "$TOOLS/kernel/root"
  # QEMU boots an uncompressed kernel with a PVH note directly; under emulation that saves a second of unpacking.
  bz=$(echo "$TOOLS"/kernel/root/boot/vmlinuz-*)
  at=$(LC_ALL=C grep -obUaP '\x02\x21\x4c\x18' "$bz" | head -1 | cut -d: -f1)
  tail -c +$((at + 1)) "$bz" | lz4 -dcf >"$TOOLS/kernel/vmlinux" 2>/dev/null || true # ends at what follows the stream
  [ "$(head -c 4 "$TOOLS/kernel/vmlinux" | tail -c 3)" = ELF ] || die "no ELF kernel in $bz"
  mv "$TOOLS"/kernel/root/lib "$TOOLS/kernel/lib"
  rm -rf "$TOOLS/kernel/root" "$TOOLS/kernel/deb"
  depmod -b "$TOOLS/kernel" "$(ls "$TOOLS/kernel/lib/modules")"
  touch "$TOOLS/kernel/.complete"
fi
KERNEL=$(ls "$TOOLS/kernel/lib/modules")

# --- initramfs: busybox, the host's real network programs with their libraries, a few modules, the command agent ------------
build_initramfs() {
  local root f lib module deps dep modules=$TOOLS/kernel/lib/modules/$KERNEL
  root=$(mktemp -d "$TOOLS/initramfs.XXXXXX")
  trap 'rm -rf "$root"' RETURN
  mkdir -p "$root"/{usr/{bin,sbin,lib,lib64},proc,sys,dev,etc,tmp,run,root,var}
  for f in bin sbin lib lib64; do ln -s usr/$f "$root/$f"; done
  copy() { # FILE AS: a program and the libraries it is linked with
    install -D "$(readlink -f "$1")" "$root$2"
    for lib in $(ldd "$1" 2>/dev/null | grep -o '/[^ )]*'); do
      [ -e "$root$lib" ] || install -D "$(readlink -f "$lib")" "$root$lib"
    done
  }
  install /bin/busybox "$root/usr/bin/busybox"
  for f in $(/bin/busybox --list); do ln -sf busybox "$root/usr/bin/$f"; done
  # busybox's own shell and its exec wrappers prefer its own ip, ping and nc to those in PATH: take dash and util-linux
  rm "$root"/usr/bin/{sh,busybox}; install /bin/busybox "$root/usr/bin/busybox"
  copy /bin/dash /usr/bin/sh
  for f in $GUEST_PROGRAMS; do rm -f "$root/usr/bin/$f"; copy "$(PATH=$PATH:/usr/sbin:/sbin command -v $f)" /usr/bin/$f; done
  for module in $GUEST_MODULES; do
    deps=$(modprobe -d "$TOOLS/kernel" -S "$KERNEL" --show-depends "$module" | awk '$1 == "insmod" { print $2 }')
    for dep in $deps; do install -D -m 644 "$dep" "$root/lib/modules/$KERNEL/${dep#"$modules"/}"; done
  done
  cp "$modules"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$KERNEL/"
  depmod -b "$root" "$KERNEL"
  echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"; echo 'root:x:0:' >"$root/etc/group"
  echo '127.0.0.1 localhost' >"$root/etc/hosts"
  install "$REPO/tests/guest/init" "$root/init"
  install "$REPO/tests/guest/agent" "$root/usr/bin/agent"
  (cd "$root" && find . -print0 | sort -z | cpio -0 -o -H newc -R 0:0 --quiet) >"$TOOLS/initramfs.tmp"
  mv "$TOOLS/initramfs.tmp" "$TOOLS/initramfs.cpio"
}
stamp=$(cat "$0" "$REPO"/tests/guest/* <(echo "$KERNEL") | sha256sum)
if [ "$(cat "$TOOLS/initramfs.stamp" 2>/dev/null)" != "$stamp" ]; then
  build_initramfs
  echo "$stamp" >"$TOOLS/initramfs.stamp"
  say "made an initramfs of $(du -m "$TOOLS/initramfs.cpio" | cut -f1) MiB"
fi

# --- cargo tools ----------------------------------------------------------------------------------------------------
if [ -n "$CARGO_TOOLS" ] && ! "$TOOLS/bin/gungraun-runner" --version 2>/dev/null | grep -q "$GUNGRAUN"; then
  say "building gungraun-runner $GUNGRAUN (about a minute)"
  cargo install -q --locked gungraun-runner --version "$GUNGRAUN" --root "$TOOLS"
fi

say "ready: $("$QEMU" --version | head -1), guest kernel $KERNEL, tools in $TOOLS"

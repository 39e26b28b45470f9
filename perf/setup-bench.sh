#!/bin/bash
# Installs the switches that `make bench` compares shunt with: Open vSwitch with DPDK, and DPDK's testpmd.
# Without root or sudo it says what is missing; the benchmark then leaves these out.
set -euo pipefail
PACKAGES="dpdk-dev openvswitch-switch-dpdk openvswitch-common"
export DEBIAN_FRONTEND=noninteractive

installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }
missing=
for package in $PACKAGES; do installed "$package" || missing+=" $package"; done
[ -n "$missing" ] || exit 0
as_root=
if [ "$(id -u)" != 0 ]; then
  sudo -n true 2>/dev/null || { echo "setup-bench: not installed, left out of the benchmark:$missing" >&2; exit 0; }
  as_root="sudo -n"
fi
# Open vSwitch's package would start its own daemons, which the benchmark neither needs nor wants beside it.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
  $as_root chmod +x $policy
  trap '$as_root rm -f $policy' EXIT
fi
echo "setup-bench: installing by apt:$missing"
$as_root apt-get -qq -o Dpkg::Use-Pty=0 update
$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing >/dev/null

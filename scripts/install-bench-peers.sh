#!/usr/bin/env bash
# Makes, in DIRECTORY/root, a Debian 13 with the BGP daemons of Debian unstable in it, which `make bench-bgp` measures
# us against: BIRD 3, GoBGP, FRR and OpenBGPD. Through this machine's own mirror, once; nothing of this machine's own
# system is changed but that debootstrap is installed. What cannot be had is said, and is no error: the benchmark
# then takes this system's version of a daemon, or says in its table that it has none. To have newer ones, remove
# DIRECTORY.
#
# usage: install-bench-peers.sh DIRECTORY
set -euo pipefail

here=$(dirname "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

SUITE=trixie
NEWER=sid
# In this order: what the first two depend on is older than what the others bring.
PACKAGES=(bird3 gobgpd frr openbgpd)
KEYS=/usr/share/keyrings/debian-archive-keyring.gpg

directory=${1:?usage: install-bench-peers.sh DIRECTORY}
mkdir -p "$directory"
# Of two that want it at once the second waits for the first.
exec 9>"$directory/lock"
flock 9
[ ! -e "$directory/root" ] || exit 0

# Goes on with this system's own versions.
without() {
  echo "note: no newer BGP daemons to compare with: $1" >&2
  missing=() wanted=()
  need vtysh frr "a second daemon to compare with"
  need gobgpd gobgpd "a third one"
  # Named, or apt would choose all of systemd where there is none.
  need systemd-sysusers systemd-standalone-sysusers "the user of the next one"
  need bgpctl openbgpd "a fourth one"
  (install_missing) || true
  exit 0
}

[ "$(id -u)" -eq 0 ] || without "a folder with another system in it takes root"
mirror=$(debian_mirror)
[ -n "$mirror" ] || without "this machine has no Debian mirror"
need debootstrap debootstrap "a newer Debian in a folder"
# That it cannot be had is no error here.
(install_missing) || true
command -v debootstrap >/dev/null || without "debootstrap is missing"

new=$directory/new
rm -rf --one-file-system "$new"
echo "making a Debian $SUITE with ${PACKAGES[*]} of $NEWER in $directory: once, some 250 MB to download"
# What is mounted goes with the namespace.
unshare --mount debootstrap --variant=minbase --keyring="$KEYS" "$SUITE" "$new" "$mirror" >"$directory/log" 2>&1 ||
  without "debootstrap failed, see $directory/log"

# inside COMMAND...: runs it in the new system.
inside() {
  # shellcheck disable=SC2016 # The inner shell's own.
  unshare --mount sh -c 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"' \
    "$new" env DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@" >>"$directory/log" 2>&1
}

# As in `install_missing`: a package must not start its daemon.
printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
chmod +x "$new/usr/sbin/policy-rc.d"
cp -L /etc/resolv.conf "$new/etc/resolv.conf"
echo "deb [signed-by=$KEYS] $mirror $NEWER main" >"$new/etc/apt/sources.list.d/newer.list"
# A mirror of a fixed day is as good.
inside apt-get -q -o Acquire::Check-Valid-Until=false update || without "$NEWER cannot be read, see $directory/log"
for package in "${PACKAGES[@]}"; do
  inside apt-get install -y -q --no-install-recommends -t "$NEWER" "$package" ||
    echo "note: no $package of Debian $NEWER, see $directory/log" >&2
done
inside apt-get clean
# Where OpenBGPD's processes lock themselves in.
mkdir -p "$new/var/empty"
mv "$new" "$directory/root"

#!/usr/bin/env bash
# Prints the directory of what the tests' virtual machine boots, on standard output alone: `vmlinuz`, Debian's
# kernel for clouds, and `initramfs`, with that kernel's network modules and the programs that a node has.
# It is made when it is missing, and kept outside of the checkout by the state of what it is made of. The
# kernel comes once from this machine's own apt sources, of whatever suite they are; a newer one comes when
# the cache is removed.
#
# With arguments it also writes OUTPUT: that initramfs, with the PROGRAMs in /cairn, and JOB, a shell script
# that scripts/vm-init.sh runs.
#
# usage: build-vm.sh [OUTPUT JOB [PROGRAM...]]
set -euo pipefail

# What nodes have and jobs may use; busybox has the rest.
NODE_PROGRAMS=(sh ip nft iptables ip6tables iptables-legacy ip6tables-legacy iptables-save
  ip6tables-save iptables-restore ip6tables-restore ipset ping)
# Files that these programs and ours read.
NODE_FILES=(/etc/protocols /etc/ssl/certs/ca-certificates.crt)
# Below the kernel's directory: everything of networks, with what that depends on.
MODULES=(net drivers/net lib crypto arch/x86/crypto)

here=$(cd "$(dirname "$0")" && pwd)
cache=${CAIRN_VM_CACHE:-${XDG_CACHE_HOME:-${HOME:?must be set, or CAIRN_VM_CACHE}/.cache}/cairn-vm}
PATH=$PATH:/usr/sbin:/sbin

say() {
  echo "$*" >&2
}

fail() {
  say "error: $*"
  exit 1
}

# The package that the one of all kernels for clouds stands for, as far as this machine's lists go.
kernel_package() {
  apt-cache depends linux-image-cloud-amd64 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}

# Downloads the kernel's package into the cache.
fetch() {
  local package work
  work=$(mktemp -d "$cache/work.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  download() {
    package=$(kernel_package)
    # As root, whose directory this is; it is a file, nothing is installed.
    [ -n "$package" ] &&
      (cd "$work" && apt-get -q -o APT::Sandbox::User=root download "$package" >&2)
  }
  if ! download; then
    say "the lists of packages are missing or old: apt-get update"
    apt-get -q update >&2 || fail "apt-get update fails; it needs root and a Debian mirror"
    download || fail "this machine's apt sources have no package linux-image-cloud-amd64"
  fi
  mv "$work"/linux-image-*.deb "$cache"
}

# place ROOT FILE: copies a file to its own place below ROOT, not to a link that leads there.
place() {
  local directory
  directory=$(realpath "$(dirname "$2")")
  install -D -p "$2" "$1$directory/$(basename "$2")"
}

# libraries PROGRAM: those that it loads; a static one needs none.
libraries() {
  ldd "$1" 2>/dev/null | grep -o '/[^ ]*' || true
}

# add ROOT PROGRAM...: copies programs, and the libraries that they load.
add() {
  local root=$1 program library
  shift
  for program in "$@"; do
    place "$root" "$program"
    for library in $(libraries "$program"); do
      place "$root" "$library"
    done
  done
}

# pack ROOT: an archive of everything in it, as the kernel unpacks it.
pack() {
  (cd "$1" && find . | busybox cpio -o -H newc 2>/dev/null)
}

# make PACKAGE DIRECTORY: the kernel and the initramfs without a job.
make() {
  local package=$1 directory=$2 root=$2/root unpacked=$2/unpacked modules version part program file
  dpkg-deb --extract "$package" "$unpacked"
  mv "$unpacked"/boot/vmlinuz-* "$directory/vmlinuz"
  modules=$(find "$unpacked" -type d -path '*/lib/modules/*' -prune)
  version=${modules##*/}
  # As Debian has it.
  for part in bin sbin lib lib64; do
    mkdir -p "$root/usr/$part"
    ln -s "usr/$part" "$root/$part"
  done
  mkdir -p "$root/lib/modules/$version"
  cp "$modules"/modules.* "$root/lib/modules/$version"
  for part in "${MODULES[@]}"; do
    (cd "$modules" && find "kernel/$part" -name '*.ko*' -exec cp --parents -t "$root/lib/modules/$version" {} +)
  done
  # Newer kernels' modules are compressed, which busybox does not look into for what they need.
  find "$root" -name '*.ko.xz' -exec busybox unxz {} +
  busybox depmod -b "$root" "$version"
  for program in "${NODE_PROGRAMS[@]}"; do
    add "$root" "$(command -v "$program")"
  done
  # Extensions that iptables loads when they are asked for.
  part=$(dirname "$(libraries "$(command -v iptables)" | grep libxtables)")/xtables
  for file in "$part"/*.so "${NODE_FILES[@]}"; do
    place "$root" "$file"
  done
  install -D "$(command -v busybox)" "$root/busybox/busybox"
  mkdir -p "$root"/{dev,proc,run,sys,tmp}
  # The kernel asks for modules that it lacks by this name.
  ln -s /busybox/busybox "$root/sbin/modprobe"
  install "$here/vm-init.sh" "$root/init"
  pack "$root" >"$directory/initramfs"
  rm -rf "$root" "$unpacked"
}

[ "$(uname -m)" = x86_64 ] || fail "the tests' virtual machine is an x86-64 one, this machine is not"
for program in qemu-system-x86_64 busybox "${NODE_PROGRAMS[@]}"; do
  command -v "$program" >/dev/null || fail "$program is missing: run 'make test-deps'"
done
busybox --list | grep -x depmod >/dev/null || fail "this busybox has no depmod: use Debian's busybox-static"

mkdir -p "$cache"
# Of two that want it at once the second waits for the first.
exec 9>"$cache/lock"
flock 9
package=$(find "$cache" -maxdepth 1 -name 'linux-image-*.deb' | sort -V | tail -n 1)
if [ -z "$package" ]; then
  say "fetching a kernel for the virtual machine into $cache: once, 30 MB"
  fetch
  package=$(find "$cache" -maxdepth 1 -name 'linux-image-*.deb')
fi
hash=$({
  cat "$here/build-vm.sh" "$here/vm-init.sh"
  basename "$package"
  for program in busybox "${NODE_PROGRAMS[@]}"; do
    sha256sum "$(command -v "$program")"
  done
} | sha256sum | cut -c 1-16)
made=$cache/$hash
if [ ! -d "$made" ]; then
  work=$(mktemp -d "$cache/work.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  make "$package" "$work"
  # Those of earlier states; another checkout may use what is newer.
  find "$cache" -mindepth 1 -maxdepth 1 -type d -mtime +7 -exec rm -rf {} +
  mv "$work" "$made"
fi

if [ $# -ge 2 ]; then
  output=$1 job=$2
  shift 2
  root=$(mktemp -d "$output.XXXXXX")
  trap 'rm -rf "$root"' EXIT
  mkdir "$root/cairn"
  for program in "$@"; do
    # Without symbols, which are most of it.
    strip -o "$root/cairn/${program##*/}" "$program"
    for library in $(libraries "$program"); do
      place "$root" "$library"
    done
  done
  install "$job" "$root/job"
  {
    cat "$made/initramfs"
    pack "$root"
  } >"$output"
fi
echo "$made"

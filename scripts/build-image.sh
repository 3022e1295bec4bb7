#!/usr/bin/env bash
# Writes container images without a registry and without Docker: an archive for `ctr images import`, made of this
# machine's own programs with the libraries that they load. The image `cairn:dev` has what the Dockerfile's has, and the
# others what the end-to-end test runs beside it.
#
# usage: build-image.sh OUTPUT PROGRAMS CAIRN CAIRN_CNI
#   OUTPUT     the archive
#   PROGRAMS   a directory with portmap, agnhost and coredns, as scripts/build-kube.sh --e2e prints one
set -euo pipefail

# What every image has, as Debian's smallest one: names of programs.
BASE=(sh cat chmod cmp cp date echo env false getent grep head hostname id ln ls mkdir mount mv rm sed seq sleep sort
  tail test timeout touch tr true umount uname wc)
# What the Dockerfile installs: agents write their packet filter by them.
CAIRN_NEEDS=(nft iptables iptables-save iptables-restore ip6tables iptables-legacy iptables-legacy-save
  iptables-legacy-restore ip6tables-legacy ip6tables-legacy-save ip6tables-legacy-restore)
# What cases of the end-to-end tests call in the image agnhost.
AGNHOST_NEEDS=(bash curl dig nc ping)

PATH=$PATH:/usr/sbin:/sbin

fail() {
  echo "error: $*" >&2
  exit 1
}

# place ROOT FILE: copies a file to its own place below ROOT, through links of directories.
place() {
  local directory
  directory=$(realpath "$(dirname "$2")")
  install -D -p "$2" "$1$directory/$(basename "$2")"
}

# add ROOT PROGRAM...: copies programs by name, and the libraries that they load.
add() {
  local root=$1 name path library
  shift
  for name in "$@"; do
    path=$(type -P "$name") || fail "$name is missing: run 'make e2e-deps'"
    place "$root" "$path"
    for library in $(ldd "$path" 2>/dev/null | grep -o '/[^ ]*' || true); do
      place "$root" "$library"
    done
  done
}

# skeleton ROOT: the directories of Debian's layout, and the files without which names mean nothing.
skeleton() {
  local part library
  for part in bin sbin lib lib64; do
    mkdir -p "$1/usr/$part"
    ln -s "usr/$part" "$1/$part"
  done
  mkdir -p "$1"/{etc,proc,sys,dev,run,root,var} "$1/usr/local/bin"
  mkdir "$1/tmp"
  chmod 1777 "$1/tmp"
  echo root:x:0:0:root:/root:/bin/sh >"$1/etc/passwd"
  echo root:x:0: >"$1/etc/group"
  echo 'hosts: files dns' >"$1/etc/nsswitch.conf"
  # Loaded by name, at run time.
  for library in /lib/x86_64-linux-gnu/libnss_{dns,files}.so.2 /lib/x86_64-linux-gnu/libresolv.so.2; do
    [ ! -e "$library" ] || place "$1" "$library"
  done
}

# layer NAME: packs $work/NAME; the file is named by what is in it.
layer() {
  local hash
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$work/$1" -cf "$work/$1.tar" .
  hash=$(sha256sum "$work/$1.tar" | cut -d ' ' -f 1)
  mv "$work/$1.tar" "$work/archive/$hash.tar"
  layers[$1]=$hash
}

# image TAGS ENTRYPOINT ARGUMENTS LAYER...: adds an image to the archive; its entry point and the arguments that this has
# by default are JSON lists.
image() {
  local tags=$1 entrypoint=$2 arguments=$3 config ids='' files='' name
  shift 3
  for name in "$@"; do
    ids+=${ids:+,}'"sha256:'${layers[$name]}'"'
    files+=${files:+,}'"'${layers[$name]}'.tar"'
  done
  config='{"architecture":"amd64","os":"linux","config":{"Entrypoint":'$entrypoint',"Cmd":'$arguments',"WorkingDir":"/","Env":['
  config+='"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},"rootfs":{"type":"layers",'
  config+='"diff_ids":['$ids']}}'
  name=$(sha256sum <<<"$config" | cut -d ' ' -f 1).json
  echo "$config" >"$work/archive/$name"
  manifest+=${manifest:+,}'{"Config":"'$name'","RepoTags":['$tags'],"Layers":['$files']}'
}

[ $# -eq 4 ] || fail "usage: build-image.sh OUTPUT PROGRAMS CAIRN CAIRN_CNI"
[ "$(uname -m)" = x86_64 ] || fail "images are made for x86-64, this machine is another one"
output=$1 programs=$2 cairn=$3 plugin=$4
work=$(mktemp -d "$output.XXXXXX")
trap 'rm -rf "$work"' EXIT
declare -A layers
manifest=
mkdir -p "$work"/{archive,base,cairn,agnhost,coredns}

skeleton "$work/base"
add "$work/base" "${BASE[@]}"
layer base

# Directories of Debian's layout are links in the layer below, so only what is under /usr may be in those above.
add "$work/cairn" "${CAIRN_NEEDS[@]}"
extensions=$(ldd "$(type -P iptables)" | grep -o '/[^ ]*libxtables[^ ]*')
for file in "$(dirname "$extensions")"/xtables/*.so /etc/protocols; do
  place "$work/cairn" "$file"
done
mkdir -p "$work/cairn/usr/local/bin"
for file in "$cairn" "$plugin" "$programs/portmap"; do
  # Without symbols, which are most of it.
  strip -o "$work/cairn/usr/local/bin/$(basename "$file")" "$file"
done
for library in $(ldd "$cairn" | grep -o '/[^ ]*'); do
  place "$work/cairn" "$library"
done
layer cairn

add "$work/agnhost" "${AGNHOST_NEEDS[@]}"
install "$programs/agnhost" "$work/agnhost/usr/bin/agnhost"
ln -s usr/bin/agnhost "$work/agnhost/agnhost"
layer agnhost

install -D "$programs/coredns" "$work/coredns/usr/bin/coredns"
layer coredns

registry=registry.k8s.io
image '"docker.io/library/cairn:dev"' '["/usr/local/bin/cairn"]' '[]' base cairn
# A sandbox only has to be there.
image "\"$registry/pause:3.6\"" '["/usr/bin/sleep"]' '["infinity"]' base
# The second name is that of an image with a C library that resolves names itself, as Debian's does.
tests=$registry/e2e-test-images
image "\"$tests/agnhost:2.63.0\",\"$tests/glibc-dns-testing:2.0.0\"" '["/agnhost"]' '["pause"]' base agnhost
image "\"$registry/coredns:dev\"" '["/usr/bin/coredns"]' '[]' coredns
echo "[$manifest]" >"$work/archive/manifest.json"
tar -C "$work/archive" -cf "$work/images.tar" .
mv "$work/images.tar" "$output"

#!/usr/bin/env bash
# Installs kubectl into DIRECTORY/bin if this machine has none or one that is too old for servers of
# today: Debian 12's own, 1.20, asks for schemas in a form that the lab's API server does not have.
# Takes it from the package of a newer Debian, through this machine's own mirror, and unpacks that
# without installing it: one program, nothing of the system is upgraded.
#
# usage: install-kubectl.sh DIRECTORY
set -euo pipefail

here=$(dirname "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

# The first that reads OpenAPI version 3 by default is 1.27; selectable fields came in 1.30.
MINOR_MIN=30
SUITE=trixie

directory=${1:?usage: install-kubectl.sh DIRECTORY}
PATH="$directory/bin:$PATH"

# The minor version of the kubectl that a caller of this script's PATH would run, 0 for none.
minor() {
  local minor
  minor=$(kubectl version --client -o json 2>/dev/null |
    sed -n 's/.*"minor": "\([0-9]*\).*/\1/p' | head -n 1) || true
  echo "${minor:-0}"
}

found=$(minor)
if [ "$found" -ge "$MINOR_MIN" ]; then
  exit
fi
had=none
[ "$found" -eq 0 ] || had=1.$found
echo "missing: kubectl 1.$MINOR_MIN or newer (found: ${had}):" \
  "unpacking Debian $SUITE's kubectl into $directory/bin"

mirror=$(debian_mirror)
if [ -z "$mirror" ]; then
  echo "error: this machine has no Debian mirror; put kubectl 1.$MINOR_MIN or newer into your PATH" >&2
  exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Readable by the user as whom apt downloads.
chmod 0755 "$work"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] $mirror $SUITE main" >"$work/sources.list"
apt=(-q -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
  -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root
  -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
apt-get "${apt[@]}" update
(cd "$work" && apt-get "${apt[@]}" download "kubectl/$SUITE")
dpkg-deb --extract "$work"/kubectl_*.deb "$work/unpacked"
mkdir -p "$directory/bin"
install -m 0755 "$work/unpacked/usr/bin/kubectl" "$directory/bin/kubectl"

found=$(minor)
if [ "$found" -lt "$MINOR_MIN" ]; then
  echo "error: kubectl is 1.$found after installing it, expected 1.$MINOR_MIN or newer" >&2
  exit 1
fi

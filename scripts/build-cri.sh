#!/usr/bin/env bash
# Prints the path of the program of tests/cri, by which tests call a container runtime and network plugins, alone on
# standard output. It is built when it is missing and kept outside of the checkout, by the state of its source and
# the version of Go.
#
# usage: build-cri.sh
set -euo pipefail

source=$(cd "$(dirname "$0")/../tests/cri" && pwd)
cache=${CAIRN_CRI_CACHE:-${XDG_CACHE_HOME:-${HOME:?must be set, or CAIRN_CRI_CACHE}/.cache}/cairn-cri}

cd "$source"
if ! go=$(go env GOVERSION 2>/dev/null); then
  echo "error: the tests build tests/cri with Go 1.26 or newer: install it (https://go.dev/dl/)" >&2
  exit 1
fi
hash=$({
  cat go.mod go.sum ./*.go
  echo "$go"
} | sha256sum | cut -c 1-16)
built=$cache/cri-$hash
mkdir -p "$cache"
# Of two that want it at once the second waits for the first.
exec 9>"$cache/lock"
flock 9
if ! [ -x "$built" ]; then
  echo "building tests/cri into $built: once, about a minute on 2 cores" >&2
  nice -n 10 go build -mod=readonly -trimpath -ldflags "-s -w" -o "$built.new" . >&2
  mv "$built.new" "$built"
  echo "built in $SECONDS s" >&2
fi
echo "$built"

#!/usr/bin/env bash
# Prints the directory of kube-apiserver, etcd, etcdutl and kube-proxy that the tests start, alone on standard output:
# KUBEBUILDER_ASSETS when that holds them, else the build of tests/kube, which is made when it is
# missing and kept outside of the checkout, by the state of its source and the version of Go.
#
# usage: build-kube.sh
set -euo pipefail

GO_MINOR_MIN=26
COMPONENTS=(etcd etcdutl kube-apiserver kube-proxy)

source=$(cd "$(dirname "$0")/../tests/kube" && pwd)
cache=${CAIRN_KUBE_CACHE:-${XDG_CACHE_HOME:-${HOME:?must be set, or CAIRN_KUBE_CACHE}/.cache}/cairn-kube}

say() {
  echo "$*" >&2
}

# Whether a directory holds every component.
whole() {
  local component
  for component in "${COMPONENTS[@]}"; do
    [ -x "$1/$component" ] || return 1
  done
}

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
  if whole "$KUBEBUILDER_ASSETS"; then
    echo "$KUBEBUILDER_ASSETS"
    exit
  fi
  say "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS lacks one of ${COMPONENTS[*]}: not used"
fi

cd "$source"
# A Go that is older but knows toolchains fetches the one that go.mod asks for by itself.
go=$(go env GOVERSION 2>/dev/null) || go=none
minor=$(sed -n 's/^go1\.\([0-9]*\).*/\1/p' <<<"$go")
if [ "${minor:-0}" -lt "$GO_MINOR_MIN" ]; then
  say "error: the tests build kube-apiserver with Go 1.$GO_MINOR_MIN or newer, found: $go;" \
    "install it (https://go.dev/dl/) or let KUBEBUILDER_ASSETS name a directory with" \
    "${COMPONENTS[*]}"
  exit 1
fi

hash=$({
  cat go.mod go.sum main.go
  echo "$go"
} | sha256sum | cut -c 1-16)
built=$cache/$hash
if whole "$built"; then
  echo "$built"
  exit
fi

mkdir -p "$cache"
# Of two that want it at once the second waits for the first.
exec 9>"$cache/lock"
flock 9
if ! whole "$built"; then
  version=$(sed -n 's|^[[:space:]]*k8s.io/kubernetes \(v[0-9.]*\).*|\1|p' go.mod)
  say "building etcd, kube-apiserver and kube-proxy $version into $built: once, about 8 minutes on 2 cores"
  work=$(mktemp -d "$cache/work.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  kubernetes=k8s.io/component-base/version
  IFS=. read -r major minor _ <<<"${version#v}"
  flags="-s -w -X $kubernetes.gitVersion=$version"
  flags+=" -X $kubernetes.gitMajor=$major -X $kubernetes.gitMinor=$minor"
  nice -n 10 go build -mod=readonly -trimpath -ldflags "$flags" -o "$work/bin/kube" . >&2
  for component in "${COMPONENTS[@]}"; do
    ln -s kube "$work/bin/$component"
  done
  rm -rf "$built"
  mv "$work/bin" "$built"
  say "built in $SECONDS s"
fi
echo "$built"

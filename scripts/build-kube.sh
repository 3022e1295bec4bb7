#!/usr/bin/env bash
# Prints the directory of what the tests start of Kubernetes, alone on standard output:
# KUBEBUILDER_ASSETS when that holds it, else the build of tests/kube, which is made when it is
# missing and kept outside of the checkout, by the state of its source and the version of Go.
# With --e2e also what the end-to-end test runs beside it: CNI's plugins loopback and portmap, CoreDNS,
# agnhost, and Kubernetes' own end-to-end test as e2e.test.
#
# usage: build-kube.sh [--e2e]
set -euo pipefail

GO_MINOR_MIN=26
# Names of one program, which picks its part by the name.
KUBE=(etcd etcdutl kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubelet)
COMPONENTS=(etcd etcdutl kube-apiserver kube-proxy)
if [ "${1:-}" = --e2e ]; then
  COMPONENTS=("${KUBE[@]}" loopback portmap agnhost coredns e2e.test)
fi

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
  cat go.mod go.sum main.go coredns/main.go e2e/e2e_test.go
  echo "$go"
} | sha256sum | cut -c 1-16)
built=$cache/$hash
if whole "$built"; then
  echo "$built"
  exit
fi

version=$(sed -n 's|^[[:space:]]*k8s.io/kubernetes \(v[0-9.]*\).*|\1|p' go.mod)
IFS=. read -r major minor _ <<<"${version#v}"
about=k8s.io/component-base/version
flags=(-mod=readonly -trimpath -ldflags
  "-s -w -X $about.gitVersion=$version -X $about.gitMajor=$major -X $about.gitMinor=$minor")
# One setting for all, so that they share what is compiled; static, as images want it.
export CGO_ENABLED=0

# compile NAME COMMAND...: builds a program into its place by a command of go.
compile() {
  local name=$1 began=$SECONDS
  shift
  [ ! -x "$built/$name" ] || return 0
  nice -n 10 go "$@" >&2
  mv "$work/$name" "$built/$name"
  say "$name: built in $((SECONDS - began)) s"
}

mkdir -p "$cache"
# Of two that want it at once the second waits for the first.
exec 9>"$cache/lock"
flock 9
if ! whole "$built"; then
  say "building Kubernetes $version for the tests into $built: once, about 9 minutes on 2 cores," \
    "and 4 more for the end-to-end test"
  work=$(mktemp -d "$cache/work.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  mkdir -p "$built"
  compile kube build "${flags[@]}" -o "$work/kube" .
  for component in "${KUBE[@]}"; do
    ln -sfn kube "$built/$component"
  done
  if [ "${1:-}" = --e2e ]; then
    plugins=github.com/containernetworking/plugins/plugins
    compile loopback build "${flags[@]}" -o "$work/loopback" "$plugins/main/loopback"
    compile portmap build "${flags[@]}" -o "$work/portmap" "$plugins/meta/portmap"
    compile agnhost build "${flags[@]}" -o "$work/agnhost" k8s.io/kubernetes/test/images/agnhost
    compile coredns build "${flags[@]}" -o "$work/coredns" ./coredns
    compile e2e.test test -c -vet=off "${flags[@]}" -o "$work/e2e.test" ./e2e
  fi
fi
echo "$built"

#!/usr/bin/env bash
# Installs, from Debian's packages, the programs that the end-to-end test starts, or puts into its images,
# and that this machine lacks. Says what it installs and for what. Needs root only when something is missing.
#
# usage: install-e2e-deps.sh DIRECTORY, for what is only unpacked
set -euo pipefail

here=$(dirname "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

directory=${1:?usage: install-e2e-deps.sh DIRECTORY}

# command, Debian package, what the test does with it
need cc gcc "linking, and building one dependency's C code"
need ip iproute2 "making the network of the cluster"
need nft nftables "the packet filter that an agent writes, in its image"
need iptables iptables "the same where other programs use it"
need openssl openssl "the key of the API server"
need containerd containerd "the container runtime of each node"
need runc runc "what starts its containers"
need ping iputils-ping "pods that reach each other"
need curl curl "pods that ask each other"
need dig bind9-dnsutils "pods that ask the cluster's DNS"
need nc netcat-openbsd "cases of Kubernetes' own test"
install_missing
"$here/install-kubectl.sh" "$directory"

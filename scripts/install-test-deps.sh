#!/usr/bin/env bash
# Installs, from Debian's packages, the programs that the tests start and that this machine lacks.
# Says what it installs and for what. Needs root only when something is missing.
#
# usage: install-test-deps.sh DIRECTORY, for what is only unpacked
set -euo pipefail

here=$(dirname "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

directory=${1:?usage: install-test-deps.sh DIRECTORY}

# command, Debian package, what the tests do with it
need cc gcc "linking, and building one dependency's C code"
need ip iproute2 "looking at namespaces, links and routes beside our own code"
need nft nftables "the packet filter that an agent writes"
need iptables-legacy iptables "a FORWARD chain that drops, of either kind of iptables"
need ping iputils-ping "pods and nodes reaching each other"
need nft nftables "looking at what our own code filters and translates"
need iptables iptables "the rules of other programs beside ours"
need ipset ipset "the sets that kube-proxy makes in its mode ipvs"
need qemu-system-x86_64 qemu-system-x86 "the lab on a kernel with everything, in a virtual machine"
need busybox busybox-static "the rest of that machine"
need bird bird2 "BGP with another implementation"
need birdc bird2 "asking that implementation what it learned"
need vtysh frr "BGP with a second implementation"
need gobgp gobgpd "BGP with a third one"
need exabgp exabgp "BGP with a fourth one"
# Named, or apt would choose all of systemd where there is none.
need systemd-sysusers systemd-standalone-sysusers "the user of the next one"
need bgpctl openbgpd "BGP with a fifth one"
need openssl openssl "the key of a real API server"
need containerd containerd "pods of a real runtime"
need runc runc "what that starts"
need tc iproute2 "looking at limits of bandwidth"
# Named by one of its programs, which are in nobody's PATH.
need /usr/lib/cni/portmap containernetworking-plugins "plugins behind ours and beside it"
install_missing
# What calls a runtime and plugins.
"$here/build-cri.sh"
# The embedded API server with a client that is not ours.
"$here/install-kubectl.sh" "$directory"

#!/usr/bin/env bash
# Installs, from Debian's packages, what `make bench-bgp`, `make bench-cni` and `make bench-kernel` measure us against and
# this machine lacks. Says what it installs and for what. Needs root only when something is missing.
set -euo pipefail

here=$(dirname "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

need ip iproute2 "namespaces and addresses, and a writer of routes to compare with"
need bird bird2 "the daemon to compare with"
need vtysh frr "a second daemon to compare the way into the kernel with"
need /usr/lib/cni/ptp containernetworking-plugins "CNI plugins to compare with"
install_missing

#!/usr/bin/env bash
# Installs, from Debian's packages, what `make bench-bgp` measures our speaker against and this
# machine lacks. Says what it installs and for what. Needs root only when something is missing.
set -euo pipefail

here=$(dirname "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

need ip iproute2 "the addresses of the peers in each daemon's namespace"
need bird bird2 "the BGP daemon to compare with"
install_missing

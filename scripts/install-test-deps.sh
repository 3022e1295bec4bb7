#!/usr/bin/env bash
# Installs, from Debian's packages, the programs that the tests start and that this machine lacks.
# Says what it installs and for what. Needs root only when something is missing.
set -euo pipefail

# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# command, Debian package, what the tests do with it
need cc gcc "linking, and building one dependency's C code"
need ip iproute2 "looking at namespaces, links and routes beside our own code"
need ping iputils-ping "pods and nodes reaching each other"
need bird bird2 "BGP with another implementation"
need birdc bird2 "asking that implementation what it learned"
need kubectl kubernetes-client "the embedded API server with a client that is not ours"
install_missing

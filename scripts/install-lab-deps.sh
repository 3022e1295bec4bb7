#!/usr/bin/env bash
# Installs, from Debian's packages, what the agents of `make lab` start and this machine lacks. Says
# what it installs and for what. The lab runs without it as well, as a node would: its agents then
# report what is missing.
set -euo pipefail

here=$(dirname "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

need nft nftables "masquerading, and the checks of pods' sources and of tunnel packets"
# In a shell of its own, as it exits when it fails; a machine without network fails here.
(install_missing) || echo "not installed: the lab's agents will report what they miss"

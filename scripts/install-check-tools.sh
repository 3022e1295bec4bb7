#!/usr/bin/env bash
# Installs what `make check` needs into DIRECTORY/bin, each in one pinned version, and what Debian
# has from its packages. Does nothing when all is there. About two minutes the first time.
#
# usage: install-check-tools.sh DIRECTORY
set -euo pipefail

here=$(dirname "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

DENY=0.20.2
TYPOS=1.52.0

directory=${1:?usage: install-check-tools.sh DIRECTORY}
mkdir -p "$directory/bin"

# version COMMAND: the last word of what DIRECTORY/bin/COMMAND says about its version, or nothing.
version() {
  "$directory/bin/$1" --version 2>/dev/null | awk 'NR == 1 {print $NF}' || true
}

need cc gcc "linking"
need shellcheck shellcheck "checking scripts"
need valgrind valgrind "counting instructions"
if [ "$(version typos)" != "$TYPOS" ]; then
  need pip3 python3-pip "installing typos"
fi
install_missing
"$here/install-kubectl.sh" "$directory"

if [ "$(version typos)" != "$TYPOS" ]; then
  echo "installing typos $TYPOS into $directory"
  wheel=$(mktemp -d)
  trap 'rm -rf "$wheel"' EXIT
  # Only the files whose digests stand in the list, nothing that would have to be built.
  pip3 install --quiet --no-deps --only-binary :all: --require-hashes \
    --disable-pip-version-check --root-user-action ignore \
    --target "$wheel" --requirement "$here/check-tools.txt"
  install -m 0755 "$wheel/bin/typos" "$directory/bin/typos"
fi

if [ "$(version cargo-deny)" != "$DENY" ]; then
  echo "installing cargo-deny $DENY into $directory (compiles for about two minutes)"
  # Unoptimised: it runs for two seconds. The features left out serve to fetch advisories.
  CARGO_TARGET_DIR="$directory/build" \
    cargo install --locked --debug --no-default-features --root "$directory" "cargo-deny@$DENY"
  rm -rf "$directory/build"
fi

for tool in typos:"$TYPOS" cargo-deny:"$DENY"; do
  if [ "$(version "${tool%%:*}")" != "${tool##*:}" ]; then
    echo "error: $directory/bin/${tool%%:*} is not version ${tool##*:}" >&2
    exit 1
  fi
done

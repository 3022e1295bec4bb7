# shellcheck shell=bash
# Installing Debian packages for commands that are missing, and where this machine has them from. Sourced.

missing=()
# The commands for whose sake, in the same order.
wanted=()

# need COMMAND PACKAGE PURPOSE: remembers PACKAGE when COMMAND is not there.
need() {
  if ! command -v "$1" >/dev/null; then
    echo "missing: $1, for $3: installing Debian package $2"
    missing+=("$2")
    wanted+=("$1")
  fi
}

# Installs what `need` remembered.
install_missing() {
  if [ ${#missing[@]} -eq 0 ]; then
    return
  fi
  if ! command -v apt-get >/dev/null; then
    echo "error: this is no Debian-like system; install the commands named above yourself" >&2
    exit 1
  fi
  if [ "$(id -u)" -ne 0 ]; then
    echo "error: installing packages needs root: run 'apt-get install ${missing[*]}'" >&2
    exit 1
  fi
  # A package such as bird2 starts its daemon when it is installed. The tests start their own in
  # namespaces; one on the host would only take the BGP port.
  local policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  local index
  for index in "${!missing[@]}"; do
    if ! apt-cache show "${missing[index]}" >/dev/null 2>&1; then
      echo "error: this system's packages have no ${missing[index]}: install the command" \
        "${wanted[index]} in another way, or use Debian 12" >&2
      exit 1
    fi
  done
  apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# Prints the URI of this machine's own Debian mirror; nothing when it has none.
debian_mirror() {
  if command -v apt-get >/dev/null; then
    # shellcheck disable=SC2016 # It is apt that fills this in.
    apt-get indextargets --format '$(REPO_URI)' \
      'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 'Component: main' | head -n 1
  fi
}

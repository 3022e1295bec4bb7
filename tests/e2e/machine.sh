#!/usr/bin/env bash
# Runs a command as on a machine of its own: processes, mounts, network, host name and cgroups that nobody else sees.
# Everything in it ends with the command, and with whoever started this, by the kernel's doing; only the directories
# of its cgroups remain, which the caller made and removes: /sys/fs/cgroup/NAME, or with version 1 one below each
# hierarchy.
#
# usage: machine.sh NAME COMMAND...
set -euo pipefail

root=/sys/fs/cgroup

# hierarchies: those of version 1, or the one of version 2.
hierarchies() {
  if [ -e "$root/cgroup.controllers" ]; then
    echo "$root"
  else
    find "$root" -mindepth 1 -maxdepth 1 -type d
  fi
}

# Mounts each hierarchy anew, which shows its own part of it only.
mount_cgroups() {
  local path name
  for path in $(hierarchies); do
    name=$(basename "$path")
    umount "$path"
    if [ "$path" = "$root" ]; then
      mount -t cgroup2 cgroup2 "$path"
      # Controllers go only to cgroups below one that has no processes itself.
      mkdir "$path/processes"
      echo $$ >"$path/processes/cgroup.procs"
      sed 's/[^ ]*/+&/g' "$path/cgroup.controllers" >"$path/cgroup.subtree_control"
    elif [ "$name" = unified ]; then
      mount -t cgroup2 cgroup2 "$path"
    elif [ "$name" = systemd ]; then
      mount -t cgroup -o none,name=systemd cgroup "$path"
    else
      mount -t cgroup -o "$name" cgroup "$path"
    fi
  done
}

if [ "${1:-}" = --inside ]; then
  shift
  mount_cgroups
  mount -t tmpfs tmpfs /run
  hostname machine
  ip link set lo up
  # Not by exec: this is the process that takes up orphans.
  "$@"
  exit
fi

name=$1
shift
for path in $(hierarchies); do
  if [ -e "$path/$name/cpuset.cpus" ] && [ ! -s "$path/$name/cpuset.mems" ]; then
    for file in cpuset.cpus cpuset.mems; do
      [ -e "$path/$file" ] && cat "$path/$file" >"$path/$name/$file"
    done
  fi
  echo $$ >"$path/$name/cgroup.procs"
done
exec unshare --mount --net --pid --ipc --uts --cgroup --fork --kill-child=SIGKILL --mount-proc \
  "$0" --inside "$@"

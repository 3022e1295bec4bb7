#!/bin/sh
# The first process of the tests' virtual machine, which scripts/build-vm.sh makes: runs the job and switches
# the machine off. What the job prints goes to the second serial line, followed by a zero octet and its exit
# code; errors go to the console, which is the first.

# The programs of a node before those of busybox, which can less.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/cairn:/busybox
/busybox/busybox --install -s /busybox
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
ip link set lo up
# Octets pass as they are, line ends too.
stty -F /dev/ttyS1 raw
cd /tmp || exit
/job </dev/null >/dev/ttyS1
printf '\0%d\n' $? >/dev/ttyS1
poweroff -f

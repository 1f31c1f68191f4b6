#!/bin/sh
# Runs a script of these with the programs of apps-tree.sh: enter-tree.sh SCRIPT [ARGUMENT]...
# It finds the scripts in /scripts and the share's mount point at /mnt, with nothing mounted there.
# $tree is where those programs are: a directory of User-mode Linux's host, or the tag under which QEMU
# itself serves them.
tree=${tree:?}
mkdir /tree
case $tree in
/*) mount -r -t hostfs -o "$tree" none /tree ;;
*) mount -r -t 9p -o version=9p2000.L,trans=virtio,msize=512000,cache=loose "$tree" /tree ;;
esac || exit 1
for directory in dev proc sys; do
    mount --bind /$directory /tree/$directory || exit 1
done
mount -t tmpfs tmp /tree/tmp
mount -t tmpfs scripts /tree/scripts
cp /*.sh /*.py /mapped.c /git.config /tree/scripts/
script=$1
shift
exec chroot /tree /usr/bin/env PATH=/usr/bin HOME=/tmp /bin/sh "/scripts/$script" "$@"

# shellcheck shell=bash
# Runs a program of the prepared guest on the host, which may have other libraries:
#   "${loader[@]}" "$root/usr/bin/fio" ARGUMENT...
# To be sourced; wants $root, where the packages are unpacked.

libraries=${root:?}/usr/lib/x86_64-linux-gnu
# shellcheck disable=SC2034 # for those who source this
loader=("$libraries/ld-linux-x86-64.so.2" --library-path "$libraries:$libraries/ceph")

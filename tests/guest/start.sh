#!/usr/bin/env bash
# Becomes a guest, its console on stdin and stdout: start.sh qemu|uml SOCKET JOB
#   SOCKET   the daemon's. For comparison BACKEND=qemu takes QEMU's own 9p server instead, and
#            BACKEND=hostfs User-mode Linux's hostfs; then SOCKET is the shared directory
#   JOB      see init
# GUEST is what prepare.sh prepared, GUEST_ACCEL QEMU's accelerator, RUN a directory to write to.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
front_end=$1 socket=$2 job=$3
libraries=$GUEST/root/usr/lib/x86_64-linux-gnu
tag=host
memory=512M

owners=no
[ "$(id -u)" != 0 ] || owners=yes
share=$tag
[ "${BACKEND:-}" != hostfs ] || share=$socket
arguments="quiet panic=-1 job=$job share=$share owners=$owners"

# The scripts go into a second archive behind the prepared one.
initramfs=$RUN/initramfs.cpio
cp "$GUEST/initramfs.cpio" "$initramfs"
(cd "$here" && printf '%s\n' init mount.sh tree.sh checks.sh tour.sh |
    "$GUEST/root/usr/bin/busybox" cpio -o -H newc -R 0:0 2>/dev/null) >>"$initramfs"

run_qemu() {
    local device accelerator=${GUEST_ACCEL:-tcg} cpu=max
    [ "$accelerator" != tcg ] || {
        accelerator=tcg,thread=multi
        cpu=max,-erms,-fsrm # larger pieces for the translator: copies twice as fast
    }
    case ${BACKEND:-} in
    qemu)
        device=(-fsdev "local,id=share,path=$socket,multidevs=remap,security_model=$([ $owners = yes ] && echo passthrough || echo none)"
            -device "virtio-9p-pci,fsdev=share,mount_tag=$tag")
        ;;
    *)
        device=(-chardev "socket,id=share,path=$socket"
            -device "vhost-user-test-device-pci,chardev=share,virtio-id=9,num_vqs=1,vq_size=128,config_size=$((2 + ${#tag}))")
        ;;
    esac
    QEMU_MODULE_DIR=$libraries/qemu exec "$libraries/ld-linux-x86-64.so.2" \
        --library-path "$libraries" "$GUEST/root/usr/bin/qemu-system-x86_64" \
        -L "$GUEST/root/usr/share/qemu" -L "$GUEST/root/usr/share/seabios" \
        -machine q35 -accel "$accelerator" -cpu "$cpu" -smp 2 -m "$memory" \
        -object "memory-backend-memfd,id=memory,size=$memory,share=on" -numa node,memdev=memory \
        -nodefaults -no-user-config -display none -no-reboot -serial "${SERIAL:-stdio}" \
        -kernel "$GUEST/vmlinuz" -initrd "$initramfs" -append "console=ttyS0 $arguments" "${device[@]}"
}

run_uml() {
    local device=(virtio_uml.device="$socket:9") memory_files=$RUN
    [ "${BACKEND:-}" != hostfs ] || device=()
    # Where there is room for the guest's memory and it may be executed.
    if [ "$(df -m --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 700 ] &&
        ! findmnt -n -o OPTIONS /dev/shm | grep -q noexec; then
        memory_files=/dev/shm
    fi
    TMPDIR=$memory_files exec "$(bash "$here/uml-kernel.sh")" "mem=$memory" "initrd=$initramfs" \
        con=null con0=null,fd:1 seccomp=on "${device[@]}" $arguments
}

"run_$front_end"

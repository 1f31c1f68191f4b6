#!/usr/bin/env bash
# Becomes a guest, its console on stdin and stdout: start.sh qemu|uml JOB OWNERS SHARED INITRAMFS
#   JOB, OWNERS   see init
#   SHARED        the daemon's socket. For comparison BACKEND=qemu takes QEMU's own 9p server instead,
#                 and BACKEND=hostfs User-mode Linux's hostfs; then it is the shared directory. With
#                 BACKEND=virtiofsd it is that one's socket, for User-mode Linux. For the job models a
#                 directory in which each mapped model has a socket, MODEL.socket, and a shared
#                 directory, MODEL, that QEMU's own server gets as well
#   INITRAMFS     a file to write: the prepared one with today's scripts
# GUEST is what prepare.sh has made, UML_KERNEL what uml-kernel.sh printed; GUEST_ACCEL is QEMU's
# accelerator, tcg if not given; NOTE is the file that the tour writes; OPERATIONS and TESTS are for
# posix.sh, MODES and OBJECTS for apps.sh, MODES, ROUNDS and WATCH for sqlite-rounds.sh, MODES
# and KILLS for survive.sh. SECOND is the socket
# of a second server, for User-mode Linux.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
front_end=$1 job=$2 owners=$3 shared=$4 initramfs=$5
tag=host
memory=512M
share=$tag
tree=$GUEST/apps/tree # if it has been prepared
[ "${BACKEND:-}" != hostfs ] || share=$shared
[ "${BACKEND:-}" != virtiofsd ] || share=virtiofs:$tag
arguments=(quiet panic=-1 "job=$job" "share=$share" "owners=$owners" "note=${NOTE:-}" "operations=${OPERATIONS:-}" "tests=${TESTS:-}"
    "modes=${MODES:-}" "objects=${OBJECTS:-}" "rounds=${ROUNDS:-}" "watch=${WATCH:-}" "kills=${KILLS:-}")

if [ "$job" = rootfs ]; then
    memory=1G
    arguments+=(systemd.show_status=no)
fi

# The kernel unpacks archives one after the other: the scripts go behind what was prepared.
{
    cat "$GUEST/initramfs.cpio"
    cd "$here"
    printf '%s\n' init mount.sh tree.sh check.sh checks.sh posix.sh posix-config.sh posix-cases.sh \
        posix-cases.py models.sh tour.sh enter-tree.sh apps.sh bench.sh sqlite.sh sqlite-rounds.sh survive.sh survive.py project.sh mapped.c git.config |
        "$GUEST/root/usr/bin/busybox" cpio -o -H newc -R 0:0 2>/dev/null
    if [ "$job" = checks ]; then
        built=$(dirname "$initramfs")
        mkdir -p "$built/bin"
        cc -O1 -static -o "$built/bin/untouched" untouched.c # the guest has no C library of this machine
        cd "$built"
        echo bin/untouched | "$GUEST/root/usr/bin/busybox" cpio -o -H newc -R 0:0 2>/dev/null
    fi
    if [ "$job" = posix ]; then
        cd "$GUEST/posix"
        find bin -type f | "$GUEST/root/usr/bin/busybox" cpio -o -H newc -R 0:0 2>/dev/null
    fi
} >"$initramfs"

# own_server PATH MODEL TAG: QEMU's server, added to device
own_server() {
    device+=(-fsdev "local,id=$3,path=$1,multidevs=remap,security_model=$2"
        -device "virtio-9p-pci,fsdev=$3,mount_tag=$3")
}

# daemon SOCKET TAG: added to device
daemon() {
    device+=(-chardev "socket,id=$2,path=$1"
        -device "vhost-user-test-device-pci,chardev=$2,virtio-id=9,num_vqs=1,vq_size=128,config_size=$((2 + ${#2}))")
}

become_qemu() {
    local device accelerator=${GUEST_ACCEL:-tcg} cpu=max serial=stdio
    if [ "$accelerator" = tcg ]; then
        accelerator=tcg,thread=multi
        cpu=max,-erms,-fsrm # without them the guest copies up to twice as fast
    fi
    [ "$job" != shell ] || serial=mon:stdio # ^C goes to the guest
    device=()
    if [ "$job" = models ]; then
        for model in mapped-xattr mapped-file; do
            daemon "$shared/$model.socket" "ours-$model"
            own_server "$shared/$model" "$model" "theirs-$model"
        done
    elif [ "${BACKEND:-}" = qemu ]; then
        local security=none
        [ "$owners" != yes ] || security=passthrough
        own_server "$shared" "$security" "$tag"
    else
        daemon "$shared" "$tag"
    fi
    local root=$GUEST/root
    # shellcheck source=tests/guest/loader.sh
    . "$here/loader.sh"
    if [ -d "$tree" ]; then
        # shellcheck disable=SC2054 # QEMU's commas
        device+=(-fsdev "local,id=tree,path=$tree,security_model=none,readonly=on"
            -device virtio-9p-pci,fsdev=tree,mount_tag=tree)
        arguments+=(tree=tree)
    fi
    exec "${loader[@]}" "$root/usr/bin/qemu-system-x86_64" \
        -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" \
        -machine q35 -accel "$accelerator" -cpu "$cpu" -smp 2 -m "$memory" \
        -object "memory-backend-memfd,id=memory,size=$memory,share=on" -numa node,memdev=memory \
        -nodefaults -no-user-config -display none -no-reboot -serial "$serial" \
        -kernel "$GUEST/vmlinuz" -initrd "$initramfs" -append "console=ttyS0 ${arguments[*]}" "${device[@]}"
}

become_uml() {
    local device=(virtio_uml.device="$shared:9") memory_files
    [ "${BACKEND:-}" != virtiofsd ] || device=(virtio_uml.device="$shared:26")
    [ "${BACKEND:-}" != hostfs ] || device=()
    [ -z "${SECOND:-}" ] || { device+=(virtio_uml.device="$SECOND:9") && arguments+=(second=second); }
    [ ! -d "$tree" ] || arguments+=("tree=$tree")
    # The guest's memory is a file that is mapped executable: in /dev/shm if that allows it.
    memory_files=$(dirname "$initramfs")
    if [ "$(df -m --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 700 ] &&
        ! findmnt -n -o OPTIONS -T /dev/shm | grep -q noexec; then
        memory_files=/dev/shm
    fi
    TMPDIR=$memory_files exec "$UML_KERNEL" "mem=$memory" "initrd=$initramfs" \
        con=null con0=null,fd:1 seccomp=on "${device[@]}" "${arguments[@]}"
}

"become_$front_end"

# shellcheck shell=sh
# How the guest mounts the share. $share is a mount tag, or for comparison a host directory of
# User-mode Linux or "virtiofs:" and a tag; OPTIONS (",cache=mmap") are added to those of 9p.

# mount_share DIRECTORY [OPTIONS]
mount_share() {
    # shellcheck disable=SC2154 # the kernel sets it
    case $share in
    # hostfs takes its directory only from the older system call.
    /*) LIBMOUNT_FORCE_MOUNT2=always mount -t hostfs -o "$share" none "$1" ;;
    virtiofs:*) mount -t virtiofs "${share#virtiofs:}" "$1" ;;
    *) mount -t 9p -o "version=9p2000.L,trans=virtio,msize=512000${2:-}" "$share" "$1" ;;
    esac
}

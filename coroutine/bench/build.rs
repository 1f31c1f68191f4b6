//! Compiles the peer in C.

fn main() {
    println!("cargo::rerun-if-changed=peers/qemu_way.c");
    cc::Build::new()
        .file("peers/qemu_way.c")
        .opt_level(3)
        .compile("qemu_way");
}

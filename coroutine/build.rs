//! Chooses the back-end that switches stacks. Sets `backend` to "assembly", "ucontext", "threads" or
//! "fibers", `own_stacks` if this crate maps the stacks, and `watched` if the switches are announced
//! to a sanitizer.

use std::env;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(loom)");
    println!("cargo::rustc-check-cfg=cfg(own_stacks)");
    println!("cargo::rustc-check-cfg=cfg(watched)");
    println!(
        "cargo::rustc-check-cfg=cfg(backend, values(\"assembly\", \"ucontext\", \"threads\", \
         \"fibers\"))"
    );
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str| env::var_os(name).is_some();
    let target = |name: &str| env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    let backend = if is("CARGO_CFG_MIRI") || is("CARGO_FEATURE_THREADS") {
        "threads"
    } else if target("OS") == "windows" {
        "fibers"
    } else if is("CARGO_FEATURE_UCONTEXT") {
        "ucontext"
    } else if matches!(target("ARCH").as_str(), "x86_64" | "aarch64" | "riscv64") {
        "assembly"
    } else {
        "ucontext"
    };
    println!("cargo::rustc-cfg=backend=\"{backend}\"");
    if matches!(backend, "assembly" | "ucontext") {
        println!("cargo::rustc-cfg=own_stacks");
        if is("CARGO_FEATURE_ASAN") || is("CARGO_FEATURE_TSAN") {
            println!("cargo::rustc-cfg=watched");
        }
    }
}

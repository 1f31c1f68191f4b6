//! `vhost-user-9p`: gives a virtual machine a directory of its host over virtio-9p.
//!
//! This library is the daemon without its `main`: [`cli`] reads the command line, [`doctor`] looks
//! for what is wrong with the host, [`daemon`] owns the event loop and the front-end's socket,
//! [`server`] answers 9P2000.L, [`export`] is the tree of files, [`state`] is what outlives a crash,
//! and [`sandbox`] confines the daemon to the tree. Only this crate depends on `coroutine`,
//! `protocol` and `vhost-user`, which do not depend on each other. ARCHITECTURE.md describes the
//! way of a request.

pub mod cli;
pub mod daemon;
pub mod doctor;
pub mod export;
pub mod logger;
pub mod sandbox;
pub mod server;
pub mod state;
pub mod tag;

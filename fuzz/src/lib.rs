//! What the fuzzers do with an input. Each target is a function that takes any bytes and panics if
//! something is wrong with what they bring about.
//!
//! - `decoder`: a frame, decoded and encoded again.
//! - `session`: a list of 9P requests to a server with a share.
//! - `ring`: descriptors, tables and indices, rewritten meanwhile.
//! - `state`: what another daemon or a process that has died has left.
//! - `control`: vhost-user messages and their descriptors.
//! - `machine`: front-end, guest memory and event loop on one thread, for the last three.

mod control;
mod decoder;
#[doc(hidden)]
pub mod machine;
mod ring;
mod session;
mod share;
mod state;

pub use control::control;
pub use decoder::decoder;
pub use ring::ring;
pub use session::session;
pub use state::state;

/// A target: takes an input, panics on a finding.
pub type Target = fn(&[u8]);

/// All targets by name, which is also the name of their corpus's folder.
pub const TARGETS: [(&str, Target); 5] = [
    ("decoder", decoder),
    ("session", session),
    ("ring", ring),
    ("control", control),
    ("state", state),
];

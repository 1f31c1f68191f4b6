//! What a machine cannot test, said so that it is seen.

use std::fmt::Display;

/// How the reasons begin that are accepted on a machine that is to test everything, with why.
const ACCEPTED: [(&str, &str); 2] = [
    (
        "no user of this host is in a second group",
        "a test does not make users",
    ),
    (
        "no tmpfs with size=8m,usrquota",
        "a test does not choose the kernel, which needs CONFIG_TMPFS_QUOTA",
    ),
];

/// Says on stderr that a test, or the part of it that follows, cannot run on this machine.
///
/// # Panics
///
/// If the environment has `REQUIRE_ALL=1`, unless the reason is one of those that are accepted.
#[track_caller]
pub fn skipped(reason: impl Display) {
    let reason = reason.to_string();
    eprintln!("skipped: {reason}");
    let accepted = ACCEPTED.iter().any(|(start, _)| reason.starts_with(start));
    let required = std::env::var_os("REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(
        accepted || !required,
        "skipped, but REQUIRE_ALL=1 asks for all tests: {reason}"
    );
}

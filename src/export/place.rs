//! Where a file is: for models that keep attributes by name.

use super::name::Name;
use super::node::Node;

/// A directory and a name in it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The directory.
    pub directory: &'a Node,
    /// The name there.
    pub name: &'a Name,
}

/// A pinned file, and where it was last seen, if known. The place is a hint: who uses it checks
/// whether the file is still there.
#[derive(Clone, Copy, Debug)]
pub struct Located<'a> {
    /// The file.
    pub node: &'a Node,
    /// The hint.
    pub seen: Option<Place<'a>>,
}

impl<'a> From<&'a Node> for Located<'a> {
    fn from(node: &'a Node) -> Located<'a> {
        Located { node, seen: None }
    }
}

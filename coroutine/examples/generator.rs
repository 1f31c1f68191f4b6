//! A generator: a recursive function walks a tree, and its caller takes the values one at a time.

use coroutine::{Coroutine, StackError, Yielder};

struct Tree {
    value: u32,
    children: Vec<Tree>,
}

fn tree(value: u32, children: Vec<Tree>) -> Tree {
    Tree { value, children }
}

/// Yields at any depth of its recursion.
fn walk(tree: &Tree, yielder: &Yielder<(), u32>) {
    yielder.yield_value(tree.value);
    for child in &tree.children {
        walk(child, yielder);
    }
}

/// The values of a tree, parents before children.
fn values(tree: Tree) -> Result<impl Iterator<Item = u32>, StackError> {
    Coroutine::with_values(move |yielder, ()| walk(&tree, yielder))
}

fn main() -> Result<(), StackError> {
    let forest = tree(1, vec![tree(2, vec![tree(3, vec![])]), tree(4, vec![])]);
    for value in values(forest)? {
        println!("{value}");
    }
    // Dropping the generator early unwinds the walk, which drops the tree.
    let first = values(tree(5, vec![tree(6, vec![])]))?.next();
    println!("only {first:?}");
    Ok(())
}

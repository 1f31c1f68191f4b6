//! The modules of the library are in layers: none uses one that uses it, directly or through
//! others.
#![cfg(not(miri))]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

type Uses = BTreeMap<String, BTreeSet<String>>;

/// The source of a module: its file, or all files in its folder.
fn text(path: &Path) -> String {
    if path.is_file() {
        return fs::read_to_string(path).unwrap();
    }
    let files = fs::read_dir(path).unwrap();
    files.map(|file| text(&file.unwrap().path())).collect()
}

/// The names that follow `prefix` in the code of `text`.
fn names_after(prefix: &str, text: &str) -> BTreeSet<String> {
    let is_comment = |line: &&str| line.trim_start().starts_with("//");
    let code: String = text.lines().filter(|line| !is_comment(line)).collect();
    let mut names = BTreeSet::new();
    for (place, _) in code.match_indices(prefix) {
        let rest = &code[place + prefix.len()..];
        assert!(
            !rest.starts_with('{'),
            "name one module in each `use {prefix}`"
        );
        let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric());
        names.insert(rest[..end.unwrap_or(rest.len())].to_owned());
    }
    names
}

/// The modules in a folder, and which others in it each uses by a path that starts with `prefix`.
fn uses(folder: &Path, prefix: &str) -> Uses {
    let mut uses = Uses::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        // A root declares the modules, which must not use it.
        if name != "lib" && name != "mod" {
            let mut used = names_after(prefix, &text(&path));
            // A macro names its own module.
            used.remove(&name);
            uses.insert(name, used);
        }
    }
    uses
}

#[track_caller]
fn assert_layers(mut uses: Uses) {
    let modules: BTreeSet<String> = uses.keys().cloned().collect();
    assert!(modules.len() > 2, "no modules were found: {modules:?}");
    while !uses.is_empty() {
        let is_lowest = |used: &BTreeSet<String>| !used.iter().any(|name| uses.contains_key(name));
        let lowest = uses.iter().find(|(_, used)| is_lowest(used));
        let Some(name) = lowest.map(|(name, _)| name.clone()) else {
            panic!("these modules use each other in a circle: {uses:#?}");
        };
        let used = uses.remove(&name).unwrap();
        let of_root: Vec<_> = used.difference(&modules).collect();
        assert!(of_root.is_empty(), "{name} uses its root: {of_root:?}");
    }
}

#[test]
fn no_module_uses_one_that_uses_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    assert_layers(uses(&source, "crate::"));
    for folder in ["lock", "stack", "workers"] {
        assert_layers(uses(&source.join(folder), "super::"));
    }
}

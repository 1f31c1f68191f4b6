//! The corpus of the fuzzers once more: what was found to be interesting, or wrong, stays tried.

use std::fs;
use std::path::Path;

#[test]
fn the_corpus_of_every_fuzzer_is_survived() {
    // One test and one thread: the harness counts the descriptors of the process.
    for (name, target) in fuzz_harness::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(name);
        let mut inputs = 0;
        for entry in fs::read_dir(&folder).expect("a corpus") {
            let path = entry.expect("an entry").path();
            // Shown when the input fails.
            println!("{}", path.display());
            target(&fs::read(&path).expect("an input"));
            inputs += 1;
        }
        assert!(inputs > 10, "{name} has a corpus of {inputs}");
    }
}

//! The fuzz targets over their seeds: that they compile, and that what was found once stays mended. `fuzz/README.md` tells how they are
//! run for longer.

use std::path::Path;

#[path = "../../fuzz/targets.rs"]
mod targets;

#[test]
fn seeds_of_every_fuzz_target_do_no_harm() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (name, target) in targets::ALL {
        let mut files: Vec<_> =
            std::fs::read_dir(seeds.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 3, "{name} has {} seeds", files.len());
        for file in files {
            println!("{}", file.display());
            target(&std::fs::read(&file).unwrap());
        }
        target(b"");
    }
    let folders = std::fs::read_dir(&seeds).unwrap().count();
    assert_eq!(folders, targets::ALL.len(), "seeds of a target that is not there");
}

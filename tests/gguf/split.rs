//! Models in several files: found by the name of any of them, and what is said of parts that are missing or of another model.

use crate::smallest_model;
use qernel::config::Config;
use qernel::gguf::Gguf;
use qernel::gguf::write::Writer;
use qernel::testing::TinyModel;
use qernel::weights::Weights;
use std::path::{Path, PathBuf};

fn path(folder: &Path, stem: &str, number: usize, count: usize) -> PathBuf {
    folder.join(format!("{stem}-{number:05}-of-{count:05}.gguf"))
}

fn write(folder: &Path, stem: &str, parts: &[Writer]) {
    for (i, part) in parts.iter().enumerate() {
        std::fs::write(path(folder, stem, i + 1, parts.len()), part.to_bytes()).unwrap();
    }
}

fn error(path: &Path) -> String {
    Gguf::open(path).expect_err("a part is missing or wrong").to_string()
}

/// Tensors of all files, the metadata of the first, whichever is named; a first part may be without tensors.
#[test]
fn the_parts_are_one_model() {
    let whole = smallest_model().gguf();
    let config = Config::from_gguf(&whole).unwrap();
    let expected = Weights::from_gguf(&whole, &config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut parts = smallest_model().writer().split(3);
    write(folder.path(), "a-of-names", &parts);
    let mut first = smallest_model().vocabulary_only();
    first.metadata("split.no", 0_u16).metadata("split.count", 4_u16);
    first.metadata("split.tensors.count", whole.tensors().len() as i32);
    for (i, part) in parts.iter_mut().enumerate() {
        for key in ["split.no", "split.count"] {
            part.remove_metadata(key);
        }
        part.metadata("split.no", i as u16 + 1).metadata("split.count", 4_u16);
    }
    parts.insert(0, first);
    write(folder.path(), "empty-first", &parts);

    for (stem, count) in [("a-of-names", 3), ("empty-first", 4)] {
        for number in 1..=count {
            let gguf = Gguf::open(path(folder.path(), stem, number, count)).unwrap();
            assert_eq!(gguf.num_parts(), count);
            assert_eq!(gguf.tensors().len(), whole.tensors().len());
            let config = Config::from_gguf(&gguf).unwrap();
            let weights = Weights::from_gguf(&gguf, &config).unwrap();
            assert_eq!(weights.unused, [""; 0]);
            for (found, expected) in weights.matrices().zip(expected.matrices()) {
                assert_eq!((&found.name, &found.data), (&expected.name, &expected.data));
            }
            assert!(weights.vectors().eq(expected.vectors()));
            let sizes =
                (1..=count).map(|i| std::fs::metadata(path(folder.path(), stem, i, count)).unwrap().len());
            assert_eq!(gguf.file_size(), sizes.sum::<u64>());
        }
    }
}

#[test]
fn a_missing_part_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "model", &smallest_model().writer().split(3));
    std::fs::remove_file(path(folder.path(), "model", 2, 3)).unwrap();
    for named in [1, 3] {
        let message = error(&path(folder.path(), "model", named, 3));
        assert!(message.contains("model-00002-of-00003.gguf is missing: part 2 of 3"), "{message}");
    }
    let data = smallest_model().writer().split(2)[0].to_bytes();
    let gguf = Gguf::from_bytes(data.into()).unwrap();
    let message = Weights::from_gguf(&gguf, &Config::from_gguf(&gguf).unwrap()).unwrap_err().to_string();
    assert!(message.contains("one of 2 parts") && message.contains("open it by its path"), "{message}");
}

#[test]
fn a_part_of_another_model_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let of = |model: TinyModel, parts| model.writer().split(parts);
    let parts = of(smallest_model(), 3);
    write(folder.path(), "model", &parts);
    let second = path(folder.path(), "model", 2, 3);
    let first = path(folder.path(), "model", 1, 3);
    let replace = |part: &Writer| {
        std::fs::write(&second, part.to_bytes()).unwrap();
        let message = error(&first);
        assert!(
            message.contains("different models") || message.contains("model-00002-of-00003.gguf"),
            "{message}"
        );
        message
    };
    let more_layers = TinyModel { num_hidden_layers: 2, ..smallest_model() };
    assert!(
        replace(&of(more_layers, 3)[1])
            .contains("expected part 2 of 3 of a model of 14 tensors, found part 2 of 3 of a model of 26")
    );
    assert!(replace(&parts[2]).contains("found part 3 of 3"));
    assert!(replace(&of(smallest_model(), 2)[1]).contains("found part 2 of 2"));
    assert!(replace(&smallest_model().writer()).contains("found a file of its own"));
    // As many tensors, but cut elsewhere.
    let mut other = parts[1].clone();
    other.remove_tensor("blk.0.attn_norm.weight");
    other.tensor("output_norm.weight", &[16], qernel::gguf::GgmlType::F32, vec![0; 64]);
    assert!(replace(&other).contains("output_norm.weight"));
    let mut fewer = parts[1].clone();
    let gguf = Gguf::from_bytes(fewer.to_bytes().into()).unwrap();
    fewer.remove_tensor(gguf.tensors().next().unwrap().name());
    assert!(replace(&fewer).contains("expected 14 tensors in all 3 parts, found 13"));
    std::fs::write(&second, "no model").unwrap();
    assert!(error(&first).contains("begins with"));
}

#[test]
fn the_others_are_found_by_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let part = smallest_model().writer().split(2).remove(1);
    for name in ["model.gguf", "model-2-of-2.gguf", "model-00001-of-00002.gguf", "model-00002-of-00003.gguf"]
    {
        let path = folder.path().join(name);
        std::fs::write(&path, part.to_bytes()).unwrap();
        let message = error(&path);
        assert!(message.contains("part 2 of 2") && message.contains("NAME-00002-of-00002.gguf"), "{message}");
    }
}

//! Which of a repository's files are meant.

use crate::name::Name;
use qernel_core::error::{Error, Result};
use qernel_core::folder::{self, CONFIG};
use qernel_core::gguf::PartName;
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// Types that are taken where none is named, as llama.cpp does it; after them the first file.
const USUAL: [&str; 2] = ["Q4_K_M", "Q8_0"];
/// What names have that are no models by themselves, as llama.cpp knows them: in this case, since `MTP` is in names of models that have such a block.
const BESIDE: [&str; 6] = ["mmproj", "imatrix", SIDECAR, "eagle3-", "dflash-", "dspark-"];
/// What the name of the file of a block that drafts has.
const SIDECAR: &str = "mtp-";
/// The type that means a folder where there are GGUF files too.
const FOLDER_TYPE: &str = "safetensors";
/// What the names of types begin with, before a digit.
const FAMILIES: [&str; 7] = ["Q", "IQ", "TQ", "F", "BF", "MXFP", "NVFP"];
/// Files that an error names.
const MOST_NAMED: usize = 40;

/// The files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// GGUF files: one, or all parts in their order.
    Gguf(Vec<String>),
    /// A folder with these files, and its weights.
    Folder(Vec<String>),
}

/// Finds the files that `name` means among `paths`, which are in order.
///
/// # Errors
/// [`Error::Request`] with what there is, where there is no such file or a part is missing.
pub(crate) fn choose(name: &Name, paths: &BTreeSet<String>) -> Result<Choice> {
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let found = match &name.file {
        Some(file) if file.eq_ignore_ascii_case(FOLDER_TYPE) => None,
        Some(file) if is_gguf(file) => Some(named(file, &paths).ok_or_else(|| none(name, &paths))?),
        Some(of_type) => Some(typed(of_type, &paths).ok_or_else(|| none(name, &paths))?),
        None => usual(&paths),
    };
    if let Some(file) = found {
        return parts(name, file, &paths).map(Choice::Gguf);
    }
    if !paths.contains(&CONFIG) {
        return Err(none(name, &paths));
    }
    Ok(Choice::Folder(folder::small_files(&paths).into_iter().map(str::to_owned).collect()))
}

/// All files that are models by themselves, the first parts of those in several.
pub(crate) fn models<'a>(paths: &[&'a str]) -> Vec<&'a str> {
    paths.iter().copied().filter(|path| is_model(path)).collect()
}

/// The block that drafts for a model, in a file of its own, of several parts the first. By names alone: in the model's folder or the next one
/// above it, as llama.cpp looks for it; of those one that is named as the model, and then one of its type, or of the nearest number of bits.
pub(crate) fn sidecar<'a>(model: &str, paths: &[&'a str]) -> Option<&'a str> {
    let (model_type, model_name) = (type_of(model), bare_name(model));
    let is_block = |path: &&str| {
        is_gguf(path)
            && *path != model
            && file_name(path).contains(SIDECAR)
            && model.starts_with(folder_of(path))
            && PartName::parse(path).is_none_or(|part| part.number == 1)
    };
    paths.iter().copied().filter(is_block).min_by_key(|path| {
        let block_type = type_of(path);
        (
            Reverse(folder_of(path).len()),
            bare_name(path).replacen(SIDECAR, "", 1) != model_name,
            block_type != model_type,
            bits(block_type.as_deref()).abs_diff(bits(model_type.as_deref())),
        )
    })
}

/// The type that a file's name ends with, in upper case.
pub(crate) fn type_of(path: &str) -> Option<String> {
    let (_, last) = stem_of(path)?.rsplit_once(['-', '.', '/'])?;
    let last = last.to_ascii_uppercase();
    let digits = last.find(|c: char| c.is_ascii_digit())?;
    FAMILIES.contains(&&last[..digits]).then_some(last)
}

/// All parts of the model that a file belongs to, in their order.
///
/// # Errors
/// [`Error::Request`] where one is not among `paths`.
pub(crate) fn parts(name: &Name, file: &str, paths: &[&str]) -> Result<Vec<String>> {
    let Some(part) = PartName::parse(file) else { return Ok(vec![file.to_owned()]) };
    let mut found = Vec::new();
    for number in 1..=part.count {
        let path = PartName { number, ..part }.to_string();
        if paths.binary_search(&&path[..]).is_err() {
            let (repo, count) = (&name.repo, part.count);
            return Err(Error::Request(format!(
                "{repo} has no {path}: part {number} of {count} of {file} is missing"
            )));
        }
        found.push(path);
    }
    if found.is_empty() { Ok(vec![file.to_owned()]) } else { Ok(found) }
}

/// A path without its ending and the number of a part.
fn stem_of(path: &str) -> Option<&str> {
    PartName::parse(path).map_or_else(|| path.get(..path.len() - ".gguf".len()), |part| Some(part.stem))
}

/// A file's name without its type.
fn bare_name(path: &str) -> &str {
    let name = file_name(stem_of(path).unwrap_or(path));
    type_of(path).map_or(name, |of_type| &name[..name.len().saturating_sub(of_type.len() + 1)])
}

/// The number in a type: about how many bits a weight has; 0 for none.
fn bits(of_type: Option<&str>) -> usize {
    let digits = of_type.unwrap_or_default().trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

/// The folder of a path, with the slash behind it; empty for a file that is in none.
fn folder_of(path: &str) -> &str {
    &path[..path.len() - file_name(path).len()]
}

fn is_gguf(path: &str) -> bool {
    path.to_ascii_lowercase().ends_with(".gguf")
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn is_model(path: &str) -> bool {
    let name = file_name(path);
    is_gguf(path)
        && !BESIDE.iter().any(|other| name.contains(other))
        && PartName::parse(path).is_none_or(|part| part.number == 1)
}

/// By its path or its name alone, in any case, but one in the right case comes first.
fn named<'a>(file: &str, paths: &[&'a str]) -> Option<&'a str> {
    let find = |is: &dyn Fn(&str) -> bool| paths.iter().copied().find(|path| is(path));
    find(&|path| path == file)
        .or_else(|| find(&|path| path.eq_ignore_ascii_case(file)))
        .or_else(|| find(&|path| file_name(path).eq_ignore_ascii_case(file)))
}

fn typed<'a>(of_type: &str, paths: &[&'a str]) -> Option<&'a str> {
    models(paths).into_iter().find(|path| has_type(path, of_type))
}

fn usual<'a>(paths: &[&'a str]) -> Option<&'a str> {
    USUAL.iter().find_map(|of_type| typed(of_type, paths)).or_else(|| models(paths).first().copied())
}

/// Whether a path has the type as a word of its own: `F16` is not in `model-BF16.gguf`.
fn has_type(path: &str, of_type: &str) -> bool {
    let (path, of_type) = (path.to_ascii_lowercase(), of_type.to_ascii_lowercase());
    path.match_indices(&of_type).any(|(at, _)| {
        let before = path[..at].chars().next_back();
        let behind = path[at + of_type.len()..].chars().next();
        before.is_none_or(|c| !c.is_alphanumeric()) && behind.is_some_and(|c| "-./".contains(c))
    })
}

/// Says what there is instead.
fn none(name: &Name, paths: &[&str]) -> Error {
    let Name { repo, file, .. } = name;
    let mut known = models(paths);
    if paths.contains(&CONFIG) {
        known.push(FOLDER_TYPE);
    }
    let expected = match file {
        Some(file) if file.eq_ignore_ascii_case(FOLDER_TYPE) => format!("{repo} has no {CONFIG}"),
        Some(file) if is_gguf(file) => format!("{repo} has no file {file:?}"),
        Some(file) => format!("{repo} has no file of type {file:?}"),
        None => format!("{repo} has neither a GGUF file nor {CONFIG}: no model that this program reads"),
    };
    if known.is_empty() {
        let others = paths.iter().copied().filter(|path| is_gguf(path)).collect::<Vec<_>>();
        return match &others[..] {
            [] => Error::Request(expected),
            others => Error::Request(format!("{expected}; it has {}", listed(others))),
        };
    }
    Error::Request(format!("{expected}; it has {}", listed(&known)))
}

fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(MOST_NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MOST_NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(name: &str, paths: &[&str]) -> Result<Choice> {
        choose(&format!("o/n{name}").parse().unwrap(), &paths.iter().map(|path| (*path).to_owned()).collect())
    }

    fn gguf(name: &str, paths: &[&str]) -> String {
        match chosen(name, paths) {
            Ok(Choice::Gguf(files)) => files.join(" "),
            other => panic!("{name}: {other:?}"),
        }
    }

    const MANY: [&str; 9] = [
        "README.md",
        "mmproj-model-Q4_K_M.gguf",
        "model-BF16.gguf",
        "model-IQ4_XS.gguf",
        "model-Q4_K_M.imatrix.gguf",
        "model-f16.gguf",
        "model-q4_k_m.gguf",
        "model-q8_0.gguf",
        "mtp-model-Q8_0.gguf",
    ];

    #[test]
    fn types_are_words_in_any_case() {
        assert_eq!(gguf("", &MANY), "model-q4_k_m.gguf");
        assert_eq!(gguf(":Q4_K_M", &MANY), "model-q4_k_m.gguf");
        assert_eq!(gguf(":F16", &MANY), "model-f16.gguf");
        assert_eq!(gguf(":bf16", &MANY), "model-BF16.gguf");
        assert_eq!(gguf(":iq4_xs", &MANY), "model-IQ4_XS.gguf");
        assert_eq!(gguf(":q8_0", &MANY), "model-q8_0.gguf", "not a block that drafts");
        assert_eq!(gguf(":UD-Q4_K_XL", &["m-UD-Q4_K_XL.gguf"]), "m-UD-Q4_K_XL.gguf");
        assert_eq!(gguf(":Q4_K_M", &["Q4_K_M/model.gguf", "Q8_0/model.gguf"]), "Q4_K_M/model.gguf");
    }

    #[test]
    fn without_a_type_the_usual_ones_come_first() {
        assert_eq!(gguf("", &["m-Q2_K.gguf", "m-Q8_0.gguf"]), "m-Q8_0.gguf");
        assert_eq!(gguf("", &["mmproj.gguf", "m-Q2_K.gguf", "m-Q3_K.gguf", "config.json"]), "m-Q2_K.gguf");
    }

    #[test]
    fn models_with_a_block_of_their_own_are_models() {
        assert_eq!(gguf("", &["m-MTP-Q4_K_M.gguf", "mtp-m-Q4_K_M.gguf"]), "m-MTP-Q4_K_M.gguf");
    }

    #[test]
    fn a_block_that_drafts_is_found_by_names() {
        let found = |model, paths: &[&'static str]| sidecar(model, paths);
        let one = ["m-Q4_K_M.gguf", "mmproj-m-Q4_K_M.gguf", "mtp-other-BF16.gguf"];
        assert_eq!(found("m-Q4_K_M.gguf", &one), Some("mtp-other-BF16.gguf"));
        assert_eq!(found("m-Q4_K_M.gguf", &one[..2]), None);
        assert_eq!(found("mtp-m.gguf", &["mtp-m.gguf"]), None, "itself");
        // Its own name comes before its type, its type before the nearest number of bits.
        let many = ["mtp-m-BF16.gguf", "mtp-m-Q5_K_M.gguf", "mtp-m-Q8_0.gguf", "mtp-n-Q4_K_M.gguf"];
        assert_eq!(found("m-Q4_K_M.gguf", &many), Some("mtp-m-Q5_K_M.gguf"));
        assert_eq!(found("m-q8_0.gguf", &many), Some("mtp-m-Q8_0.gguf"));
        assert_eq!(found("n-UD-IQ4_XS.gguf", &many), Some("mtp-n-Q4_K_M.gguf"));
        assert_eq!(found("m.gguf", &["mtp-m-Q8_0.gguf", "mtp-m.gguf"]), Some("mtp-m.gguf"));
        // Folders: its own, then those above, never another; parts by the first.
        let folders = [
            "BF16/mtp-m.gguf",
            "Q4/m-Q4_0-00001-of-00002.gguf",
            "mtp-m-Q4_0-00001-of-00002.gguf",
            "mtp-m-Q4_0-00002-of-00002.gguf",
        ];
        assert_eq!(found(folders[1], &folders), Some(folders[2]));
        assert_eq!(found("BF16/m-Q4_0.gguf", &folders), Some(folders[0]));
        assert_eq!(found("Q4/m-Q4_0.gguf", &["Q/mtp-m.gguf"]), None);
        assert_eq!(found("m/Q4_0.gguf", &["m/mtp-Q8_0.gguf"]), Some("m/mtp-Q8_0.gguf"));
    }

    #[test]
    fn files_are_named_by_path_or_name() {
        assert_eq!(gguf(":MODEL-F16.GGUF", &MANY), "model-f16.gguf");
        assert_eq!(gguf(":mmproj-model-Q4_K_M.gguf", &MANY), "mmproj-model-Q4_K_M.gguf");
        assert_eq!(gguf(":b.gguf", &["a/b.gguf"]), "a/b.gguf");
        assert_eq!(gguf(":B.gguf", &["B.gguf", "b.gguf"]), "B.gguf");
    }

    #[test]
    fn parts_come_together() {
        let parts = ["q/m-Q4_K_M-00001-of-00002.gguf", "q/m-Q4_K_M-00002-of-00002.gguf"];
        let all = parts.join(" ");
        assert_eq!(gguf("", &parts), all);
        assert_eq!(gguf(":q4_k_m", &parts), all);
        assert_eq!(gguf(":m-Q4_K_M-00002-of-00002.gguf", &parts), all);
        let error = chosen("", &parts[..1]).unwrap_err().to_string();
        assert!(error.contains("part 2 of 2"), "{error}");
        let error = chosen("", &["m-00001-of-99999.gguf"]).unwrap_err().to_string();
        assert!(error.contains("part 2 of 99999"), "{error}");
        assert_eq!(gguf(":m-00000-of-00000.gguf", &["m-00000-of-00000.gguf"]), "m-00000-of-00000.gguf");
    }

    #[test]
    fn a_repository_without_gguf_files_is_a_folder() {
        let paths = ["a.bin", "config.json", "model.safetensors", "sub/config.json", "tokenizer.json"];
        let files = Choice::Folder(vec!["config.json".into(), "tokenizer.json".into()]);
        assert_eq!(chosen("", &paths).unwrap(), files);
        assert_eq!(
            chosen(":safetensors", &["config.json", "m-Q4_K_M.gguf"]).unwrap(),
            Choice::Folder(vec!["config.json".into()])
        );
    }

    #[test]
    fn what_is_not_there_is_told_with_what_is() {
        let error = |name: &str, paths: &[&str]| match chosen(name, paths) {
            Err(Error::Request(message)) => message,
            other => panic!("{name}: {other:?}"),
        };
        let message = error(":Q5_K_M", &MANY);
        assert!(message.contains("\"Q5_K_M\"; it has model-BF16.gguf, model-IQ4_XS.gguf, "), "{message}");
        assert!(!message.contains("mmproj"), "{message}");
        assert!(error(":x.gguf", &MANY).contains("no file \"x.gguf\""));
        assert!(error("", &["README.md"]).contains("neither a GGUF file nor config.json"));
        assert!(error("", &["mmproj-a.gguf"]).contains("it has mmproj-a.gguf"));
        assert!(error(":Q4_K_M", &["config.json"]).contains("it has safetensors"));
        assert!(error(":safetensors", &["m.gguf"]).contains("no config.json; it has m.gguf"));
        let many: Vec<String> = (0..100).map(|i| format!("m-{i}.gguf")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(error(":Q4_K_M", &many).ends_with("and 60 more"));
    }

    #[test]
    fn types_are_read_from_names() {
        for (path, expected) in [
            ("qwen2.5-0.5b-instruct-q4_k_m.gguf", Some("Q4_K_M")),
            ("a/m.Q8_0-00001-of-00003.gguf", Some("Q8_0")),
            ("m-bf16.gguf", Some("BF16")),
            ("model.gguf", None),
            ("qwen2.5.gguf", None),
            ("tiny-v2.gguf", None),
        ] {
            assert_eq!(type_of(path).as_deref(), expected, "{path}");
        }
    }
}

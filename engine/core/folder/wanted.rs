//! Which files of a folder are read, for whoever brings a folder here from elsewhere.

use super::CONFIG;
use super::files::Files;
use super::safetensors::{self, INDEX};
use super::template::{ADDITIONAL, OF_PROCESSOR, TEMPLATE};
use super::tokenizer::{GENERATION_CONFIG, POOLING, TOKENIZER, TOKENIZER_CONFIG};
use crate::disk::Access;
use crate::error::Result;
use std::collections::BTreeSet;
use std::path::Path;

/// Those of `paths` (relative to the folder, with `/` between names) that are read beside the weights; with them
/// [`weight_files`] knows the weights.
pub fn small_files<'a>(paths: &[&'a str]) -> Vec<&'a str> {
    const NAMES: [&str; 8] =
        [CONFIG, INDEX, TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG, TEMPLATE, OF_PROCESSOR, POOLING];
    let is_template = |path: &str| {
        let name = path.strip_prefix(ADDITIONAL).and_then(|rest| rest.strip_prefix('/'));
        name.is_some_and(|name| name.ends_with(".jinja") && !name.contains('/'))
    };
    paths.iter().copied().filter(|path| NAMES.contains(path) || is_template(path)).collect()
}

/// The names of the files of weights of a folder, of which all may be missing.
///
/// # Errors
/// [`crate::Error::Folder`] for an index that is malformed, [`crate::Error::Io`] for one that cannot be read.
pub fn weight_files(folder: &Path) -> Result<BTreeSet<String>> {
    safetensors::names(&Files { folder, access: Access::Read })
}

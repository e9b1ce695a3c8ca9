//! A folder of models, each known by its file's name.

use qernel_core::error::{Error, Result};
use qernel_core::gguf::PartName;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Files that are looked at in a folder, at most.
pub(crate) const MOST_FILES: usize = 10_000;
/// What the names of files begin with that are no models by themselves: projectors of pictures, blocks that draft.
const BESIDE: [&str; 2] = ["mmproj", SIDECAR];
/// What the name of the file of a block that drafts begins with, as llama.cpp's converter writes it.
pub(crate) const SIDECAR: &str = "mtp-";

/// A folder whose models are GGUF files, folders as Hugging Face's hub has them, and folders that hold one GGUF file or its parts.
#[derive(Clone, Debug)]
pub struct ModelsFolder {
    path: PathBuf,
    /// A model that is left out.
    except: Option<PathBuf>,
}

/// A model of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundModel {
    /// The file's name without `.gguf`, and without the number of a part; that of a folder.
    pub name: String,
    /// What to open: a file, of several the first, or a folder.
    pub path: PathBuf,
    /// Another number where files come, go, or have another size or time of change.
    pub version: u64,
}

/// A file, or what a link leads to.
struct Found {
    name: String,
    path: PathBuf,
    metadata: Metadata,
}

impl ModelsFolder {
    /// The folder at `path`, whose model at `except` is not listed.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be read.
    pub fn new(path: impl Into<PathBuf>, except: Option<&Path>) -> Result<Self> {
        let path = path.into();
        fs::read_dir(&path).map_err(|error| Error::io(&path, error))?;
        let except = except.and_then(|path| path.canonicalize().ok());
        Ok(Self { path, except })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The models that are in it now, by name. What is in them is not looked at.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be read.
    pub fn list(&self) -> Result<Vec<FoundModel>> {
        let (folders, files): (Vec<_>, Vec<_>) =
            found_in(&self.path)?.into_iter().partition(|found| found.metadata.is_dir());
        let mut models = BTreeMap::new();
        let of_folders = folders.iter().filter_map(model_of_folder);
        for model in of_files(&files).into_iter().chain(of_folders) {
            if self.except.is_some() && self.except == model.path.canonicalize().ok() {
                continue;
            }
            match models.entry(model.name.clone()) {
                Entry::Vacant(place) => drop(place.insert(model)),
                Entry::Occupied(first) => {
                    let first: &FoundModel = first.get();
                    let (one, other) = (first.path.display(), model.path.display());
                    tracing::debug!("{other} is left out: its name is that of {one}");
                }
            }
        }
        Ok(models.into_values().collect())
    }

    /// The model of this name, if there is one now.
    ///
    /// # Errors
    /// As [`ModelsFolder::list`].
    pub fn find(&self, name: &str) -> Result<Option<FoundModel>> {
        Ok(self.list()?.into_iter().find(|model| model.name == name))
    }
}

/// What is in a folder, in the order of names. What cannot be looked at, is hidden, or has a name that is not fit to be shown is left out.
fn found_in(folder: &Path) -> Result<Vec<Found>> {
    let entries = fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
    let found = entries.take(MOST_FILES).filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?.to_owned();
        let is_fit = !name.starts_with('.') && !name.chars().any(char::is_control);
        let metadata = fs::metadata(&path).ok().filter(|_| is_fit)?;
        Some(Found { name, path, metadata })
    });
    let mut found: Vec<_> = found.collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// The models that are files of a folder, split ones once.
fn of_files(files: &[Found]) -> Vec<FoundModel> {
    let is_model = |found: &&Found| {
        let is_beside = BESIDE.iter().any(|start| found.name.starts_with(start));
        found.metadata.is_file() && found.name.ends_with(".gguf") && !is_beside
    };
    let mut models = Vec::new();
    for file in files.iter().filter(is_model) {
        let stem = file.name.trim_end_matches(".gguf");
        let part = PartName::parse(&file.name).filter(|part| part.count > 1);
        let parts: Vec<&Found> = match part {
            Some(part) if part.number > 1 => continue,
            Some(part) => {
                let is_of_it = |other: &PartName| (other.stem, other.count) == (part.stem, part.count);
                files
                    .iter()
                    .filter(|file| PartName::parse(&file.name).as_ref().is_some_and(is_of_it))
                    .collect()
            }
            None => vec![file],
        };
        let name = part.map_or(stem, |part| part.stem).to_owned();
        models.push(FoundModel { name, path: file.path.clone(), version: version(parts) });
    }
    models
}

/// The model that a folder is or holds, if it is one.
fn model_of_folder(folder: &Found) -> Option<FoundModel> {
    let files = found_in(&folder.path).ok()?;
    let name = folder.name.clone();
    if files.iter().any(|file| file.name == "config.json") {
        return Some(FoundModel { name, path: folder.path.clone(), version: version(&files) });
    }
    match &of_files(&files)[..] {
        [FoundModel { path, version, .. }] => {
            Some(FoundModel { name, path: path.clone(), version: *version })
        }
        _ => None,
    }
}

/// A number that stands for the files as they are.
fn version<'a>(files: impl IntoIterator<Item = &'a Found>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for Found { name, metadata, .. } in files {
        (name, metadata.len(), identity(metadata)).hash(&mut hasher);
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        modified.hash(&mut hasher);
    }
    hasher.finish()
}

/// Which file it is: another one under the same name may have its size and time.
#[cfg(unix)]
fn identity(metadata: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> (u64, u64) {
    (0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("qernel-models-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn names(folder: &ModelsFolder) -> Vec<String> {
        folder.list().unwrap().into_iter().map(|model| model.name).collect()
    }

    #[test]
    fn files_parts_and_folders_are_models() {
        let path = folder("kinds");
        for file in [
            "one.gguf",
            "two-00001-of-00002.gguf",
            "two-00002-of-00002.gguf",
            "mmproj-one.gguf",
            "mtp-one.gguf",
            "notes.txt",
        ] {
            fs::write(path.join(file), file).unwrap();
        }
        for (name, files) in [
            ("hub", &["config.json", "model.safetensors"][..]),
            ("split", &["x-00001-of-00002.gguf", "x-00002-of-00002.gguf", "mmproj-F16.gguf", "mtp-F16.gguf"]),
            ("several", &["a.gguf", "b.gguf"]),
            ("empty", &[]),
            (".hidden", &["config.json"]),
        ] {
            fs::create_dir_all(path.join(name)).unwrap();
            files.iter().for_each(|file| fs::write(path.join(name).join(file), file).unwrap());
        }
        let all = ModelsFolder::new(&path, None).unwrap();
        assert_eq!(names(&all), ["hub", "one", "split", "two"]);
        let paths = ["hub", "one.gguf", "split/x-00001-of-00002.gguf", "two-00001-of-00002.gguf"];
        let found = all.list().unwrap();
        assert!(found.iter().zip(paths).all(|(model, end)| model.path == path.join(end)), "{found:?}");
        let others = ModelsFolder::new(&path, Some(&path.join("hub/../one.gguf"))).unwrap();
        assert_eq!(names(&others), ["hub", "split", "two"]);
        assert!(matches!(ModelsFolder::new(path.join("none"), None), Err(Error::Io { .. })));
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn a_version_is_of_all_files_and_of_each_ones_size_time_and_identity() {
        let path = folder("versions");
        let part = |number| path.join(format!("two-0000{number}-of-00002.gguf"));
        fs::write(part(1), "one").unwrap();
        fs::write(part(2), "two").unwrap();
        let all = ModelsFolder::new(&path, None).unwrap();
        let version = || all.find("two").unwrap().unwrap().version;
        let first = version();
        assert_eq!(version(), first);
        fs::write(part(2), "three").unwrap();
        let larger = version();
        assert_ne!(larger, first);
        let modified = fs::metadata(part(2)).unwrap().modified().unwrap();
        fs::write(path.join("new"), "THREE").unwrap();
        fs::File::options().write(true).open(path.join("new")).unwrap().set_modified(modified).unwrap();
        fs::rename(path.join("new"), part(2)).unwrap();
        assert_ne!(version(), larger);
        assert_eq!(all.find("two-00001-of-00002").unwrap(), None);
        fs::remove_dir_all(&path).unwrap();
    }
}

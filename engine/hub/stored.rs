//! What is in the cache, and how it goes.

use crate::cache::RepoCache;
use crate::choose::{Choice, choose, models, parts, sidecar, type_of};
use crate::name::{Name, Repo};
use crate::pull::Hub;
use qernel_core::error::{Error, Result};
use qernel_core::folder;
use qernel_core::gguf::PartName;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What something in the cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A GGUF file, or all parts of one.
    Gguf,
    /// A folder of safetensors.
    Folder,
    /// Files that are not whole, of which the rest can be loaded.
    Unfinished,
}

/// A model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Where it is from.
    pub repo: Repo,
    /// What it is.
    pub kind: Kind,
    /// The file in the repository, of several the first; `None` for what is no file.
    pub file: Option<String>,
    /// The type that the file's name says, such as `Q4_K_M`.
    pub type_name: Option<String>,
    /// Bytes of all its files.
    pub size: u64,
    /// When the last of them came, where the system knows.
    pub modified: Option<SystemTime>,
    /// Where it is: the file or the folder.
    pub path: PathBuf,
}

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Paths in the repository.
    pub files: Vec<String>,
    /// Bytes that are free now.
    pub bytes: u64,
}

impl Hub {
    /// All models in the cache, by name.
    ///
    /// # Errors
    /// [`Error::Io`] where the cache is there and cannot be read.
    pub fn list(&self) -> Result<Vec<Stored>> {
        let root = &self.environment.cache;
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| Error::io(root, error))?,
        };
        let repos =
            entries.flatten().filter_map(|entry| Repo::of_folder(&entry.file_name().to_string_lossy()));
        let repos: BTreeSet<Repo> = repos.collect();
        Ok(repos.iter().flat_map(|repo| stored(root, repo)).collect())
    }

    /// Removes a model from the cache: one of its files, or all there is of its repository. Bytes that another path or commit names stay.
    ///
    /// # Errors
    /// [`Error::Request`] where it is not there, or another process loads it; [`Error::Io`] where it cannot be removed.
    pub fn remove(&self, name: &Name) -> Result<Removed> {
        if let Some(revision) = &name.revision {
            return Err(Error::Request(format!(
                "files are removed from all revisions: leave out @{revision}"
            )));
        }
        let cache = self.cache(name);
        if !cache.folder.is_dir() {
            return Err(Error::Request(format!(
                "{} is not in the cache; `qernel list` says what is",
                name.repo
            )));
        }
        if cache.is_busy() {
            return Err(Error::Request(format!(
                "{} is being loaded by another process: stop that first",
                name.repo
            )));
        }
        match &name.file {
            None => remove_all(&cache),
            Some(_) => remove_some(&cache, name),
        }
    }
}

/// What there is of a repository: every path once, of the newest commit that has it.
fn stored(root: &Path, repo: &Repo) -> Vec<Stored> {
    let cache = RepoCache::new(root, repo);
    let mut found: BTreeMap<(Kind, Option<String>), Stored> = BTreeMap::new();
    for commit in cache.commits() {
        let (folder, paths) = (cache.snapshot(&commit), cache.paths(&commit));
        let borrowed: Vec<&str> = paths.iter().map(String::as_str).collect();
        let files = models(&borrowed).into_iter().map(|file| {
            let all = of_one_model(file, &paths);
            (Kind::Gguf, Some(file.to_owned()), folder.join(file), all)
        });
        for (kind, file, path, all) in files.chain(whole_folder(&folder, &paths)) {
            let (size, modified) = measured(&folder, &all);
            let type_name = file.as_deref().and_then(type_of);
            let new =
                Stored { repo: repo.clone(), kind, file: file.clone(), type_name, size, modified, path };
            found.entry((kind, file)).or_insert(new);
        }
    }
    let parts = unfinished(&cache);
    if !parts.is_empty() {
        let (path, (size, modified)) = (cache.blobs(), measured(&cache.blobs(), &parts));
        let new = Stored {
            repo: repo.clone(),
            kind: Kind::Unfinished,
            file: None,
            type_name: None,
            size,
            modified,
            path,
        };
        found.insert((Kind::Unfinished, None), new);
    }
    found.into_values().collect()
}

type Found = (Kind, Option<String>, PathBuf, Vec<String>);

/// The folder of a commit, where it is a model and all weights are there.
fn whole_folder(folder: &Path, paths: &BTreeSet<String>) -> Option<Found> {
    if !paths.contains(folder::CONFIG) {
        return None;
    }
    let weights = folder::weight_files(folder).ok()?;
    let all = small_and(&weights, paths);
    weights.is_subset(paths).then(|| (Kind::Folder, None, folder.to_owned(), all))
}

/// The files of a folder's model that are there.
fn small_and(weights: &BTreeSet<String>, paths: &BTreeSet<String>) -> Vec<String> {
    let borrowed: Vec<&str> = paths.iter().map(String::as_str).collect();
    let small = folder::small_files(&borrowed).into_iter().map(str::to_owned);
    small.chain(weights.intersection(paths).cloned()).collect()
}

/// The file and all other parts of the same model that are there.
fn of_one_model(file: &str, paths: &BTreeSet<String>) -> Vec<String> {
    let Some(part) = PartName::parse(file) else { return vec![file.to_owned()] };
    let is_other = |path: &&String| {
        PartName::parse(path).is_some_and(|other| other.stem == part.stem && other.count == part.count)
    };
    paths.iter().filter(is_other).cloned().collect()
}

/// The names of files that are not whole.
fn unfinished(cache: &RepoCache) -> Vec<String> {
    let names = fs::read_dir(cache.blobs()).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".incomplete")).collect()
}

/// Bytes of files, and when the last of them was written.
fn measured(folder: &Path, paths: &[String]) -> (u64, Option<SystemTime>) {
    let found: Vec<fs::Metadata> =
        paths.iter().filter_map(|path| fs::metadata(folder.join(path)).ok()).collect();
    (found.iter().map(fs::Metadata::len).sum(), found.iter().filter_map(|found| found.modified().ok()).max())
}

/// Removes all there is of a repository.
fn remove_all(cache: &RepoCache) -> Result<Removed> {
    let files: BTreeSet<String> = cache.commits().iter().flat_map(|commit| cache.paths(commit)).collect();
    let blobs = fs::read_dir(cache.blobs()).into_iter().flatten().flatten();
    let bytes = blobs.filter_map(|entry| entry.metadata().ok()).map(|found| found.len()).sum();
    fs::remove_dir_all(&cache.folder).map_err(|error| Error::io(&cache.folder, error))?;
    match fs::remove_dir_all(&cache.locks) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(&cache.locks, error)),
        _ => {}
    }
    Ok(Removed { files: files.into_iter().collect(), bytes })
}

/// Removes one model of a repository, from all commits.
fn remove_some(cache: &RepoCache, name: &Name) -> Result<Removed> {
    let (mut files, mut targets, mut problem) = (BTreeSet::new(), BTreeSet::new(), None);
    for commit in cache.commits() {
        let folder = cache.snapshot(&commit);
        match meant(cache, name, &commit) {
            Err(error) => problem = Some(error),
            Ok(paths) => {
                for path in paths {
                    let link = folder.join(&path);
                    targets.extend(fs::canonicalize(&link).ok());
                    fs::remove_file(&link).map_err(|error| Error::io(&link, error))?;
                    files.insert(path);
                }
            }
        }
    }
    if files.is_empty() {
        let missing = || Error::Request(format!("{} has no files in the cache", name.repo));
        return Err(problem.unwrap_or_else(missing));
    }
    let kept: BTreeSet<PathBuf> = cache
        .commits()
        .iter()
        .flat_map(|commit| cache.paths(commit).into_iter().map(|path| cache.snapshot(commit).join(path)))
        .filter_map(|link| fs::canonicalize(link).ok())
        .collect();
    if kept.is_empty() && unfinished(cache).is_empty() {
        let Removed { bytes, .. } = remove_all(cache)?;
        return Ok(Removed { files: files.into_iter().collect(), bytes });
    }
    let blobs = fs::canonicalize(cache.blobs()).ok();
    // What a link outside of the cache leads to is somebody's own file.
    let is_ours = |target: &&PathBuf| target.parent() == blobs.as_deref() && !kept.contains(*target);
    let mut bytes = 0;
    for blob in targets.iter().filter(is_ours) {
        let size = fs::metadata(blob).map_or(0, |found| found.len());
        fs::remove_file(blob).map_err(|error| Error::io(blob, error))?;
        bytes += size;
    }
    Ok(Removed { files: files.into_iter().collect(), bytes })
}

/// The files of a commit that a name means, whether or not all of them are there. With a model goes the block that drafts for it and for no other.
fn meant(cache: &RepoCache, name: &Name, commit: &str) -> Result<Vec<String>> {
    let paths = cache.paths(commit);
    // One of which parts are missing is meant too.
    let parts = paths.iter().filter_map(|path| PartName::parse(path));
    let all =
        parts.flat_map(|part| (1..=part.count).map(move |number| PartName { number, ..part }.to_string()));
    let known: BTreeSet<String> = paths.iter().cloned().chain(all).collect();
    match choose(name, &known)? {
        Choice::Gguf(mut files) => {
            files.extend(own_sidecar(name, &files[0], &paths)?);
            Ok(files.into_iter().filter(|file| paths.contains(file)).collect())
        }
        Choice::Folder(_) => Ok(small_and(&folder::weight_files(&cache.snapshot(commit))?, &paths)),
    }
}

/// The files of the block that drafts for a file, and for no other model that is there.
fn own_sidecar(name: &Name, file: &str, paths: &BTreeSet<String>) -> Result<Vec<String>> {
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let Some(block) = sidecar(file, &paths) else { return Ok(Vec::new()) };
    let is_of = |model: &&str| sidecar(model, &paths) == Some(block);
    let others = models(&paths).into_iter().filter(|model| *model != file);
    match others.filter(is_of).count() {
        0 => parts(name, block, &paths),
        _ => Ok(Vec::new()),
    }
}

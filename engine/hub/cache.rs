//! The cache that all tools of the hub share, of one repository.
//!
//! ```text
//! models--OWNER--NAME/blobs/HASH                 a file's bytes; HASH.incomplete while they come
//! models--OWNER--NAME/refs/main                  the newest commit that was asked for; others by the names of branches and tags
//! models--OWNER--NAME/snapshots/COMMIT/PATH      a relative link to the bytes
//! .locks/models--OWNER--NAME/HASH.lock           held by who writes the bytes
//! ```

use crate::Event;
use crate::hash::Hash;
use crate::listing::{Remote, is_commit};
use crate::name::{MAIN, Repo, Revision};
use qernel_core::disk;
use qernel_core::error::{Error, Result};
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Folders within each other that a snapshot has, at most.
const DEEPEST: usize = 16;
/// The folder of files that name commits, and the length of one at most.
const REFS: &str = "refs";
const LONGEST_REF: u64 = 256;

/// What the names of links begin with that are not in their place yet.
const PARTIAL: &str = ".qernel-";

/// The part of the cache that one repository has.
pub(crate) struct RepoCache {
    root: PathBuf,
    /// `models--OWNER--NAME`
    pub(crate) folder: PathBuf,
    pub(crate) locks: PathBuf,
}

impl RepoCache {
    pub(crate) fn new(root: &Path, repo: &Repo) -> Self {
        let name = repo.folder();
        Self { root: root.to_owned(), folder: root.join(&name), locks: root.join(".locks").join(&name) }
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.folder.join("blobs")
    }

    pub(crate) fn blob(&self, hash: &Hash) -> PathBuf {
        self.blobs().join(hash.as_str())
    }

    /// Where bytes are collected until all are there.
    pub(crate) fn part(&self, hash: &Hash) -> PathBuf {
        self.blobs().join(format!("{}.incomplete", hash.as_str()))
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Whether all bytes of a file are there. They were checked when they came.
    pub(crate) fn is_whole(&self, remote: &Remote) -> bool {
        fs::metadata(self.blob(&remote.hash)).is_ok_and(|found| found.is_file() && found.len() == remote.size)
    }

    /// Bytes of a file that have still to come.
    pub(crate) fn missing(&self, remote: &Remote) -> u64 {
        if self.is_whole(remote) {
            return 0;
        }
        remote.size.saturating_sub(fs::metadata(self.part(&remote.hash)).map_or(0, |part| part.len()))
    }

    /// The commits that there are files of: the newest that was asked for, then the others in the order in which they came, the last first.
    pub(crate) fn commits(&self) -> Vec<String> {
        let head = self.commit_of(MAIN);
        let mut others = Vec::new();
        for entry in fs::read_dir(self.folder.join("snapshots")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_commit(&name) && Some(&name) != head.as_ref() {
                others.push((entry.metadata().and_then(|found| found.modified()).ok(), name));
            }
        }
        others.sort_unstable();
        let head = head.filter(|commit| self.snapshot(commit).is_dir());
        head.into_iter().chain(others.into_iter().rev().map(|(_, name)| name)).collect()
    }

    /// Those of [`RepoCache::commits`] that `revision` may mean: what it named last, or of none what `main` did and what no other name is of.
    pub(crate) fn commits_of(&self, revision: Option<&Revision>) -> Vec<String> {
        if let Some(revision) = revision {
            let commit = self.commit_of(revision.as_str());
            return commit.filter(|commit| self.snapshot(commit).is_dir()).into_iter().collect();
        }
        let mut names = BTreeSet::new();
        collect(&self.folder.join(REFS), "", DEEPEST, &mut names);
        let others: Vec<_> =
            names.iter().filter(|name| *name != MAIN).filter_map(|name| self.commit_of(name)).collect();
        let head = self.commit_of(MAIN);
        let is_meant = |commit: &String| head.as_ref() == Some(commit) || !others.contains(commit);
        self.commits().into_iter().filter(is_meant).collect()
    }

    /// The commit that a revision named last, which may be one itself.
    fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let (mut text, path) = (String::new(), self.folder.join(REFS).join(revision));
        File::open(path).ok()?.take(LONGEST_REF).read_to_string(&mut text).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Says that this commit is what a revision names, `main` where it is none, if it is another than before.
    ///
    /// # Errors
    /// [`Error::Io`] where that cannot be written.
    pub(crate) fn set_commit(&self, revision: Option<&Revision>, commit: &str) -> Result<()> {
        let revision = revision.map_or(MAIN, Revision::as_str);
        if self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join(REFS).join(revision);
        make_folder_of(&path)?;
        disk::save(&path, None, |file| {
            file.write_all(commit.as_bytes()).map_err(|error| Error::io(&path, error))
        })
    }

    /// The paths of the files of a commit whose bytes are there, with `/` between names.
    pub(crate) fn paths(&self, commit: &str) -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        collect(&self.snapshot(commit), "", DEEPEST, &mut paths);
        paths
    }

    /// Gives bytes that are there a path in a commit.
    ///
    /// # Errors
    /// [`Error::Io`] where the link cannot be made.
    pub(crate) fn place(&self, commit: &str, path: &str, hash: &Hash) -> Result<()> {
        let link = self.snapshot(commit).join(path);
        let up = "../".repeat(path.split('/').count() + 1);
        let target = PathBuf::from(format!("{up}blobs/{}", hash.as_str()));
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            return Ok(());
        }
        make_folder_of(&link)?;
        replace_link(&link, &target).map_err(|error| Error::io(&link, error))
    }

    /// Waits until nobody else writes the bytes of a file.
    ///
    /// # Errors
    /// [`Error::Io`] where there can be no lock.
    pub(crate) fn lock(&self, hash: &Hash, path: &str, progress: &mut dyn FnMut(Event)) -> Result<Lock> {
        let name = self.locks.join(format!("{}.lock", hash.as_str()));
        let failed = |error| Error::io(&name, error);
        fs::create_dir_all(&self.locks).map_err(failed)?;
        loop {
            let file =
                File::options().create(true).truncate(false).write(true).open(&name).map_err(failed)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    progress(Event::Note(format!("another process loads {path}: waiting for it")));
                    file.lock().map_err(failed)?;
                }
                // A file system without locks: what two write at once is found by its hash.
                Err(TryLockError::Error(error)) if error.kind() != ErrorKind::Unsupported => {
                    return Err(failed(error));
                }
                _ => {}
            }
            // Some tools remove the file when they are done: then this is the lock of nobody else.
            if is_at(&file, &name) {
                return Ok(Lock(file));
            }
        }
    }

    /// Whether another process writes bytes of this repository.
    pub(crate) fn is_busy(&self) -> bool {
        let names = fs::read_dir(&self.locks).into_iter().flatten().flatten().map(|entry| entry.path());
        names
            .filter_map(|name| File::open(name).ok())
            .any(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Refuses to load more than there is room for, where the system says how much that is.
    ///
    /// # Errors
    /// [`Error::Io`] with both numbers.
    pub(crate) fn expect_room(&self, bytes: u64) -> Result<()> {
        fs::create_dir_all(&self.root).map_err(|error| Error::io(&self.root, error))?;
        match free_bytes(&self.root) {
            Some(free) if free < bytes => {
                Err(full(&self.root, format!("{bytes} bytes are to come, {free} are free")))
            }
            _ => Ok(()),
        }
    }
}

/// Held while it lives.
pub(crate) struct Lock(#[allow(dead_code, reason = "closing it gives the lock back")] File);

/// The error of a disk that is full, with what to do.
pub(crate) fn full(path: &Path, what: String) -> Error {
    let what =
        format!("no room left: {what}; `qernel rm` removes models, and HF_HUB_CACHE names another folder");
    Error::io(path, io::Error::new(ErrorKind::StorageFull, what))
}

fn make_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder).map_err(|error| Error::io(path, error))
}

/// Puts a link to `target` in the place of `path`, at once.
fn replace_link(path: &Path, target: &Path) -> io::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    // Processes of several machines or containers may share a cache, and have the same number.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let new = path.with_file_name(format!("{PARTIAL}{process}-{now}-{count}.partial"));
    symlink(target, &new).and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

/// The files below `folder`, under names that begin with `before`. What is no text is no model's.
fn collect(folder: &Path, before: &str, depth: usize, paths: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with(PARTIAL) {
            continue;
        }
        let path = entry.path();
        // Of what a link leads to: bytes that are gone are no file.
        match fs::metadata(&path) {
            Ok(found) if found.is_file() => {
                paths.insert(format!("{before}{name}"));
            }
            Ok(found) if found.is_dir() && depth > 0 => {
                collect(&path, &format!("{before}{name}/"), depth - 1, paths)
            }
            _ => {}
        }
    }
}

#[cfg(unix)]
use std::os::unix::fs::symlink;
#[cfg(windows)]
use std::os::windows::fs::symlink_file as symlink;

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |found: &fs::Metadata| (found.dev(), found.ino());
    matches!((&file.metadata(), &fs::metadata(path)), (Ok(a), Ok(b)) if identity(a) == identity(b))
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cache(root: &Path) -> RepoCache {
        RepoCache::new(root, &"o/n".parse().unwrap())
    }

    #[test]
    fn links_are_relative_and_lead_to_the_bytes() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let hash = Hash::parse(&"ab".repeat(32)).unwrap();
        fs::create_dir_all(cache.blobs()).unwrap();
        fs::write(cache.blob(&hash), "text").unwrap();
        for path in ["a.gguf", "q/b.gguf"] {
            cache.place(COMMIT, path, &hash).unwrap();
            cache.place(COMMIT, path, &hash).unwrap();
            let link = cache.snapshot(COMMIT).join(path);
            assert_eq!(fs::read_to_string(&link).unwrap(), "text");
            assert!(fs::read_link(&link).unwrap().is_relative());
        }
        assert!(cache.paths(COMMIT).iter().eq(["a.gguf", "q/b.gguf"]));
        fs::remove_file(cache.blob(&hash)).unwrap();
        assert!(cache.paths(COMMIT).is_empty(), "their bytes are gone");
    }

    #[test]
    fn the_newest_commit_comes_first() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        assert!(cache.commits().is_empty());
        let other = "f".repeat(40);
        for commit in [COMMIT, &other] {
            fs::create_dir_all(cache.snapshot(commit)).unwrap();
        }
        fs::create_dir_all(cache.snapshot("not-a-commit")).unwrap();
        for head in [COMMIT, &other] {
            cache.set_commit(None, head).unwrap();
            let commits = cache.commits();
            assert_eq!((&commits[0][..], commits.len()), (head, 2));
        }
        fs::write(cache.folder.join("refs/main"), "../../elsewhere").unwrap();
        assert_eq!(cache.commit_of(MAIN), None);
    }

    #[test]
    fn a_revision_means_its_own_commit_and_none_means_no_others() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let [old, new, other] = ["a", "b", "c"].map(|digit| digit.repeat(40));
        for commit in [&old, &new, &other] {
            fs::create_dir_all(cache.snapshot(commit)).unwrap();
        }
        let revision = |text: &str| text.parse::<Revision>().unwrap();
        cache.set_commit(Some(&revision("refs/pr/1")), &other).unwrap();
        cache.set_commit(None, &new).unwrap();
        assert_eq!(cache.commits_of(None), [new.clone(), old.clone()]);
        assert_eq!(cache.commits_of(Some(&revision("refs/pr/1"))), [&other[..]]);
        assert_eq!(cache.commits_of(Some(&revision("main"))), [new]);
        assert_eq!(cache.commits_of(Some(&revision(&old))), [&old[..]]);
        assert!(cache.commits_of(Some(&revision("v1"))).is_empty());
        // A commit has no name but its own.
        cache.set_commit(Some(&revision(&old)), &old).unwrap();
        assert!(!cache.folder.join("refs").join(&old).exists());
    }

    #[test]
    fn more_than_the_disk_has_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        cache.expect_room(1).unwrap();
        let error = cache.expect_room(u64::MAX).unwrap_err();
        assert!(
            matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::StorageFull),
            "{error}"
        );
        assert!(error.to_string().contains("HF_HUB_CACHE"), "{error}");
    }

    #[test]
    fn who_holds_the_lock_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let hash = Hash::parse(&"ab".repeat(32)).unwrap();
        let held = cache.lock(&hash, "a", &mut |_| panic!("nobody else has it")).unwrap();
        assert!(cache.is_busy());
        let (waits, waiting) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                cache.lock(&hash, "a", &mut |event| {
                    assert!(matches!(event, Event::Note(_)));
                    waits.send(()).unwrap();
                })
            });
            waiting.recv().unwrap();
            drop(held);
            waiter.join().unwrap().unwrap();
        });
        assert!(!cache.is_busy());
    }
}

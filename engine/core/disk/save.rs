//! What is saved is written beside the older file and takes its place when it is whole: a full disk or an interrupt leaves that as it was.

use super::Watch;
use crate::error::{Error, Result};
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// As many links as Linux follows.
const MOST_LINKS: usize = 40;

/// Writes a file with `write`. An older one keeps its place until the new one is whole and on the disk, and passes its permissions
/// on; a link stays a link. What is no regular file (a pipe, `/dev/stdout`) is written to directly.
///
/// # Errors
/// Those of `write`; [`Error::Io`] from the system; [`Error::Request`] as [`refuse_model`], before anything is written.
pub fn save(
    path: &Path,
    model: Option<&Path>,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    refuse_model(path, model)?;
    replace(path, false, write)
}

/// As [`save`] for a file that is a model itself. One that is there already is replaced if `force` says so.
///
/// # Errors
/// As [`save`]; [`Error::Request`] for one of the files that `used` tells of, under any name, and for another model without `force`.
pub fn save_model(
    path: &Path,
    used: &Watch,
    force: bool,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    refuse_to_replace(path, used, force)?;
    replace(path, false, write)
}

/// As [`save`] for what nobody else may read, whatever an older file allowed.
///
/// # Errors
/// As [`save`].
pub fn save_private(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    refuse_model(path, None)?;
    replace(path, true, write)
}

/// What [`save_model`] refuses, for whoever has long to compute before.
///
/// # Errors
/// [`Error::Request`], as there.
pub fn refuse_to_replace(path: &Path, used: &Watch, force: bool) -> Result<()> {
    if used.is_of(path) {
        return Err(Error::Request(format!("{} is the file that is read; choose another", path.display())));
    }
    if is_model(path) && !force {
        return Err(Error::Request(format!(
            "{} is there already; --force replaces it, or choose another",
            path.display()
        )));
    }
    Ok(())
}

/// [`save`] over whatever is there.
fn replace(path: &Path, private: bool, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let failed = |error| Error::io(path, error);
    let target = follow(path).map_err(failed)?;
    let before = match fs::metadata(&target) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    if let Some(before) = &before {
        // A file that may not be written to is not replaced either.
        let file = File::options().write(true).open(&target).map_err(failed)?;
        if !before.is_file() {
            let mut file = BufWriter::new(file);
            write(&mut file)?;
            return file.flush().map_err(failed);
        }
    }
    let partial = Partial::create(&target, private).map_err(failed)?;
    let mut file = BufWriter::new(&partial.file);
    write(&mut file)?;
    file.flush().map_err(failed)?;
    drop(file);
    if let Some(before) = before.as_ref().filter(|_| !private) {
        keep_access(&partial.file, before).map_err(failed)?;
    }
    partial.replace(&target).map_err(failed)
}

/// Refuses to write over the file of the model, under whatever name, and over other model files: a model may be in several.
///
/// # Errors
/// [`Error::Request`] if both paths lead to one file, or `path` to one that begins as model files do.
pub fn refuse_model(path: &Path, model: Option<&Path>) -> Result<()> {
    if model.is_some_and(|model| is_same(path, model)) {
        return Err(Error::Request(format!("{} is the model's own file; choose another", path.display())));
    }
    if is_model(path) {
        return Err(Error::Request(format!("{} is a model file; choose another", path.display())));
    }
    Ok(())
}

fn is_model(path: &Path) -> bool {
    let is_file = fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    let begin = || {
        let mut magic = [0; 4];
        File::open(path)?.read_exact(&mut magic)?;
        io::Result::Ok(magic)
    };
    is_file && begin().is_ok_and(|magic| magic == *b"GGUF")
}

#[cfg(unix)]
pub(super) fn is_same(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((identity(a), identity(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(not(unix))]
pub(super) fn is_same(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// Where a path leads, which need not exist.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(target) = fs::read_link(&path) else { return Ok(path) };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    Err(io::Error::other("too many links"))
}

/// Gives a new file the permissions of the older one and, where the system lets this user, its owner.
fn keep_access(file: &File, before: &Metadata) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, fchown};
        let _ = fchown(file, Some(before.uid()), Some(before.gid()));
    }
    file.set_permissions(before.permissions())
}

/// Makes a file, if it is `private` one of its owner alone.
fn create_new(path: &Path, private: bool) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if private {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    #[cfg(not(unix))]
    let _ = private;
    options.open(path)
}

/// A file that is not whole yet; removed unless it takes its place.
struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    /// In the folder of `target`: a file moves at once only within a file system.
    fn create(target: &Path, private: bool) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = target.with_file_name(format!(".qernel-{}-{count}.partial", std::process::id()));
            match create_new(&path, private) {
                Ok(file) => return Ok(Self { path, file }),
                // Left by a process of this number that was killed.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn replace(self, target: &Path) -> io::Result<()> {
        // Some file systems find out here that they are full.
        self.file.sync_all()?;
        fs::rename(&self.path, target)
    }
}

impl Drop for Partial {
    /// Once renamed there is nothing under its path.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder for one test, removed at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("qernel-save-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn save_text(path: &Path, text: &str) -> Result<()> {
        save(path, None, |out| out.write_all(text.as_bytes()).map_err(|error| Error::io(path, error)))
    }

    #[test]
    fn a_file_is_replaced_when_the_new_one_is_whole() {
        let folder = Folder::new("whole");
        let path = folder.file("old", "old");
        let failed = save(&path, None, |out| {
            out.write_all(b"half").map_err(|error| Error::io(&path, error))?;
            Err(Error::Request("stopped".to_owned()))
        });
        assert_eq!(failed.unwrap_err().to_string(), "stopped");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        save_text(&path, "new").unwrap();
        save_text(&folder.0.join("another"), "").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(folder.names(), ["another", "old"], "nothing is left beside");
        assert!(matches!(save_text(&folder.0.join("absent/file"), ""), Err(Error::Io { .. })));
        assert!(matches!(save_text(&folder.0, ""), Err(Error::Io { .. })), "a folder");
    }

    #[cfg(unix)]
    #[test]
    fn permissions_and_links_stay() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = Folder::new("links");
        let path = folder.file("old", "old");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        let (link, dangling) = (folder.0.join("link"), folder.0.join("dangling"));
        symlink("old", &link).unwrap();
        symlink("made", &dangling).unwrap();
        save_text(&link, "new").unwrap();
        save_text(&dangling, "through").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o604);
        assert_eq!(fs::read_to_string(folder.0.join("made")).unwrap(), "through");
        for link in [&link, &dangling] {
            assert!(fs::symlink_metadata(link).unwrap().is_symlink());
        }
        symlink("round", folder.0.join("round")).unwrap();
        assert!(matches!(save_text(&folder.0.join("round"), ""), Err(Error::Io { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_private_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::new("private");
        for path in [folder.0.join("new"), folder.file("old", "old")] {
            save_private(&path, |out| out.write_all(b"new").map_err(|error| Error::io(&path, error)))
                .unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        }
        assert_eq!(folder.names(), ["new", "old"]);
    }

    #[cfg(unix)]
    #[test]
    fn the_model_is_refused_by_any_name() {
        let folder = Folder::new("model");
        let model = folder.file("model", "weights");
        let (hard, soft) = (folder.0.join("hard"), folder.0.join("soft"));
        fs::hard_link(&model, &hard).unwrap();
        std::os::unix::fs::symlink("model", &soft).unwrap();
        for path in
            [&model, &hard, &soft, &folder.0.join("../").join(folder.0.file_name().unwrap()).join("model")]
        {
            let refused = save(path, Some(&model), |_| Ok(())).unwrap_err();
            assert!(
                matches!(&refused, Error::Request(why) if why.contains("the model's own file")),
                "{refused}"
            );
        }
        assert_eq!(fs::read_to_string(&model).unwrap(), "weights");
        refuse_model(&folder.0.join("logits.npy"), Some(&model)).unwrap();
        refuse_model(&model, None).unwrap();
        let part = folder.file("part", "GGUF and so on");
        let refused = save_text(&part, "new").unwrap_err().to_string();
        assert!(refused.contains("is a model file"), "{refused}");
        save_text(&folder.file("short", "GGU"), "new").unwrap();
    }

    #[test]
    fn another_model_is_replaced_only_when_that_is_said() {
        let folder = Folder::new("force");
        let (read, other) = (folder.file("read", "GGUF read"), folder.file("other", "GGUF other"));
        let (_bytes, watch) = super::super::open(&read, super::super::Access::Map).unwrap();
        let save = |path: &Path, force| {
            save_model(path, &watch, force, |out| {
                out.write_all(b"new").map_err(|error| Error::io(path, error))
            })
        };
        for force in [false, true] {
            let refused = save(&folder.0.join("./read"), force).unwrap_err().to_string();
            assert!(refused.contains("the file that is read"), "{refused}");
        }
        assert!(save(&other, false).unwrap_err().to_string().contains("--force"));
        assert_eq!(fs::read_to_string(&other).unwrap(), "GGUF other");
        save(&other, true).unwrap();
        save(&folder.0.join("fresh"), false).unwrap();
        assert_eq!(folder.names(), ["fresh", "other", "read"]);
        assert_eq!(fs::read_to_string(&other).unwrap(), "new");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_device_is_written_to_and_stays() {
        use std::os::unix::fs::FileTypeExt;
        save_text(Path::new("/dev/null"), "text").unwrap();
        assert!(matches!(save_text(Path::new("/dev/full"), "text"), Err(Error::Io { .. })));
        for path in ["/dev/null", "/dev/full"] {
            assert!(fs::metadata(path).unwrap().file_type().is_char_device());
        }
    }
}

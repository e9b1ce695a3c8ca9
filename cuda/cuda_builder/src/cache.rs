//! The cache folder: entries appear whole or not at all, whoever builds at the same time.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Error, env};

/// The cache folder, whether or not it exists yet; `None` where neither the variable nor a home folder is set.
pub fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable(env::CACHE)
        .or_else(|| variable("XDG_CACHE_HOME").filter(|p| p.is_absolute()).map(|p| p.join("cuda_builder")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/cuda_builder")))
}

/// A cache folder that can be written: [`folder`], or else one below the build's own output.
pub(crate) fn writable(out_dir: &Path) -> Result<PathBuf, Error> {
    let usable =
        |path: &Path| fs::create_dir_all(path).is_ok() && fs::write(path.join(".writable"), "").is_ok();
    if let Some(path) = folder().filter(|path| usable(path)) {
        return Ok(path);
    }
    let path = out_dir.join("cuda_builder-cache");
    fs::create_dir_all(&path).map_err(Error::io("create the cache folder", &path))?;
    Ok(path)
}

/// The folder `name` in `cache`, made by `make` in a temporary folder if it is not there.
///
/// A lock file keeps two builds from making it at once; the rename at the end keeps a half-made one (a killed build, a
/// broken download) from being taken for whole.
pub(crate) fn entry<E: From<Error>>(
    cache: &Path,
    name: &str,
    make: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<PathBuf, E> {
    let finished = cache.join(name);
    if finished.is_dir() {
        return Ok(finished);
    }
    let parent = finished.parent().unwrap_or(cache);
    fs::create_dir_all(parent).map_err(Error::io("create the folder", parent))?;
    let _lock = lock(&finished)?;
    if finished.is_dir() {
        return Ok(finished);
    }
    let partial = sibling(&finished, "partial");
    remove(&partial).map_err(Error::io("remove the remains of an interrupted build", &partial))?;
    fs::create_dir_all(&partial).map_err(Error::io("create the folder", &partial))?;
    if let Err(error) = make(&partial) {
        let _ = remove(&partial);
        return Err(error);
    }
    fs::rename(&partial, &finished).map_err(Error::io("move into place", &finished))?;
    Ok(finished)
}

/// Waits for, and holds until dropped, the right to make the entry `path`. Ends with its process, however that ends.
pub(crate) fn lock(path: &Path) -> Result<fs::File, Error> {
    let path = sibling(path, "lock");
    let file = fs::File::create(&path).map_err(Error::io("create the lock file", &path))?;
    file.lock().map_err(Error::io("lock", &path))?;
    Ok(file)
}

/// `path` with `.suffix` added to its name.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// FNV-1a, 64 bits: a stable name for a set of flags (the standard library's hasher may change between versions).
pub(crate) fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn an_interrupted_entry_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        fs::create_dir_all(cache.join("sysroots/x.partial")).unwrap();
        fs::write(cache.join("sysroots/x.partial/half"), "").unwrap();
        let error = entry(cache, "sysroots/x", |_| Err::<(), _>("no network".to_string())).unwrap_err();
        assert_eq!(error, "no network");
        assert!(!cache.join("sysroots/x").exists());
        let path = entry(cache, "sysroots/x", |folder| {
            assert!(!folder.join("half").exists());
            fs::write(folder.join("whole"), "").map_err(Error::io("write", folder))
        });
        assert!(path.unwrap().join("whole").is_file());
    }

    #[test]
    fn builds_at_the_same_time_make_an_entry_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        let made = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    entry(cache, "entry", |folder| {
                        made.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(std::time::Duration::from_millis(20));
                        fs::write(folder.join("file"), "whole").map_err(Error::io("write", folder))
                    })
                    .map(|path| assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "whole"))
                    .unwrap();
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn a_fingerprint_tells_lists_of_flags_apart() {
        assert_ne!(fingerprint(["a", "b"]), fingerprint(["ab"]));
        assert_eq!(fingerprint(["a"]), fingerprint(["a"]));
    }
}

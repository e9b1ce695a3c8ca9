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
pub(crate) fn entry(
    cache: &Path,
    name: &str,
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let finished = cache.join(name);
    if finished.is_dir() {
        return Ok(finished);
    }
    let parent = finished.parent().unwrap_or(cache);
    fs::create_dir_all(parent).map_err(Error::io("create the folder", parent))?;
    let lock_path = sibling(&finished, "lock");
    let lock = fs::File::create(&lock_path).map_err(Error::io("create the lock file", &lock_path))?;
    lock.lock().map_err(Error::io("lock", &lock_path))?;
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

//! The source checkout that the program is run in, and how its kernels' files are found.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// The folder of the repository that this program was built in.
pub fn built_in() -> &'static Path {
    // This crate is two folders below.
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new(""))
}

/// The folder of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkout {
    root: PathBuf,
}

impl Checkout {
    /// The checkout that the current folder is in.
    ///
    /// # Errors
    /// [`Error::Request`] if there is none, [`Error::Io`] if the current folder cannot be read.
    pub fn find() -> Result<Self> {
        let here = std::env::current_dir().map_err(|error| Error::io(".", error))?;
        Self::around(&here)
    }

    /// The checkout that `folder` is in.
    ///
    /// # Errors
    /// [`Error::Request`] if there is none.
    pub fn around(folder: &Path) -> Result<Self> {
        let is_root =
            |root: &&Path| root.join("gpu-kernels/src/lib.rs").is_file() && root.join("engine/cuda").is_dir();
        let root = folder.ancestors().find(is_root).ok_or_else(|| {
            Error::Request(format!(
                "{} is not in a checkout of qernel's source, which has gpu-kernels/src and engine/cuda: run this in one",
                folder.display()
            ))
        })?;
        Ok(Self { root: root.to_owned() })
    }

    /// The folder of the repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the root.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.root.join(inside)
    }

    /// A path as people write it: below the root.
    pub fn short<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }

    /// The files of an operation's kernels: those of its name, and those of its folder.
    ///
    /// # Errors
    /// [`Error::Request`] if there is none of that name.
    pub fn kernel_files(&self, op: &str) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for folder in ["", "fused/", "fused/mma/"] {
            let path = self.path(format!("gpu-kernels/src/{folder}{op}"));
            files.extend([path.with_extension("rs")].into_iter().filter(|file| file.is_file()));
            files.extend(rust_files(&path).unwrap_or_default());
        }
        if files.is_empty() {
            let root = self.root.display();
            return Err(Error::Request(format!("gpu-kernels/src has neither {op}.rs nor {op}/ in {root}")));
        }
        Ok(files)
    }

    /// The launch wrappers, a file for each operation.
    ///
    /// # Errors
    /// [`Error::Io`] if a folder cannot be read.
    pub fn wrapper_files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for folder in ["engine/cuda", "engine/cuda/fused"].map(|folder| self.path(folder)) {
            files.extend(rust_files(&folder).map_err(|error| Error::io(&folder, error))?);
        }
        Ok(files)
    }
}

/// The Rust files of a folder, in the order of their names.
fn rust_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "rs"));
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkout_is_found_from_inside_and_only_there() {
        let root = built_in();
        let checkout = Checkout::around(&root.join("engine/lab")).unwrap();
        assert_eq!(checkout.root(), root);
        let files = checkout.kernel_files("attention").unwrap();
        assert!(files.iter().any(|file| file.ends_with("attention/prefill.rs")));
        assert_eq!(checkout.kernel_files("matmul_add").unwrap().len(), 2);
        assert!(checkout.kernel_files("rms_norm").unwrap()[0].ends_with("src/rms_norm.rs"));
        assert!(checkout.kernel_files("normal").is_err());
        let outside = tempfile::tempdir().unwrap();
        assert!(Checkout::around(outside.path()).unwrap_err().to_string().contains("not in a checkout"));
    }
}

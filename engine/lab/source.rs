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

    /// The file of an operation's kernels, those of its folder beside it, where its other variants are, and then all others
    /// of the crate's first level.
    ///
    /// # Errors
    /// [`Error::Request`] if there is none of that name.
    pub fn kernel_files(&self, op: &str) -> Result<Vec<PathBuf>> {
        let (file, folder) =
            (self.path(format!("gpu-kernels/src/{op}.rs")), self.path(format!("gpu-kernels/src/{op}")));
        let root =
            [file, folder.join("mod.rs")].into_iter().find(|file| file.is_file()).ok_or_else(|| {
                Error::Request(format!(
                    "gpu-kernels/src has neither {op}.rs nor {op}/mod.rs in {}",
                    self.root.display()
                ))
            })?;
        let mut files = vec![root];
        for folder in [folder, self.path("gpu-kernels/src")] {
            for file in rust_files(&folder).unwrap_or_default() {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }

    /// The launch wrappers, one file or more operations each.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn wrapper_files(&self) -> Result<Vec<PathBuf>> {
        let folder = self.path("engine/cuda");
        rust_files(&folder).map_err(|error| Error::io(&folder, error))
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
        assert!(
            files[0].ends_with("attention/mod.rs") && files.iter().any(|file| file.ends_with("prefill.rs"))
        );
        assert!(checkout.kernel_files("rms_norm").unwrap()[0].ends_with("src/rms_norm.rs"));
        assert!(checkout.kernel_files("norm").is_err());
        let outside = tempfile::tempdir().unwrap();
        assert!(Checkout::around(outside.path()).unwrap_err().to_string().contains("not in a checkout"));
    }
}

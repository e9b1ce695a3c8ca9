//! The files of a folder.

use crate::disk::{self, Access, Watch};
use crate::error::{Error, Result};
use bytes::Bytes;
use std::io::ErrorKind;
use std::path::{Component, Path};

/// A folder, and how its weights are read.
#[derive(Clone, Copy)]
pub(super) struct Files<'a> {
    pub folder: &'a Path,
    pub access: Access,
}

impl Files<'_> {
    /// The bytes of a file of weights, with what watches it; `None` where there is none of that name.
    pub(super) fn weights(&self, name: &str) -> Result<Option<(Bytes, Watch)>> {
        present(disk::open(&self.folder.join(name), self.access))
    }

    /// The text of a small file; `None` where there is none of that name.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        let Some((bytes, _)) = present(disk::open(&self.folder.join(name), Access::Read))? else {
            return Ok(None);
        };
        let text = String::from_utf8(bytes.into())
            .map_err(|error| super::fault(name, format!("it is no UTF-8: {error}")))?;
        Ok(Some(text))
    }

    /// The names of the files in a folder of it, in order; none where there is no such folder.
    pub(super) fn names(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.folder.join(folder);
        let failed = |source: std::io::Error| Error::io(&path, source);
        let entries = match std::fs::read_dir(&path) {
            Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => {
                return Ok(Vec::new());
            }
            entries => entries.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// What people call the model: the name of its folder, or of what is around it in the cache of Hugging Face's hub
    /// (`models--OWNER--NAME/snapshots/COMMIT`).
    pub(super) fn name(&self) -> Option<String> {
        let folder = self.folder.canonicalize().ok()?;
        let cached = folder.parent().filter(|parent| parent.ends_with("snapshots")).and_then(Path::parent);
        let cached = cached.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        match cached.as_deref().and_then(|name| name.strip_prefix("models--")?.rsplit("--").next()) {
            Some(name) => Some(name.to_owned()),
            None => Some(folder.file_name()?.to_string_lossy().into_owned()),
        }
    }
}

fn present<T>(opened: Result<T>) -> Result<Option<T>> {
    match opened {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(Error::Gguf(message)) => Err(Error::Folder(message)),
        opened => opened.map(Some),
    }
}

/// Whether a name that a file gives stays in the folder: an index could name any file of the machine.
pub(super) fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        && !name.contains(['/', '\\'])
}

//! Files as the system keeps them: a model's file is opened, mapped or read and watched; what is written replaces the older file
//! when it is whole.

mod fault;
mod save;

pub use fault::end_on_fault;
pub use save::{refuse_model, refuse_to_replace, save, save_model, save_private};

use crate::error::{Error, Result};
use crate::host_memory;
use bytes::Bytes;
use fault::Named;
use std::fs::{File, Metadata};
use std::io::{self, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

/// How the bytes of a model file come to the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// The file is mapped: its pages are read when they are needed and shared with other programs. One that is cut short meanwhile
    /// ends the program ([`end_on_fault`]), and one that is written to changes the weights ([`Watch`]).
    #[default]
    Map,
    /// All of it is read into memory of the program's own; what happens to the file then changes nothing.
    Read,
}

/// Opens a file and gives its bytes, with what watches it while they are mapped.
///
/// # Errors
/// [`Error::Io`] where it cannot be opened or read, [`Error::Gguf`] where it is no regular file, [`Error::Memory`] where there is no
/// room to map or read it to.
pub fn open(path: &Path, access: Access) -> Result<(Bytes, Watch)> {
    let failed = |error| Error::io(path, error);
    let (file, metadata) = open_regular(path)?;
    let stamp = Stamp { size: metadata.len(), modified: metadata.modified().ok() };
    if access == Access::Read {
        let watch = Watch(vec![Watched { stamp, opened: Weak::new() }]);
        return Ok((read(path, file, metadata.len())?.into(), watch));
    }
    // SAFETY: the map is only read, as bytes, through bounds that were compared with its length. A process that writes to the file
    // meanwhile can change the values read, which no code relies on (names are checked again when they are used as text); one that
    // cuts it short ends this program with SIGBUS, as it would any user of a memory map.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|error| match error.kind() {
        ErrorKind::OutOfMemory => {
            host_memory::refused(&format!("mapping {}", path.display()), metadata.len() as usize)
        }
        _ => failed(error),
    })?;
    let name = Named::new(&map, path);
    let opened = Arc::new(Opened { path: path.to_owned(), stamp, file });
    let watch = Watch(vec![Watched { stamp, opened: Arc::downgrade(&opened) }]);
    Ok((Bytes::from_owner(Mapped { _name: name, map, _opened: opened }), watch))
}

/// Opens a file to read it from its beginning to its end.
///
/// # Errors
/// As [`open`].
pub fn reader(path: &Path) -> Result<BufReader<File>> {
    open_regular(path).map(|(file, _)| BufReader::new(file))
}

fn open_regular(path: &Path) -> Result<(File, Metadata)> {
    let failed = |error| Error::io(path, error);
    let file = open_at_once(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        let (path, kind) = (path.display(), kind(&metadata));
        return Err(Error::Gguf(format!("{path}: expected a regular file, found {kind}")));
    }
    Ok((file, metadata))
}

/// Opens a file to read. A pipe that nobody writes to does not keep the caller.
#[cfg(unix)]
fn open_at_once(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

#[cfg(not(unix))]
fn open_at_once(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// What a path leads to that is no regular file.
fn kind(metadata: &Metadata) -> &'static str {
    if metadata.is_dir() {
        return "a folder";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = metadata.file_type();
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_block_device() || kind.is_char_device() {
            return "a device";
        }
    }
    "something else"
}

/// A file of `size` bytes, or fewer if it has become shorter.
fn read(path: &Path, file: File, size: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let fits = usize::try_from(size).is_ok_and(|size| bytes.try_reserve_exact(size).is_ok());
    if !fits {
        return Err(Error::Memory(format!(
            "{} has {size} bytes, for which there is no room; without --no-mmap it is not read as a whole",
            path.display()
        )));
    }
    file.take(size).read_to_end(&mut bytes).map_err(|error| Error::io(path, error))?;
    Ok(bytes)
}

/// A file's size and the time of its last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub size: u64,
    pub modified: Option<SystemTime>,
}

/// A file as it was when it was mapped.
struct Opened {
    path: PathBuf,
    stamp: Stamp,
    file: File,
}

/// A mapped file.
struct Mapped {
    // Dropped before the map, in this order: no fault of another file's map is taken for one of this.
    _name: Named,
    map: memmap2::Mmap,
    _opened: Arc<Opened>,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

/// A file that was opened.
#[derive(Clone)]
struct Watched {
    stamp: Stamp,
    /// As long as it is mapped.
    opened: Weak<Opened>,
}

/// Tells whether mapped files were changed. One that is not mapped any more, or never was, cannot matter.
#[derive(Clone, Default)]
pub struct Watch(Vec<Watched>);

impl Watch {
    /// What has happened to the first of the files since it was mapped, for people; `None` where its size and the time of its last change are what
    /// they were.
    pub fn changed(&self) -> Option<String> {
        self.0.iter().find_map(|file| Self::changed_one(&file.opened))
    }

    /// Whether `path` leads to one of the files.
    pub fn is_of(&self, path: &Path) -> bool {
        let mapped = |file: &Watched| file.opened.upgrade();
        self.0.iter().filter_map(mapped).any(|opened| save::is_same(path, &opened.path))
    }

    /// What the files were when they were opened, mapped or not.
    pub fn stamps(&self) -> impl Iterator<Item = Stamp> {
        self.0.iter().map(|file| file.stamp)
    }

    /// Tells of all files that these tell of.
    pub fn all<'a>(watches: impl IntoIterator<Item = &'a Self>) -> Self {
        Self(watches.into_iter().flat_map(|watch| watch.0.iter().cloned()).collect())
    }

    fn changed_one(opened: &Weak<Opened>) -> Option<String> {
        let opened = opened.upgrade()?;
        let path = opened.path.display();
        let what = match opened.file.metadata() {
            Ok(now) if now.len() != opened.stamp.size => {
                format!("had {} bytes and has {} now", opened.stamp.size, now.len())
            }
            Ok(now) if now.modified().ok() != opened.stamp.modified => "was written to".to_owned(),
            Ok(_) => return None,
            Err(error) => format!("cannot be looked at any more ({error})"),
        };
        Some(format!(
            "the model file {path} {what} while it is in use; answers may be wrong: start again, with a file that nobody changes or \
             with --no-mmap"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("qernel-disk-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_watch_tells_of_size_and_time_while_the_file_is_mapped() {
        let path = temporary("watch");
        std::fs::write(&path, [1; 5000]).unwrap();
        let (bytes, watch) = open(&path, Access::Map).unwrap();
        assert_eq!((&bytes[..], watch.changed()), (&[1; 5000][..], None));

        let writer = File::options().write(true).open(&path).unwrap();
        writer.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(watch.changed().unwrap().contains("was written to"));
        writer.set_len(4999).unwrap();
        assert!(watch.changed().unwrap().contains("had 5000 bytes and has 4999 now"));
        drop(bytes);
        assert_eq!(watch.changed(), None, "nobody reads it any more");

        let (bytes, watch) = open(&path, Access::Read).unwrap();
        writer.set_len(0).unwrap();
        assert_eq!((&bytes[..], watch.changed()), (&[1; 4999][..], None));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_claim_of_memory_that_nobody_has_is_an_error() {
        let path = temporary("claim");
        std::fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        assert!(matches!(read(&path, file, u64::MAX), Err(Error::Memory(_))));
        std::fs::remove_file(&path).unwrap();
    }
}

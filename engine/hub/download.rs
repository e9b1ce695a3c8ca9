//! The bytes of one file: in as many connections as it takes, checked when all are there.

use crate::Event;
use crate::cache::{RepoCache, full};
use crate::hash::Hasher;
use crate::http::{Answer, Ask, Failure, Http, words};
use crate::listing::{Remote, address, refused, said_hash};
use crate::name::Repo;
use qernel_core::error::{Error, Result};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use ureq::http::{HeaderMap, StatusCode};

/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;

/// Loads files of one commit into the cache.
pub(crate) struct Loader<'a> {
    pub(crate) http: &'a Http,
    pub(crate) endpoint: &'a str,
    pub(crate) repo: &'a Repo,
    pub(crate) commit: &'a str,
    pub(crate) cache: &'a RepoCache,
}

impl Loader<'_> {
    /// Brings the bytes of a file here, unless they are; gives the number of those that came.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] where they do not come, after all tries; [`Failure::Final`] where they are others than was said, where
    /// they cannot be written, or where this user may not have them. What has come stays, for the next time.
    pub(crate) fn load(
        &self,
        path: &str,
        remote: &Remote,
        progress: &mut dyn FnMut(Event),
    ) -> Result<u64, Failure> {
        if self.cache.is_whole(remote) {
            return Ok(0);
        }
        let _lock = self.cache.lock(&remote.hash, path, progress).map_err(Failure::Final)?;
        if self.cache.is_whole(remote) {
            return Ok(0);
        }
        let mut part = Part::open(&self.cache.part(&remote.hash), remote).map_err(Failure::Final)?;
        let mut came_before = part.len;
        progress(Event::Begin { path, size: remote.size, done: part.len });
        let before = part.len;
        loop {
            self.load_rest(path, remote, &mut part, progress)?;
            match part.finish(&self.cache.blob(&remote.hash), remote).map_err(Failure::Final)? {
                Finished::Whole => break,
                // What an earlier process left behind may have been bad: that is worth one more try.
                Finished::Wrong(_) if came_before > 0 => {
                    progress(Event::Note(format!(
                        "{path}: what was here from before is not what it should be; once more from its beginning"
                    )));
                    came_before = 0;
                    part = Part::open(&self.cache.part(&remote.hash), remote).map_err(Failure::Final)?;
                }
                Finished::Wrong(found) => {
                    return Err(Failure::Final(Error::Network(format!(
                        "{path} of {}: expected {}, found {found}; what came was thrown away: try again, or another hub (HF_ENDPOINT)",
                        self.repo, remote.hash
                    ))));
                }
            }
        }
        progress(Event::End);
        Ok(remote.size.saturating_sub(before))
    }

    /// All that is missing of a file. A connection that ends early is followed by another, as long as bytes come.
    fn load_rest(
        &self,
        path: &str,
        remote: &Remote,
        part: &mut Part,
        progress: &mut dyn FnMut(Event),
    ) -> Result<(), Failure> {
        let patience = &self.http.patience;
        let mut failures = 0;
        while part.len < remote.size {
            let before = part.len;
            let Err(failure) = self.load_some(path, remote, part, progress) else { return Ok(()) };
            let Failure::Unreachable(why) = failure else { return Err(failure) };
            failures = if part.len > before { 1 } else { failures + 1 };
            if failures >= patience.tries {
                let (done, size) = (part.len, remote.size);
                return Err(Failure::Unreachable(format!(
                    "{path}: {why}; {done} of {size} bytes are here, and the same command goes on behind them"
                )));
            }
            progress(Event::Note(format!("{path}: {why}; going on at byte {}", part.len)));
            sleep(patience.pause(failures));
        }
        Ok(())
    }

    /// What one connection brings.
    fn load_some(
        &self,
        path: &str,
        remote: &Remote,
        part: &mut Part,
        progress: &mut dyn FnMut(Event),
    ) -> Result<(), Failure> {
        let address = address(self.endpoint, self.repo, self.commit, path);
        let answer = self.http.ask(&address, Ask::From(part.len), &mut |note| progress(Event::Note(note)))?;
        self.expect_bytes(path, &answer, part)?;
        let start = expected_start(path, &answer, remote, part.len).map_err(Failure::Final)?;
        if start != part.len {
            part.clear().map_err(Failure::Final)?;
            progress(Event::At(0));
        }
        self.copy(remote, answer.response.into_body().into_reader(), part, progress)
    }

    /// Refuses an answer that has no bytes of the file.
    fn expect_bytes(&self, path: &str, answer: &Answer, part: &mut Part) -> Result<(), Failure> {
        let (host, status) = (self.http.host(), answer.response.status());
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(()),
            // It has no bytes there, whatever was said: once more from the beginning.
            StatusCode::RANGE_NOT_SATISFIABLE => {
                part.clear().map_err(Failure::Final)?;
                Err(Failure::Unreachable(format!("{host} answers {}", words(status))))
            }
            _ if answer.is_hub => {
                Err(Failure::Final(refused(self.http, self.endpoint, self.repo, Some(path), status)))
            }
            // An address that was good for a while: the hub gives another.
            _ => {
                Err(Failure::Unreachable(format!("the host that {host} sends to answers {}", words(status))))
            }
        }
    }

    fn copy(
        &self,
        remote: &Remote,
        mut body: impl Read,
        part: &mut Part,
        progress: &mut dyn FnMut(Event),
    ) -> Result<(), Failure> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = match body.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(Failure::Unreachable(format!("the connection was cut off ({error})")));
                }
            };
            if part.len + count as u64 > remote.size {
                part.clear().map_err(Failure::Final)?;
                let size = remote.size;
                return Err(Failure::Final(Error::Network(format!(
                    "expected {size} bytes, and more came: try again"
                ))));
            }
            part.write(&chunk[..count]).map_err(Failure::Final)?;
            progress(Event::At(part.len));
        }
        if part.len < remote.size {
            return Err(Failure::Unreachable("the connection was cut off".to_owned()));
        }
        Ok(())
    }
}

/// The first byte that an answer has: the one after the `len` that are here, or that of the whole file.
///
/// # Errors
/// [`Error::Network`] where the answer is of another file than was said.
fn expected_start(path: &str, answer: &Answer, remote: &Remote, len: u64) -> Result<u64> {
    let changed =
        |what: String| Err(Error::Network(format!("{path} changed while it was loaded ({what}): try again")));
    if let Some(said) = said_hash(&answer.of_hub).filter(|said| *said != remote.hash) {
        return changed(format!("it was {}, and is {said}", remote.hash));
    }
    match place(answer.response.status(), answer.response.headers()) {
        None => changed("the range in the answer is none".to_owned()),
        Some(Place { start, .. }) if start != len && start != 0 => {
            changed(format!("asked for bytes from {len} on, got those from {start}"))
        }
        Some(Place { size: Some(size), .. }) if size != remote.size => {
            changed(format!("it had {} bytes, and has {size}", remote.size))
        }
        Some(Place { start, .. }) => Ok(start),
    }
}

/// Which bytes an answer has.
struct Place {
    start: u64,
    /// Of the whole file, where that is said.
    size: Option<u64>,
}

/// `None` for a range that is none.
fn place(status: StatusCode, headers: &HeaderMap) -> Option<Place> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if status == StatusCode::OK {
        return Some(Place { start: 0, size: text("content-length").and_then(|size| size.parse().ok()) });
    }
    let (range, size) = text("content-range")?.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some(Place { start: start.trim().parse().ok()?, size: size.trim().parse().ok() })
}

/// The bytes that have come.
struct Part {
    file: File,
    path: PathBuf,
    len: u64,
    hasher: Hasher,
    /// Of none at all.
    empty: Box<dyn Fn() -> Hasher>,
}

/// What became of all bytes.
enum Finished {
    Whole,
    /// They are others than they should be, with this hash, and gone.
    Wrong(crate::hash::Hash),
}

impl Part {
    /// Takes up what an earlier process has left.
    fn open(path: &Path, remote: &Remote) -> Result<Self> {
        let failed = |error| Error::io(path, error);
        fs::create_dir_all(path.parent().unwrap_or(Path::new(""))).map_err(failed)?;
        let file = File::options().create(true).read(true).append(true).open(path).map_err(failed)?;
        let (hash, size) = (remote.hash.clone(), remote.size);
        let empty = Box::new(move || hash.hasher(size));
        let mut part = Self { file, path: path.to_owned(), len: 0, hasher: empty(), empty };
        let found = part.file.metadata().map_err(failed)?;
        if found.len() > size {
            part.clear()?;
            return Ok(part);
        }
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = part.file.read(&mut chunk).map_err(failed)?;
            if count == 0 {
                break;
            }
            part.hasher.update(&chunk[..count]);
            part.len += count as u64;
        }
        Ok(part)
    }

    fn clear(&mut self) -> Result<()> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        cleared.map_err(|error| Error::io(&self.path, error))?;
        (self.len, self.hasher) = (0, (self.empty)());
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                full(&self.path, format!("after {} bytes ({error})", self.len))
            }
            _ => Error::io(&self.path, error),
        })?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Checks the bytes, and gives them their name.
    fn finish(&mut self, blob: &Path, remote: &Remote) -> Result<Finished> {
        let failed = |error| Error::io(&self.path, error);
        let found = std::mem::replace(&mut self.hasher, (self.empty)()).finish();
        if found != remote.hash {
            fs::remove_file(&self.path).map_err(failed)?;
            return Ok(Finished::Wrong(found));
        }
        // Some file systems find out here that they are full.
        self.file.sync_all().map_err(failed)?;
        fs::rename(&self.path, blob).map_err(failed)?;
        Ok(Finished::Whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Hash;

    /// Of `hello\n`.
    fn hello() -> Remote {
        Remote { size: 6, hash: Hash::parse("ce013625030ba8dba906f756967f9e9ca394464a").unwrap() }
    }

    #[test]
    fn parts_go_on_and_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let (path, blob) = (folder.path().join("part"), folder.path().join("blob"));
        Part::open(&path, &hello()).unwrap().write(b"hel").unwrap();
        let mut part = Part::open(&path, &hello()).unwrap();
        assert_eq!(part.len, 3);
        part.write(b"lo\n").unwrap();
        assert!(matches!(part.finish(&blob, &hello()).unwrap(), Finished::Whole));
        assert_eq!((fs::read(&blob).unwrap(), path.exists()), (b"hello\n".to_vec(), false));

        fs::write(&path, "hallo\n").unwrap();
        let mut part = Part::open(&path, &hello()).unwrap();
        assert!(matches!(part.finish(&blob, &hello()).unwrap(), Finished::Wrong(_)));
        assert!(!path.exists());
        fs::write(&path, "longer than that").unwrap();
        let mut part = Part::open(&path, &hello()).unwrap();
        assert_eq!(part.len, 0);
        part.write(b"hello\n").unwrap();
        assert!(matches!(part.finish(&blob, &hello()).unwrap(), Finished::Whole));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_disk_that_is_full_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let mut part = Part::open(&folder.path().join("part"), &hello()).unwrap();
        part.file = File::options().write(true).open("/dev/full").unwrap();
        let error = part.write(b"hello\n").unwrap_err().to_string();
        assert!(error.contains("no room left: after 0 bytes") && error.contains("HF_HUB_CACHE"), "{error}");
    }

    #[test]
    fn ranges_are_read_and_what_is_none_is_not() {
        let of = |status, name: &'static str, value: &str| {
            let headers = HeaderMap::from_iter([(
                name.parse::<ureq::http::HeaderName>().unwrap(),
                value.parse().unwrap(),
            )]);
            place(status, &headers).map(|place| (place.start, place.size))
        };
        let (all, some) = (StatusCode::OK, StatusCode::PARTIAL_CONTENT);
        assert_eq!(of(all, "content-length", "7"), Some((0, Some(7))));
        assert_eq!(of(all, "x", "7"), Some((0, None)));
        assert_eq!(of(some, "content-range", "bytes 3-6/7"), Some((3, Some(7))));
        assert_eq!(of(some, "content-range", "bytes 3-6/*"), Some((3, None)));
        for bad in ["", "3-6/7", "bytes */7", "bytes -3/7", "items 3-6/7"] {
            assert_eq!(of(some, "content-range", bad), None, "{bad}");
        }
    }
}

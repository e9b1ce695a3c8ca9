//! The engine's error: what was expected, what was found, what to do.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Result of every fallible function of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by who can mend it. The text of each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The bytes are not a well-formed GGUF file.
    #[error("not a usable GGUF file: {0}")]
    Gguf(String),
    /// A folder holds no model that can be read.
    #[error("not a usable model folder: {0}")]
    Folder(String),
    /// The file is well-formed but describes no model this engine runs.
    #[error("unsupported model: {0}")]
    Model(String),
    /// The vocabulary is missing or malformed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template is missing, does not compile, or fails.
    #[error("chat template: {0}")]
    Template(String),
    /// Numbers of the file that the format asked for does not have.
    #[error("{0}")]
    Range(String),
    /// Weights, or what was computed with them, are NaN or infinite.
    #[error("{0}")]
    NotFinite(String),
    /// A request that cannot be served as asked: an option out of range, a prompt that is too long.
    #[error("{0}")]
    Request(String),
    /// A host cannot be reached, or what it sends is not what it promised.
    #[error("network: {0}")]
    Network(String),
    /// Weights, KV pages or workspace do not fit.
    #[error("not enough memory: {0}")]
    Memory(String),
    /// The GPU, its driver or one of its libraries.
    #[error("device: {0}")]
    Device(String),
    /// Standard output was closed by its reader; the program ends quietly.
    #[error("standard output was closed")]
    ClosedPipe,
}

impl Error {
    /// An [`Error::Io`] that names its file, or an [`Error::Memory`] where the system had no memory for it.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        if source.kind() == std::io::ErrorKind::OutOfMemory {
            return Self::Memory(format!("{}: {source}", path.as_ref().display()));
        }
        Self::Io { path: path.as_ref().to_owned(), source }
    }

    /// The exit status of the program that ends with this error; README lists them.
    ///
    /// 0 success, 1 input or output failed, 2 the command line or the request is wrong (clap uses 2 too), 3 the
    /// model file is unusable, 4 the device failed or is missing, 5 not enough memory, 130 interrupted.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::ClosedPipe => 0,
            Self::Io { .. } | Self::Network(_) => 1,
            Self::Request(_) => 2,
            Self::Gguf(_)
            | Self::Folder(_)
            | Self::Model(_)
            | Self::Tokenizer(_)
            | Self::Template(_)
            | Self::Range(_) => 3,
            Self::Device(_) => 4,
            Self::NotFinite(_) => 3,
            Self::Memory(_) => 5,
        })
    }
}

/// The name that is most like `asked`, if one is: at most half of the letters differ.
pub fn nearest<'a>(asked: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let names: Vec<&str> = names.into_iter().collect();
    let longest = names.iter().map(|name| name.len()).max().unwrap_or(0);
    // What is much longer is like none, and would take its time.
    let head: String = asked.chars().take(2 * longest).collect();
    let (distance, name) = names.into_iter().map(|name| (distance(name, &head), name)).min()?;
    (2 * distance <= name.len().max(head.len())).then_some(name)
}

/// How many letters are to be put in, left out or replaced to make one word of the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_like_the_one_that_was_asked_for() {
        let names = ["host", "port", "max-queue"];
        assert_eq!(nearest("prot", names), Some("port"));
        assert_eq!(nearest("max_queue", names), Some("max-queue"));
        assert_eq!((nearest("phi3", names), nearest(&"x".repeat(1 << 20), names)), (None, None));
        assert_eq!((nearest("", names), nearest("port", [])), (None, None));
        assert_eq!((distance("", "abc"), distance("kitten", "sitting")), (3, 3));
    }
}

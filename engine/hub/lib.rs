//! Models by name: from Hugging Face's hub into the cache that its tools share, and what is there.
//!
//! Of the hub's interface three requests are enough: the list of a repository's files with their sizes and hashes, a file's bytes from
//! some byte on, and, where the list says no hash, what an answer would say of itself. A file is known by its hash: what has come of it
//! is kept until the rest is there, whoever asks for it, and nothing gets its name before it was checked.

// Printing panics where nobody takes what is printed.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![warn(missing_docs)]

mod cache;
mod choose;
mod download;
mod environment;
mod hash;
mod http;
mod listing;
mod name;
mod pull;
mod stored;

pub use environment::{Environment, Token};
pub use http::Patience;
pub use name::{Name, Repo, Revision};
pub use pull::{Hub, Model};
pub use stored::{Kind, Removed, Stored};

/// What happens while models are loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A file is loaded, of which some bytes may be here already.
    Begin {
        /// Its path in the repository.
        path: &'a str,
        /// Bytes of all of it.
        size: u64,
        /// Bytes that are here.
        done: u64,
    },
    /// Bytes that are here now.
    At(u64),
    /// All of it is here, and checked.
    End,
    /// What people should know, such as that something is waited for.
    Note(String),
}

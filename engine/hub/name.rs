//! What a model is called: `OWNER/NAME`, of which revision, and which of its files.

use qernel_core::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Characters of an owner's or a model's name, at most; as the hub has it.
const LONGEST: usize = 96;
/// What the names of models' folders in the cache begin with; data sets have others.
const MODELS: &str = "models--";
/// What stands in the cache for the slash.
const SEPARATOR: &str = "--";

/// Whether a part of a name stays where it is put, in a folder and in an address: letters, digits and `-_.`, which neither hide it nor lead out.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !name.starts_with(['-', '.'])
        && !name.ends_with('.')
        && !name.contains("..")
}

/// The name of a repository: `OWNER/NAME`, or `NAME` alone of the oldest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repo(String);

impl Repo {
    /// The name of its folder in the cache.
    pub(crate) fn folder(&self) -> String {
        format!("{MODELS}{}", self.0.replace('/', SEPARATOR))
    }

    /// The repository that a folder in the cache is of; `None` for a folder of another kind.
    pub(crate) fn of_folder(name: &str) -> Option<Self> {
        name.strip_prefix(MODELS)?.replace(SEPARATOR, "/").parse().ok()
    }
}

impl FromStr for Repo {
    type Err = Error;

    /// # Errors
    /// [`Error::Request`] for what is no name. What is one stays in its folder and in its place of an address.
    fn from_str(text: &str) -> Result<Self> {
        let is_name = |name: &str| {
            is_plain(name) && name.len() <= LONGEST && !name.ends_with('-') && !name.contains(SEPARATOR)
        };
        if text.split('/').count() <= 2 && text.split('/').all(is_name) {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::Request(format!(
            "expected OWNER/NAME, such as Qwen/Qwen2.5-0.5B-Instruct-GGUF; found {text:?}"
        )))
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The revision that is meant where none is named.
pub(crate) const MAIN: &str = "main";
/// Characters of a revision's name, at most.
const LONGEST_REVISION: usize = 200;

/// A branch, a tag or a commit of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision(String);

impl Revision {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Revision {
    type Err = Error;

    /// # Errors
    /// [`Error::Request`] for what is no name of git's. What is one stays in the folder `refs` and in its place of an address.
    fn from_str(text: &str) -> Result<Self> {
        if text.len() <= LONGEST_REVISION && text.split('/').all(is_plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::Request(format!(
            "expected a branch, a tag or a commit behind the @ of OWNER/NAME@REVISION; found {text:?}"
        )))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A model: a repository, one of its revisions, and which of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Where it is.
    pub repo: Repo,
    /// Which state of it; the newest of `main` where there is none.
    pub revision: Option<Revision>,
    /// A file (`qwen2.5-0.5b-instruct-q8_0.gguf`), or a type (`Q8_0`) in any case; the usual one where there is none.
    pub file: Option<String>,
}

impl FromStr for Name {
    type Err = Error;

    /// Takes `OWNER/NAME`, `OWNER/NAME:FILE`, and `OWNER/NAME@REVISION` with a file or without.
    ///
    /// # Errors
    /// [`Error::Request`] for what is no name.
    fn from_str(text: &str) -> Result<Self> {
        let (repo, file) = match text.split_once(':') {
            Some((repo, file)) => (repo, Some(file)),
            None => (text, None),
        };
        if file.is_some_and(str::is_empty) {
            return Err(Error::Request(format!(
                "expected a file or a type behind the colon; found {text:?}"
            )));
        }
        let (repo, revision) = match repo.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision.parse()?)),
            None => (repo, None),
        };
        Ok(Self { repo: repo.parse()?, revision, file: file.map(str::to_owned) })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repo)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))?;
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_an_owner_a_name_and_perhaps_a_file() {
        let name: Name = "Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M".parse().unwrap();
        assert_eq!(
            (name.repo.to_string(), name.file.as_deref()),
            ("Qwen/Qwen2.5-0.5B-Instruct-GGUF".into(), Some("Q4_K_M"))
        );
        assert_eq!(name.to_string(), "Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M");
        assert_eq!(name.repo.folder(), "models--Qwen--Qwen2.5-0.5B-Instruct-GGUF");
        assert_eq!(Repo::of_folder(&name.repo.folder()), Some(name.repo));
        let name: Name = "a/b:sub/file.gguf".parse().unwrap();
        assert_eq!(name.file.as_deref(), Some("sub/file.gguf"));
        assert_eq!("gpt2".parse::<Name>().unwrap().repo.folder(), "models--gpt2");
        for other in ["datasets--a--b", "models--", "models--..--b", ".locks", "version.txt"] {
            assert_eq!(Repo::of_folder(other), None, "{other}");
        }
    }

    #[test]
    fn names_may_have_a_revision() {
        for (text, revision, file) in
            [("a/b@v1.0:Q8_0", "v1.0", Some("Q8_0")), ("a/b@refs/pr/3", "refs/pr/3", None)]
        {
            let name: Name = text.parse().unwrap();
            assert_eq!(
                (name.revision.as_ref().map(Revision::as_str), name.file.as_deref()),
                (Some(revision), file)
            );
            assert_eq!((name.repo.to_string(), name.to_string()), ("a/b".into(), text.into()));
        }
        assert_eq!("a/b:x@y.gguf".parse::<Name>().unwrap().revision, None, "it is in the file's name");
        let long = format!("a/b@{}", "x".repeat(LONGEST_REVISION + 1));
        for bad in ["a/b@", "a/b@../x", "a/b@x/", "a/b@/x", "a/b@-x", "a/b@.x", "a/b@x y", "a/b@v1@v2", &long]
        {
            let error = bad.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains("a branch, a tag or a commit"), "{bad}: {error}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "x".repeat(LONGEST + 1);
        for bad in [
            "", "/", "a/", "/b", "a/b/c", "../b", "a/..", "a/.b", "a/b.", "a--b/c", "a/b c", "a/b?x",
            "a/b#x", "a/ü", &long,
        ] {
            let error = bad.parse::<Name>().unwrap_err();
            assert!(matches!(&error, Error::Request(why) if why.contains("OWNER/NAME")), "{bad}: {error}");
        }
        assert!("a/b:".parse::<Name>().is_err());
    }
}

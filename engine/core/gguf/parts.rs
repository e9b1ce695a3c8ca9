//! A model in several files, as publishers split those of more than some gigabytes: `NAME-00001-of-00003.gguf` and so on.
//!
//! Every part is a GGUF file of its own with `split.no` (from 0), `split.count` and `split.tensors.count` (of all); the first has all the other metadata.

use super::Gguf;
use super::cursor::shown;
use crate::error::{Error, Result};
use std::collections::HashSet;
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

/// The name of a part: what stands before the numbers, its number from 1, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartName<'a> {
    /// What stands before the numbers.
    pub stem: &'a str,
    /// From 1, in a name that is right.
    pub number: u64,
    /// Parts of the model.
    pub count: u64,
}

impl<'a> PartName<'a> {
    /// Takes the name of a file (or a path) apart; `None` where it is not that of a part.
    pub fn parse(file_name: &'a str) -> Option<Self> {
        let (rest, count) = file_name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let five_digits = |text: &str| {
            let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        Some(Self { stem, number: five_digits(number)?, count: five_digits(count)? })
    }
}

impl fmt::Display for PartName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:05}-of-{:05}.gguf", self.stem, self.number, self.count)
    }
}

/// What a part says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// From 0.
    no: u64,
    count: u64,
    /// Tensors of all parts.
    num_tensors: Option<u64>,
}

impl Place {
    /// `None` for a file that is not split.
    fn of(part: &Gguf) -> Result<Option<Self>> {
        let Some(count) = part.get("split.count")?.filter(|&count| count > 1) else { return Ok(None) };
        let no = part.get("split.no")?.unwrap_or(0);
        Ok(Some(Self { no, count, num_tensors: part.get("split.tensors.count")? }))
    }
}

/// The file at `path`, and if it is a part of a model, whichever, all the others beside it; `open` opens one.
///
/// # Errors
/// What `open` says; [`Error::Gguf`] naming the part that is missing or belongs to another model.
pub(super) fn open(path: &Path, open: impl Fn(&Path) -> Result<Gguf>) -> Result<Gguf> {
    let named = open(path)?;
    let Some(place) = Place::of(&named)? else { return Ok(named) };
    let Place { no, count, num_tensors } = place;
    let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = PartName::parse(file_name).filter(|name| (name.number, name.count) == (no + 1, count));
    let Some(name) = name else {
        let expected = PartName { stem: "NAME", number: no + 1, count };
        return Err(Error::Gguf(format!(
            "{}: it is part {} of {count} of a model; the others are found by its name, which must be {expected}",
            path.display(),
            no + 1
        )));
    };
    let mut parts = Vec::new();
    for number in 1..=count {
        let path = path.with_file_name(PartName { number, ..name }.to_string());
        let part = open(&path).map_err(|error| missing(error, &path, number, count))?;
        expect_same_model(&path, &part, Place { no: number - 1, ..place })?;
        parts.push(part);
    }
    expect_all_tensors(path, &parts, num_tensors)?;
    let mut parts = parts.into_iter();
    let first = parts.next().expect("there are at least two");
    Ok(Gguf { others: parts.collect(), ..first })
}

/// Says of a file that is not there which part it would be.
fn missing(error: Error, path: &Path, number: u64, count: u64) -> Error {
    match error {
        Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => Error::Gguf(format!(
            "{} is missing: part {number} of {count} of a model, which must all be in one folder",
            path.display()
        )),
        error => error,
    }
}

/// Refuses a part that is not what its name says.
fn expect_same_model(path: &Path, part: &Gguf, expected: Place) -> Result<()> {
    let found = Place::of(part)?;
    if found == Some(expected) {
        return Ok(());
    }
    let words = |place: Option<Place>| match place {
        None => "a file of its own".to_owned(),
        Some(Place { no, count, num_tensors }) => {
            let of = num_tensors.map_or(String::new(), |tensors| format!(" of a model of {tensors} tensors"));
            format!("part {} of {count}{of}", no + 1)
        }
    };
    Err(Error::Gguf(format!(
        "{}: it is from another model: expected {}, found {}",
        path.display(),
        words(Some(expected)),
        words(found)
    )))
}

/// Refuses parts of different models that happen to be split alike.
fn expect_all_tensors(path: &Path, parts: &[Gguf], num_tensors: Option<u64>) -> Result<()> {
    let mut names = HashSet::new();
    for part in parts {
        if let Some(name) = part.tensors().map(|tensor| tensor.name()).find(|name| !names.insert(*name)) {
            return Err(Error::Gguf(format!(
                "{}: two parts have the tensor {}: they are from different models",
                path.display(),
                shown(name.as_bytes())
            )));
        }
    }
    match num_tensors {
        Some(expected) if expected != names.len() as u64 => Err(Error::Gguf(format!(
            "{}: expected {expected} tensors in all {} parts, found {}: they are from different models, or one was cut",
            path.display(),
            parts.len(),
            names.len()
        ))),
        _ => Ok(()),
    }
}

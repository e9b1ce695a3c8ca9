//! Calls in JSON whose head is not the usual one: they are read as a whole.

use super::CLOSE;
use super::OPEN;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// How far a block has been read.
#[derive(Debug)]
pub struct Block {
    /// Bytes.
    read: usize,
    place: Place,
}

impl Default for Block {
    fn default() -> Self {
        Self { read: OPEN.len(), place: Place::Before }
    }
}

/// Where in a block a byte stands.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Before the object.
    Before,
    /// In the object, or behind it.
    Object,
    /// In a string.
    Text,
    /// Behind a backslash.
    Escape,
}

/// What is known of a block.
pub enum Reading {
    /// Its end has not come.
    More,
    /// It is none, whatever comes.
    Malformed,
    /// It has so many bytes.
    Closed(usize),
}

impl Block {
    /// Reads on. Strings are told from what is between them, so that [`CLOSE`] may stand in a string; all else is left to
    /// the parser of the whole.
    ///
    /// No byte is read for more than two blocks, however many begin in one another: a block ends where another begins
    /// outside of its strings, and of two blocks at most one is in a string.
    pub fn read(&mut self, block: &[u8]) -> Reading {
        while let Some(&byte) = block.get(self.read) {
            self.place = match (self.place, byte) {
                (Place::Before, b' ' | b'\n' | b'\r' | b'\t') => Place::Before,
                (Place::Before, b'{') => Place::Object,
                (Place::Object, b'"') => Place::Text,
                (Place::Object, b'<') => {
                    let rest = &block[self.read..];
                    return if rest.starts_with(CLOSE.as_bytes()) {
                        Reading::Closed(self.read + CLOSE.len())
                    } else if CLOSE.as_bytes().starts_with(rest) {
                        Reading::More
                    } else {
                        Reading::Malformed
                    };
                }
                (Place::Before, _) | (Place::Object, b'\\') | (Place::Text, ..b' ') => {
                    return Reading::Malformed;
                }
                (Place::Object, _) => Place::Object,
                (Place::Text, b'"') => Place::Object,
                (Place::Text, b'\\') => Place::Escape,
                (Place::Text | Place::Escape, _) => Place::Text,
            };
            self.read += 1;
        }
        Reading::More
    }
}

/// Name and arguments of a whole block: members in any order, arguments an object, or text that is one, or none. `None` if it is not
/// well-formed.
pub fn parse(block: &str) -> Option<(String, String)> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body<'a> {
        name: String,
        #[serde(borrow)]
        arguments: Option<&'a RawValue>,
    }
    let body = block.strip_prefix(OPEN)?.strip_suffix(CLOSE)?;
    let Body { name, arguments } = serde_json::from_str(body).ok()?;
    let text = arguments.map_or("{}", RawValue::get);
    if text.starts_with('{') {
        return Some((name, text.to_owned()));
    }
    let text: String = serde_json::from_str(text).ok()?;
    let is_object = serde_json::from_str(&text).is_ok_and(|value: Value| value.is_object());
    is_object.then_some((name, text))
}

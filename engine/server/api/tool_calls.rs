//! Finds calls of tools in what a model writes, whole or piece by piece.
//!
//! The form is the one that Qwen2.5's chat template asks for, which Hermes models had first:
//!
//! ```text
//! <tool_call>
//! {"name": "weather", "arguments": {"city": "Oslo"}}
//! </tool_call>
//! ```
//!
//! Blanks within a block may be others, the object has these two members in any order and no more, `arguments` is an
//! object. Whatever else begins with `<tool_call>` is text like any other.

use serde::Deserialize;
use serde_json::value::RawValue;

/// What begins a block.
pub const OPEN: &str = "<tool_call>";
/// What ends it.
pub const CLOSE: &str = "</tool_call>";

/// A part of an answer. The parts of an answer, as the model wrote them, add up to its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Content.
    Text(String),
    /// White space with nothing but calls, and the ends of the answer, around it: no content.
    Blank(String),
    Call(Call),
}

/// A well-formed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    /// A JSON object, byte for byte as the model wrote it.
    pub arguments: String,
    /// The whole block.
    pub written: String,
}

/// Takes an answer apart. Where the pieces that it comes in are cut makes no difference to what they become together.
///
/// Only what may still become a call is held back, and white space that may turn out to be none of the content. The time
/// that this takes is linear in the answer's length.
#[derive(Debug, Default)]
pub struct CallParser {
    /// What no piece has been made of.
    held: String,
    /// `held` begins with [`OPEN`], and has been read so far.
    block: Option<Block>,
    /// White space since the last call, or the beginning, if there was nothing else.
    blank: String,
    /// Whether there was something else.
    in_text: bool,
    /// Whether there was a call.
    called: bool,
}

impl CallParser {
    /// Takes the next piece of the answer: what is certain now.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut held = std::mem::take(&mut self.held);
        held.push_str(text);
        let mut start = 0;
        loop {
            let rest = &held[start..];
            let Some(block) = &mut self.block else {
                match rest.find(OPEN) {
                    Some(at) => {
                        self.text(&rest[..at], &mut pieces);
                        self.block = Some(Block::default());
                        start += at;
                        continue;
                    }
                    None => {
                        let certain = rest.len() - begun(rest);
                        self.text(&rest[..certain], &mut pieces);
                        start += certain;
                        break;
                    }
                }
            };
            let call = match block.read(rest.as_bytes()) {
                Reading::More => break,
                Reading::Malformed => None,
                Reading::Closed(len) => Call::parse(&rest[..len]),
            };
            self.block = None;
            match call {
                Some(call) => {
                    start += call.written.len();
                    self.call(call, &mut pieces);
                }
                // What follows may be a call all the same.
                None => {
                    self.text(OPEN, &mut pieces);
                    start += OPEN.len();
                }
            }
        }
        held.drain(..start);
        self.held = held;
        pieces
    }

    /// Ends the answer: what was held back.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        // A block that is never closed is text, but a call may stand in it.
        while self.block.take().is_some() {
            let rest = self.held.split_off(OPEN.len());
            self.held.clear();
            self.text(OPEN, &mut pieces);
            for piece in self.push(&rest) {
                append(&mut pieces, piece);
            }
        }
        let rest = std::mem::take(&mut self.held);
        self.text(&rest, &mut pieces);
        self.end_blank(self.called, &mut pieces);
        pieces
    }

    fn text(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        let rest = if self.in_text { text } else { text.trim_start() };
        if !self.in_text {
            self.blank.push_str(&text[..text.len() - rest.len()]);
        }
        if !rest.is_empty() {
            self.end_blank(false, pieces);
            self.in_text = true;
            append(pieces, Piece::Text(rest.to_owned()));
        }
    }

    fn call(&mut self, call: Call, pieces: &mut Vec<Piece>) {
        self.end_blank(true, pieces);
        (self.in_text, self.called) = (false, true);
        pieces.push(Piece::Call(call));
    }

    fn end_blank(&mut self, beside_call: bool, pieces: &mut Vec<Piece>) {
        let blank = std::mem::take(&mut self.blank);
        if !blank.is_empty() {
            append(pieces, if beside_call { Piece::Blank(blank) } else { Piece::Text(blank) });
        }
    }
}

/// Adds a piece; text after text is one.
fn append(pieces: &mut Vec<Piece>, piece: Piece) {
    match (pieces.last_mut(), piece) {
        (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(&text),
        (_, piece) => pieces.push(piece),
    }
}

/// Bytes at the end of a text that may be the beginning of [`OPEN`].
fn begun(text: &str) -> usize {
    (1..OPEN.len()).rev().find(|&len| text.ends_with(&OPEN[..len])).unwrap_or(0)
}

/// How far a block has been read.
#[derive(Debug)]
struct Block {
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
enum Reading {
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
    fn read(&mut self, block: &[u8]) -> Reading {
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

impl Call {
    /// A whole block; `None` if it is not well-formed.
    fn parse(block: &str) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Body<'a> {
            name: String,
            #[serde(borrow)]
            arguments: &'a RawValue,
        }
        let body = block.strip_prefix(OPEN)?.strip_suffix(CLOSE)?;
        let Body { name, arguments } = serde_json::from_str(body).ok()?;
        let arguments = arguments.get();
        let is_object = arguments.starts_with('{');
        is_object.then(|| Self { name, arguments: arguments.to_owned(), written: block.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The pieces of an answer that comes in these pieces.
    fn parse<'a>(parts: impl IntoIterator<Item = &'a str>) -> Vec<Piece> {
        let mut parser = CallParser::default();
        let mut pieces = Vec::new();
        for part in parts {
            parser.push(part).into_iter().for_each(|piece| append(&mut pieces, piece));
        }
        parser.finish().into_iter().for_each(|piece| append(&mut pieces, piece));
        pieces
    }

    fn written(pieces: &[Piece]) -> String {
        let written = pieces.iter().map(|piece| match piece {
            Piece::Text(text) | Piece::Blank(text) => text.as_str(),
            Piece::Call(call) => &call.written,
        });
        written.collect()
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    fn call(name: &str, arguments: &str, written: &str) -> Piece {
        Piece::Call(Call { name: name.into(), arguments: arguments.into(), written: written.into() })
    }

    #[test]
    fn calls_with_and_without_text() {
        let sea = "<tool_call>\n{\"name\": \"sea\", \"arguments\": {\"at\": [1, 2.50]}}\n</tool_call>";
        let sun = r#"<tool_call>{"arguments":{},"name":"s\u0075n"}</tool_call>"#;
        let (of_sea, of_sun) = (call("sea", r#"{"at": [1, 2.50]}"#, sea), call("sun", "{}", sun));
        let blank = |text: &str| Piece::Blank(text.into());
        for (answer, expected) in [
            (sea.to_owned(), vec![of_sea.clone()]),
            (format!("{sea}\n{sun}"), vec![of_sea.clone(), blank("\n"), of_sun.clone()]),
            (format!(" \n{sea}{sun}\n"), vec![blank(" \n"), of_sea.clone(), of_sun.clone(), blank("\n")]),
            (
                format!("I look. \n{sea} So: {sun}\n"),
                vec![text("I look. \n"), of_sea.clone(), text(" So: "), of_sun.clone(), blank("\n")],
            ),
            (" \n ".to_owned(), vec![text(" \n ")]),
            (String::new(), vec![]),
            // A block that is none hides no other.
            (format!("<tool_call>{sea}"), vec![text(OPEN), of_sea.clone()]),
            (format!("<tool_call>\n{{\"name\": \"{sun}"), vec![text("<tool_call>\n{\"name\": \""), of_sun]),
        ] {
            assert_eq!(parse([answer.as_str()]), expected, "{answer}");
        }
    }

    #[test]
    fn the_end_of_a_block_may_stand_in_a_string() {
        let arguments = r#"{"a": "\\\"</tool_call>", "b": 123456789012345678901234567890}"#;
        let block = format!(r#"<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>"#);
        assert_eq!(parse([block.as_str()]), [call("f", arguments, &block)]);
    }

    #[test]
    fn what_is_not_well_formed_is_text() {
        for block in [
            "<tool_call>",
            "<tool_call></tool_call>",
            "<tool_call>sea()</tool_call>",
            "<tool_call>{}</tool_call>",
            r#"<tool_call>{"name": "f"}</tool_call>"#,
            r#"<tool_call>{"name": "f", "arguments": {}</tool_call>"#,
            r#"<tool_call>{"name": "f", "arguments": {}}}</tool_call>"#,
            r#"<tool_call>{"name": "f", "arguments": {}} x</tool_call>"#,
            r#"<tool_call>{"name": "f", "arguments": {}}</tool_call"#,
            r#"<tool_call>{"name": "f", "arguments": {}} <tool_call>"#,
            r#"<tool_call>{"name": "f", "arguments": "{}"}</tool_call>"#,
            r#"<tool_call>{"name": "f", "arguments": [1]}</tool_call>"#,
            r#"<tool_call>{"name": 1, "arguments": {}}</tool_call>"#,
            r#"<tool_call>{"name": "f", "arguments": {}, "id": 1}</tool_call>"#,
            r#"<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>"#,
            r#"<tool_call>{"name": "f", "arguments": {"a": 01}}</tool_call>"#,
            "<tool_call>{\"name\": \"f\n\", \"arguments\": {}}</tool_call>",
            r#"<TOOL_CALL>{"name": "f", "arguments": {}}</TOOL_CALL>"#,
        ] {
            assert_eq!(parse([block]), [text(block)]);
        }
    }

    #[test]
    fn nothing_certain_is_held_back() {
        let mut parser = CallParser::default();
        for (part, expected) in [
            ("Hi ", vec![text("Hi ")]),
            ("a <", vec![text("a ")]),
            ("b <tool_", vec![text("<b ")]),
            ("calls <tool_call", vec![text("<tool_calls ")]),
            (">\n", vec![]),
            ("{\"name\"", vec![]),
            ("<", vec![]),
            ("x", vec![text("<tool_call>\n{\"name\"<x")]),
        ] {
            assert_eq!(parser.push(part), expected, "{part}");
        }
        assert_eq!(parser.finish(), []);
    }

    /// Blocks that begin in one another, as a model may write that repeats itself.
    #[test]
    fn long_answers_take_linear_time() {
        for unit in [
            "<tool_call>",
            "<tool_call>{\"",
            "<tool_call>{\"\\\"",
            "<tool_call>{}</tool_call>",
            "</tool_call>",
        ] {
            let answer = format!("<tool_call>{{\"{}", unit.repeat(100_000));
            let mut parser = CallParser::default();
            let mut pieces: Vec<Piece> = answer
                .as_bytes()
                .chunks(7)
                .flat_map(|part| parser.push(std::str::from_utf8(part).expect("it is ASCII")))
                .collect();
            pieces.extend(parser.finish());
            assert_eq!(written(&pieces), answer);
        }
    }

    /// Beginnings, ends and middles of blocks.
    fn fragment() -> impl Strategy<Value = &'static str> {
        proptest::sample::select(vec![
            OPEN,
            CLOSE,
            OPEN,
            CLOSE,
            "<",
            "<tool_",
            "call>",
            "</",
            "{",
            "}",
            "\"",
            "\\",
            "\n",
            " ",
            "é",
            "Hi",
            "😀",
            r#"{"name": "f", "arguments": {}}"#,
            "\n{\"name\": \"é\", \"arguments\": {\"a\": \"</tool_call>\"}}\n",
            r#"<tool_call>{"name": "g", "arguments": {"b": [1, {"c": "}"}]}}</tool_call>"#,
        ])
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference_and_no_byte_is_lost(
            fragments in prop::collection::vec(fragment(), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let answer = fragments.concat();
            let whole = parse([answer.as_str()]);
            prop_assert_eq!(&written(&whole), &answer);
            let places: Vec<usize> = answer.char_indices().map(|(at, _)| at).chain([answer.len()]).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.get(&places)).chain([0, answer.len()]).collect();
            cuts.sort_unstable();
            prop_assert_eq!(&parse(cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]])), &whole);
            let characters = places.windows(2).map(|place| &answer[place[0]..place[1]]);
            prop_assert_eq!(parse(characters), whole);
        }
    }
}

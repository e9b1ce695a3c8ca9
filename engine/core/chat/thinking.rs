//! What a model thinks, told from what it says.
//!
//! Models that were trained to think write `<think>`, thoughts, `</think>` and then the answer. Some templates open the thoughts
//! themselves, at the end of the prompt, so that the answer has the closing tag alone; others leave it to the model.

/// What begins thoughts.
pub const OPEN: &str = "<think>";
/// What ends them.
pub const CLOSE: &str = "</think>";
/// What begins the call of a tool.
pub const CALL: &str = "<tool_call>";

/// White space at the end of thoughts that is held back at most: it is left out where thoughts end behind it.
const MAX_BLANK: usize = 256;

/// Whether a prompt ends within the assistant's thoughts.
pub fn is_open(prompt: &str) -> bool {
    prompt.trim_end().ends_with(OPEN)
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the model thought, without the tags and the white space around it.
    Thought(String),
    /// What it said, without the white space between thoughts and answer.
    Said(String),
}

/// Takes an answer apart. Where the pieces that it comes in are cut makes no difference to what they become together, and only what
/// may still be a tag, and white space beside one, is held back.
#[derive(Clone, Debug, PartialEq)]
pub struct ThinkingParser {
    state: State,
    /// What no part has been made of.
    held: String,
    /// Functions whose calls end thoughts.
    functions: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The model may yet open its thoughts.
    Before,
    /// In thoughts of which nothing was handed out.
    Opened,
    /// In thoughts.
    Thinking,
    /// Behind them, in white space.
    Closed,
    /// In what it says. `by_call`: a call ended the thoughts, and their closing tag may still come.
    Said { by_call: bool },
}

impl ThinkingParser {
    /// Of an answer to a prompt within whose thoughts it begins (`is_open`), or before them.
    pub fn new(is_open: bool) -> Self {
        let state = if is_open { State::Opened } else { State::Before };
        Self { state, held: String::new(), functions: Vec::new() }
    }

    /// Of an answer without thoughts: all of it is said.
    pub fn without() -> Self {
        Self { state: State::Said { by_call: false }, ..Self::new(false) }
    }

    /// Lets calls of these functions end thoughts that were not closed, as models that call a tool in the midst of them do.
    pub fn ended_by_calls(self, functions: Vec<String>) -> Self {
        Self { functions, ..self }
    }

    /// Whether what comes next belongs to thoughts, as far as is known.
    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::Opened | State::Thinking)
    }

    /// Whether a call ended the thoughts, so that what is said may have their closing tag in it.
    pub fn was_ended_by_call(&self) -> bool {
        self.state == State::Said { by_call: true }
    }

    /// Bytes at the end of the text so far of which no part was made yet.
    pub fn num_held(&self) -> usize {
        self.held.len()
    }

    /// Takes the next piece of the answer: what is certain now, of each kind at most one part.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.advance(&mut parts) {}
        parts
    }

    /// Ends the answer: what was held back.
    pub fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        let part = match self.state {
            State::Opened | State::Thinking => Part::Thought(held.trim_end().to_owned()),
            State::Before | State::Closed | State::Said { .. } => Part::Said(held),
        };
        let (Part::Thought(text) | Part::Said(text)) = &part;
        if text.is_empty() { Vec::new() } else { vec![part] }
    }

    /// Goes on by one state; `false` where more text is needed.
    fn advance(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.state {
            State::Before => {
                let rest = self.held.trim_start();
                if rest.starts_with(OPEN) {
                    self.drop_start(self.held.len() - rest.len() + OPEN.len());
                    self.state = State::Opened;
                } else if OPEN.starts_with(rest) {
                    return false;
                } else {
                    self.state = State::Said { by_call: false };
                }
                true
            }
            State::Opened => {
                self.drop_start(self.held.len() - self.held.trim_start().len());
                // A model that opens what is open.
                if self.held.starts_with(OPEN) {
                    self.drop_start(OPEN.len());
                    return true;
                }
                if OPEN.starts_with(self.held.as_str()) {
                    return false;
                }
                self.state = State::Thinking;
                true
            }
            State::Thinking => self.think(parts),
            State::Closed => {
                self.drop_start(self.held.len() - self.held.trim_start().len());
                self.state = if self.held.is_empty() { self.state } else { State::Said { by_call: false } };
                !self.held.is_empty()
            }
            State::Said { .. } => {
                if !self.held.is_empty() {
                    parts.push(Part::Said(std::mem::take(&mut self.held)));
                }
                false
            }
        }
    }

    /// Hands out thoughts up to where they may end.
    fn think(&mut self, parts: &mut Vec<Part>) -> bool {
        let (end, next) = match ending(&self.held, &self.functions) {
            Ending::Close(at) => (at, Some((at + CLOSE.len(), State::Closed))),
            Ending::Call(at) => (at, Some((at, State::Said { by_call: true }))),
            Ending::Perhaps(at) => (at, None),
            Ending::No => (self.held.len(), None),
        };
        let mut said = self.held[..end].trim_end().len();
        if next.is_none() && end - said > MAX_BLANK {
            said = end;
        }
        if said > 0 {
            parts.push(Part::Thought(self.held[..said].to_owned()));
        }
        self.drop_start(next.map_or(said, |(after, _)| after));
        self.state = next.map_or(self.state, |(_, state)| state);
        next.is_some()
    }

    fn drop_start(&mut self, bytes: usize) {
        self.held.drain(..bytes);
    }
}

/// How thoughts end in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With the closing tag, which begins at this byte.
    Close(usize),
    /// With the call of a function.
    Call(usize),
    /// With what begins here, depending on what follows.
    Perhaps(usize),
    /// Not in this text.
    No,
}

/// How thoughts end in a text, where calls of these functions end them too.
pub(crate) fn ending(text: &str, functions: &[String]) -> Ending {
    for (at, _) in text.match_indices('<') {
        let rest = &text[at..];
        if rest.starts_with(CLOSE) {
            return Ending::Close(at);
        }
        match begins_call(rest, functions) {
            Begun::Yes => return Ending::Call(at),
            Begun::Perhaps => return Ending::Perhaps(at),
            Begun::No if CLOSE.starts_with(rest) => return Ending::Perhaps(at),
            Begun::No => (),
        }
    }
    Ending::No
}

/// Whether a text begins with something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    Yes,
    No,
    /// As far as it goes.
    Perhaps,
}

/// Most white space in the head of a call.
const MAX_HEAD_BLANK: usize = 32;

/// Whether a text begins with the call of one of these functions, in either dialect.
fn begins_call(text: &str, functions: &[String]) -> Begun {
    let one = |function: &String| {
        let name = format!("\"{function}\"");
        let json = head(text, &[CALL, "{", "\"name\"", ":", &name]);
        let xml = head(text, &[CALL, &format!("<function={function}>")]);
        match (json, xml) {
            (Begun::Yes, _) | (_, Begun::Yes) => Begun::Yes,
            (Begun::Perhaps, _) | (_, Begun::Perhaps) => Begun::Perhaps,
            _ => Begun::No,
        }
    };
    let mut found = Begun::No;
    for begun in functions.iter().map(one) {
        match begun {
            Begun::Yes => return Begun::Yes,
            Begun::Perhaps => found = Begun::Perhaps,
            Begun::No => (),
        }
    }
    found
}

/// Whether a text begins with these words, between which white space may stand.
fn head(text: &str, words: &[&str]) -> Begun {
    let mut rest = text;
    for word in words {
        let trimmed = rest.trim_start();
        if rest.len() - trimmed.len() > MAX_HEAD_BLANK {
            return Begun::No;
        }
        rest = match trimmed.strip_prefix(word) {
            Some(rest) => rest,
            None if word.starts_with(trimmed) => return Begun::Perhaps,
            None => return Begun::No,
        };
    }
    Begun::Yes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse<'a>(parser: ThinkingParser, pieces: impl IntoIterator<Item = &'a str>) -> (String, String) {
        let mut parser = parser;
        let (mut thought, mut said) = (String::new(), String::new());
        let mut take = |parts: Vec<Part>| {
            for part in parts {
                match part {
                    Part::Thought(text) => thought += &text,
                    Part::Said(text) => said += &text,
                }
            }
        };
        for piece in pieces {
            take(parser.push(piece));
        }
        take(parser.finish());
        (thought, said)
    }

    fn sail(is_open: bool) -> ThinkingParser {
        ThinkingParser::new(is_open).ended_by_calls(vec!["sail".into()])
    }

    #[test]
    fn thoughts_that_the_prompt_or_the_model_opens() {
        for (is_open, answer, thought, said) in [
            (true, "a < b\n</think>\n\nYes </think>.", "a < b", "Yes </think>."),
            (true, "<think>\nso\n</think>\n\nYes", "so", "Yes"),
            (true, "\n\n</think>\n\nYes", "", "Yes"),
            (true, "never closed \n", "never closed", ""),
            (false, "<think>\nso\n\nso\n</think>\n\nYes\n", "so\n\nso", "Yes\n"),
            (false, " \n<think></think>Yes", "", "Yes"),
            (false, "Yes, <think>no</think>", "", "Yes, <think>no</think>"),
            (false, "<thin", "", "<thin"),
            (false, " \n", "", " \n"),
            (false, "<think>a</thin", "a</thin", ""),
        ] {
            let expected = (thought.to_owned(), said.to_owned());
            assert_eq!(parse(ThinkingParser::new(is_open), [answer]), expected, "{answer:?}");
        }
    }

    #[test]
    fn a_call_of_a_known_function_ends_thoughts() {
        for call in [
            "<tool_call>\n{\"name\": \"sail\", \"arguments\": {}}\n</tool_call>",
            "<tool_call>{\"name\":\"sail\"}",
            "<tool_call>\n<function=sail>\n</function>\n</tool_call>",
        ] {
            let (thought, said) = parse(sail(true), [&format!("I go.\n{call}\n</think>")[..]]);
            assert_eq!((thought.as_str(), said), ("I go.", format!("{call}\n</think>")));
        }
        for none in ["<tool_call> ", "<tool_call>{\"name\": \"sailing\"", "<tool_call><function=row>"] {
            let (thought, said) = parse(sail(true), [&format!("I write {none} x</think>Yes")[..]]);
            assert_eq!((thought, said.as_str()), (format!("I write {none} x"), "Yes"));
        }
        let mut parser = sail(true);
        parser.push("x<tool_call>\n{\"name\": \"sail\"");
        assert!(parser.was_ended_by_call() && !parser.is_thinking());
    }

    #[test]
    fn nothing_certain_is_held_back() {
        let mut parser = sail(false);
        let thought = |text: &str| vec![Part::Thought(text.into())];
        for (piece, expected) in [
            ("<thi", vec![]),
            ("nk>\n", vec![]),
            ("I ", thought("I")),
            ("am <", thought(" am")),
            ("b <tool", thought(" <b")),
            ("_call>{", vec![]),
            ("}</th", thought(" <tool_call>{}")),
            ("ink>\n", vec![]),
            ("\nSo <", vec![Part::Said("So <".into())]),
        ] {
            assert_eq!(parser.push(piece), expected, "{piece:?}");
        }
    }

    fn fragment() -> impl Strategy<Value = &'static str> {
        proptest::sample::select(vec![
            OPEN,
            CLOSE,
            CALL,
            "<",
            "<thi",
            "nk>",
            "</",
            "\n",
            "  ",
            "é",
            "Hi",
            "{\"name\": \"",
            "sail\"",
            "<function=sail>",
        ])
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(
            fragments in prop::collection::vec(fragment(), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            is_open: bool,
        ) {
            let answer = fragments.concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(answer.len() + 1)).collect();
            cuts.retain(|&cut| answer.is_char_boundary(cut));
            cuts.sort_unstable();
            let ends = cuts.iter().copied().chain([answer.len()]);
            let starts = [0].into_iter().chain(cuts.iter().copied());
            let pieces = starts.zip(ends).map(|(start, end)| &answer[start..end]);
            prop_assert_eq!(parse(sail(is_open), pieces), parse(sail(is_open), [answer.as_str()]));
        }
    }
}

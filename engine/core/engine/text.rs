//! Tokens -> text that is certain: whole characters, nothing that may still turn out to be a stop string.

use crate::chat::thinking::{Part, ThinkingParser};
use crate::tokenizer::{StreamDecoder, Tokenizer};
use std::sync::Arc;

/// The text of one sequence while it is made.
#[derive(Clone)]
pub(super) struct TextStream {
    decoder: StreamDecoder,
    stop: StopMatcher,
    /// Tells where stop strings are looked for, if not everywhere; and the text that it has not decided on.
    thoughts: Option<ThinkingParser>,
    held: String,
    /// Bytes of all text so far, whether it is held or not.
    num_bytes: usize,
    /// Whether text is handed on; otherwise only stop strings are looked for.
    emits: bool,
}

impl TextStream {
    /// Stop strings are looked for in what is not among `thoughts`.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        stop: Vec<String>,
        thoughts: Option<ThinkingParser>,
        emits: bool,
    ) -> Self {
        Self {
            decoder: StreamDecoder::new(tokenizer, true),
            thoughts: thoughts.filter(|_| !stop.is_empty()),
            stop: StopMatcher::new(stop),
            held: String::new(),
            num_bytes: 0,
            emits,
        }
    }

    /// The text that is certain with `token`, and whether a stop string ended it.
    pub fn push(&mut self, token: u32) -> (String, bool) {
        let text = self.decoder.push(token);
        self.num_bytes += text.len();
        self.filter(&text)
    }

    /// Bytes of all text so far, and whether the last token ends within a character that begins there.
    pub fn position(&self) -> (usize, bool) {
        (self.num_bytes, self.decoder.is_within_character())
    }

    /// Ends the text: what is left of it, and whether that held a stop string.
    pub fn finish(&mut self) -> (String, bool) {
        let rest = self.decoder.finish();
        let (mut text, mut stopped) = self.filter(&rest);
        if let Some(thoughts) = &mut self.thoughts {
            let is_said = thoughts.finish().iter().any(|part| matches!(part, Part::Said(_)));
            let held = std::mem::take(&mut self.held);
            let (more, now) = if is_said { self.stop.push(&held) } else { (held, false) };
            text += &more;
            stopped |= now;
        }
        text += &self.stop.finish();
        (if self.emits { text } else { String::new() }, stopped)
    }

    fn filter(&mut self, text: &str) -> (String, bool) {
        let (mut thought, said) = self.told(text);
        let (text, stopped) = self.stop.push(&said);
        thought += &text;
        (if self.emits { thought } else { String::new() }, stopped)
    }

    /// The thoughts that are certain now, as they were written, and what is said behind them.
    fn told(&mut self, text: &str) -> (String, String) {
        let Some(thoughts) = &mut self.thoughts else { return (String::new(), text.to_owned()) };
        self.held.push_str(text);
        let said = |part: &Part| if let Part::Said(text) = part { text.len() } else { 0 };
        let said: usize = thoughts.push(text).iter().map(said).sum();
        let held = self.held.split_off(self.held.len() - thoughts.num_held());
        let mut thought = std::mem::replace(&mut self.held, held);
        let said = thought.split_off(thought.len() - said);
        (thought, said)
    }
}

/// Finds stop strings in text that comes in pieces. Where the pieces are cut makes no difference: of all stop strings,
/// the one that is complete first ends the text, of several complete at once the longest.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stop: Arc<[String]>,
    /// The end of the text so far, as far as a stop string may have begun in it.
    withheld: String,
    stopped: bool,
}

impl StopMatcher {
    /// Empty strings are ignored.
    pub fn new(mut stop: Vec<String>) -> Self {
        stop.retain(|stop| !stop.is_empty());
        Self { stop: stop.into(), withheld: String::new(), stopped: false }
    }

    /// Takes the next piece. Returns the text that is certain now, and whether a stop string has ended it: then it is the
    /// text before that string, and everything later is ignored.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        if self.stopped {
            return (String::new(), true);
        }
        self.withheld.push_str(text);
        let found = self.stop.iter().filter_map(|stop| {
            let start = self.withheld.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        if let Some((_, start)) = found.min() {
            self.withheld.truncate(start);
            self.stopped = true;
            return (std::mem::take(&mut self.withheld), true);
        }
        let rest = self.withheld.split_off(self.certain());
        (std::mem::replace(&mut self.withheld, rest), false)
    }

    /// Ends the text: what was withheld is no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.withheld)
    }

    /// Bytes of `withheld` before the first place where a stop string may have begun.
    fn certain(&self) -> usize {
        let may_begin = |rest: &str| self.stop.iter().any(|stop| stop.starts_with(rest));
        let starts = self.withheld.char_indices().map(|(start, _)| start);
        starts.into_iter().find(|&start| may_begin(&self.withheld[start..])).unwrap_or(self.withheld.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;
    use crate::testing::TinyModel;

    fn run(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool, String) {
        let mut matcher = StopMatcher::new(stop.iter().map(|&stop| stop.to_owned()).collect());
        let mut stopped = false;
        let texts = pieces.iter().map(|piece| {
            let (text, now) = matcher.push(piece);
            stopped |= now;
            text
        });
        (texts.collect(), stopped, matcher.finish())
    }

    #[test]
    fn text_that_may_become_a_stop_string_waits() {
        assert_eq!(
            run(&["END"], &["a E", "N", "x"]),
            (vec!["a ".into(), "".into(), "ENx".into()], false, "".into())
        );
        assert_eq!(
            run(&["END"], &["a E", "N", "Dx"]),
            (vec!["a ".into(), "".into(), "".into()], true, "".into())
        );
        assert_eq!(run(&["END"], &["EN"]), (vec!["".into()], false, "EN".into()));
        // The first E is wrong, the second may be right.
        assert_eq!(run(&["END"], &["EN", "END!"]), (vec!["".into(), "EN".into()], true, "".into()));
        assert_eq!(
            run(&["é!"], &["caf", "é", "s"]),
            (vec!["caf".into(), "".into(), "és".into()], false, "".into())
        );
        assert_eq!(run(&[], &["as", "it is"]), (vec!["as".into(), "it is".into()], false, "".into()));
    }

    /// Whatever tokens it comes in, no stop string is found in thoughts or in the tags around them, and no text is lost.
    #[test]
    fn stop_strings_are_looked_for_behind_thoughts() {
        let bytes = TinyModel::default().vocabulary_only().to_bytes();
        let tokenizer = Arc::new(Tokenizer::from_gguf(&Gguf::from_bytes(bytes.into()).unwrap()).unwrap());
        for (is_open, answer, stop, expected) in [
            (true, "a b\n\nb\n</think>\n\nc b d", vec!["b"], "a b\n\nb\n</think>\n\nc "),
            (true, "a\n</think>\n\nc\n\nd", vec!["\n\n", "think"], "a\n</think>\n\nc"),
            (false, "<think>\nab</think>cab", vec!["ab", "<"], "<think>\nab</think>c"),
            (false, " \n<b> ab", vec!["ab"], " \n<b> "),
            (true, "a\n\n", vec!["\n"], "a\n\n"),
            (true, "a</think>b<c", vec!["<c>"], "a</think>b<c"),
            (false, "\n", vec!["\n"], ""),
        ] {
            let stop = stop.into_iter().map(str::to_owned).collect();
            let thoughts = Some(ThinkingParser::new(is_open));
            let mut stream = TextStream::new(Arc::clone(&tokenizer), stop, thoughts, true);
            let mut text = String::new();
            for token in tokenizer.encode(answer, true).unwrap() {
                let (more, stopped) = stream.push(token);
                text += &more;
                if stopped {
                    break;
                }
            }
            text += &stream.finish().0;
            assert_eq!(text, expected, "{answer:?}");
        }
    }

    #[test]
    fn the_first_complete_stop_string_ends_the_text() {
        let whole = run(&["abcd", "bc"], &["xabcd"]);
        assert_eq!((whole.0.concat(), whole.1), ("xa".into(), true));
        let pieces = run(&["abcd", "bc"], &["x", "a", "b", "c", "d"]);
        assert_eq!((pieces.0.concat(), pieces.1), ("xa".into(), true));
        let longest = run(&["cd", "abcd"], &["xabcd"]);
        assert_eq!((longest.0.concat(), longest.1), ("x".into(), true));
    }
}

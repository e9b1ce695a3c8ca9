//! Thoughts of bounded length, and constraints that begin behind them.

use super::constraint::TokenConstraint;
use crate::chat::thinking::{CALL, CLOSE, Ending, OPEN, ending};
use crate::error::{Error, Result};
use crate::sampler::TokenMask;
use crate::tokenizer::{StreamDecoder, Tokenizer};
use std::sync::Arc;

/// How an answer's thoughts are bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thinking {
    /// The prompt ends within them.
    pub is_open: bool,
    /// Tokens after which they are closed; `None` leaves it to the model.
    pub budget: Option<usize>,
    /// What the model is made to think before they are closed for it.
    pub message: String,
    /// Functions whose calls end thoughts that were not closed, as they do for
    /// [`ThinkingParser`](crate::chat::thinking::ThinkingParser). Where another constraint holds behind the thoughts, none does.
    pub functions: Vec<String>,
}

impl Thinking {
    /// What closes them.
    fn close(&self) -> String {
        format!("{}\n{CLOSE}\n\n", self.message)
    }
}

/// White space between thoughts and what is constrained, in tokens.
const MAX_BLANKS: usize = 3;

/// Lets the model think freely, but no longer than it may; what another constraint asks for holds from the end of the thoughts on.
#[derive(Clone)]
pub struct ThinkingConstraint {
    decoder: StreamDecoder,
    /// The end of the text so far, as far as a tag or a call may have begun in it.
    text: String,
    state: State,
    /// Functions whose calls end thoughts.
    functions: Vec<String>,
    budget: Option<usize>,
    /// Tokens of thoughts so far.
    spent: usize,
    /// What closes the thoughts.
    close: Vec<u32>,
    /// The token that opens them, where the vocabulary has one.
    open: Option<u32>,
    /// All tokens, and those that may be drawn within thoughts.
    all: Vec<u32>,
    inside: Vec<u32>,
    /// Tokens of white space alone.
    blanks: Vec<u32>,
    then: Option<Box<dyn TokenConstraint>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The model may yet open its thoughts.
    Before,
    Inside,
    /// They are being closed for the model: so many tokens of that are there.
    Closing(usize),
    /// Behind them; so many tokens of white space may follow.
    Behind(usize),
    /// In what the other constraint asks for, if there is one.
    Then,
}

impl ThinkingConstraint {
    /// # Errors
    /// [`Error::Tokenizer`] where the closing tag cannot be encoded.
    pub fn new(
        tokenizer: &Arc<Tokenizer>,
        thinking: &Thinking,
        then: Option<Box<dyn TokenConstraint>>,
    ) -> Result<Self> {
        let close = tokenizer.encode(&thinking.close(), true)?;
        if close.is_empty() {
            return Err(Error::Tokenizer(format!("{CLOSE} has no token in this vocabulary")));
        }
        let vocab_size = tokenizer.vocab_size();
        let set = |is_in: &dyn Fn(u32) -> bool| {
            let mut words = vec![0u32; vocab_size.div_ceil(32)];
            (0..vocab_size as u32)
                .filter(|&id| is_in(id))
                .for_each(|id| words[id as usize / 32] |= 1 << (id % 32));
            words
        };
        let is_blank = |id: u32| {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            !bytes.is_empty() && bytes.iter().all(|byte| b" \n".contains(byte))
        };
        // An answer of thoughts alone is none of those that are asked for, and a call within them would be bound to nothing.
        let call = tokenizer.added_token(CALL);
        let is_inside = |id: u32| then.is_none() || !(tokenizer.is_end_of_generation(id) || call == Some(id));
        Ok(Self {
            decoder: StreamDecoder::new(Arc::clone(tokenizer), false),
            text: String::new(),
            state: if thinking.is_open { State::Inside } else { State::Before },
            functions: if then.is_none() { thinking.functions.clone() } else { Vec::new() },
            budget: thinking.budget,
            spent: 0,
            close,
            open: tokenizer.added_token(OPEN),
            all: set(&|_| true),
            inside: set(&is_inside),
            blanks: if then.is_some() { set(&is_blank) } else { Vec::new() },
            then,
        }
        .settled())
    }

    /// Begins to close thoughts that may not go on.
    fn settled(mut self) -> Self {
        self.settle();
        self
    }

    fn settle(&mut self) {
        // What has begun goes on until it is known what it is: a tag is not cut, and neither is the head of a call.
        let is_certain = self.state == State::Inside && self.text.is_empty();
        if is_certain && self.budget.is_some_and(|budget| self.spent >= budget) {
            self.state = State::Closing(0);
        }
    }

    /// Takes a token within thoughts.
    fn accept_inside(&mut self, token: u32) {
        self.spent += 1;
        self.text += &self.decoder.push(token);
        let ending = ending(&self.text, &self.functions);
        match ending {
            Ending::Close(_) => self.state = self.behind(),
            Ending::Call(_) => self.state = State::Then,
            Ending::Perhaps(_) | Ending::No => (),
        }
        match ending {
            Ending::Perhaps(at) => drop(self.text.drain(..at)),
            _ => self.text.clear(),
        }
    }

    /// Behind thoughts that the model closed.
    fn behind(&self) -> State {
        if self.then.is_some() { State::Behind(MAX_BLANKS) } else { State::Then }
    }

    fn union(mask: &TokenMask, others: impl Iterator<Item = u32>) -> TokenMask {
        TokenMask::from_words(mask.words().iter().zip(others).map(|(word, other)| word | other).collect())
    }

    /// What the other constraint allows now.
    fn then(&mut self) -> Result<TokenMask> {
        match &mut self.then {
            Some(then) => then.allowed(),
            None => Ok(TokenMask::from_words(self.all.clone())),
        }
    }

    fn accept_then(&mut self, token: u32) -> Result<()> {
        self.state = State::Then;
        self.then.as_mut().map_or(Ok(()), |then| then.accept(token))
    }

    /// Takes a token before any thoughts.
    fn accept_before(&mut self, token: u32) -> Result<()> {
        if self.open == Some(token) {
            self.state = State::Inside;
            return Ok(());
        }
        if self.then.is_some() {
            return self.accept_then(token);
        }
        // Spelled, or as a token: the text so far is white space and perhaps the beginning of the tag.
        self.text += &self.decoder.push(token);
        let begun = self.text.trim_start();
        if begun.starts_with(OPEN) {
            self.text.clear();
            self.state = State::Inside;
        } else if !OPEN.starts_with(begun) {
            self.state = State::Then;
        }
        Ok(())
    }
}

impl TokenConstraint for ThinkingConstraint {
    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }

    fn allowed(&mut self) -> Result<TokenMask> {
        match self.state {
            State::Before => {
                let mask = self.then()?;
                let opens = |word: usize| match self.open {
                    Some(open) if open as usize / 32 == word => 1 << (open % 32),
                    _ => 0,
                };
                Ok(Self::union(&mask, (0..).map(opens)))
            }
            State::Inside => Ok(TokenMask::from_words(self.inside.clone())),
            State::Closing(next) => {
                let token = self.close[next];
                let mut words = vec![0; self.all.len()];
                words[token as usize / 32] |= 1 << (token % 32);
                Ok(TokenMask::from_words(words))
            }
            State::Behind(left) => {
                let mask = self.then()?;
                Ok(if left > 0 { Self::union(&mask, self.blanks.iter().copied()) } else { mask })
            }
            State::Then => self.then(),
        }
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        match self.state {
            State::Before => self.accept_before(token)?,
            State::Inside => self.accept_inside(token),
            State::Closing(next) if next + 1 < self.close.len() => self.state = State::Closing(next + 1),
            // White space is part of what closed them.
            State::Closing(_) => {
                self.state = if self.then.is_some() { State::Behind(0) } else { State::Then }
            }
            State::Behind(left) => {
                if self.then()?.contains(token) {
                    self.accept_then(token)?;
                } else {
                    self.state = State::Behind(left.saturating_sub(1));
                }
            }
            State::Then => self.accept_then(token)?,
        }
        self.settle();
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.state == State::Then && self.then.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;
    use crate::testing::TinyModel;

    fn tokenizer() -> Arc<Tokenizer> {
        let bytes = TinyModel::default().vocabulary_only().to_bytes();
        Arc::new(Tokenizer::from_gguf(&Gguf::from_bytes(bytes.into()).unwrap()).unwrap())
    }

    /// Allows this token, so many times, and then an end.
    #[derive(Clone)]
    struct Only(u32, usize, u32);

    impl TokenConstraint for Only {
        fn fork(&self) -> Box<dyn TokenConstraint> {
            Box::new(self.clone())
        }

        fn allowed(&mut self) -> Result<TokenMask> {
            let token = if self.1 > 0 { self.0 } else { self.2 };
            let mut words = vec![0; token as usize / 32 + 32];
            words[token as usize / 32] = 1 << (token % 32);
            Ok(TokenMask::from_words(words))
        }

        fn accept(&mut self, _: u32) -> Result<()> {
            self.1 -= 1;
            Ok(())
        }
    }

    fn constraint(
        tokenizer: &Arc<Tokenizer>,
        is_open: bool,
        budget: Option<usize>,
        then: Option<Only>,
    ) -> ThinkingConstraint {
        let thinking = Thinking { is_open, budget, ..Thinking::default() };
        ThinkingConstraint::new(tokenizer, &thinking, then.map(|then| Box::new(then) as _)).unwrap()
    }

    /// Draws what is wanted where it is allowed, else the first token that is; the text of it all until everything is allowed.
    fn draw(tokenizer: &Arc<Tokenizer>, mut constraint: ThinkingConstraint, wanted: &str) -> (String, bool) {
        let mut drawn = Vec::new();
        let mut wanted = tokenizer.encode(wanted, true).unwrap().into_iter().peekable();
        while drawn.len() < 200 {
            let mask = constraint.allowed().unwrap();
            let token = match wanted.peek() {
                Some(&token) if mask.contains(token) => wanted.next().unwrap(),
                None if mask.contains(0) => break,
                _ => (0..tokenizer.vocab_size() as u32).find(|&id| mask.contains(id)).unwrap(),
            };
            if tokenizer.is_end_of_generation(token) {
                break;
            }
            constraint.accept(token).unwrap();
            drawn.push(token);
        }
        (tokenizer.decode(&drawn, false).unwrap(), constraint.is_over())
    }

    #[test]
    fn thoughts_are_closed_after_their_budget() {
        let tokenizer = tokenizer();
        let letters = "abc def";
        let count = tokenizer.encode(letters, true).unwrap().len();
        for (is_open, budget, wanted, expected) in [
            (true, Some(0), "ab", "\n</think>\n\nab".to_owned()),
            (true, Some(count), "abc defg", format!("{letters}\n</think>\n\ng")),
            (true, Some(1000), "ab</think>c", "ab</think>c".into()),
            (false, Some(0), "<think>ab", "<think>\n</think>\n\nab".into()),
            (false, Some(0), "ab", "ab".into()),
        ] {
            let (text, is_over) = draw(&tokenizer, constraint(&tokenizer, is_open, budget, None), wanted);
            assert_eq!((text, is_over), (expected, true), "{is_open} {budget:?} {wanted}");
        }
        let (_, is_over) = draw(&tokenizer, constraint(&tokenizer, true, Some(1000), None), "ab");
        assert!(!is_over, "the thoughts go on");
    }

    /// A budget that ends anywhere: nothing is forced into the tags and the call that the model has begun.
    #[test]
    fn calls_are_not_cut_by_the_budget() {
        let tokenizer = tokenizer();
        let call = "<tool_call>\n{\"name\": \"sail\", \"arguments\": {\"to\": 1}}\n</tool_call>";
        let xml = "<tool_call>\n<function=sail>\n<parameter=to>\n1\n</parameter>\n</function>\n</tool_call>";
        for wanted in [format!("ab{call}cd"), format!("ab{xml}cd"), "ab</think>cd".to_owned()] {
            for budget in 0..60 {
                let functions = vec!["row".to_owned(), "sail".to_owned()];
                let thinking =
                    Thinking { is_open: true, budget: Some(budget), functions, ..Thinking::default() };
                let constraint = ThinkingConstraint::new(&tokenizer, &thinking, None).unwrap();
                let (text, is_over) = draw(&tokenizer, constraint, &wanted);
                let forced = text.find("\n</think>\n\n");
                assert!(is_over && forced.is_none_or(|at| at <= 2), "{budget}: {text}");
                assert!(forced.is_some() || text == wanted, "{budget}: {text}");
            }
        }
        // What is no call of a known function is bounded all the same.
        let thinking = Thinking { is_open: true, budget: Some(3), ..Thinking::default() };
        let constraint = ThinkingConstraint::new(&tokenizer, &thinking, None).unwrap();
        assert!(draw(&tokenizer, constraint, &call.repeat(3)).0.find("\n</think>").unwrap() < 20);
    }

    #[test]
    fn what_is_asked_for_begins_behind_the_thoughts() {
        let tokenizer = tokenizer();
        let x = tokenizer.encode("x", true).unwrap()[0];
        let end = tokenizer.end_of_generation()[0];
        let only = || Some(Only(x, 2, end));
        let of = |budget| constraint(&tokenizer, true, budget, only());
        assert_eq!(draw(&tokenizer, of(None), "ab</think>\n\nc").0, "ab</think>\n\nxx");
        assert_eq!(draw(&tokenizer, of(None), "ab</think>x").0, "ab</think>xx");
        assert_eq!(draw(&tokenizer, of(Some(1)), "ab").0, "a\n</think>\n\nxx");
        let mut inside = of(None);
        assert!(!inside.allowed().unwrap().contains(end), "thoughts are no answer");
        let before = constraint(&tokenizer, false, None, only());
        assert_eq!(draw(&tokenizer, before, "ab").0, "xx");
    }
}

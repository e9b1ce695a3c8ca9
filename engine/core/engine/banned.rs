//! Texts that an answer must not have. Where one of them is complete, the sequence goes back to the token in which it began, draws another one
//! there, and goes on from that.
//!
//! Events of tokens that may yet be taken back are held. What may not be drawn again is kept for each place that may be come back to, and
//! the draws of a place differ: which token is drawn in the end has the probability that it has among those that are left.

use super::constraint::TokenConstraint;
use super::generation::{Constrained, Generation};
use super::penalties::PenaltyWindow;
use super::request::{Event, FinishReason, Request};
use super::text::{StopMatcher, TextStream};
use crate::error::Result;
use crate::sampler::TokenMask;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Most texts of a request.
pub(super) const MAX_TEXTS: usize = 256;
/// Bytes of the longest.
pub(super) const MAX_TEXT_BYTES: usize = 256;
/// Tokens that are tried in one place before the answer ends.
const MAX_TRIED: usize = 1000;
/// A draw's index for each token that was tried: those of the answers to a prompt are below.
const NEXT_TRY: u32 = 1 << 16;

/// What is known of an answer that must not have some texts.
pub(super) struct Banned {
    matcher: StopMatcher,
    /// Bytes of the text that none of them can begin in.
    certain: usize,
    /// The newest tokens, as far as they may be taken back.
    held: VecDeque<Held>,
    /// Tokens before those.
    num_released: usize,
    /// What may not be drawn, by the number of tokens of the answer before.
    forbidden: BTreeMap<usize, Vec<u32>>,
    /// The constraint, where there is one, before the first of `held`.
    constraint: Option<Box<dyn TokenConstraint>>,
    /// The bound of Mirostat behind the newest token.
    surprise: Option<f32>,
    vocab_size: usize,
    /// Whether text is handed on; otherwise it is only looked at.
    emits: bool,
}

/// What is to be had again when a token is taken back.
pub(super) struct Mark {
    text: TextStream,
    matcher: StopMatcher,
    certain: usize,
    surprise: Option<f32>,
}

/// A token that may be taken back.
struct Held {
    token: u32,
    event: Event,
    /// Before it.
    mark: Mark,
    /// Bytes of the text up to its end, and whether it ends within a character that begins there.
    end: usize,
    is_partial: bool,
}

impl Banned {
    /// `None` where there are no such texts. Upper and lower case of ASCII's letters are the same.
    pub(super) fn new(
        request: &Request,
        constraint: Option<&Constrained>,
        surprise: Option<f32>,
        vocab_size: usize,
    ) -> Option<Self> {
        let texts = &request.banned_strings;
        (!texts.is_empty()).then(|| Self {
            matcher: StopMatcher::new(texts.iter().map(|text| text.to_ascii_lowercase()).collect()),
            certain: 0,
            held: VecDeque::new(),
            num_released: 0,
            forbidden: BTreeMap::new(),
            constraint: constraint.map(|constrained| constrained.constraint.fork()),
            surprise,
            vocab_size,
            emits: request.text,
        })
    }

    /// What may be drawn behind so many tokens of the answer, of what a constraint allows.
    pub(super) fn allowed(
        &self,
        place: usize,
        of_constraint: Option<&Arc<TokenMask>>,
    ) -> Option<Arc<TokenMask>> {
        let Some(forbidden) = self.forbidden.get(&place) else { return of_constraint.cloned() };
        let all = || vec![u32::MAX; self.vocab_size.div_ceil(32)];
        let mut words = of_constraint.map_or_else(all, |mask| mask.words().to_vec());
        for &token in forbidden {
            if let Some(word) = words.get_mut(token as usize / 32) {
                *word &= !(1 << (token % 32));
            }
        }
        Some(Arc::new(TokenMask::from_words(words)))
    }

    /// Tokens that were tried in a place and may not be drawn there.
    pub(super) fn num_tried(&self, place: usize) -> usize {
        self.forbidden.get(&place).map_or(0, Vec::len)
    }

    /// The index of a draw: each try in a place has a number of its own.
    pub(super) fn index(&self, place: usize, index: u32) -> u32 {
        index.wrapping_add(NEXT_TRY.wrapping_mul(self.num_tried(place) as u32))
    }

    /// What is to be kept before a token is taken.
    fn mark(&self, text: &TextStream) -> Mark {
        let (text, matcher) = (text.clone(), self.matcher.clone());
        Mark { text, matcher, certain: self.certain, surprise: self.surprise }
    }

    /// Holds a token whose text `stream` has taken, with what was there before. Answers whether one of the texts is complete, and then which
    /// of the tokens held it began in. With the last token all is looked at that `stream` withholds.
    fn hold(
        &mut self,
        (token, mut event): (u32, Event),
        mark: Mark,
        stream: &TextStream,
        is_last: bool,
    ) -> Option<usize> {
        let (certain, mut found) = self.matcher.push(&event.text().to_ascii_lowercase());
        self.certain += certain.len();
        let mut start = self.certain;
        let (end, is_partial) = stream.position();
        if let (Event::Token { text, .. }, false) = (&mut event, self.emits) {
            text.clear();
        }
        self.held.push_back(Held { token, event, mark, end, is_partial });
        if is_last && !found {
            let (rest, _) = stream.clone().finish();
            let (certain, is_there) = self.matcher.clone().push(&rest.to_ascii_lowercase());
            found = is_there;
            start += certain.len();
        }
        let begins = |held: &Held| held.end > start || (held.end == start && held.is_partial);
        found.then(|| self.held.iter().position(begins).unwrap_or(self.held.len() - 1))
    }

    /// The events of the tokens that stay, also where the answer goes back to any of those behind them: what was certain before the first of
    /// these is all that is certain then.
    fn release(&mut self) -> Vec<Event> {
        let stay = |count: &usize| {
            let certain = self.held.get(*count).map_or(self.certain, |next| next.mark.certain);
            let last = &self.held[count - 1];
            last.end < certain || (last.end == certain && !last.is_partial)
        };
        let count = (1..=self.held.len()).rev().find(stay).unwrap_or(0);
        let mut events = Vec::with_capacity(count);
        for Held { token, event, .. } in self.held.drain(..count) {
            if let Some(constraint) = &mut self.constraint {
                // What it cannot follow has ended the answer.
                let _ = constraint.accept(token);
            }
            events.push(event);
        }
        self.num_released += count;
        self.forbidden.retain(|&place, _| place >= self.num_released);
        events
    }

    /// The events that are held yet, where no token comes any more; and what is left of the text, unless one of the texts would be in it.
    pub(super) fn finish(&mut self, rest: String) -> (Vec<Event>, String) {
        let (_, found) = self.matcher.push(&rest.to_ascii_lowercase());
        let events = self.held.drain(..).map(|held| held.event).collect();
        (events, if found || !self.emits { String::new() } else { rest })
    }
}

/// What becomes of a token.
pub(super) enum Taken {
    /// These events may go out.
    Stays(Vec<Event>),
    /// It is taken back, with others before it: so many tokens of the answer stay.
    Back(usize),
}

impl Generation {
    /// What is to be kept before a token is taken, where it may have to be taken back.
    pub(super) fn mark(&self) -> Option<Mark> {
        Some(self.banned.as_ref()?.mark(self.text.as_ref()?))
    }

    /// Takes a token's event: it goes out, is held, or is taken back.
    pub(super) fn hold(&mut self, token: u32, event: Event, mark: Option<Mark>, is_last: bool) -> Taken {
        let (Some(banned), Some(text), Some(mark)) = (&mut self.banned, &self.text, mark) else {
            return Taken::Stays(vec![event]);
        };
        banned.surprise = self.host.as_ref().map(|host| host.surprise.bound());
        match banned.hold((token, event), mark, text, is_last) {
            Some(index) => Taken::Back(banned.num_released + index),
            None => Taken::Stays(banned.release()),
        }
    }

    /// Goes back to where so many tokens of the answer were there. `prompt_and_answer` are those of the sequence; says if it cannot go on
    /// from there.
    ///
    /// # Errors
    /// What the constraint says.
    pub(super) fn go_back(
        &mut self,
        place: usize,
        prompt_and_answer: &[u32],
    ) -> Result<Option<FinishReason>> {
        let Some(banned) = &mut self.banned else { return Ok(None) };
        let index = place - banned.num_released;
        let Some(Held { token, mark, .. }) = banned.held.drain(index..).next() else { return Ok(None) };
        banned.forbidden.split_off(&(place + 1));
        banned.forbidden.entry(place).or_default().push(token);
        (banned.matcher, banned.certain, banned.surprise) = (mark.matcher, mark.certain, mark.surprise);
        self.text = Some(mark.text);
        if let Some((host, bound)) = self.host.as_ref().zip(mark.surprise) {
            host.surprise.set(bound);
        }
        self.completion_tokens = place;
        self.timings.decode_tokens = self.timings.decode_tokens.min(place);
        let skipped = if self.request.penalize_prompt { 0 } else { self.prompt_tokens };
        let counted = &prompt_and_answer[skipped..self.prompt_tokens + place];
        self.penalties = PenaltyWindow::new(&self.request.sampling, counted);
        if let Some(constraint) = &banned.constraint {
            let mut constraint = constraint.fork();
            banned.held.iter().try_for_each(|held| constraint.accept(held.token))?;
            self.constraint = match constraint.is_over() {
                true => None,
                false => Some(Constrained { allowed: Arc::new(constraint.allowed()?), constraint }),
            };
        }
        Ok((banned.num_tried(place) > MAX_TRIED).then_some(FinishReason::Constraint))
    }
}

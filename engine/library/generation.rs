//! One answer: how it is asked for, and its events as they come.

use super::Model;
use crate::engine::{Completion, Engine, Event, Request};
use crate::error::{Error, Result};
use crate::sampler::SamplingParams;
use crate::scheduler::SequenceId;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

/// An answer that is not computed yet, and how: iterate over it, or [complete](Self::complete) it. What was wrong with the
/// prompt shows there.
#[must_use = "nothing is computed before it is iterated over or completed"]
pub struct GenerationBuilder<'m> {
    model: &'m mut Model,
    request: Result<Request>,
}

impl<'m> GenerationBuilder<'m> {
    pub(super) fn new(model: &'m mut Model, request: Result<Request>) -> Self {
        Self { model, request }
    }

    fn with(mut self, set: impl FnOnce(&mut Request)) -> Self {
        if let Ok(request) = &mut self.request {
            set(request);
        }
        self
    }

    /// Ends the answer after this many tokens. The default is the model's own end, or that of the context.
    pub fn max_tokens(self, count: usize) -> Self {
        self.with(|request| request.max_tokens = Some(count))
    }

    /// Ends the answer before this text; may be called several times.
    pub fn stop(self, text: impl Into<String>) -> Self {
        self.with(|request| request.stop.push(text.into()))
    }

    /// Lets the answer go another way wherever this text would be in it; may be called several times.
    pub fn banned_string(self, text: impl Into<String>) -> Self {
        self.with(|request| request.banned_strings.push(text.into()))
    }

    /// Divides the logits before a token is drawn; 0 always takes the likeliest. The default is 0.8.
    pub fn temperature(self, temperature: f32) -> Self {
        self.with(|request| request.sampling.temperature = temperature)
    }

    /// What the draws depend on: the same seed gives the same answer. The default is 0.
    pub fn seed(self, seed: u64) -> Self {
        self.with(|request| request.sampling.seed = seed)
    }

    /// Everything that the sampler can be told, in place of the defaults and of what was said before.
    pub fn sampling(self, params: SamplingParams) -> Self {
        self.with(|request| request.sampling = params)
    }

    /// Gives each token's event its log-probability and those of the `count` likeliest tokens.
    pub fn logprobs(self, count: usize) -> Self {
        self.with(|request| request.logprobs = Some(count))
    }

    /// Goes on after tokens that end an answer.
    pub fn ignore_eos(self) -> Self {
        self.with(|request| request.ignore_eos = true)
    }

    /// Computes the whole answer.
    ///
    /// # Errors
    /// [`Error::Request`] for a prompt or a value that makes no sense or does not fit, [`Error::Tokenizer`] for a prompt
    /// that cannot be encoded, [`Error::Device`] if the device fails, [`Error::NotFinite`] if the model's logits are no numbers.
    pub fn complete(self) -> Result<Completion> {
        let engine = &mut self.model.engine;
        let cancel = AtomicBool::new(false);
        let done = engine.run_to_end(self.request?, &cancel, |_| ControlFlow::Continue(()))?;
        done.reason.error().map_or(Ok(done), Err)
    }

    /// The answer's text piece by piece, as soon as each is certain.
    ///
    /// ```
    /// # fn main() -> qernel::Result<()> {
    /// # let mut model = qernel::Model::haiku()?;
    /// for piece in model.chat("Write a haiku about snow with the word two").pieces() {
    ///     print!("{}", piece?);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn pieces(self) -> impl Iterator<Item = Result<String>> {
        let text = |event: Event| match event {
            Event::Prompt { .. } => String::new(),
            Event::Token { text, .. } | Event::Finished { text, .. } => text,
        };
        self.into_iter()
            .map(move |event| event.map(text))
            .filter(|piece| !piece.as_ref().is_ok_and(String::is_empty))
    }

    /// The answer's tokens, the one that ended it too.
    pub fn tokens(self) -> impl Iterator<Item = Result<u32>> {
        self.into_iter().filter_map(|event| match event {
            Ok(Event::Token { token, .. }) => Some(Ok(token)),
            Ok(Event::Prompt { .. } | Event::Finished { .. }) => None,
            Err(error) => Some(Err(error)),
        })
    }
}

impl<'m> IntoIterator for GenerationBuilder<'m> {
    type Item = Result<Event>;
    type IntoIter = Generation<'m>;

    fn into_iter(self) -> Generation<'m> {
        let engine = &mut self.model.engine;
        let state = match self.request.and_then(|request| engine.submit(request)) {
            Ok(id) => State::Running(id),
            Err(error) => State::Refused(error),
        };
        Generation { engine, state, events: VecDeque::new() }
    }
}

/// The events of one answer as they come. After [`Event::Finished`] or an error there are none; dropped before, it ends the answer.
pub struct Generation<'m> {
    engine: &'m mut Engine,
    state: State,
    /// Came with those that were taken.
    events: VecDeque<Event>,
}

enum State {
    Refused(Error),
    Running(SequenceId),
    Ended,
}

impl Iterator for Generation<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event.error().map_or(Ok(event), Err));
            }
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Ended => return None,
                State::Refused(error) => return Some(Err(error)),
                State::Running(id) => match self.engine.step() {
                    Ok(events) => {
                        self.events.extend(events.into_iter().filter(|event| event.id() == id));
                        if !matches!(self.events.back(), Some(Event::Finished { .. })) {
                            self.state = State::Running(id);
                        }
                    }
                    Err(error) => {
                        self.engine.cancel(id);
                        return Some(Err(error));
                    }
                },
            }
        }
    }
}

impl Drop for Generation<'_> {
    fn drop(&mut self) {
        if let State::Running(id) = self.state {
            self.engine.cancel(id);
        }
    }
}

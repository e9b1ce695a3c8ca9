//! One request, served to its end.

use super::Engine;
use super::constraint::TokenConstraint;
use super::request::{Completion, Event, Request};
use crate::error::Result;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

impl Engine {
    /// Serves one request to its end and gives its events to `on_event` as they come. `cancel` is looked at before every
    /// step; setting it, or breaking from `on_event`, ends the answer with [`FinishReason::Cancelled`](super::FinishReason::Cancelled) and what was made so
    /// far; after a break `on_event` is not called again. Other sequences go on meanwhile, and their events are returned
    /// by the next step.
    ///
    /// # Errors
    /// As [`Engine::submit`] and [`Engine::step`]; the sequence has ended then.
    pub fn run_to_end(
        &mut self,
        request: Request,
        cancel: &AtomicBool,
        on_event: impl FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Completion> {
        self.run_constrained(request, None, cancel, on_event)
    }

    /// As [`Engine::run_to_end`], of an answer that may only consist of what `constraint` allows.
    ///
    /// # Errors
    /// As [`Engine::submit_constrained`] and [`Engine::step`]; the sequence has ended then.
    pub fn run_constrained(
        &mut self,
        request: Request,
        constraint: Option<Box<dyn TokenConstraint>>,
        cancel: &AtomicBool,
        mut on_event: impl FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Completion> {
        let id = self.submit_constrained(request, constraint)?;
        let (mut tokens, mut text) = (Vec::new(), String::new());
        let mut others = Vec::new();
        let mut end = None;
        let mut flow = ControlFlow::Continue(());
        while end.is_none() {
            if cancel.load(Ordering::Relaxed) || flow.is_break() {
                self.cancel(id);
            }
            let events = match self.step() {
                Ok(events) => events,
                Err(error) => {
                    self.cancel(id);
                    self.events.retain(|event| event.id() != id);
                    self.events.splice(..0, others);
                    return Err(error);
                }
            };
            for event in events {
                if event.id() != id {
                    others.push(event);
                    continue;
                }
                if flow.is_continue() {
                    flow = on_event(&event);
                }
                text += event.text();
                match event {
                    Event::Prompt { .. } => {}
                    Event::Token { token, .. } => tokens.push(token),
                    Event::Finished { reason, usage, timings, .. } => end = Some((reason, usage, timings)),
                }
            }
        }
        self.events.splice(..0, others);
        let (reason, usage, timings) = end.expect("the loop ends with it");
        Ok(Completion { id, tokens, text, reason, usage, timings })
    }
}

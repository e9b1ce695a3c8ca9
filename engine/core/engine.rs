//! The engine: requests in, events out.
//!
//! Each [`Engine::step`] asks the [scheduler](crate::scheduler) for a batch, lets the [`Runner`] compute it and draw a
//! token for every sequence that is ready, and turns those tokens into [`Event`]s.
//!
//! Where the runner can, a decode step is queued before the tokens of the one before have been read, so that the device does
//! not wait for the host. A row that is computed for a sequence which then turns out to have ended is thrown away.

mod adapters;
mod banned;
mod check;
mod constraint;
mod draft;
mod embed;
mod generation;
mod logits;
mod penalties;
pub mod pooling;
mod prompt_cache;
mod queue;
mod repetition;
mod request;
mod run;
mod text;
mod thinking;
mod tokens;

pub use constraint::TokenConstraint;
pub use draft::{DraftSource, NgramKind, NgramOptions, Speculative};
pub use prompt_cache::{Fingerprint, KeptPrompts};
pub use request::{Completion, Event, FinishReason, Refusal, Request, RequestPart, Timings, Usage};
pub use text::StopMatcher;
pub use thinking::{Thinking, ThinkingConstraint};

pub use crate::model::AdapterInfo;

use crate::batch::AdapterSet;
use crate::checkpoints::{CHECKPOINT_EVERY, Checkpoints};
use crate::error::{Error, Result};
use crate::kv_cache::PagePool;
use crate::kv_layout::PAGE_SIZE;
use crate::model::Runner;
use crate::sampler::HostRow;
use crate::scheduler::{Drafting, Scheduler, SequenceId, Step, StepLimits};
use crate::tokenizer::Tokenizer;
use banned::Banned;
use draft::Drafter;
use generation::{Constrained, Generation};
use penalties::PenaltyWindow;
use pooling::Pooler;
use repetition::Repetitions;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use text::TextStream;

/// How much the engine does at once, within what the runner was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Rows of a step, and so the longest chunk of a prompt. Fewer let sequences that are generating wait less for others'
    /// prompts.
    pub max_num_tokens: usize,
    /// Sequences that run at once.
    pub max_num_sequences: usize,
    /// Whether requests that begin as earlier ones did take what those have computed from the KV cache. What they answer is
    /// the same, up to the rounding of steps of other sizes on a GPU.
    pub prefix_cache: bool,
    /// Tokens of a prompt from one copy of the states of recurrent layers to the next, rounded up to pages; 0: there is one behind its last
    /// page alone. Half of the copies at most are of one prompt.
    pub checkpoint_every: usize,
}

impl Default for EngineConfig {
    /// All that the runner allows, with the prefix cache.
    fn default() -> Self {
        Self {
            max_num_tokens: usize::MAX,
            max_num_sequences: usize::MAX,
            prefix_cache: true,
            checkpoint_every: CHECKPOINT_EVERY,
        }
    }
}

/// A model that serves any number of requests at once. See the [module](self).
pub struct Engine {
    runner: Box<dyn Runner>,
    tokenizer: Option<Arc<Tokenizer>>,
    pooler: Option<Arc<Pooler>>,
    scheduler: Scheduler,
    /// Queued behind the step whose tokens were read last.
    in_flight: Option<Step>,
    /// Sequences that wait or run.
    generations: HashMap<SequenceId, Generation>,
    /// Events that no step has returned yet.
    events: Vec<Event>,
    next_id: u64,
    max_model_len: usize,
    /// Rows of a step.
    max_num_tokens: usize,
    /// The text whose vector is being made.
    embedding: Option<embed::Embedding>,
    /// Drafts that a sequence's steps have room for.
    max_drafts: usize,
    /// What drafts them.
    drafter: Option<Box<dyn Drafter>>,
    /// For requests that say nothing of it.
    speculative: Speculative,
    /// Likewise.
    adapters: AdapterSet,
}

impl Engine {
    /// An engine over a loaded model; where that was made to draft, by its own block ([`Engine::with_drafts`]). Without a tokenizer it knows token ids alone: no text, no stop strings and no
    /// end-of-generation tokens.
    ///
    /// # Errors
    /// [`Error::Request`] if a limit is 0, [`Error::Memory`] if there is no KV page.
    pub fn new(
        runner: Box<dyn Runner>,
        tokenizer: Option<Arc<Tokenizer>>,
        config: EngineConfig,
    ) -> Result<Self> {
        let limits = *runner.limits();
        let num_pages = runner.kv_layout().num_pages;
        let step = StepLimits {
            max_num_tokens: config.max_num_tokens.min(limits.max_num_tokens),
            max_num_sequences: (config.max_num_sequences)
                .min(limits.max_num_sequences)
                .min(limits.max_num_logits),
            max_num_logits: limits.max_num_logits,
        };
        if step.max_num_tokens == 0 || step.max_num_sequences == 0 {
            return Err(Error::Request(format!(
                "a step must have room for a token and a sequence, found {} and {}",
                step.max_num_tokens, step.max_num_sequences
            )));
        }
        if num_pages == 0 {
            return Err(Error::Memory("the KV cache has no page; leave more memory free for it".into()));
        }
        let (has_slots, checkpoints) = (runner.has_slots(), runner.num_checkpoints());
        let prefix_cache = config.prefix_cache && (!has_slots || checkpoints > 0);
        let mut scheduler = Scheduler::new(step, num_pages, prefix_cache);
        if has_slots && prefix_cache {
            scheduler = scheduler.with_checkpoints(Checkpoints::new(checkpoints, config.checkpoint_every));
        }
        let max_model_len = runner.max_model_len().min(num_pages.min(limits.max_blocks) * PAGE_SIZE);
        // Each sequence draws a token for each draft, and one more.
        let max_drafts = runner.max_drafts().min(limits.max_num_logits / step.max_num_sequences - 1);
        if max_drafts > 0 {
            let first_place = has_slots.then_some(checkpoints as u32);
            scheduler = scheduler.with_drafting(Drafting { max: max_drafts, max_model_len, first_place });
        }
        let adapters = runner.all_adapters();
        let engine = Self {
            runner,
            tokenizer,
            pooler: None,
            scheduler,
            in_flight: None,
            generations: HashMap::new(),
            events: Vec::new(),
            next_id: 0,
            max_model_len,
            max_num_tokens: step.max_num_tokens,
            embedding: None,
            max_drafts,
            drafter: None,
            speculative: Speculative::default(),
            adapters,
        };
        engine.with_drafts(DraftSource::Mtp)
    }

    /// The model.
    pub fn runner(&self) -> &dyn Runner {
        &*self.runner
    }

    /// The model, to measure it. Steps are the engine's own business.
    pub fn runner_mut(&mut self) -> &mut dyn Runner {
        &mut *self.runner
    }

    /// The vocabulary, where there is one.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }

    /// The pages of the KV cache: how many sequences use, how many are free, and how many of those the prefix cache knows.
    pub fn pool(&self) -> &PagePool {
        self.scheduler.pool()
    }

    /// The copies of the states of recurrent layers, where a model has such layers and beginnings are shared.
    pub fn checkpoints(&self) -> Option<&Checkpoints> {
        self.scheduler.checkpoints()
    }

    /// How many sequences wait and how many run.
    pub fn num_sequences(&self) -> (usize, usize) {
        self.scheduler.num_sequences()
    }

    /// Tokens of the longest sequence, prompt and answer together: the model's, or less where the pages are fewer.
    pub fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    /// Whether a step would do or return anything.
    pub fn has_work(&self) -> bool {
        self.scheduler.has_work() || !self.events.is_empty()
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`Error::Request`] if it makes no sense or could not be served even alone; the text gives the numbers.
    pub fn submit(&mut self, request: Request) -> Result<SequenceId> {
        self.submit_constrained(request, None)
    }

    /// Queues a request whose answer may only consist of what `constraint` allows. A constraint that fails ends the answer
    /// with [`FinishReason::Constraint`].
    ///
    /// # Errors
    /// As [`Engine::submit`], and what `constraint` says before the first token.
    pub fn submit_constrained(
        &mut self,
        mut request: Request,
        constraint: Option<Box<dyn TokenConstraint>>,
    ) -> Result<SequenceId> {
        self.check(&request).map_err(|refusal| Error::Request(refusal.message))?;
        let constraint = constraint.map(|mut constraint| {
            let allowed = Arc::new(constraint.allowed()?);
            Ok(Constrained { constraint, allowed })
        });
        let constraint = constraint.transpose()?;
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        request.speculative = request.speculative.or(self.speculative);
        let (prompt, stop) = (std::mem::take(&mut request.prompt), std::mem::take(&mut request.stop));
        let text = match &self.tokenizer {
            Some(tokenizer) if request.text || !stop.is_empty() || !request.banned_strings.is_empty() => {
                let emits = request.text || !request.banned_strings.is_empty();
                Some(TextStream::new(Arc::clone(tokenizer), stop, request.thoughts.take(), emits))
            }
            _ => None,
        };
        let adapters = request.adapters.take().unwrap_or_else(|| self.adapters.clone());
        let host = HostRow::new(&request.sampling);
        let banned = Banned::new(
            &request,
            constraint.as_ref(),
            host.as_ref().map(|host| host.surprise.bound()),
            self.runner.vocab_size(),
        );
        let generation = Generation {
            prompt_tokens: prompt.len(),
            completion_tokens: 0,
            text,
            penalties: PenaltyWindow::new(
                &request.sampling,
                if request.penalize_prompt { &prompt } else { &[] },
            ),
            constraint,
            host,
            banned,
            repetitions: (request.sampling.chain.as_ref())
                .and_then(|chain| Repetitions::new(&chain.dry, self.tokenizer.as_deref())),
            timings: Timings::default(),
            prompt_logprobs: request.prompt_logprobs.map(|_| Vec::new()),
            request,
        };
        self.scheduler.submit(id, prompt, adapters, generation.prompt_logprobs.is_some());
        self.generations.insert(id, generation);
        Ok(id)
    }

    /// Computes one batch and returns what came of it, or nothing if there was nothing to do.
    ///
    /// # Errors
    /// Whatever the runner says. No sequence has moved then: the same step is tried again by the next call, and
    /// [`Engine::cancel`] ends sequences as ever.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        self.step_while(&mut || ())
    }

    /// As [`Engine::step`], and does `meanwhile` while the device computes, or before it where the CPU does. It is not done
    /// where nothing is computed, and may not be where the step fails.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn step_while(&mut self, meanwhile: &mut dyn FnMut()) -> Result<Vec<Event>> {
        let computed = self.compute(meanwhile).inspect_err(|_| self.take_back())?;
        let Some((step, tokens, seconds)) = computed else { return Ok(std::mem::take(&mut self.events)) };
        self.scheduler.complete(&step, &tokens);
        let drafts = self.drafts_behind(&step);
        if drafts {
            self.observe(&step);
        }
        let mut logprobs = self.runner.take_logprobs().into_iter();
        for (scheduled, accepted) in step.sequences.iter().zip(step.accepted(&tokens)) {
            self.generations
                .entry(scheduled.id)
                .and_modify(|generation| generation.timings.add(scheduled, seconds));
            let of_prompt = logprobs.by_ref().take(scheduled.num_scored).collect();
            self.take_scored(scheduled, of_prompt);
            let mut logprobs = logprobs.by_ref().take(scheduled.num_draws()).collect::<Vec<_>>().into_iter();
            for (i, &token) in accepted.iter().enumerate() {
                self.take_token(scheduled, i > 0, token, logprobs.next().flatten());
            }
        }
        if drafts {
            self.draft(&step);
        }
        Ok(std::mem::take(&mut self.events))
    }

    /// The next step with its tokens and the seconds that were spent on it, `None` if there is nothing to do. The step behind
    /// it is in flight then if it can be.
    fn compute(&mut self, meanwhile: &mut dyn FnMut()) -> Result<Option<(Step, Vec<u32>, f64)>> {
        if self.in_flight.as_ref().is_some_and(|step| !self.is_live(step)) {
            self.discard();
        }
        let mut start = Instant::now();
        let step = match self.in_flight.take() {
            Some(step) => step,
            None => {
                let Some(step) = self.scheduler.schedule() else { return Ok(None) };
                let rows = self.sampling_rows(&step, 0);
                if !self.runner.runs_ahead() {
                    meanwhile();
                    start = Instant::now();
                    let tokens = self.with_copies(&step, |runner| runner.step(&step.batch, &rows))?;
                    return Ok(Some((step, tokens, start.elapsed().as_secs_f64())));
                }
                start = Instant::now();
                self.with_copies(&step, |runner| runner.queue(&step.batch, &rows))?;
                step
            }
        };
        if let Some(next) = self.schedule_ahead(&step) {
            let rows = self.sampling_rows(&next, 1);
            self.with_copies(&next, |runner| runner.queue(&next.batch, &rows))?;
            self.in_flight = Some(next);
        }
        meanwhile();
        let tokens = self.runner.take()?;
        Ok(Some((step, tokens, start.elapsed().as_secs_f64())))
    }

    /// The step behind `step` if it is known without the tokens that `step` draws.
    fn schedule_ahead(&mut self, step: &Step) -> Option<Step> {
        // Where the step drafts, more than a token may come of it.
        if self.drafts_behind(step) {
            return None;
        }
        let Self { scheduler, generations, max_model_len, .. } = self;
        let mut generating = step.sequences.iter().filter_map(|scheduled| generations.get(&scheduled.id));
        if generating.any(Generation::needs_its_tokens) {
            return None;
        }
        scheduler.schedule_ahead(step, |id| {
            generations.get(&id).is_some_and(|generation| generation.continues(*max_model_len))
        })
    }

    /// Ends a sequence; the next step returns its [`Event::Finished`]. `false` if it neither waits nor runs.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        let known = self.generations.contains_key(&id);
        if known {
            self.finish(id, FinishReason::Cancelled);
        }
        known
    }
}

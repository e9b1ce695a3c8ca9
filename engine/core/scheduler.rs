//! Which tokens of which sequences run next: continuous batching over one pool of KV pages.
//!
//! Sequences run in the order in which they came. Every step takes one row of each sequence that is generating, then fills
//! the rest of its rows with prompts, oldest first, in chunks; a sequence joins as soon as there are pages for all its
//! tokens and leaves as soon as it ends. When a running sequence finds no page for its next token, the youngest
//! running one gives its pages up, waits at the front of the queue and is computed anew.
//!
//! What a sequence has computed stays known when it gives its pages up, whether it has ended or not, until somebody needs the
//! pages ([`crate::prefix_cache`]). A sequence that joins takes what is known of its beginning and computes the rest.
//!
//! Three rules keep it simple: `running` before `waiting` is always the order of arrival, which is the order of ids; only
//! running sequences own pages; and nothing is marked as computed, or known, before [`Scheduler::complete`], so that a
//! step that failed can be taken again.

mod copies;
mod drafts;
mod following;
mod sequence;
mod step;

pub use drafts::Drafting;
pub use following::{Follower, FollowingStep};
pub use sequence::Sequence;
pub use step::{ScheduledSequence, SequenceId, Step};

use crate::batch::{AdapterSet, Batch, LogitRows, SequenceRows};
use crate::checkpoints::{Beginning, Checkpoints};
use crate::kv_cache::{PageList, PagePool};
use crate::kv_layout::StateCopy;
use crate::sampler::NO_TOKEN;
use following::Followed;
use std::collections::VecDeque;

/// The most that one step may hold.
#[derive(Clone, Copy, Debug)]
pub struct StepLimits {
    /// Rows of a step; also the longest chunk of a prompt.
    pub max_num_tokens: usize,
    /// Sequences that run at once.
    pub max_num_sequences: usize,
    /// Rows of logits of a step: as many as sequences, with the drafts of each, or more.
    pub max_num_logits: usize,
}

/// See the [module](self).
pub struct Scheduler {
    limits: StepLimits,
    pool: PagePool,
    /// Slots that a running sequence had and none has now, of the `num_slots` that were ever needed.
    free_slots: Vec<u32>,
    num_slots: u32,
    /// Slots that are [lent](Scheduler::lend_slot), each in the place of a sequence.
    num_lent: usize,
    /// Copies of states, for a model that has them.
    checkpoints: Option<Checkpoints>,
    /// For a model with a block that drafts.
    drafting: Option<Drafting>,
    /// Oldest first.
    waiting: VecDeque<Sequence>,
    /// Oldest first.
    running: Vec<Sequence>,
}

impl Scheduler {
    /// The same for a model whose layers keep states in slots, of which `checkpoints` may be kept: where it goes on, a sequence begins
    /// with one.
    pub fn with_checkpoints(self, checkpoints: Checkpoints) -> Self {
        Self { checkpoints: Some(checkpoints), ..self }
    }

    /// The pages and the copies of states, to take back what was kept of another run.
    pub(crate) fn kept_mut(&mut self) -> (&mut PagePool, Option<&mut Checkpoints>) {
        (&mut self.pool, self.checkpoints.as_mut())
    }

    /// Copies of states, for a model that has them.
    pub fn checkpoints(&self) -> Option<&Checkpoints> {
        self.checkpoints.as_ref()
    }

    /// A scheduler of `num_pages` free pages, whose sequences share what they have in common if `prefix_cache`.
    ///
    /// # Panics
    /// If a limit is 0, or there are fewer rows of logits than sequences.
    pub fn new(limits: StepLimits, num_pages: usize, prefix_cache: bool) -> Self {
        let StepLimits { max_num_tokens, max_num_sequences, max_num_logits } = limits;
        assert!(
            max_num_tokens.min(max_num_sequences) > 0 && max_num_logits >= max_num_sequences,
            "a step must hold a row and a sequence, and draw for each: {limits:?}"
        );
        Self {
            limits,
            pool: PagePool::new(num_pages, prefix_cache),
            free_slots: Vec::new(),
            num_slots: 0,
            num_lent: 0,
            checkpoints: None,
            drafting: None,
            waiting: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// The pages, and how many of them are used, free and cached.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// The pages, for what is no sequence.
    pub(crate) fn pool_mut(&mut self) -> &mut PagePool {
        &mut self.pool
    }

    /// How many sequences wait and how many run.
    pub fn num_sequences(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Whether any sequence waits or runs.
    pub fn has_work(&self) -> bool {
        !(self.waiting.is_empty() && self.running.is_empty())
    }

    /// Queues a sequence with these adapters. `id` must be larger than every earlier one, and the pool must be able to hold the sequence at
    /// its longest. Where the prompt is to be `scored`, steps have a row of logits for each of its tokens.
    ///
    /// # Panics
    /// If `tokens` is empty.
    pub fn submit(&mut self, id: SequenceId, tokens: Vec<u32>, adapters: AdapterSet, scored: bool) {
        assert!(!tokens.is_empty(), "a sequence needs a token");
        self.waiting.push_back(Sequence {
            id,
            to_score: if scored { tokens.len() - 1 } else { 0 },
            num_scored: 0,
            prefill_len: tokens.len(),
            tokens,
            num_cached: 0,
            num_reused: 0,
            pages: PageList::new(&adapters, &mut self.pool),
            adapters,
            slot: 0,
            preempted: false,
            load: None,
            newest: None,
            drafts: Vec::new(),
            followed: Followed::default(),
            stride: None,
        });
    }

    /// A sequence that waits or runs.
    pub fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        match self.place_of(id) {
            Some(i) => Some(&self.running[i]),
            None => self.waiting.iter().find(|sequence| sequence.id == id),
        }
    }

    /// Where a sequence is among those that run.
    fn place_of(&self, id: SequenceId) -> Option<usize> {
        self.running.binary_search_by_key(&id, |sequence| sequence.id).ok()
    }

    /// Chooses the next step; `None` if there is nothing to do. The step is to be computed and then given to
    /// [`Scheduler::complete`], or dropped if that failed.
    pub fn schedule(&mut self) -> Option<Step> {
        let mut budget = self.limits.max_num_tokens;
        let mut logits = self.limits.max_num_logits;
        let mut chosen = Vec::new(); // (index into running, rows)

        // 1. One row of every sequence that is generating, oldest first. Only here may pages be missing, and only
        // sequences younger than those already chosen give theirs up. What was rewound to a copy of its state takes that before
        // the copy's place gets another one.
        let num_running = self.running.len();
        let mut i = 0;
        while i < self.running.len() {
            if !self.running[i].is_prefill() || self.running[i].load.is_some() {
                while !self.grow(i) && i < self.running.len() {
                    self.preempt_youngest();
                }
                if i == self.running.len() {
                    break; // It was itself the youngest.
                }
                let behind = self.running.len() - i - 1;
                let left = |of: usize| of.saturating_sub(behind).max(1);
                let num_rows = match self.running[i].is_prefill() {
                    true => self.running[i].prefill_rows(left(budget), left(logits)),
                    false => self.generating_rows(i, budget),
                };
                chosen.push((i, num_rows));
                budget -= num_rows;
                logits = logits.saturating_sub(self.running[i].num_logits(num_rows));
            }
            i += 1;
        }

        // 2. Prompts that have begun. A row of logits is left for each of those behind.
        let preempting = self.running.len() < num_running;
        let is_next = |sequence: &Sequence| sequence.is_prefill() && sequence.load.is_none();
        let begun = || self.running.iter().enumerate().filter(|(_, sequence)| is_next(sequence));
        let mut behind = begun().count();
        for (i, sequence) in begun() {
            behind -= 1;
            let num_rows = sequence.prefill_rows(budget, logits.saturating_sub(behind));
            if num_rows > 0 {
                chosen.push((i, num_rows));
                budget -= num_rows;
                logits -= sequence.num_logits(num_rows);
            }
        }

        // 3. Those that wait, unless this very step had to make room. They join only while rows are left, so there is
        // always a row for each running sequence.
        while budget > 0 && logits > 0 && !preempting && self.has_slot() && self.admit() {
            let sequence = &self.running[self.running.len() - 1];
            let num_rows = sequence.prefill_rows(budget, logits);
            chosen.push((self.running.len() - 1, num_rows));
            budget -= num_rows;
            logits -= sequence.num_logits(num_rows);
        }
        (!chosen.is_empty()).then(|| self.step(&chosen))
    }

    /// The step behind `step`, whose tokens are not known yet: a row for each of its sequences that has not ended and, as
    /// `continues` says, will not end with that token, which the row takes from the device.
    ///
    /// `None` where what to compute next depends on more than that: `step` is not the decoding of all that runs, somebody
    /// waits, or pages are missing. The step is to be given to [`Scheduler::complete`] behind `step`, before anything else
    /// is scheduled, or dropped.
    pub fn schedule_ahead(&mut self, step: &Step, continues: impl Fn(SequenceId) -> bool) -> Option<Step> {
        if !self.waiting.is_empty()
            || step.sequences.iter().any(|scheduled| scheduled.prefill || scheduled.num_draws() != 1)
        {
            return None;
        }
        let ids = || step.sequences.iter().map(|scheduled| scheduled.id).zip(0u32..);
        if self.running.iter().any(|sequence| ids().all(|(id, _)| id != sequence.id)) {
            return None;
        }
        let mut sampled_rows = Vec::with_capacity(step.sequences.len());
        let mut rows = Vec::with_capacity(step.sequences.len());
        for (id, sampled_row) in ids().filter(|&(id, _)| continues(id)) {
            let Some(i) = self.place_of(id) else { continue };
            let Sequence { tokens, pages, .. } = &mut self.running[i];
            if !pages.grow(tokens.len() + 1, &mut self.pool) {
                return None; // Pages taken so far are those that the sequences need next anyway.
            }
            sampled_rows.push(sampled_row);
            rows.push(i);
        }
        if rows.is_empty() {
            return None;
        }
        let ends: Vec<_> = rows.iter().map(|&i| (i, self.running[i].tokens.len() + 1)).collect();
        let (saves, evicted) = self.copies_behind(&ends);
        let scheduled = |(&i, save): (&usize, Option<StateCopy>)| ScheduledSequence {
            id: self.running[i].id,
            num_rows: 1,
            prefill: false,
            samples: true,
            num_scored: 0,
            num_drafts: 0,
            save,
        };
        let sequences = rows.iter().zip(saves).map(scheduled).collect();
        let state_slots = rows.iter().map(|&i| self.running[i].slot).collect();
        let adapters: Vec<_> = rows.iter().map(|&i| self.running[i].adapters.clone()).collect();
        let rows: Vec<SequenceRows> = (rows.iter().map(|&i| &self.running[i]))
            .map(|Sequence { tokens, pages, .. }| SequenceRows {
                tokens: &[0], // Its place is taken by the one that `step` draws.
                position: tokens.len(),
                pages: pages.pages(),
                logits: LogitRows::Last,
            })
            .collect();
        let batch = Batch { sampled_rows, state_slots, ..Batch::new(&rows) }.with_adapters(adapters);
        Some(Step { batch, sequences, evicted, ..Step::default() })
    }

    /// Records that `step` was computed and that `sampled` are the tokens of its sampling sequences, in their order, of which those take
    /// [`Step::accepted`]. What it was for sequences that have ended meanwhile is dropped.
    ///
    /// # Panics
    /// If `sampled` has another length.
    pub fn complete(&mut self, step: &Step, sampled: &[u32]) {
        for (scheduled, accepted) in step.sequences.iter().zip(step.accepted(sampled)) {
            let place = self.place_of(scheduled.id);
            let copy = self.checkpoints.as_mut().zip(scheduled.save);
            match place {
                Some(i) => {
                    let sequence = &mut self.running[i];
                    sequence.drafts.clear();
                    sequence.tokens.extend(accepted);
                    // What led to no token may be no numbers: it counts as not computed, so that nobody begins with it.
                    let is_computed = !accepted.contains(&NO_TOKEN);
                    let refused = scheduled.num_draws() - accepted.len();
                    let kept = self.drafting.and_then(|drafting| drafting.place(sequence.slot));
                    if is_computed && (refused == 0 || kept.is_none()) {
                        sequence.num_cached += scheduled.num_rows - refused;
                        sequence.num_scored =
                            sequence.num_cached.min(sequence.to_score).max(sequence.num_scored);
                    } else if is_computed {
                        sequence.load = kept.map(Beginning::Place);
                    }
                    // A step that is in flight may still read pages that this or the end of a sequence gives back, or write
                    // behind their known tokens: the device comes to it before any step that uses them otherwise.
                    if sequence.pages.remember(&sequence.tokens[..sequence.num_cached], &mut self.pool) {
                        let known = self.pool.num_followed(sequence.pages.pages(), sequence.num_cached);
                        sequence.followed.move_to(known);
                    }
                    if let Some((checkpoints, StateCopy { place, .. })) = copy {
                        let prefix = sequence.pages.prefix_of(sequence.num_cached).filter(|_| is_computed);
                        let is_kept = prefix.is_some_and(|prefix| checkpoints.set(place, prefix));
                        if prefix.is_none() {
                            checkpoints.release(place);
                        }
                        if !scheduled.prefill && is_kept {
                            sequence.newest = prefix;
                        }
                    }
                }
                None => {
                    if let Some((checkpoints, StateCopy { place, .. })) = copy {
                        checkpoints.release(place);
                    }
                }
            }
        }
    }

    /// Ends a sequence and gives its pages back. Returns it, `None` if it neither waits nor runs.
    pub fn finish(&mut self, id: SequenceId) -> Option<Sequence> {
        let mut sequence = match self.place_of(id) {
            Some(i) => {
                let sequence = self.running.remove(i);
                self.free_slots.push(sequence.slot);
                sequence
            }
            None => self.waiting.remove(self.waiting.iter().position(|sequence| sequence.id == id)?)?,
        };
        sequence.give_up_pages(&mut self.pool);
        Some(sequence)
    }

    /// Pages for all tokens of running sequence `i`.
    fn grow(&mut self, i: usize) -> bool {
        match self.running.get_mut(i) {
            Some(sequence) => sequence.pages.grow(sequence.tokens.len(), &mut self.pool),
            None => false,
        }
    }

    /// Frees the pages of the youngest running sequence and puts it at the front of the queue.
    fn preempt_youngest(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            self.free_slots.push(sequence.slot);
            sequence.give_up_pages(&mut self.pool);
            sequence.preempted = true;
            self.waiting.push_front(sequence);
        }
    }

    /// Whether one more sequence may run.
    fn has_slot(&self) -> bool {
        self.running.len() + self.num_lent < self.limits.max_num_sequences
    }

    /// A slot for what is no sequence, `None` if none is left; until it is given back one sequence fewer may run.
    pub(crate) fn lend_slot(&mut self) -> Option<u32> {
        let slot = self.has_slot().then(|| take_slot(&mut self.free_slots, &mut self.num_slots))?;
        self.num_lent += 1;
        Some(slot)
    }

    /// Takes a slot back that was lent.
    pub(crate) fn take_slot_back(&mut self, slot: u32) {
        self.num_lent -= 1;
        self.free_slots.push(slot);
    }

    /// Lets every running sequence be computed anew: what layers keep in slots moved on with a step that was not completed.
    pub fn restart(&mut self) {
        while !self.running.is_empty() {
            self.preempt_youngest();
        }
    }

    /// Moves the oldest waiting sequence to the running ones if there are pages for all its tokens.
    fn admit(&mut self) -> bool {
        let Some(sequence) = self.waiting.front_mut() else { return false };
        // One that was crowded out comes back with a page to spare for each of the others, or it would be crowded out again.
        let spare = if sequence.preempted { self.running.len() } else { 0 };
        if !sequence.begin(&mut self.pool, self.checkpoints.as_mut(), spare) {
            return false;
        }
        if !sequence.preempted {
            sequence.num_reused = sequence.num_cached;
        }
        sequence.slot = take_slot(&mut self.free_slots, &mut self.num_slots);
        self.running.extend(self.waiting.pop_front());
        self.find_followed(self.running.len() - 1);
        self.grow(self.running.len() - 1)
    }

    /// Takes the newest tokens of a running sequence away, so that the first `len` are left, at least one, and lets it go on from there. What
    /// it computed stays known, as if it had ended: it takes from the cache what that has of its beginning, and computes the rest anew.
    pub fn rewind(&mut self, id: SequenceId, len: usize) {
        let Some(i) = self.place_of(id) else { return };
        let sequence = &mut self.running[i];
        sequence.give_up_pages(&mut self.pool);
        sequence.tokens.truncate(len.max(1));
        if sequence.begin(&mut self.pool, self.checkpoints.as_mut(), 0) {
            self.find_followed(i);
            if self.grow(i) {
                return;
            }
        }
        // Others have taken pages that it shared: it waits for some, and so do those behind it.
        while self.running.len() > i {
            self.preempt_youngest();
        }
    }

    /// The batch of the `(index into running, rows)` in `chosen`.
    fn step(&mut self, chosen: &[(usize, usize)]) -> Step {
        let keeps = chosen.iter().filter_map(|&rows| self.keep_before(rows)).collect();
        let (mut loads, mut host_loads) = (Vec::new(), Vec::new());
        for &(i, _) in chosen {
            let Sequence { slot, load, .. } = &mut self.running[i];
            match load.take() {
                Some(Beginning::Place(place)) => loads.push(StateCopy { slot: *slot, place }),
                Some(Beginning::Host(state)) => host_loads.push((*slot, state)),
                None => {}
            }
        }
        let ends: Vec<_> = chosen.iter().map(|&(i, rows)| (i, self.running[i].num_cached + rows)).collect();
        let (saves, evicted) = self.copies_behind(&ends);
        let mut sequences = Vec::with_capacity(chosen.len());
        let state_slots = chosen.iter().map(|&(i, _)| self.running[i].slot).collect();
        let tokens: Vec<Vec<u32>> = chosen.iter().map(|&(i, rows)| self.running[i].rows(rows)).collect();
        let mut rows = Vec::with_capacity(chosen.len());
        for ((&(i, num_rows), save), tokens) in chosen.iter().zip(saves).zip(&tokens) {
            let sequence = &self.running[i];
            let end = sequence.num_cached + num_rows;
            let num_drafts = end.saturating_sub(sequence.tokens.len());
            let scheduled = ScheduledSequence {
                id: sequence.id,
                num_rows,
                prefill: sequence.is_prefill(),
                samples: end >= sequence.tokens.len(),
                num_scored: sequence.scored_rows(num_rows),
                num_drafts,
                save,
            };
            rows.push(SequenceRows {
                tokens,
                position: sequence.num_cached,
                pages: sequence.pages.pages(),
                logits: LogitRows::Newest(scheduled.num_logits() as u32),
            });
            sequences.push(scheduled);
        }
        let drafts = sequences.iter().any(|sequence| sequence.num_drafts > 0);
        let batch = Batch { state_slots, drafts, ..Batch::new(&rows) };
        let adapters = chosen.iter().map(|&(i, _)| self.running[i].adapters.clone());
        Step { batch: batch.with_adapters(adapters), sequences, keeps, loads, host_loads, evicted }
    }
}

/// A slot that nobody has, of those that were ever needed or a new one.
fn take_slot(free: &mut Vec<u32>, count: &mut u32) -> u32 {
    let slot = free.pop().unwrap_or(*count);
    *count = (*count).max(slot + 1);
    slot
}

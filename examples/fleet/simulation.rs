//! A fleet as events in time: conversations ask, a router places their turns, GPUs compute step after step.
//!
//! A step of a GPU is one batch, as the engine's: a token for each sequence that answers, and prompt tokens up to a chunk. Everything
//! follows from the seed.

use crate::numbers::{Histogram, Random};
use crate::scenario::{Routing, Scenario};
use qernel::testing::mix;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

/// What came of it, between `warm_up` and `end`.
#[derive(Default)]
pub struct Outcome {
    /// From a turn to its answer's first token, between two tokens, from a turn to its end.
    pub first_token: Histogram,
    pub next_token: Histogram,
    pub turn: Histogram,
    /// From a turn until it has a place on a GPU.
    pub wait: Histogram,
    pub arrivals: u64,
    /// Turns that had not ended, integrated over time.
    pub turn_seconds: f64,
    pub prompt_tokens: u64,
    /// Of them those whose K and V were there, or came over the network.
    pub hit_tokens: u64,
    pub fetched_tokens: u64,
    pub computed_prompt_tokens: u64,
    pub answer_tokens: u64,
    /// Seconds of steps, of all GPUs.
    pub busy: f64,
}

struct Conversation {
    system: u32,
    /// Tokens of its turns so far, without the system message.
    history: u32,
    turns_left: u32,
}

struct Sequence {
    conversation: u32,
    arrival: f64,
    prompt: u32,
    /// Tokens of the prompt that are still to be computed.
    prompt_left: u32,
    answer: u32,
    answer_left: u32,
    last_token: f64,
}

/// The K and V that a GPU keeps: the latest of its conversations, and system messages.
#[derive(Default)]
struct Cache {
    conversations: BTreeMap<u32, (u32, u64)>,
    by_age: BTreeMap<u64, u32>,
    systems: BTreeSet<u32>,
    tokens: u64,
    clock: u64,
}

impl Cache {
    fn forget(&mut self, conversation: u32) {
        if let Some((tokens, age)) = self.conversations.remove(&conversation) {
            self.by_age.remove(&age);
            self.tokens -= u64::from(tokens);
        }
    }

    fn keep(&mut self, conversation: u32, tokens: u32, room: u64) {
        self.forget(conversation);
        self.clock += 1;
        self.conversations.insert(conversation, (tokens, self.clock));
        self.by_age.insert(self.clock, conversation);
        self.tokens += u64::from(tokens);
        while self.tokens > room {
            let Some((_, &oldest)) = self.by_age.first_key_value() else { break };
            self.forget(oldest);
        }
    }
}

#[derive(Default)]
struct GpuState {
    /// Of the step in progress, while there is one.
    running: Vec<Sequence>,
    is_busy: bool,
    /// They are part of the next step.
    joining: Vec<Sequence>,
    /// Both, and those whose K and V are on their way to it.
    placed: usize,
    cache: Cache,
}

enum Happening {
    NewConversation,
    Turn(u32),
    StepEnd(usize),
    /// K and V have come: the sequence can run.
    Ready(usize, Sequence),
}

/// Something that happens then; of what happens at once, the number says what comes first.
struct Queued {
    time: f64,
    number: u64,
    what: Happening,
}

impl Ord for Queued {
    /// The earliest is the greatest: a heap gives that first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.time.total_cmp(&self.time).then(other.number.cmp(&self.number))
    }
}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Queued {}

struct Fleet<'a> {
    scenario: &'a Scenario,
    random: Random,
    now: f64,
    queue: BinaryHeap<Queued>,
    next: u64,
    conversations: Vec<Conversation>,
    gpus: Vec<GpuState>,
    /// Turns that no GPU has room for, and sequences whose prompt is computed and that none has room for.
    front: VecDeque<Sequence>,
    between: VecDeque<Sequence>,
    open: u64,
    outcome: Outcome,
}

/// Runs a scenario.
pub fn simulate(scenario: &Scenario) -> Outcome {
    let gpus = std::iter::repeat_with(GpuState::default).take(scenario.gpus).collect();
    let mut fleet = Fleet {
        scenario,
        random: Random(scenario.seed),
        now: 0.0,
        queue: BinaryHeap::new(),
        next: 0,
        conversations: Vec::new(),
        gpus,
        front: VecDeque::new(),
        between: VecDeque::new(),
        open: 0,
        outcome: Outcome::default(),
    };
    fleet.at(0.0, Happening::NewConversation);
    fleet.begin_in_the_middle();
    while let Some(Queued { time, what, .. }) = fleet.queue.pop() {
        let time = time.min(scenario.end);
        let counted = (time - fleet.now.max(scenario.warm_up)).max(0.0);
        fleet.outcome.turn_seconds += counted * fleet.open as f64;
        fleet.now = time;
        if time >= scenario.end {
            break;
        }
        fleet.happen(what);
    }
    fleet.outcome
}

impl Fleet<'_> {
    fn at(&mut self, time: f64, what: Happening) {
        self.queue.push(Queued { time, number: self.next, what });
        self.next += 1;
    }

    /// As many conversations as there will be on the average, all between two turns: what is left of one does not depend on its age.
    fn begin_in_the_middle(&mut self) {
        let workload = &self.scenario.workload;
        let (again, of_turn) =
            ((workload.turns - 1.0) / workload.turns, workload.user_tokens + workload.answer_tokens);
        for _ in 0..(workload.turns_per_second * again * workload.think) as u32 {
            let system = self.random.below(workload.systems as usize) as u32;
            let history = (f64::from(self.random.geometric(workload.turns)) * of_turn) as u32;
            let conversation = self.conversations.len() as u32;
            self.conversations.push(Conversation {
                system,
                history,
                turns_left: self.random.geometric(workload.turns),
            });
            if !self.scenario.cold {
                let home = self.home(conversation, self.prompt_gpus());
                self.gpus[home].cache.keep(
                    conversation,
                    workload.system_tokens + history,
                    self.scenario.gpu.kv_tokens,
                );
            }
            let pause = self.random.exponential(workload.think);
            self.at(pause, Happening::Turn(conversation));
        }
    }

    fn counts(&self) -> bool {
        self.now >= self.scenario.warm_up
    }

    fn happen(&mut self, happening: Happening) {
        let workload = &self.scenario.workload;
        match happening {
            Happening::NewConversation => {
                let system = self.random.below(workload.systems as usize) as u32;
                let turns_left = self.random.geometric(workload.turns);
                self.conversations.push(Conversation { system, history: 0, turns_left });
                self.turn(self.conversations.len() as u32 - 1);
                let pause = self.random.exponential(workload.turns / workload.turns_per_second);
                self.at(self.now + pause, Happening::NewConversation);
            }
            Happening::Turn(conversation) => self.turn(conversation),
            Happening::StepEnd(gpu) => self.step_end(gpu),
            Happening::Ready(gpu, sequence) => {
                self.gpus[gpu].joining.push(sequence);
                self.start_step(gpu);
            }
        }
    }

    fn turn(&mut self, conversation: u32) {
        let workload = &self.scenario.workload;
        let user = self.random.geometric(workload.user_tokens);
        let answer = self.random.geometric(workload.answer_tokens);
        let prompt = workload.system_tokens + self.conversations[conversation as usize].history + user;
        self.open += 1;
        if self.counts() {
            self.outcome.arrivals += 1;
        }
        self.front.push_back(Sequence {
            conversation,
            arrival: self.now,
            prompt,
            prompt_left: prompt,
            answer,
            answer_left: answer,
            last_token: 0.0,
        });
        self.place_waiting();
    }

    /// Gives places to those that wait, the first one first.
    fn place_waiting(&mut self) {
        let prompts = self.prompt_gpus();
        while let Some(first) = self.front.front() {
            let Some(gpu) = self.choose(first.conversation, prompts.clone(), self.scenario.routing) else {
                break;
            };
            let sequence = self.front.pop_front().expect("it was there");
            self.begin(gpu, sequence);
        }
        while let Some(first) = self.between.front() {
            let answers = self.scenario.prefill_gpus..self.gpus.len();
            let Some(gpu) = self.choose(first.conversation, answers, Routing::TwoChoices) else { break };
            let sequence = self.between.pop_front().expect("it was there");
            self.gpus[gpu].placed += 1;
            let seconds = f64::from(sequence.prompt) * self.scenario.network_token.unwrap_or(0.0);
            self.at(self.now + seconds, Happening::Ready(gpu, sequence));
        }
    }

    /// Those that compute prompts.
    fn prompt_gpus(&self) -> std::ops::Range<usize> {
        0..if self.scenario.prefill_gpus == 0 { self.gpus.len() } else { self.scenario.prefill_gpus }
    }

    /// The one that a conversation's hash names.
    fn home(&self, conversation: u32, among: std::ops::Range<usize>) -> usize {
        among.start + ((u128::from(mix(u64::from(conversation) + 1)) * among.len() as u128) >> 64) as usize
    }

    fn choose(
        &mut self,
        conversation: u32,
        among: std::ops::Range<usize>,
        routing: Routing,
    ) -> Option<usize> {
        let (first, n, max) = (among.start, among.len(), self.scenario.gpu.max_sequences);
        let start = match routing {
            Routing::Random => self.random.below(n),
            Routing::TwoChoices => {
                let (a, b) = (self.random.below(n), self.random.below(n));
                if self.gpus[first + b].placed < self.gpus[first + a].placed { b } else { a }
            }
            Routing::Prefix(_) => self.home(conversation, among) - first,
        };
        let bound = match routing {
            Routing::Prefix(times) => {
                (times * (self.open as f64 / n as f64 + 1.0)).ceil().min(max as f64) as usize
            }
            _ => max,
        };
        let ring = || (0..n).map(|i| first + (start + i) % n);
        ring()
            .find(|&gpu| self.gpus[gpu].placed < bound)
            .or_else(|| ring().find(|&gpu| self.gpus[gpu].placed < max))
    }

    /// A turn has its place: what of its prompt is known need not be computed.
    fn begin(&mut self, gpu: usize, mut sequence: Sequence) {
        let workload = &self.scenario.workload;
        let conversation = &self.conversations[sequence.conversation as usize];
        let state = &mut self.gpus[gpu];
        state.placed += 1;
        let here = match state.cache.conversations.get(&sequence.conversation) {
            Some((tokens, _)) => *tokens,
            None if state.cache.systems.contains(&conversation.system) => workload.system_tokens,
            None => 0,
        };
        state.cache.systems.insert(conversation.system);
        let before = workload.system_tokens + conversation.history;
        let fetched = match self.scenario.network_token {
            Some(_) if conversation.history > 0 => before.saturating_sub(here),
            _ => 0,
        };
        // The last token is computed in any case: it gives the logits.
        let known = (here + fetched).min(sequence.prompt - 1);
        sequence.prompt_left = sequence.prompt - known;
        if self.counts() {
            self.outcome.wait.add(self.now - sequence.arrival);
            self.outcome.prompt_tokens += u64::from(sequence.prompt);
            self.outcome.hit_tokens += u64::from(known);
            self.outcome.fetched_tokens += u64::from(fetched);
        }
        if fetched > 0 {
            let seconds = f64::from(fetched) * self.scenario.network_token.unwrap_or(0.0);
            self.at(self.now + seconds, Happening::Ready(gpu, sequence));
        } else {
            self.happen(Happening::Ready(gpu, sequence));
        }
    }

    fn start_step(&mut self, gpu: usize) {
        let state = &mut self.gpus[gpu];
        if state.is_busy {
            return;
        }
        state.running.append(&mut state.joining);
        if state.running.is_empty() {
            return;
        }
        state.is_busy = true;
        let (mut sequences, mut context, mut prompt) = (0, 0, 0u32);
        for sequence in &state.running {
            if sequence.prompt_left == 0 {
                sequences += 1;
                context += u64::from(sequence.prompt + sequence.answer - sequence.answer_left);
            } else {
                prompt = (prompt + sequence.prompt_left).min(self.scenario.gpu.chunk);
            }
        }
        let seconds = self.scenario.gpu.step(sequences, context, prompt);
        if self.counts() {
            self.outcome.busy += seconds;
            self.outcome.computed_prompt_tokens += u64::from(prompt);
        }
        self.at(self.now + seconds, Happening::StepEnd(gpu));
    }

    fn step_end(&mut self, gpu: usize) {
        let (counts, now, room) = (self.counts(), self.now, self.scenario.gpu.kv_tokens);
        let moves_on = gpu < self.scenario.prefill_gpus;
        let state = &mut self.gpus[gpu];
        let mut chunk = self.scenario.gpu.chunk;
        let mut ended = Vec::new();
        for mut sequence in std::mem::take(&mut state.running) {
            let was_prompt = sequence.prompt_left > 0;
            let computed = sequence.prompt_left.min(chunk);
            sequence.prompt_left -= computed;
            chunk -= computed;
            if sequence.prompt_left > 0 {
                state.running.push(sequence);
                continue;
            }
            sequence.answer_left -= 1;
            if counts {
                self.outcome.answer_tokens += 1;
                if was_prompt {
                    self.outcome.first_token.add(now - sequence.arrival);
                } else {
                    self.outcome.next_token.add(now - sequence.last_token);
                }
            }
            sequence.last_token = now;
            if sequence.answer_left == 0 || moves_on {
                state.placed -= 1;
                let tokens = sequence.prompt + sequence.answer - sequence.answer_left;
                state.cache.keep(sequence.conversation, tokens, room);
                ended.push(sequence);
            } else {
                state.running.push(sequence);
            }
        }
        state.is_busy = false;
        for sequence in ended {
            if sequence.answer_left > 0 {
                self.between.push_back(sequence);
            } else {
                self.turn_end(&sequence);
            }
        }
        self.start_step(gpu);
        self.place_waiting();
    }

    fn turn_end(&mut self, sequence: &Sequence) {
        self.open -= 1;
        if self.counts() {
            self.outcome.turn.add(self.now - sequence.arrival);
        }
        let workload = &self.scenario.workload;
        let conversation = &mut self.conversations[sequence.conversation as usize];
        conversation.history = sequence.prompt + sequence.answer - workload.system_tokens;
        conversation.turns_left -= 1;
        if conversation.turns_left > 0 {
            let pause = self.random.exponential(workload.think);
            self.at(self.now + pause, Happening::Turn(sequence.conversation));
        }
    }
}

//! The engine without a model: scheduling, pages, stops and texts, against a plain loop over one sequence.

use proptest::prelude::*;
use qernel::batch::{Batch, BatchLimits, GIVEN};
use qernel::config::Config;
use qernel::cpu::CpuOps;
use qernel::dtype::Dtype;
use qernel::generate::{Completion, Engine, EngineConfig, Event, FinishReason, Request, Usage};
use qernel::gguf::Gguf;
use qernel::kv_cache::{KvLayout, PAGE_SIZE};
use qernel::model::{ModelRunner, OpsConfig, Runner, check::check_batch};
use qernel::sampler::{SamplingParams, SamplingRow};
use qernel::scheduler::SequenceId;
use qernel::testing::TinyModel;
use qernel::tokenizer::Tokenizer;
use qernel::weights::Weights;
use qernel::{Error, Result};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

/// The next token of a "model", from all tokens that it sees and from what the sampler is given.
type Next = Box<dyn Fn(&[u32], &SamplingRow) -> u32>;

/// What a slot of the mock's cache holds: like K and V of a real model it depends on all tokens up to its own.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Slot {
    token: u32,
    /// A hash of all tokens up to this one.
    history: u64,
}

/// A runner whose cache holds the tokens themselves. It sees a sequence only through its block table, so a page or a slot
/// that is lost, stale, out of order, of another sequence or written while it is shared is found or changes what comes out.
struct Mock {
    limits: BatchLimits,
    layout: KvLayout,
    max_model_len: usize,
    next: Next,
    /// Every slot; `None` where nothing was written yet.
    slots: Vec<Option<Slot>>,
    /// Steps that fail before the next one that does not.
    failures: Rc<Cell<usize>>,
    /// Rows of each step, sequence by sequence.
    steps: Rc<RefCell<Vec<Vec<usize>>>>,
    /// Takes a step before the tokens of the one before are taken, as a GPU does.
    ahead: bool,
    /// Tokens of the steps that were not taken.
    queued: VecDeque<Result<Vec<u32>>>,
    /// Of the step queued last.
    drawn: Vec<u32>,
    /// Every other failure shows only when the tokens are taken.
    fails_late: bool,
    /// Steps that were queued while another one was.
    num_ahead: Rc<Cell<usize>>,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    num_pages: usize,
    max_num_tokens: usize,
    max_num_sequences: usize,
    max_model_len: usize,
}

const ROOMY: Shape = Shape { num_pages: 64, max_num_tokens: 64, max_num_sequences: 8, max_model_len: 512 };

/// The hash of no token.
const START: u64 = 0xcbf2_9ce4_8422_2325;

/// The hash of what `history` is the hash of, and then `word` (FNV-1a).
fn hash(history: u64, word: u32) -> u64 {
    let bytes = word.to_le_bytes();
    bytes.into_iter().fold(history, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Mock {
    fn new(shape: Shape, next: impl Fn(&[u32], &SamplingRow) -> u32 + 'static) -> Self {
        let layout = KvLayout {
            dtype: Dtype::F32,
            num_layers: 1,
            num_pages: shape.num_pages,
            num_key_value_heads: 1,
            head_dim: 2,
        };
        let limits = BatchLimits {
            max_num_tokens: shape.max_num_tokens,
            max_num_sequences: shape.max_num_sequences,
            max_num_logits: shape.max_num_sequences,
            max_blocks: shape.max_model_len.div_ceil(PAGE_SIZE),
        };
        Self {
            limits,
            layout,
            max_model_len: shape.max_model_len,
            next: Box::new(next),
            slots: vec![None; shape.num_pages * PAGE_SIZE],
            failures: Rc::default(),
            steps: Rc::default(),
            ahead: false,
            queued: VecDeque::new(),
            drawn: Vec::new(),
            fails_late: false,
            num_ahead: Rc::default(),
        }
    }
}

impl Runner for Mock {
    fn limits(&self) -> &BatchLimits {
        &self.limits
    }

    fn kv_layout(&self) -> &KvLayout {
        &self.layout
    }

    fn vocab_size(&self) -> usize {
        TinyModel::VOCAB_SIZE
    }

    fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    fn step(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<Vec<u32>> {
        check_batch(batch, &self.limits, &self.layout, self.vocab_size(), self.max_model_len)?;
        assert_eq!((rows.len(), batch.num_drawn()), (batch.num_logits(), 0));
        let counts: Vec<_> = batch.query_start.windows(2).map(|ends| (ends[1] - ends[0]) as usize).collect();
        assert!(counts.iter().all(|&rows| rows > 0), "a sequence without rows: {batch:?}");
        let slot_of = |s: usize, position: usize| {
            let page = batch.block_table[s * batch.max_blocks + position / PAGE_SIZE] as usize;
            page * PAGE_SIZE + position % PAGE_SIZE
        };
        // A page that is written has one reader.
        let mut readers: HashMap<u32, usize> = HashMap::new();
        for (s, &kv_len) in batch.kv_len.iter().enumerate() {
            for &page in &batch.block_table[s * batch.max_blocks..][..(kv_len as usize).div_ceil(PAGE_SIZE)] {
                *readers.entry(page).or_default() += 1;
            }
        }
        for row in 0..batch.num_tokens() {
            let (s, position) = (batch.sequence_of_token[row] as usize, batch.positions[row] as usize);
            let slot = batch.slots[row] as usize;
            assert_eq!(readers[&((slot / PAGE_SIZE) as u32)], 1, "written while shared: {batch:?}");
            assert_eq!(slot, slot_of(s, position));
            let before =
                position.checked_sub(1).map(|before| self.slots[slot_of(s, before)].expect("written"));
            let token = batch.tokens[row];
            let history = hash(before.map_or(START, |before| before.history), token);
            self.slots[slot] = Some(Slot { token, history });
        }
        if self.failures.get() > 0 {
            self.failures.set(self.failures.get() - 1);
            return Err(Error::Device("the cable was pulled".into()));
        }
        self.steps.borrow_mut().push(counts);
        let draw = |(&row, sampling): (&u32, &SamplingRow)| {
            let s = batch.sequence_of_token[row as usize] as usize;
            let mut history = START;
            let visible: Vec<u32> = (0..=batch.positions[row as usize] as usize)
                .map(|position| {
                    let slot = self.slots[slot_of(s, position)].expect("it was written");
                    history = hash(history, slot.token);
                    assert_eq!(slot.history, history, "position {position} is of another sequence");
                    slot.token
                })
                .collect();
            assert_eq!(sampling.position as usize, visible.len());
            (self.next)(&visible, sampling)
        };
        Ok(batch.logit_rows.iter().zip(rows).map(draw).collect())
    }

    fn runs_ahead(&self) -> bool {
        self.ahead
    }

    fn queue(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<()> {
        assert!(self.ahead && self.queued.len() < 2, "{} steps are queued", self.queued.len());
        let drawn = std::mem::take(&mut self.drawn);
        let mut batch = batch.clone();
        for (token, row) in batch.tokens.iter_mut().zip(&mut batch.drawn_rows) {
            if *row != GIVEN {
                *token = drawn[*row as usize];
                *row = GIVEN;
            }
        }
        self.fails_late ^= self.failures.get() > 0;
        if self.fails_late && self.failures.get() > 0 {
            let failures = self.failures.replace(0);
            self.drawn = self.step(&batch, rows)?;
            self.failures.set(failures - 1);
            self.queued.push_back(Err(Error::Device("the cable was pulled later".into())));
        } else {
            self.drawn = self.step(&batch, rows)?;
            self.queued.push_back(Ok(self.drawn.clone()));
        }
        self.num_ahead.set(self.num_ahead.get() + self.queued.len() - 1);
        Ok(())
    }

    fn take(&mut self) -> Result<Vec<u32>> {
        self.queued.pop_front().expect("a step is queued")
    }

    fn discard(&mut self) {
        self.queued.clear();
    }

    fn logits(&mut self, _: &Batch) -> Result<Vec<f32>> {
        unreachable!("the engine draws tokens only")
    }

    fn device_name(&self) -> String {
        "mock".into()
    }

    fn read_bandwidth(&mut self) -> Result<Option<f64>> {
        unreachable!("the engine measures nothing")
    }
}

fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        let gguf = Gguf::from_bytes(TinyModel::default().vocabulary_only().to_bytes().into()).unwrap();
        Arc::new(Tokenizer::from_gguf(&gguf).unwrap())
    });
    Arc::clone(&TOKENIZER)
}

fn engine(mock: Mock) -> Engine {
    engine_with(mock, true)
}

fn engine_with(mock: Mock, prefix_cache: bool) -> Engine {
    let config = EngineConfig { prefix_cache, ..EngineConfig::default() };
    Engine::new(Box::new(mock), Some(tokenizer()), config).unwrap()
}

/// FNV-1a over everything that may influence a token, folded into a few letters, both halves of `é`, pieces of several
/// letters and, now and then, the end.
fn hash_model(visible: &[u32], row: &SamplingRow) -> u32 {
    let seed = [row.params.seed as u32, row.position, row.index];
    let counts = row.counts.iter().flat_map(|&(token, count)| [token, count]);
    let words = visible.iter().copied().chain(seed).chain(counts);
    let hash = (words.fold(START, hash) >> 32) as u32;
    if hash.is_multiple_of(41) {
        return TinyModel::IM_END;
    }
    // Ids in GPT-2's order of bytes: `!` is 0, 0xa1 is 94, 0xae is 106.
    let letter = |byte: u8| u32::from(byte - b'!');
    let choices = [
        letter(b'a'),
        letter(b'b'),
        letter(b'a'),
        letter(b'c'),
        106 + 0xc3 - 0xae,
        94 + 0xa9 - 0xa1,
        257,
        262,
    ];
    choices[hash as usize / 41 % choices.len()]
}

/// What a request must give: a loop over one sequence, without pages, batches or streams.
fn expected(request: &Request, max_model_len: usize) -> (Vec<u32>, String, FinishReason) {
    let tokenizer = tokenizer();
    let mut tokens = request.prompt.clone();
    loop {
        let counted = if request.penalize_prompt { &tokens[..] } else { &tokens[request.prompt.len()..] };
        let window = match request.sampling.repeat_last_n {
            -1 => counted,
            n => &counted[counted.len().saturating_sub(n as usize)..],
        };
        let mut counts = BTreeMap::new();
        if request.sampling.has_penalties() {
            window.iter().for_each(|&token| *counts.entry(token).or_default() += 1);
        }
        let row = SamplingRow {
            index: request.index,
            counts: counts.into_iter().collect(),
            ..SamplingRow::new(request.sampling.clone(), tokens.len() as u32)
        };
        tokens.push(hash_model(&tokens, &row));
        let answer = &tokens[request.prompt.len()..];
        let is_end = !request.ignore_eos && tokenizer.is_end_of_generation(answer[answer.len() - 1]);
        let mut text = tokenizer.decode(answer, true).unwrap();
        // Which of several stop strings: the one that is complete first, then the longest.
        let ends =
            request.stop.iter().filter_map(|stop| text.find(stop).map(|start| (start + stop.len(), start)));
        let reason = if let Some((_, start)) = ends.min() {
            text.truncate(start);
            FinishReason::Stop
        } else if is_end {
            FinishReason::Stop
        } else if Some(answer.len()) == request.max_tokens {
            FinishReason::Length
        } else if tokens.len() == max_model_len {
            FinishReason::Context
        } else {
            continue;
        };
        return (answer.to_vec(), if request.text { text } else { String::new() }, reason);
    }
}

/// The events of one sequence, added up.
#[derive(Debug, Default)]
struct Answer {
    tokens: Vec<u32>,
    text: String,
    end: Option<(FinishReason, Usage)>,
}

fn collect(events: Vec<Event>, answers: &mut HashMap<SequenceId, Answer>) {
    for event in events {
        let answer = answers.entry(event.id()).or_default();
        assert!(answer.end.is_none(), "an event after the end: {event:?}");
        answer.text += event.text();
        match event {
            Event::Token { token, .. } => answer.tokens.push(token),
            Event::Finished { reason, usage, timings, .. } => {
                assert_eq!(usage.completion_tokens, answer.tokens.len());
                assert!(timings.decode_tokens <= usage.completion_tokens);
                assert_eq!(timings.prefill_seconds > 0.0, timings.prefill_tokens > 0, "{timings:?}");
                assert_eq!(timings.decode_seconds > 0.0, timings.decode_tokens > 0, "{timings:?}");
                answer.end = Some((reason, usage));
            }
        }
    }
}

fn run(engine: &mut Engine) -> HashMap<SequenceId, Answer> {
    let mut answers = HashMap::new();
    while engine.has_work() {
        collect(engine.step().unwrap(), &mut answers);
    }
    answers
}

/// Bytes as tokens of the vocabulary.
fn ids(text: &str) -> Vec<u32> {
    tokenizer().encode(text, false).unwrap()
}

fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Request {
    let sampling = SamplingParams { temperature: 0.0, ..Default::default() };
    Request { sampling, max_tokens: Some(max_tokens), ..Request::new(prompt) }
}

// Properties.

#[derive(Clone, Debug)]
enum Action {
    Submit(Box<Request>),
    /// Continues the given one of the sequences so far: so many of its tokens, then the request's prompt.
    Continue(prop::sample::Index, usize, Box<Request>),
    Cancel(prop::sample::Index),
    Steps(usize),
    Fail,
}

fn request() -> impl Strategy<Value = Request> {
    let sampling =
        (any::<u64>(), prop_oneof![Just(0), Just(-1), 1..80i32], prop_oneof![Just(1.0f32), Just(1.1)]);
    let sampling = sampling.prop_map(|(seed, repeat_last_n, repeat_penalty)| SamplingParams {
        seed,
        repeat_last_n,
        repeat_penalty,
        ..Default::default()
    });
    let prompt = prop_oneof![3 => 1..20usize, 2 => 1..120usize];
    let prompt = prompt.prop_flat_map(|len| prop::collection::vec(0..TinyModel::VOCAB_SIZE as u32, len));
    let max_tokens = prop_oneof![Just(None), (1..90usize).prop_map(Some)];
    let stop =
        prop::collection::vec(prop::sample::select(vec!["ab", "aba", "c the", "bé", "th", "zz"]), 0..2);
    (prompt, sampling, max_tokens, stop, any::<(bool, bool, bool)>(), 0..3u32).prop_map(
        |(prompt, sampling, max_tokens, stop, (ignore_eos, text, penalize_prompt), index)| Request {
            prompt,
            sampling,
            max_tokens,
            stop: stop.into_iter().map(str::to_owned).collect(),
            ignore_eos,
            index,
            penalize_prompt,
            logprobs: None,
            text,
        },
    )
}

fn action() -> impl Strategy<Value = Action> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        5 => request().prop_map(|request| Action::Submit(Box::new(request))),
        4 => (index(), 0..200usize, request())
            .prop_map(|(index, len, request)| Action::Continue(index, len, Box::new(request))),
        1 => index().prop_map(Action::Cancel),
        6 => (1..40usize).prop_map(Action::Steps),
        1 => Just(Action::Fail),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    let max_num_tokens = prop_oneof![1..6usize, 6..80usize];
    (1..12usize, max_num_tokens, 1..7usize, 8..300usize).prop_map(
        |(num_pages, max_num_tokens, max_num_sequences, max_model_len)| Shape {
            num_pages,
            max_num_tokens,
            max_num_sequences,
            max_model_len,
        },
    )
}

/// Whatever arrives, ends, is cancelled, continued or fails, in whatever chunks, with however few pages, with steps ahead or
/// one after the other, with the prefix cache and without: every sequence gets what it would have got alone, and in the end
/// every page is free.
fn any_schedule_gives_the_same(shape: Shape, ahead: bool, prefix_cache: bool, actions: Vec<Action>) {
    let mock = Mock { ahead, ..Mock::new(shape, hash_model) };
    let failures = Rc::clone(&mock.failures);
    let mut engine = engine_with(mock, prefix_cache);
    let max_model_len = shape.max_model_len.min(shape.num_pages * PAGE_SIZE);
    assert_eq!(engine.max_model_len(), max_model_len);
    let mut requests: Vec<(SequenceId, Request)> = Vec::new();
    let mut answers = HashMap::new();
    let mut cancelled = HashSet::new();

    let submit = |engine: &mut Engine, requests: &mut Vec<_>, request: Request| {
        let too_long = request.prompt.len() >= max_model_len;
        let wanted = request.max_tokens.map_or(0, |max_tokens| request.prompt.len() + max_tokens);
        let too_much = wanted.min(shape.max_model_len) > max_model_len;
        match engine.submit(request.clone()) {
            Ok(id) if !too_long && !too_much => requests.push((id, request)),
            Err(Error::Request(_)) if too_long || too_much => {}
            other => panic!("{other:?} for a prompt of {} tokens and {wanted} in all", request.prompt.len()),
        }
    };
    for action in actions {
        match action {
            Action::Submit(request) => submit(&mut engine, &mut requests, *request),
            Action::Continue(index, len, mut request) => {
                if requests.is_empty() {
                    continue;
                }
                let (id, earlier) = index.get(&requests);
                let mut prompt = earlier.prompt.clone();
                prompt.extend(answers.get(id).map_or(&[][..], |answer: &Answer| &answer.tokens));
                prompt.truncate(len);
                prompt.append(&mut request.prompt);
                *request = Request { prompt, ..*request };
                submit(&mut engine, &mut requests, *request);
            }
            Action::Cancel(index) if !requests.is_empty() => {
                let id = index.get(&requests).0;
                if engine.cancel(id) {
                    cancelled.insert(id);
                }
            }
            Action::Cancel(_) => {}
            Action::Steps(steps) => {
                for _ in 0..steps {
                    collect(engine.step().unwrap_or_default(), &mut answers);
                }
            }
            Action::Fail => failures.set(failures.get() + 1),
        }
    }
    let mut steps = 0;
    while engine.has_work() {
        collect(engine.step().unwrap_or_default(), &mut answers);
        steps += 1;
        assert!(steps < 100_000, "the engine makes no progress");
    }
    assert_eq!(engine.step().unwrap(), []);

    for (id, request) in &requests {
        let (tokens, text, reason) = expected(request, max_model_len);
        let answer = &answers[id];
        let (found, usage) = answer.end.expect("it ended");
        assert_eq!(usage.prompt_tokens, request.prompt.len());
        assert!(usage.cached_tokens < request.prompt.len());
        assert!(prefix_cache || usage.cached_tokens == 0);
        if cancelled.contains(id) && found == FinishReason::Cancelled {
            assert!(tokens.starts_with(&answer.tokens), "{id}: {:?} instead of {tokens:?}", answer.tokens);
            // Nothing is withheld any more: what might have become a stop string did not.
            let text =
                if request.text { tokenizer().decode(&answer.tokens, true).unwrap() } else { String::new() };
            assert_eq!(answer.text, text, "{id}");
        } else {
            assert_eq!((&answer.tokens, &answer.text, found), (&tokens, &text, reason), "{id}");
        }
    }
    let pool = engine.pool();
    assert_eq!((pool.num_used(), pool.num_free()), (0, shape.num_pages), "pages were lost");
    assert!(pool.num_cached() <= if prefix_cache { shape.num_pages } else { 0 });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn batched_equals_alone(
        shape in shape(),
        ahead in any::<bool>(),
        prefix_cache in prop::bool::weighted(0.8),
        actions in prop::collection::vec(action(), 1..25),
    ) {
        any_schedule_gives_the_same(shape, ahead, prefix_cache, actions);
    }
}

// One thing at a time.

/// A model that answers every prompt of `prompt` tokens with `answer`, and then with the end.
fn script(prompt: usize, answer: Vec<u32>) -> impl Fn(&[u32], &SamplingRow) -> u32 {
    move |visible, _| answer.get(visible.len() - prompt).copied().unwrap_or(TinyModel::IM_END)
}

#[test]
fn generating_sequences_come_first_and_prompts_fill_the_rest() {
    let mock = Mock::new(Shape { max_num_tokens: 8, ..ROOMY }, hash_model);
    let steps = Rc::clone(&mock.steps);
    let mut engine = engine(mock);
    let request = |len| Request { ignore_eos: true, ..greedy(vec![1; len], 4) };
    engine.submit(request(3)).unwrap();
    assert_eq!(engine.step().unwrap().len(), 1);
    for len in [20, 5] {
        engine.submit(request(len)).unwrap();
    }
    while engine.has_work() {
        engine.step().unwrap();
    }
    let expected: [&[usize]; 8] = [&[3], &[1, 7], &[1, 7], &[1, 6, 1], &[1, 4], &[1, 1], &[1, 1], &[1]];
    assert_eq!(*steps.borrow(), expected);
}

/// Of one sequence that ends by itself, one that is cut off, and one that joins: how many rows each step has, and how many of
/// the steps were queued before the tokens before were known.
#[test]
fn decode_steps_are_queued_ahead_until_something_else_comes() {
    let rows_of_steps = |ahead| {
        let answer = |visible: &[u32], _: &SamplingRow| {
            // The prompt of ones ends by itself after three tokens.
            if visible[0] == 1 && visible.len() == 5 { TinyModel::IM_END } else { 5 }
        };
        let mock = Mock { ahead, ..Mock::new(ROOMY, answer) };
        let (steps, num_ahead) = (Rc::clone(&mock.steps), Rc::clone(&mock.num_ahead));
        let mut engine = engine(mock);
        engine.submit(greedy(vec![1; 3], 50)).unwrap();
        engine.submit(greedy(vec![2; 3], 8)).unwrap();
        let mut answers = HashMap::new();
        for _ in 0..3 {
            collect(engine.step().unwrap(), &mut answers);
        }
        engine.submit(greedy(vec![3; 4], 2)).unwrap();
        while engine.has_work() {
            collect(engine.step().unwrap(), &mut answers);
        }
        assert_eq!(engine.step().unwrap(), []);
        let lengths = [0, 1, 2].map(|id| answers[&SequenceId(id)].tokens.len());
        assert_eq!(lengths, [3, 8, 2]);
        (steps.take(), num_ahead.get())
    };
    let waiting: [&[usize]; 8] = [&[3, 3], &[1, 1], &[1, 1], &[1, 4], &[1, 1], &[1], &[1], &[1]];
    let (steps, num_ahead) = rows_of_steps(false);
    assert_eq!((steps, num_ahead), (waiting.map(<[_]>::to_vec).to_vec(), 0));
    // The first ends while a row of it is in flight, which is thrown away; the third joins behind that step.
    let queued: [&[usize]; 8] = [&[3, 3], &[1, 1], &[1, 1], &[1, 1], &[1, 4], &[1, 1], &[1], &[1]];
    let (steps, num_ahead) = rows_of_steps(true);
    assert_eq!(steps, queued.map(<[_]>::to_vec));
    assert_eq!(num_ahead, 4);
}

#[test]
fn penalties_need_the_tokens_before() {
    let mock = Mock { ahead: true, ..Mock::new(ROOMY, hash_model) };
    let num_ahead = Rc::clone(&mock.num_ahead);
    let mut engine = engine(mock);
    let mut request = Request { ignore_eos: true, ..greedy(vec![4; 9], 20) };
    engine.submit(request.clone()).unwrap();
    run(&mut engine);
    assert_eq!(num_ahead.get(), 18, "all but the prompt and the step behind it, which follows a prefill");
    request.sampling.repeat_penalty = 1.5;
    let id = engine.submit(request.clone()).unwrap();
    assert_eq!(run(&mut engine)[&id].tokens, expected(&request, 512).0);
    assert_eq!(num_ahead.get(), 18);
}

#[test]
fn nobody_overtakes() {
    // The second needs three of four pages and waits for the first; the third would fit but came later.
    let mut engine = engine(Mock::new(Shape { num_pages: 4, ..ROOMY }, hash_model));
    let ids = [(2, 40, 20), (3, 90, 1), (4, 10, 1)].map(|(token, len, max_tokens)| {
        engine.submit(Request { ignore_eos: true, ..greedy(vec![token; len], max_tokens) }).unwrap()
    });
    let mut ended = Vec::new();
    while engine.has_work() {
        ended.extend(engine.step().unwrap().iter().filter_map(|event| match event {
            Event::Finished { id, .. } => Some(*id),
            Event::Token { .. } => None,
        }));
    }
    assert_eq!(ended, ids);
}

#[test]
fn the_youngest_gives_its_pages_up_and_nothing_else_changes() {
    // Three prompts of one page each and a pool of four pages: all start, then all need a second page.
    let shape = Shape { num_pages: 4, max_model_len: 128, ..ROOMY };
    // The second gives two pages up for one that the first needs: the end of what it had is lost, the other page is still there.
    assert_eq!(run_crowded(shape, false) - run_crowded(shape, true), PAGE_SIZE);
}

/// Tokens of the second sequence that were computed before it drew one, the first time and anew.
fn run_crowded(shape: Shape, prefix_cache: bool) -> usize {
    let mut engine = engine_with(Mock::new(shape, hash_model), prefix_cache);
    let requests = [3, 4, 5].map(|token| Request { ignore_eos: true, ..greedy(vec![token; 30], 60) });
    let ids = requests.each_ref().map(|request| engine.submit(request.clone()).unwrap());
    let mut prefill_tokens = HashMap::new();
    let mut answers = HashMap::new();
    while engine.has_work() {
        let events = engine.step().unwrap();
        for event in &events {
            if let Event::Finished { id, timings, .. } = event {
                prefill_tokens.insert(*id, timings.prefill_tokens);
            }
        }
        collect(events, &mut answers);
    }
    for (id, request) in ids.iter().zip(&requests) {
        let (tokens, text, reason) = expected(request, 128);
        let answer = &answers[id];
        assert_eq!((&answer.tokens, &answer.text, answer.end.unwrap().0), (&tokens, &text, reason));
        assert_eq!(answer.end.unwrap().1.completion_tokens, 60);
    }
    assert_eq!(prefill_tokens[&ids[0]], 30, "the oldest is never interrupted");
    assert!(prefill_tokens[&ids[2]] > 30, "the youngest was computed anew");
    assert_eq!(engine.pool().num_free(), 4);
    prefill_tokens[&ids[1]]
}

#[test]
fn a_stop_string_ends_the_answer_across_tokens() {
    let answer = ids("one\n\nU").into_iter().chain(ids("ser")).chain(ids(": two")).collect::<Vec<_>>();
    let until = ids("one\n\nU").len() + ids("ser").len() + 1;
    let mut engine = engine(Mock::new(ROOMY, script(2, answer.clone())));
    let request = Request { stop: vec!["\n\nUser:".into(), "never".into()], ..greedy(vec![1, 2], 100) };
    engine.submit(request).unwrap();
    let mut texts = Vec::new();
    let mut tokens = Vec::new();
    let mut end = None;
    while engine.has_work() {
        for event in engine.step().unwrap() {
            texts.push(event.text().to_owned());
            match event {
                Event::Token { token, .. } => tokens.push(token),
                Event::Finished { reason, usage, .. } => end = Some((reason, usage)),
            }
        }
    }
    assert_eq!(texts.concat(), "one");
    assert_eq!(tokens, answer[..until]);
    let usage = Usage { prompt_tokens: 2, completion_tokens: until, cached_tokens: 0 };
    assert_eq!(end, Some((FinishReason::Stop, usage)));
}

#[test]
fn text_comes_in_whole_characters_and_nothing_withheld_is_lost() {
    let answer = ids("naïve 中😀 \n\nUs");
    let mut engine = engine(Mock::new(ROOMY, script(1, answer.clone())));
    let request = Request { stop: vec!["\n\nUser:".into()], ..greedy(vec![7], 100) };
    engine.submit(request).unwrap();
    let mut answers = HashMap::new();
    while engine.has_work() {
        let events = engine.step().unwrap();
        assert!(events.iter().all(|event| !event.text().contains('\u{fffd}')), "{events:?}");
        collect(events, &mut answers);
    }
    let found = answers.into_values().next().unwrap();
    assert_eq!(found.text, "naïve 中😀 \n\nUs");
    assert_eq!(found.tokens, [answer, vec![TinyModel::IM_END]].concat());
    assert_eq!(found.end.unwrap().0, FinishReason::Stop);
}

#[test]
fn every_limit_has_its_reason() {
    let reason = |request: Request| {
        let mut engine = engine(Mock::new(Shape { max_model_len: 40, ..ROOMY }, script(10, ids("abc"))));
        engine.submit(request).unwrap();
        let answer = run(&mut engine).into_values().next().unwrap();
        let (reason, usage) = answer.end.unwrap();
        (reason, usage.completion_tokens, answer.text)
    };
    let base = greedy(vec![1; 10], 100);
    assert_eq!(reason(base.clone()), (FinishReason::Stop, 4, "abc".into()));
    assert_eq!(
        reason(Request { max_tokens: Some(2), ..base.clone() }),
        (FinishReason::Length, 2, "ab".into())
    );
    // The answer that is exactly as long as allowed ended by itself.
    assert_eq!(
        reason(Request { max_tokens: Some(4), ..base.clone() }),
        (FinishReason::Stop, 4, "abc".into())
    );
    let endless = Request { ignore_eos: true, ..base };
    assert_eq!(reason(endless.clone()), (FinishReason::Context, 30, "abc".into()));
    assert_eq!(
        reason(Request { max_tokens: None, ..endless.clone() }),
        (FinishReason::Context, 30, "abc".into())
    );
    assert_eq!(reason(Request { text: false, ..endless }), (FinishReason::Context, 30, String::new()));
}

/// Serves one request, checks its answer, and returns it.
fn serve(engine: &mut Engine, prompt: &[u32], max_tokens: usize) -> Completion {
    let request = Request { ignore_eos: true, ..greedy(prompt.to_vec(), max_tokens) };
    let alone = expected(&request, engine.max_model_len());
    let completion =
        engine.run_to_end(request, &AtomicBool::new(false), |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((&completion.tokens, &completion.text), (&alone.0, &alone.1));
    assert_eq!(completion.timings.prefill_tokens + completion.usage.cached_tokens, prompt.len());
    assert_eq!(engine.pool().num_used(), 0);
    completion
}

#[test]
fn a_conversation_computes_only_what_is_new() {
    let mut engine = engine(Mock::new(ROOMY, hash_model));
    let first = serve(&mut engine, &[5; 50], 20);
    assert_eq!(first.usage.cached_tokens, 0);
    assert_eq!(engine.pool().num_cached(), 3, "69 tokens are in the cache: the last one was never computed");

    let history = [&[5; 50], &first.tokens[..], &[9; 7]].concat();
    assert_eq!(serve(&mut engine, &history, 20).usage.cached_tokens, 69);

    // An edited history is computed from the page on where it differs.
    let edited = [&history[..60], &[8; 40]].concat();
    assert_eq!(serve(&mut engine, &edited, 20).usage.cached_tokens, 32);
    // The same once more has its full pages, and of the unfinished one all but the last token, which is always computed.
    assert_eq!(serve(&mut engine, &edited, 20).usage.cached_tokens, 99);
    // The first conversation is where it was left.
    assert_eq!(serve(&mut engine, &history, 20).usage.cached_tokens, 64);

    let mut without = engine_with(Mock::new(ROOMY, hash_model), false);
    for _ in 0..2 {
        assert_eq!(serve(&mut without, &history, 20).usage.cached_tokens, 0);
        assert_eq!(without.pool().num_cached(), 0);
    }
}

#[test]
fn sequences_that_begin_alike_share_pages_while_they_run() {
    let mut engine = engine(Mock::new(Shape { max_num_tokens: 128, ..ROOMY }, hash_model));
    let request = |last| {
        let prompt = [&[5; 70][..], &[last]].concat();
        Request { ignore_eos: true, ..greedy(prompt, 20) }
    };
    let mut answers = HashMap::new();
    let first = engine.submit(request(0)).unwrap();
    collect(engine.step().unwrap(), &mut answers);
    assert_eq!(engine.pool().num_used(), 3);
    let ids: Vec<_> = (1..6).map(|last| engine.submit(request(last)).unwrap()).collect();
    collect(engine.step().unwrap(), &mut answers);
    assert_eq!(engine.pool().num_used(), 3 + 5, "two full pages of all, and each one's last");
    while engine.has_work() {
        collect(engine.step().unwrap(), &mut answers);
    }
    for (last, id) in (1..).zip(&ids) {
        assert_eq!(answers[id].tokens, expected(&request(last), 512).0);
        assert_eq!(answers[id].end.unwrap().1.cached_tokens, 64);
    }
    assert_eq!(answers[&first].end.unwrap().1.cached_tokens, 0);
    assert_eq!(engine.pool().num_used(), 0);
}

#[test]
fn what_nobody_used_for_longest_is_given_up_for_others() {
    let mut engine = engine(Mock::new(Shape { num_pages: 8, max_model_len: 256, ..ROOMY }, hash_model));
    for token in [1, 2] {
        serve(&mut engine, &[token; 100], 10); // 4 pages each
    }
    assert_eq!((engine.pool().num_free(), engine.pool().num_cached()), (8, 8));
    assert_eq!(serve(&mut engine, &[1; 97], 1).usage.cached_tokens, 96);
    // Three pages, and the oldest three are now the end of the second.
    serve(&mut engine, &[3; 60], 10);
    assert_eq!(engine.pool().num_cached(), 8);
    assert_eq!(serve(&mut engine, &[2; 97], 1).usage.cached_tokens, 32);
    // Those of the first were used before the third's.
    assert_eq!(serve(&mut engine, &[1; 97], 1).usage.cached_tokens, 32);
}

#[test]
fn what_cannot_be_served_is_refused_with_its_numbers() {
    let mut engine = engine(Mock::new(Shape { num_pages: 3, max_model_len: 400, ..ROOMY }, hash_model));
    let mut refusal = |request| match engine.submit(request) {
        Err(Error::Request(text)) => text,
        other => panic!("{other:?}"),
    };
    let good = greedy(vec![1], 5);
    assert!(refusal(greedy(vec![], 5)).contains("empty"));
    assert!(refusal(greedy(vec![1, 1000], 5)).contains("token 1 of the prompt is 1000"));
    assert!(refusal(greedy(vec![1], 0)).contains("max_tokens"));
    assert!(refusal(Request { stop: vec![String::new()], ..good.clone() }).contains("stop string"));
    let sampling = SamplingParams { top_p: 2.0, ..Default::default() };
    assert!(refusal(Request { sampling, ..good }).contains("top_p"));
    let too_long = refusal(greedy(vec![1; 96], 1));
    for part in ["96 tokens", "the model allows 400", "3 pages of 32"] {
        assert!(too_long.contains(part), "{too_long}");
    }
    let too_much = refusal(greedy(vec![1; 50], 60));
    for part in ["110 tokens", "4 pages", "96 tokens", "at most 46"] {
        assert!(too_much.contains(part), "{too_much}");
    }
    assert!(!engine.has_work());
    engine.submit(greedy(vec![1; 50], 46)).unwrap();
    engine.submit(Request { max_tokens: None, ..greedy(vec![1; 95], 1) }).unwrap();
    run(&mut engine);
    assert_eq!(engine.pool().num_free(), 3);
}

#[test]
fn ids_need_no_vocabulary() {
    let mock = Mock::new(ROOMY, script(1, vec![3, TinyModel::IM_END, 4]));
    let mut engine = Engine::new(Box::new(mock), None, EngineConfig::default()).unwrap();
    assert!(engine.submit(greedy(vec![1], 5)).is_err(), "text needs a vocabulary");
    engine.submit(Request { text: false, ..greedy(vec![1], 4) }).unwrap();
    let answer = run(&mut engine).into_values().next().unwrap();
    assert_eq!(answer.tokens, [3, TinyModel::IM_END, 4, TinyModel::IM_END]);
}

#[test]
fn one_request_can_be_stopped_from_outside() {
    let mut engine = engine(Mock::new(ROOMY, hash_model));
    let request = || Request { ignore_eos: true, ..greedy(vec![1; 5], 300) };
    let other = engine.submit(greedy(vec![2; 5], 3)).unwrap();

    let flag = AtomicBool::new(false);
    let mut seen = 0;
    let completion = engine.run_to_end(request(), &flag, |event| {
        seen += 1;
        flag.store(matches!(event, Event::Token { .. }) && seen >= 7, Ordering::Relaxed);
        ControlFlow::Continue(())
    });
    let completion = completion.unwrap();
    assert_eq!((completion.reason, completion.tokens.len(), seen), (FinishReason::Cancelled, 7, 8));

    let mut seen = 0;
    let broken = engine.run_to_end(request(), &AtomicBool::new(false), |_| {
        seen += 1;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((broken.unwrap().reason, seen), (FinishReason::Cancelled, 3));
    let before = engine.run_to_end(request(), &AtomicBool::new(true), |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((before.reason, before.tokens.len()), (FinishReason::Cancelled, 0));

    // The events of the sequence that ran beside them are still there.
    assert_eq!(run(&mut engine)[&other].tokens, expected(&greedy(vec![2; 5], 3), 512).0);
    assert_eq!(engine.pool().num_free(), ROOMY.num_pages);
}

#[test]
fn a_failed_step_is_taken_again_or_ends_the_request() {
    let mock = Mock::new(ROOMY, hash_model);
    let failures = Rc::clone(&mock.failures);
    let mut engine = engine(mock);
    let request = greedy(vec![4; 100], 30);
    let id = engine.submit(request.clone()).unwrap();
    failures.set(1);
    assert!(matches!(engine.step(), Err(Error::Device(_))));
    assert_eq!(run(&mut engine)[&id].tokens, expected(&request, 512).0);

    failures.set(1);
    let error =
        engine.run_to_end(request, &AtomicBool::new(false), |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, Error::Device(_)));
    assert!(!engine.has_work());
    assert_eq!(engine.pool().num_free(), ROOMY.num_pages);
}

// With the real forward pass on the CPU.

fn cpu_engine(shape: Shape, prefix_cache: bool) -> Engine {
    let gguf = TinyModel { dtype: Dtype::Bf16, ..TinyModel::default() }.gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    let mock = Mock::new(shape, hash_model); // for its limits
    let ops_config = OpsConfig::new(&config, shape.max_model_len, mock.limits);
    let layout = KvLayout {
        num_layers: config.num_hidden_layers,
        num_key_value_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        ..mock.layout
    };
    let ops = CpuOps::new(&ops_config).unwrap();
    let runner = ModelRunner::new(ops, &weights, &config, &ops_config, layout, &mut |_, _| ()).unwrap();
    let config = EngineConfig { prefix_cache, ..EngineConfig::default() };
    Engine::new(Box::new(runner), Some(tokenizer()), config).unwrap()
}

#[test]
fn on_the_cpu_neither_a_batch_nor_the_prefix_cache_changes_a_token() {
    let shape = Shape { num_pages: 8, max_num_tokens: 256, max_num_sequences: 1, max_model_len: 256 };
    let requests: Vec<Request> = (0..12u32)
        .map(|i| {
            let sampling = SamplingParams {
                temperature: (i % 3) as f32 * 0.5,
                repeat_penalty: 1.0 + (i % 2) as f32 * 0.2,
                seed: i.into(),
                ..Default::default()
            };
            // Odd ones begin as the one before does.
            let prompt = (0..5 + 13 * i).map(|j| (j * j + 31 * (i / 2)) % 256).collect();
            Request { sampling, max_tokens: Some(24), ignore_eos: true, ..Request::new(prompt) }
        })
        .collect();
    let mut engine = cpu_engine(shape, false);
    let never = AtomicBool::new(false);
    let alone: Vec<_> = (requests.iter().cloned())
        .map(|request| engine.run_to_end(request, &never, |_| ControlFlow::Continue(())).unwrap())
        .collect();
    // Little memory and short chunks: prompts are cut, sequences give their pages up. Twice, so that the second time much of
    // it is in the cache.
    for prefix_cache in [false, true] {
        let shape = Shape { max_num_tokens: 19, max_num_sequences: 6, ..shape };
        let mut engine = cpu_engine(shape, prefix_cache);
        let mut cached_tokens = 0;
        for _ in 0..2 {
            let ids: Vec<_> =
                requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
            let answers = run(&mut engine);
            assert_eq!(engine.pool().num_free(), shape.num_pages);
            for (id, alone) in ids.iter().zip(&alone) {
                assert_eq!(answers[id].tokens, alone.tokens, "{id}");
                assert_eq!(answers[id].text, alone.text, "{id}");
                cached_tokens += answers[id].end.unwrap().1.cached_tokens;
            }
        }
        assert_eq!(cached_tokens > 0, prefix_cache, "{cached_tokens}");
    }
}

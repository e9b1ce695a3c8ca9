//! A runner without a model, and what its answers must be.

use qernel::batch::{Batch, BatchLimits, GIVEN};
use qernel::dtype::Dtype;
use qernel::engine::{Engine, EngineConfig, Event, FinishReason, Request, Usage};
use qernel::gguf::Gguf;
use qernel::kv_layout::{KvLayout, PAGE_SIZE, StateCopy};
use qernel::model::{Kept, KeptLayout, Runner, check::check_batch, draft::DraftFrom};
use qernel::sampler::{Logprobs, NO_TOKEN, SamplingParams, SamplingRow};
use qernel::scheduler::SequenceId;
use qernel::testing::TinyModel;
use qernel::tokenizer::Tokenizer;
use qernel::{Error, Result};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
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
pub struct Mock {
    pub limits: BatchLimits,
    pub layout: KvLayout,
    max_model_len: usize,
    next: Next,
    /// Every slot; `None` where nothing was written yet.
    slots: Vec<Option<Slot>>,
    /// Steps that fail before the next one that does not.
    pub failures: Rc<Cell<usize>>,
    /// Rows of each step, sequence by sequence.
    pub steps: Rc<RefCell<Vec<Vec<usize>>>>,
    /// Takes a step before the tokens of the one before are taken, as a GPU does.
    ahead: bool,
    /// Tokens of the steps that were not taken.
    queued: VecDeque<Result<Vec<u32>>>,
    /// Of the step queued last.
    sampled: Vec<u32>,
    /// Every other failure shows only when the tokens are taken.
    fails_late: bool,
    /// Steps that were queued while another one was.
    pub num_ahead: Rc<Cell<usize>>,
    /// For each slot of a recurrent layer how many tokens it has taken in, and their hash; empty where there is no such layer.
    states: Vec<(usize, u64)>,
    /// Copies of them, and where they are kept before drafts.
    checkpoints: Vec<(usize, u64)>,
    num_checkpoints: usize,
    /// Drafts at a time.
    max_drafts: usize,
    /// It may write what others read, again.
    follows: bool,
    /// The tokens behind which the last draft drew one each.
    drafted: Vec<Vec<u32>>,
    /// Of the steps that were not taken, and of the one that was taken last.
    logprobs: VecDeque<Vec<Option<Logprobs>>>,
}

/// How likely the "model" thinks a token behind others: any number that depends on all of them.
pub fn logprobs_of(visible: &[u32], token: u32, count: usize) -> Logprobs {
    let hash = visible.iter().copied().chain([token]).fold(START, hash);
    let top = (0..count as u32).map(|id| (id, -(id as f32))).collect();
    Logprobs { sampled: -((hash >> 40) as f32), rank: 1 + (hash % 7) as usize, top }
}

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub num_pages: usize,
    pub max_num_tokens: usize,
    pub max_num_sequences: usize,
    pub max_model_len: usize,
}

pub const ROOMY: Shape =
    Shape { num_pages: 64, max_num_tokens: 64, max_num_sequences: 8, max_model_len: 512 };

/// Bytes of a state.
pub const STATE_BYTES: usize = 16;

/// The hash of no token.
const START: u64 = 0xcbf2_9ce4_8422_2325;

/// The hash of what `history` is the hash of, and then `word` (FNV-1a).
fn hash(history: u64, word: u32) -> u64 {
    let bytes = word.to_le_bytes();
    bytes.into_iter().fold(history, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What is known of a prompt.
pub fn prompt_logprobs(prompt: &[u32], count: usize) -> Vec<Logprobs> {
    (1..prompt.len()).map(|i| logprobs_of(&prompt[..i], prompt[i], count)).collect()
}

impl Mock {
    pub fn new(shape: Shape, next: impl Fn(&[u32], &SamplingRow) -> u32 + 'static) -> Self {
        let layout = KvLayout {
            formats: Dtype::F32.into(),
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
            sampled: Vec::new(),
            fails_late: false,
            num_ahead: Rc::default(),
            states: Vec::new(),
            checkpoints: Vec::new(),
            num_checkpoints: 0,
            max_drafts: 0,
            follows: false,
            drafted: Vec::new(),
            logprobs: VecDeque::new(),
        }
    }

    /// The same with a recurrent layer, whose states move on with every row and cannot be cut back; so many copies of them are kept.
    pub fn recurrent(self, checkpoints: usize) -> Self {
        let unknown = (usize::MAX, 0);
        let slots = self.limits.max_num_sequences;
        Self {
            states: vec![unknown; slots],
            checkpoints: vec![unknown; checkpoints + slots],
            num_checkpoints: checkpoints,
            ..self
        }
    }

    /// The same that drafts so many tokens at a time, two of three as they will be drawn.
    pub fn drafting(mut self, max_drafts: usize) -> Self {
        self.limits.max_num_logits = self.limits.max_num_sequences * (1 + max_drafts);
        Self { max_drafts, ..self }
    }

    /// The same as a model that drafts and follows another one's sequences, two of three times right about what it draws.
    pub fn following(shape: Shape) -> Self {
        let draws = |visible: &[u32], row: &SamplingRow| {
            let wrong = visible.iter().copied().fold(START, hash).is_multiple_of(3);
            (hash_model(visible, row) + u32::from(wrong)) % TinyModel::VOCAB_SIZE as u32
        };
        Self { follows: true, ..Self::new(shape, draws) }
    }

    /// The same with steps that are taken ahead, or not.
    pub fn ahead(self, ahead: bool) -> Self {
        Self { ahead, ..self }
    }
}

impl Runner for Mock {
    fn limits(&self) -> &BatchLimits {
        &self.limits
    }

    fn kv_layout(&self) -> &KvLayout {
        &self.layout
    }

    fn has_slots(&self) -> bool {
        !self.states.is_empty()
    }

    fn num_checkpoints(&self) -> usize {
        self.num_checkpoints
    }

    fn max_drafts(&self) -> usize {
        self.max_drafts
    }

    fn draft(&mut self, batch: &Batch, rows: &[SamplingRow], from: DraftFrom) -> Result<Vec<u32>> {
        check_batch(batch, &self.limits, &self.layout, self.vocab_size(), self.max_model_len, 0)?;
        assert_eq!((rows.len(), self.queued.len()), (batch.num_logits(), 0));
        if self.failures.get() > 0 && batch.num_tokens().is_multiple_of(2) {
            self.failures.set(self.failures.get() - 1);
            return Err(Error::Device("the cable was pulled between steps".into()));
        }
        if from == DraftFrom::Draft {
            assert_eq!((batch.num_tokens(), batch.num_logits()), (self.drafted.len(), self.drafted.len()));
        }
        let visible = |(i, &row): (usize, &u32)| {
            let (s, position) =
                (batch.sequence_of_token[row as usize], batch.positions[row as usize] as usize);
            let page =
                |position: usize| batch.block_table[s as usize * batch.max_blocks + position / PAGE_SIZE];
            let slot = |position: usize| page(position) as usize * PAGE_SIZE + position % PAGE_SIZE;
            let mut visible: Vec<u32> = match from {
                DraftFrom::Step => {
                    (0..=position).map(|at| self.slots[slot(at)].expect("written").token).collect()
                }
                DraftFrom::Draft => self.drafted[i].clone(),
            };
            visible.push(batch.tokens[row as usize]);
            assert_eq!((rows[i].position as usize, position), (visible.len(), visible.len() - 2));
            visible
        };
        self.drafted = batch.logit_rows.iter().enumerate().map(visible).collect();
        let draw = |(visible, row): (&Vec<u32>, &SamplingRow)| {
            let wrong = visible.iter().copied().fold(START, hash).is_multiple_of(3);
            ((self.next)(visible, row) + u32::from(wrong)) % TinyModel::VOCAB_SIZE as u32
        };
        Ok(self.drafted.iter().zip(rows).map(draw).collect())
    }

    fn save_state(&mut self, StateCopy { slot, place }: StateCopy) -> Result<()> {
        self.checkpoints[place as usize] = self.states[slot as usize];
        Ok(())
    }

    fn load_state(&mut self, StateCopy { slot, place }: StateCopy) -> Result<()> {
        self.states[slot as usize] = self.checkpoints[place as usize];
        Ok(())
    }

    fn kept_layout(&self) -> Option<KeptLayout> {
        let page_bytes = self.layout.page_bytes();
        Some(KeptLayout { meaning: "mock".into(), page_bytes, state_bytes: STATE_BYTES })
    }

    fn read_kept(&mut self, kept: Kept) -> Result<Vec<u8>> {
        let Kept::State(place) = kept else { panic!("no {kept:?} is read") };
        let (len, hash) = self.checkpoints[place as usize];
        Ok([(len as u64).to_le_bytes(), hash.to_le_bytes()].concat())
    }

    fn write_kept(&mut self, kept: Kept, bytes: &[u8]) -> Result<()> {
        let Kept::Slot(slot) = kept else { panic!("no {kept:?} is written") };
        let [len, hash] = [0, 8].map(|at| u64::from_le_bytes(bytes[at..][..8].try_into().unwrap()));
        self.states[slot as usize] = (len as usize, hash);
        Ok(())
    }

    fn vocab_size(&self) -> usize {
        TinyModel::VOCAB_SIZE
    }

    fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    fn step(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<Vec<u32>> {
        check_batch(batch, &self.limits, &self.layout, self.vocab_size(), self.max_model_len, 0)?;
        assert_eq!((rows.len(), batch.num_sampled_rows()), (batch.num_logits(), 0));
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
            let is_own = self.follows || readers[&((slot / PAGE_SIZE) as u32)] == 1;
            assert!(is_own, "written while shared: {batch:?}");
            assert_eq!(slot, slot_of(s, position));
            let before =
                position.checked_sub(1).map(|before| self.slots[slot_of(s, before)].expect("written"));
            let token = batch.tokens[row];
            let earlier = before.map_or(START, |before| before.history);
            let history = hash(earlier, token);
            if let Some(state) = self.states.get_mut(batch.state_slots[s] as usize) {
                if position == 0 {
                    *state = (0, START);
                }
                assert_eq!(
                    *state,
                    (position, earlier),
                    "the state is of another sequence or place: {batch:?}"
                );
                *state = (position + 1, history);
            }
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
            let token = (self.next)(&visible, sampling);
            let logprobs =
                sampling.logprobs.map(|count| logprobs_of(&visible, sampling.scored.unwrap_or(token), count));
            (token, logprobs)
        };
        let (tokens, logprobs) = batch.logit_rows.iter().zip(rows).map(draw).unzip();
        self.logprobs.push_back(logprobs);
        Ok(tokens)
    }

    fn take_logprobs(&mut self) -> Vec<Option<Logprobs>> {
        self.logprobs.pop_front().unwrap_or_default()
    }

    fn runs_ahead(&self) -> bool {
        self.ahead
    }

    fn queue(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<()> {
        assert!(self.ahead && self.queued.len() < 2, "{} steps are queued", self.queued.len());
        let sampled = std::mem::take(&mut self.sampled);
        let mut batch = batch.clone();
        for (token, row) in batch.tokens.iter_mut().zip(&mut batch.sampled_rows) {
            if *row != GIVEN {
                // As embeddings do, whose rows then mean nothing.
                *token = Some(sampled[*row as usize]).filter(|&token| token != NO_TOKEN).unwrap_or(0);
                *row = GIVEN;
            }
        }
        self.fails_late ^= self.failures.get() > 0;
        if self.fails_late && self.failures.get() > 0 {
            let failures = self.failures.replace(0);
            self.sampled = self.step(&batch, rows)?;
            self.failures.set(failures - 1);
            self.queued.push_back(Err(Error::Device("the cable was pulled later".into())));
        } else {
            self.sampled = self.step(&batch, rows)?;
            self.queued.push_back(Ok(self.sampled.clone()));
        }
        self.num_ahead.set(self.num_ahead.get() + self.queued.len() - 1);
        Ok(())
    }

    fn take(&mut self) -> Result<Vec<u32>> {
        self.queued.pop_front().expect("a step is queued")
    }

    fn discard(&mut self) {
        self.queued.clear();
        self.logprobs.clear();
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

pub fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        let gguf = Gguf::from_bytes(TinyModel::default().vocabulary_only().to_bytes().into()).unwrap();
        Arc::new(Tokenizer::from_gguf(&gguf).unwrap())
    });
    Arc::clone(&TOKENIZER)
}

pub fn engine(mock: Mock) -> Engine {
    engine_with(mock, true)
}

pub fn engine_with(mock: Mock, prefix_cache: bool) -> Engine {
    engine_of(mock, EngineConfig { prefix_cache, ..EngineConfig::default() })
}

pub fn engine_of(mock: Mock, config: EngineConfig) -> Engine {
    Engine::new(Box::new(mock), Some(tokenizer()), config).unwrap()
}

/// FNV-1a over everything that may influence a token, folded into a few letters, both halves of `é`, pieces of several
/// letters and, now and then, the end.
pub fn hash_model(visible: &[u32], row: &SamplingRow) -> u32 {
    let seed = [row.params.seed as u32, row.position, row.index];
    let counts = row.counts.iter().flat_map(|&(token, count)| [token, count]);
    let words = visible.iter().copied().chain(seed).chain(counts);
    let hash = (words.fold(START, hash) >> 32) as u32;
    let may_draw = |token: u32| row.allowed.as_ref().is_none_or(|allowed| allowed.contains(token));
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
    let first = hash as usize / 41 % choices.len();
    let turned = choices.iter().cycle().skip(first).take(choices.len());
    turned.copied().find(|&token| may_draw(token)).unwrap_or(TinyModel::IM_END)
}

/// The events of one sequence, added up.
#[derive(Debug, Default)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub text: String,
    /// Of the prompt.
    pub prompt_logprobs: Option<Vec<Logprobs>>,
    pub end: Option<(FinishReason, Usage)>,
}

pub fn collect(events: Vec<Event>, answers: &mut HashMap<SequenceId, Answer>) {
    for event in events {
        let answer = answers.entry(event.id()).or_default();
        assert!(answer.end.is_none(), "an event after the end: {event:?}");
        answer.text += event.text();
        match event {
            Event::Prompt { logprobs, .. } => {
                assert!(answer.tokens.is_empty(), "the prompt comes before the first token");
                assert!(answer.prompt_logprobs.replace(logprobs).is_none(), "the prompt comes once");
            }
            Event::Token { token, .. } => answer.tokens.push(token),
            Event::Finished { reason, usage, timings, .. } => {
                assert_eq!(usage.completion_tokens, answer.tokens.len());
                assert!(timings.decode_tokens <= usage.completion_tokens);
                assert_eq!(timings.prefill_seconds > 0.0, timings.prefill_tokens > 0, "{timings:?}");
                // Steps that take in again what drafts cost a sequence its state for may make no token.
                assert!(timings.decode_seconds > 0.0 || timings.decode_tokens == 0, "{timings:?}");
                assert!(timings.accepted_draft_tokens <= timings.draft_tokens, "{timings:?}");
                answer.end = Some((reason, usage));
            }
        }
    }
}

pub fn run(engine: &mut Engine) -> HashMap<SequenceId, Answer> {
    let mut answers = HashMap::new();
    while engine.has_work() {
        collect(engine.step().unwrap(), &mut answers);
    }
    answers
}

/// Bytes as tokens of the vocabulary.
pub fn ids(text: &str) -> Vec<u32> {
    tokenizer().encode(text, false).unwrap()
}

pub fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Request {
    let sampling = SamplingParams { temperature: 0.0, ..Default::default() };
    Request { sampling, max_tokens: Some(max_tokens), ..Request::new(prompt) }
}

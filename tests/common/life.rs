//! What an engine goes through while it serves, for a device and for ways to queue its steps: the same answers are expected
//! of all of them.

use qernel::batch::BatchLimits;
use qernel::config::Config;
use qernel::engine::{
    DraftSource, Engine, EngineConfig, Event, FinishReason, NgramKind, NgramOptions, Request, Timings,
};
use qernel::kv_format::KvFormats;
use qernel::kv_layout::pages_for;
use qernel::load::kv_layout;
use qernel::model::{ModelRunner, Runner};
use qernel::ops::Ops;
use qernel::ops::OpsConfig;
use qernel::sampler::{Dry, Logprobs, SamplerChain, SamplingParams};
use qernel::scheduler::SequenceId;
use qernel::testing::{Random, TinyModel};
use qernel::weights::Weights;
use std::collections::BTreeMap;
use std::sync::Arc;

const MAX_MODEL_LEN: usize = 128;
/// Tokens that a model with a block for it drafts at a time.
const DRAFTS: usize = 3;

/// What one step may hold, and the pages of all sequences.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    pub num_pages: usize,
    pub max_num_tokens: usize,
    pub max_num_sequences: usize,
}

/// Too little for the [`crowd`] to run all at once.
pub const CROWDED: Capacity = Capacity { num_pages: 6, max_num_tokens: 64, max_num_sequences: 4 };

/// Enough for anything here.
pub const ROOMY: Capacity = Capacity { num_pages: 64, max_num_tokens: 256, max_num_sequences: 16 };

/// An engine over `model` on the device of `ops`, with pages in `dtype`.
pub fn engine<O: Ops + 'static>(
    model: &TinyModel,
    formats: impl Into<KvFormats>,
    capacity: Capacity,
    ops: impl Fn(&OpsConfig) -> O,
) -> Engine {
    let drafts = if model.draft.is_some() { DRAFTS } else { 0 };
    Engine::new(runner(model, formats, capacity, &ops, drafts, 3), None, EngineConfig::default()).unwrap()
}

/// As [`engine`], whose tokens are drafted by another model on the same device, or where there is none by n-grams.
#[allow(dead_code, reason = "not all lives are drafted")]
pub fn engine_that_drafts<O: Ops + 'static>(
    model: &TinyModel,
    draft: Option<&TinyModel>,
    formats: impl Into<KvFormats>,
    capacity: Capacity,
    ops: impl Fn(&OpsConfig) -> O,
) -> Engine {
    let formats = formats.into();
    let of_model = runner(model, formats, capacity, &ops, DRAFTS, 3);
    let source = match draft {
        Some(draft) => DraftSource::Model(runner(draft, formats, capacity, &ops, DRAFTS, 0)),
        None => DraftSource::Ngram(NgramOptions { size_n: 1, ..NgramOptions::new(NgramKind::Simple) }),
    };
    Engine::new(of_model, None, EngineConfig::default()).unwrap().with_drafts(source).unwrap()
}

fn runner<O: Ops + 'static>(
    model: &TinyModel,
    formats: impl Into<KvFormats>,
    capacity: Capacity,
    ops: &impl Fn(&OpsConfig) -> O,
    drafts: usize,
    checkpoints: usize,
) -> Box<dyn Runner> {
    let gguf = model.gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let config = if model.draft.is_some() { config.with_draft(&gguf).unwrap() } else { config };
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    let limits = BatchLimits {
        max_num_tokens: capacity.max_num_tokens,
        max_num_sequences: capacity.max_num_sequences,
        max_num_logits: capacity.max_num_sequences * (1 + drafts),
        max_blocks: pages_for(MAX_MODEL_LEN),
    };
    let ops_config = OpsConfig::new(&config, MAX_MODEL_LEN, limits);
    let layout = kv_layout(&config, formats, capacity.num_pages).unwrap();
    Box::new(
        ModelRunner::new(ops(&ops_config), &weights, &config, &ops_config, layout, &mut |_, _| ())
            .and_then(|runner| runner.with_drafts(drafts).with_checkpoints(checkpoints))
            .unwrap(),
    )
}

/// What a sequence got.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    /// Of each token, where they were asked for.
    pub logprobs: Vec<Option<Logprobs>>,
    pub reason: Option<FinishReason>,
}

/// All answers by the order in which they were asked for, and what it took.
#[derive(Debug, Default)]
pub struct Life {
    pub answers: BTreeMap<SequenceId, Answer>,
    pub timings: BTreeMap<SequenceId, Timings>,
    /// Steps that returned something.
    pub steps: u64,
}

impl Life {
    fn step(&mut self, engine: &mut Engine) {
        self.steps += 1;
        for event in engine.step().unwrap() {
            let answer = self.answers.entry(event.id()).or_default();
            match event {
                Event::Prompt { .. } => {}
                Event::Token { token, logprobs, .. } => {
                    answer.tokens.push(token);
                    answer.logprobs.push(logprobs);
                }
                Event::Finished { id, reason, timings, .. } => {
                    answer.reason = Some(reason);
                    self.timings.insert(id, timings);
                }
            }
        }
    }

    /// Tokens that a sequence has got so far.
    fn len(&self, id: SequenceId) -> usize {
        self.answers.get(&id).map_or(0, |answer| answer.tokens.len())
    }
}

/// A prompt of random tokens, to be continued by `max_tokens` others.
fn request(seed: u64, prompt_tokens: usize, temperature: f32, max_tokens: usize) -> Request {
    let mut random = Random::new(seed, "prompt");
    let prompt = (0..prompt_tokens).map(|_| (random.next_u64() % TinyModel::VOCAB_SIZE as u64) as u32);
    let sampling = SamplingParams { temperature, seed, ..SamplingParams::default() };
    Request {
        sampling,
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        text: false,
        ..Request::new(prompt.collect())
    }
}

/// How often a [`choir`] sings.
pub const ROUNDS: usize = 5;
/// What each of its sequences gets.
pub const VERSE: usize = 24;

/// Sequences that begin and end together, greedy ones and random ones, and that [`ROUNDS`] times: all steps of prompts have one
/// shape and so have all steps of decoding, and which sequences a step has does not depend on how it is queued.
pub fn choir(engine: &mut Engine, sequences: usize) -> Life {
    let mut life = Life::default();
    for round in 0..ROUNDS {
        for i in 0..sequences {
            // In each round other tokens, of which nothing is cached, and sequences of the same lengths.
            let temperature = [0.0, 0.9, 1.5][i % 3];
            let request = request((100 * round + i) as u64, 3 + 7 * i % 19, temperature, VERSE);
            engine.submit(request).unwrap();
        }
        while engine.has_work() {
            life.step(engine);
        }
    }
    assert_eq!(engine.pool().num_used(), 0);
    assert_eq!(life.answers.len(), ROUNDS * sequences);
    for answer in life.answers.values() {
        assert_eq!((answer.tokens.len(), answer.reason), (VERSE, Some(FinishReason::Length)));
    }
    life
}

/// The requests of the [`crowd`]: greedy, random, one to be cancelled, one that joins and has to give its pages up, one with
/// log-probabilities, and one with penalties for which the host draws.
pub fn crowd_requests() -> [Request; 6] {
    let mut requests = [
        request(1, 20, 0.0, 40),
        request(2, 30, 0.9, 40),
        request(3, 5, 1.5, 60),
        request(4, 40, 0.7, 40),
        request(5, 10, 0.0, 12),
        request(6, 33, 0.8, 12),
    ];
    requests[4].logprobs = Some(3);
    requests[5].sampling.repeat_penalty = 1.3;
    requests[5].sampling.chain = Some(Arc::new(SamplerChain {
        typical_p: 0.9,
        dry: Dry { multiplier: 0.8, ..Dry::default() },
        ..SamplerChain::default()
    }));
    requests
}

/// After how many of its tokens the third sequence is cancelled.
pub const CANCELLED_AFTER: usize = 6;

/// Sequences that come one after the other while others are generating, one that is cancelled, and, in a [`CROWDED`] room, one
/// that gives its pages up to older ones and is computed anew.
pub fn crowd(engine: &mut Engine) -> Life {
    let mut life = Life::default();
    let mut waiting = crowd_requests().into_iter();
    let mut submit = |engine: &mut Engine, count: usize| -> Vec<SequenceId> {
        waiting.by_ref().take(count).map(|request| engine.submit(request).unwrap()).collect()
    };
    let ids = submit(engine, 3);
    let (first, cancelled) = (ids[0], ids[2]);
    let mut joining = [(8, 1), (14, 2)].into_iter().peekable();
    while engine.has_work() {
        life.step(engine);
        if let Some((_, count)) = joining.next_if(|&(tokens, _)| life.len(first) >= tokens) {
            submit(engine, count);
        }
        if life.len(cancelled) == CANCELLED_AFTER && life.answers[&cancelled].reason.is_none() {
            assert!(engine.cancel(cancelled));
        }
    }
    assert_eq!(engine.pool().num_used(), 0);
    life
}

/// Fails if a [`CROWDED`] [`crowd`] did not go through what it is for.
pub fn assert_crowded(life: &Life) {
    let lengths: Vec<usize> = life.answers.values().map(|answer| answer.tokens.len()).collect();
    assert_eq!(lengths, [40, 40, CANCELLED_AFTER, 40, 12, 12]);
    for (i, answer) in life.answers.values().enumerate() {
        let reason = if i == 2 { FinishReason::Cancelled } else { FinishReason::Length };
        assert_eq!(answer.reason, Some(reason), "sequence {i}");
        let has_logprobs =
            answer.logprobs.iter().all(|of_token| of_token.as_ref().is_some_and(|l| l.top.len() == 3));
        assert_eq!(has_logprobs, i == 4, "sequence {i}");
    }
    let computed: Vec<usize> = life.timings.values().map(|timings| timings.prefill_tokens).collect();
    assert_eq!((computed[0], computed[1]), (20, 30), "the oldest are never interrupted");
    assert!(computed[3] > 40, "the fourth gave its pages up: {computed:?}");
}

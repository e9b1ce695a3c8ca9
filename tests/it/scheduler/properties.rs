//! Whatever arrives in whatever order.

use super::alone::expected;
use super::mock::*;
use proptest::prelude::*;
use qernel::Error;
use qernel::engine::{
    DraftSource, Engine, EngineConfig, FinishReason, NgramKind, NgramOptions, Request, Speculative,
};
use qernel::kv_layout::PAGE_SIZE;
use qernel::sampler::SamplingParams;
use qernel::scheduler::SequenceId;
use qernel::testing::TinyModel;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

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
    let drafts = (prop_oneof![2 => Just(None), 1 => (0..4usize).prop_map(Some)], 0..3usize);
    let scored = prop::bool::weighted(0.3);
    let banned = prop_oneof![
        2 => Just(Vec::new()),
        1 => prop::collection::vec(prop::sample::select(vec!["b", "aA", "ac", "abc", "é", "c The", "éé", "ba"]), 1..4),
    ];
    let stop =
        prop::collection::vec(prop::sample::select(vec!["ab", "aba", "c the", "bé", "th", "zz"]), 0..2);
    (prompt, sampling, max_tokens, stop, any::<(bool, bool, bool)>(), 0..3u32, (drafts, scored, banned))
        .prop_map(|(prompt, sampling, max_tokens, stop, (ignore_eos, text, penalize_prompt), index, more)| {
            let ((n_max, n_min), prompt_logprobs, banned) = more;
            Request {
                prompt,
                sampling,
                max_tokens,
                stop: stop.into_iter().map(str::to_owned).collect(),
                banned_strings: banned.into_iter().map(str::to_owned).collect(),
                thoughts: None,
                ignore_eos,
                index,
                penalize_prompt,
                logprobs: None,
                prompt_logprobs: prompt_logprobs.then_some(2),
                speculative: Speculative { n_max, n_min: Some(n_min), p_min: None },
                adapters: None,
                text,
            }
        })
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

#[derive(Clone, Copy, Debug)]
enum Source {
    Mtp,
    Ngram(NgramKind),
    Model { recurrent: bool },
}

impl Source {
    /// A model fails as the other one does.
    fn drafts(self, shape: Shape, failures: &Rc<Cell<usize>>) -> DraftSource {
        match self {
            Self::Mtp => DraftSource::Mtp,
            Self::Ngram(kind) => DraftSource::Ngram(NgramOptions { size_n: 1, ..NgramOptions::new(kind) }),
            Self::Model { recurrent } => {
                let mut mock = Mock::following(shape);
                mock.failures = Rc::clone(failures);
                DraftSource::Model(Box::new(if recurrent { mock.recurrent(0) } else { mock }))
            }
        }
    }
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![
        Just(Source::Mtp),
        Just(Source::Ngram(NgramKind::Simple)),
        Just(Source::Ngram(NgramKind::Mod)),
        Just(Source::Model { recurrent: false }),
        Just(Source::Model { recurrent: false }),
        Just(Source::Model { recurrent: true }),
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
///
/// Where the model is recurrent, with some number of copies of states, those are of all tokens before; without copies no beginning is
/// shared. Where tokens are drafted, by the model, by n-grams or by another model, whether right or wrong, answers are the same; and who
/// drafts has of every sequence what it was told, wherever its pages come from.
fn any_schedule_gives_the_same(
    shape: Shape,
    ahead: bool,
    prefix_cache: bool,
    recurrent: Option<usize>,
    (drafts, source): (usize, Source),
    actions: Vec<Action>,
) {
    let mut mock = Mock::new(shape, hash_model).ahead(ahead);
    if let Some(checkpoints) = recurrent {
        mock = mock.recurrent(checkpoints);
    }
    if drafts > 0 {
        mock = mock.drafting(drafts);
    }
    let failures = Rc::clone(&mock.failures);
    let checkpoint_every = shape.max_num_sequences % 3 * PAGE_SIZE;
    let engine = engine_of(mock, EngineConfig { prefix_cache, checkpoint_every, ..EngineConfig::default() });
    let engine = engine.with_drafts(source.drafts(shape, &failures)).unwrap();
    // Room for some copies in host memory, or for none.
    let host = if recurrent == Some(0) { 0 } else { shape.num_pages % 3 * STATE_BYTES };
    let mut engine = engine.with_host_checkpoints(host).unwrap();
    // It is off by itself.
    let prefix_cache = prefix_cache && recurrent != Some(0);
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
        let has_banned = |banned: &String| {
            let text = answer.text.to_ascii_lowercase();
            text.contains(&banned.to_ascii_lowercase())
        };
        assert!(!request.banned_strings.iter().any(has_banned), "{id}: {:?}", answer.text);
        if cancelled.contains(id) && found == FinishReason::Cancelled {
            // What is held may have been taken back later.
            if !request.banned_strings.is_empty() {
                continue;
            }
            assert!(tokens.starts_with(&answer.tokens), "{id}: {:?} instead of {tokens:?}", answer.tokens);
            // Nothing is withheld any more: what might have become a stop string did not.
            let text =
                if request.text { tokenizer().decode(&answer.tokens, true).unwrap() } else { String::new() };
            assert_eq!(answer.text, text, "{id}");
        } else {
            assert_eq!((&answer.tokens, &answer.text, found), (&tokens, &text, reason), "{id}");
            let scored = request.prompt_logprobs.map(|count| prompt_logprobs(&request.prompt, count));
            assert_eq!(answer.prompt_logprobs, scored, "{id}");
        }
        assert!(request.prompt_logprobs.is_none() || usage.cached_tokens == 0, "{id}: {usage:?}");
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
        recurrent in prop_oneof![2 => Just(None), 2 => (0..6usize).prop_map(Some)],
        drafts in (prop_oneof![1 => Just(0), 1 => 1..6usize], source()),
        actions in prop::collection::vec(action(), 1..25),
    ) {
        any_schedule_gives_the_same(shape, ahead, prefix_cache, recurrent, drafts, actions);
    }
}

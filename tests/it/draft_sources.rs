//! Drafts by n-grams and by another model: answers are those without, token by token, whatever drafts; sampling keeps its distribution; a
//! model that agrees is believed; what it has taken in goes with pages; vocabularies that differ are refused.

use crate::drafts::{self, answers, runner_of, sum};
use qernel::batch::{Batch, LogitRows, SequenceRows};
use qernel::config::{Config, DraftTensors};
use qernel::engine::{DraftSource, Engine, EngineConfig, NgramKind, NgramOptions, Request, Speculative};
use qernel::load::{DeviceChoice, DraftChoice, LoadedModel, RunnerOptions};
use qernel::model::Runner;
use qernel::sampler::SamplingParams;
use qernel::testing::{Random, TinyModel};
use std::collections::BTreeMap;

fn model(architecture: &'static str) -> TinyModel {
    TinyModel { draft: None, ..drafts::model(architecture, DraftTensors::default()) }
}

/// How many drafts, sequences and pages there is room for.
#[derive(Clone, Copy)]
struct Room {
    drafts: usize,
    sequences: usize,
    pages: usize,
}

fn runner(model: &TinyModel, room: Room, checkpoints: usize) -> Box<dyn Runner> {
    let gguf = model.gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let Room { drafts, sequences, pages } = room;
    runner_of(&gguf, &config, [drafts, sequences, pages, checkpoints])
}

/// What drafts in a test.
enum Source {
    Nothing,
    Ngram(NgramKind, usize),
    Model(TinyModel),
}

fn engine(model: &TinyModel, source: &Source, room: Room) -> Engine {
    let room = if let Source::Nothing = source { Room { drafts: 0, ..room } } else { room };
    let engine = Engine::new(runner(model, room, 4), None, EngineConfig::default()).unwrap();
    let drafts = match source {
        Source::Nothing => return engine,
        Source::Ngram(kind, size_n) => {
            DraftSource::Ngram(NgramOptions { size_n: *size_n, ..NgramOptions::new(*kind) })
        }
        Source::Model(draft) => DraftSource::Model(runner(draft, room, 0)),
    };
    engine.with_drafts(drafts).unwrap()
}

/// Prompts of random tokens, each with a part that it says twice; every third is drawn with a temperature, every seventh with a penalty,
/// which drafts nothing; some begin as others do, or are two answers to one prompt.
fn requests(count: usize) -> Vec<Request> {
    let mut random = Random::new(11, "prompts");
    let mut token = || (random.next_u64() % TinyModel::VOCAB_SIZE as u64) as u32;
    let beginning: Vec<u32> = (0..70).map(|_| token()).collect();
    let request = |i: usize| {
        let mut prompt = beginning[..if i.is_multiple_of(5) { 70 } else { 0 }].to_vec();
        let own: Vec<u32> = (0..1 + 7 * i % 31).map(|_| token()).collect();
        prompt.extend([&own[..], &own].concat());
        let sampling = SamplingParams {
            temperature: if i.is_multiple_of(3) { 0.8 } else { 0.0 },
            repeat_penalty: if i.is_multiple_of(7) { 1.3 } else { 1.0 },
            seed: i as u64,
            ..SamplingParams::default()
        };
        Request { sampling, max_tokens: Some(1 + 5 * i % 47), text: false, ..Request::new(prompt) }
    };
    let first: Vec<Request> = (0..count).map(request).collect();
    let second = first.iter().step_by(6).map(|request| Request { index: 1, ..request.clone() });
    first.iter().cloned().chain(second).collect()
}

/// Of one sequence at a time, of several, and of more than there are pages for.
const ROOMS: [Room; 3] = [
    Room { drafts: 3, sequences: 1, pages: 24 },
    Room { drafts: 7, sequences: 5, pages: 40 },
    Room { drafts: 2, sequences: 6, pages: 9 },
];

/// Whether answers are those without drafts, of which there are at least so many where there is room; how many there were, and stayed.
fn same_answers(model: &TinyModel, source: &Source, requests: &[Request], least: usize) -> [usize; 2] {
    let (expected, _) = answers(&mut engine(model, &Source::Nothing, ROOMS[0]), requests);
    let mut counts = [0; 2];
    for room in ROOMS {
        let (found, timings) = answers(&mut engine(model, source, room), requests);
        assert!(found == expected, "{} with {} drafts", model.architecture, room.drafts);
        let [drafted, stayed] = [
            sum(&timings, |timings| timings.draft_tokens),
            sum(&timings, |timings| timings.accepted_draft_tokens),
        ];
        let least = if room.pages > 9 { least } else { 1 };
        assert!(drafted >= least, "{} with {} drafts: {drafted}", model.architecture, room.drafts);
        let penalised = requests.iter().zip(&timings).filter(|(request, _)| request.sampling.has_penalties());
        assert!(penalised.map(|(_, timings)| timings.draft_tokens).all(|count| count == 0));
        counts = [counts[0] + drafted, counts[1] + stayed];
    }
    counts
}

#[test]
fn ngrams_change_no_token() {
    for architecture in ["qwen2", "qwen35"] {
        let (model, requests) = (model(architecture), requests(24));
        for (kind, least) in
            [(NgramKind::Simple, 20), (NgramKind::MapK { min_hits: 2 }, 1), (NgramKind::Mod, 20)]
        {
            same_answers(&model, &Source::Ngram(kind, 1), &requests, least);
        }
    }
}

#[test]
fn a_text_that_repeats_itself_is_drafted() {
    // No layer adds anything: a token alone says what follows it, and the text is soon a circle.
    let model = TinyModel { silent_from: Some(0), tie_word_embeddings: false, ..model("qwen2") };
    let request = Request { max_tokens: Some(150), text: false, ..Request::new(vec![5]) };
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let requests = [Request { sampling, ..request }];
    let room = Room { drafts: 16, sequences: 1, pages: 24 };
    let (expected, _) = answers(&mut engine(&model, &Source::Nothing, room), &requests);
    let source = Source::Ngram(NgramKind::Simple, 4);
    let (found, timings) = answers(&mut engine(&model, &source, room), &requests);
    assert!(found == expected);
    let per_step = timings[0].decode_tokens_per_step().unwrap();
    assert!(timings[0].acceptance().unwrap() > 0.9 && per_step > 1.5, "{:?}", timings[0]);
}

#[test]
fn a_model_that_drafts_changes_no_token() {
    let other = |architecture, seed| TinyModel { seed, num_hidden_layers: 2, ..model(architecture) };
    // Of other weights, and so nearly always wrong; states beside pages, of one and of the other.
    for (of, drafts) in [("qwen2", "qwen2"), ("qwen35", "qwen2"), ("qwen3", "qwen35"), ("qwen35", "qwen35")] {
        same_answers(&model(of), &Source::Model(other(drafts, 1)), &requests(20), 200);
    }
}

#[test]
fn a_model_that_agrees_is_believed() {
    for architecture in ["qwen2", "qwen35"] {
        let model = TinyModel { silent_from: Some(2), ..model(architecture) };
        let draft = TinyModel { num_hidden_layers: 2, silent_from: None, ..model.clone() };
        let [drafted, stayed] = same_answers(&model, &Source::Model(draft), &requests(30), 200);
        // Those that are drawn with a temperature are drafted with the same numbers: they agree too.
        assert!(100 * stayed >= 99 * drafted, "{architecture}: {stayed} of {drafted}");
    }
}

#[test]
fn improbable_drafts_and_short_ones_are_let_go() {
    let model = TinyModel { silent_from: Some(2), ..model("qwen2") };
    let draft = || Source::Model(TinyModel { num_hidden_layers: 2, silent_from: None, ..model.clone() });
    let requests = requests(10);
    let (expected, _) = answers(&mut engine(&model, &Source::Nothing, ROOMS[0]), &requests);
    let drafted = |speculative| {
        let requests: Vec<_> =
            requests.iter().map(|request| Request { speculative, ..request.clone() }).collect();
        let (found, timings) = answers(&mut engine(&model, &draft(), ROOMS[1]), &requests);
        assert!(found == expected, "{speculative:?}");
        sum(&timings, |timings| timings.draft_tokens)
    };
    let all = drafted(Speculative::default());
    let most = |n_max| Speculative { n_max: Some(n_max), ..Speculative::default() };
    let p_min = |p_min| Speculative { p_min: Some(p_min), ..Speculative::default() };
    let n_min = |n_min| Speculative { n_min: Some(n_min), ..Speculative::default() };
    assert_eq!((drafted(most(0)), drafted(most(100)), drafted(n_min(8))), (0, all, 0));
    let counts = [drafted(most(2)), drafted(p_min(0.03)), drafted(n_min(7))];
    assert!(counts.iter().all(|count| (1..all).contains(count)), "{counts:?} of {all}");
    assert_eq!(drafted(p_min(1.0)), 0);
}

/// Of the first three tokens that four likeliest ones each are drawn of, the frequencies of all 64 texts are those of the model.
#[test]
fn sampling_keeps_its_distribution() {
    const PROMPT: [u32; 3] = [3, 1, 4];
    const DRAWS: usize = 6000;
    let model = TinyModel { silent_from: Some(2), num_hidden_layers: 3, ..model("qwen2") };
    // One layer of two: it agrees now and then.
    let draft = TinyModel { num_hidden_layers: 1, silent_from: None, ..model.clone() };
    let room = Room { drafts: 2, sequences: 16, pages: 40 };
    let mut alone = runner(&model, room, 0);
    let mut next = |text: &[u32]| -> Vec<(u32, f64)> {
        let rows = SequenceRows { tokens: text, position: 0, pages: &[0], logits: LogitRows::Last };
        let logits = alone.logits(&Batch::new(&[rows])).unwrap();
        let mut likeliest: Vec<(u32, f64)> = (0..).zip(logits.into_iter().map(f64::from)).collect();
        likeliest.sort_by(|a, b| b.1.total_cmp(&a.1));
        likeliest.truncate(4);
        let total: f64 = likeliest.iter().map(|(_, logit)| logit.exp()).sum();
        likeliest.into_iter().map(|(token, logit)| (token, logit.exp() / total)).collect()
    };
    let mut expected = vec![(PROMPT.to_vec(), 1.0)];
    for _ in 0..3 {
        let longer = |(text, share): (Vec<u32>, f64)| {
            let of = |(token, p)| ([&text[..], &[token]].concat(), share * p);
            next(&text).into_iter().map(of).collect::<Vec<_>>()
        };
        expected = expected.into_iter().flat_map(longer).collect();
    }
    let request = |seed| {
        let sampling = SamplingParams {
            temperature: 1.0,
            top_k: 4,
            top_p: 1.0,
            min_p: 0.0,
            seed,
            ..SamplingParams::default()
        };
        Request {
            sampling,
            max_tokens: Some(3),
            text: false,
            ignore_eos: true,
            ..Request::new(PROMPT.to_vec())
        }
    };
    let requests: Vec<_> = (0..DRAWS as u64).map(request).collect();
    let (found, timings) = answers(&mut engine(&model, &Source::Model(draft), room), &requests);
    let [drafted, stayed] = [
        sum(&timings, |timings| timings.draft_tokens),
        sum(&timings, |timings| timings.accepted_draft_tokens),
    ];
    assert!(stayed > drafted / 20 && stayed < drafted, "{stayed} of {drafted}: neither is seldom");
    let mut counts = BTreeMap::<Vec<u32>, usize>::new();
    found.into_iter().for_each(|text| *counts.entry(text).or_default() += 1);
    let square = |(text, share): &(Vec<u32>, f64)| {
        let mean = share * DRAWS as f64;
        let count = counts.remove(&text[PROMPT.len()..]).unwrap_or(0) as f64;
        (count - mean).powi(2) / mean
    };
    let chi_square: f64 = expected.iter().map(square).sum();
    assert!(counts.is_empty(), "texts that the model does not make: {counts:?}");
    // 63 degrees of freedom: a mean of 63, a deviation of 11.2; above 120 once in 60,000.
    assert!(chi_square < 120.0, "{chi_square}");
}

/// A conversation's second turn takes what the first has left; the model that drafts takes it too, or computes what nobody drafted behind.
#[test]
fn what_was_taken_in_goes_with_pages() {
    let model = TinyModel { silent_from: Some(2), ..model("qwen2") };
    let source = Source::Model(TinyModel { num_hidden_layers: 2, silent_from: None, ..model.clone() });
    let requests = requests(8);
    for plain_first in [false, true] {
        let mut engine = engine(&model, &source, Room { drafts: 3, sequences: 4, pages: 60 });
        let first: Vec<Request> = requests
            .iter()
            .map(|request| {
                let n_max = plain_first.then_some(0);
                Request { speculative: Speculative { n_max, ..Speculative::default() }, ..request.clone() }
            })
            .collect();
        let (tokens, _) = answers(&mut engine, &first);
        let second: Vec<Request> = requests
            .iter()
            .zip(&tokens)
            .map(|(request, answer)| {
                let prompt = [&request.prompt[..], answer, &[7, 7]].concat();
                Request { max_tokens: Some(30), prompt, ..request.clone() }
            })
            .collect();
        let (_, timings) = answers(&mut engine, &second);
        let [drafted, stayed] = [
            sum(&timings, |timings| timings.draft_tokens),
            sum(&timings, |timings| timings.accepted_draft_tokens),
        ];
        assert!(drafted > 50 && 100 * stayed >= 99 * drafted, "{plain_first}: {stayed} of {drafted}");
    }
}

#[test]
fn files_are_opened_together() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let model = TinyModel { silent_from: Some(2), ..model("qwen2") };
    let draft = TinyModel { num_hidden_layers: 2, silent_from: None, ..model.clone() };
    let path = write("model.gguf", &model.to_bytes());
    let open = |draft| {
        let options = RunnerOptions {
            device: DeviceChoice::Cpu,
            max_model_len: Some(256),
            max_drafts: 3,
            drafts: DraftChoice::Model(draft),
            ..RunnerOptions::default()
        };
        LoadedModel::open(Some(&path), &options, &mut |_, _| ())
    };
    let mut engine = open(write("draft.gguf", &draft.to_bytes())).unwrap().into_engine().unwrap();
    assert_eq!(engine.max_drafts(), 3);
    let (_, timings) = answers(&mut engine, &requests(4));
    assert!(timings.iter().any(|timings| timings.accepted_draft_tokens > 5), "{timings:?}");

    let mut other = draft.to_bytes().to_vec();
    let name = b"<|endoftext|>";
    let at = other.windows(name.len()).position(|bytes| bytes == name).unwrap();
    other[at + 2] = b'E';
    let error = open(write("other.gguf", &other)).err().unwrap().to_string();
    let id = TinyModel::ENDOFTEXT;
    let expected =
        format!("token {id} of its vocabulary is \"<|Endoftext|>\", of the model's \"<|endoftext|>\"");
    assert!(error.contains(&expected), "{error}");
}

/// The program says what drafts brought, and the text is the one without.
#[test]
fn the_program_drafts() {
    let fixture = crate::program::Fixture::new();
    let args = ["--raw", "--temp", "0", "-n", "60", "--ignore-eos", "--json", "Hello Hello Hello"];
    let plain = crate::program::json(fixture.generate().args(args));
    assert!(plain["timings"].get("draft_tokens").is_none(), "{plain}");
    let ngram = ["--spec-type", "ngram-simple", "--spec-ngram-size-n", "1", "--draft-max", "5"];
    let itself = ["-md", fixture.model.to_str().unwrap()];
    for (options, least) in [(&ngram[..], 0.0), (&itself[..], 0.99)] {
        let drafted = crate::program::json(fixture.generate().args(args).args(options));
        assert_eq!(drafted["ids"], plain["ids"], "{options:?}");
        let timings = &drafted["timings"];
        assert!(timings["draft_tokens"].as_u64().unwrap() > 5, "{timings}");
        assert!(timings["acceptance"].as_f64().unwrap() >= least, "{timings}");
        assert!(timings["decode_tokens_per_step"].as_f64().unwrap() >= 1.0, "{timings}");
    }
}

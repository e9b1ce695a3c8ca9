//! A model whose layers are on several emulated devices: the very logits and tokens of one, whatever its layers are and keep.

use crate::drafts::answers;
use crate::lora::{self, adapted};
use crate::{life, logits, parts, ranks, small};
use qernel::config::{Config, ExpertSizes};
use qernel::engine::{DraftSource, Engine, EngineConfig, Event, NgramKind, NgramOptions, Request};
use qernel::error::Error;
use qernel::formats::MatrixFormat;
use qernel::kv_format::KvFormat;
use qernel::load::{
    DeviceChoice, DraftChoice, KvCacheSize, KvType, LayerSplit, ModelData, RunnerOptions, open_runner,
    open_runners,
};
use qernel::model::Runner;
use qernel::testing::{TinyDraft, TinyModel};
use qernel::weights::Weights;

fn options(shares: &[f64]) -> RunnerOptions {
    let layer_split = (!shares.is_empty()).then(|| LayerSplit::Shares(shares.to_vec()));
    RunnerOptions { layer_split, ..ranks::options(1) }
}

fn open(model: &TinyModel, options: &RunnerOptions) -> Result<Box<dyn Runner>, Error> {
    let (config, weights) = parts(model);
    open_runner(&weights, &config, options, &mut |_, _| ())
}

fn of_layers(num_hidden_layers: usize, model: TinyModel) -> TinyModel {
    TinyModel { num_hidden_layers, ..model }
}

/// The same kernels compute the same numbers: not a bit differs.
#[track_caller]
fn assert_same(model: &TinyModel, splits: &[&[f64]]) {
    let expected = logits(&mut *open(model, &options(&[])).unwrap());
    for shares in splits {
        let found = logits(&mut *open(model, &options(shares)).unwrap());
        assert!(found == expected, "{} in {} on {shares:?}", model.architecture, model.format);
    }
}

const EVEN: [&[f64]; 3] = [&[1.0; 2], &[1.0; 3], &[1.0; 4]];

#[test]
fn logits_of_dense_models_are_those_of_one_device() {
    assert_same(&of_layers(4, small()), &[EVEN[2], &[3.0, 1.0], &[0.0, 1.0, 0.0, 2.5]]);
    let untied = TinyModel { architecture: "qwen3", tie_word_embeddings: false, ..small() };
    assert_same(&of_layers(3, untied), &[EVEN[1]]);
    for architecture in ["llama", "gpt2"] {
        assert_same(&of_layers(3, TinyModel { architecture, ..small() }), &[&[1.0, 2.0]]);
    }
}

#[test]
fn logits_of_mixtures_are_those_of_one_device() {
    for (architecture, shares) in [("qwen3moe", EVEN[1]), ("qwen2moe", &[2.0, 1.0])] {
        assert_same(&of_layers(3, TinyModel { architecture, ..small() }), &[shares]);
    }
    // Experts in host memory, of a device and of a part of another.
    let model = of_layers(3, TinyModel { architecture: "qwen3moe", ..small() });
    let offloaded = |shares: &[f64]| RunnerOptions { cpu_moe: 2, ..options(shares) };
    let expected = logits(&mut *open(&model, &offloaded(&[])).unwrap());
    assert!(logits(&mut *open(&model, &offloaded(&[1.0, 2.0])).unwrap()) == expected);
}

/// Every second layer keeps pages, the others slots: a device may have layers of one kind alone.
#[test]
fn logits_of_hybrids_are_those_of_one_device() {
    assert_same(&of_layers(4, crate::steps::hybrid()), &[EVEN[2], &[1.0, 3.0]]);
    let mixture = TinyModel { architecture: "qwen3next", ..crate::steps::hybrid() };
    let experts = ExpertSizes { moe_intermediate_size: 64, ..mixture.experts };
    assert_same(&of_layers(2, TinyModel { experts, ..mixture }), &[EVEN[0]]);
}

#[test]
fn quantised_matrices_and_caches_are_where_their_layers_are() {
    let blocks = TinyModel { format: MatrixFormat::Q4_K, intermediate_size: 256, ..TinyModel::default() };
    assert_same(&of_layers(3, blocks), &[&[2.0, 1.0]]);
    // Most matrices of the first layer are of another format than most of all: it does not choose for itself.
    const MIX: &[MatrixFormat] = &[MatrixFormat::F16, MatrixFormat::F32, MatrixFormat::F16];
    assert_same(&of_layers(3, TinyModel { mix: MIX, ..small() }), &[EVEN[1]]);
    let of_eight_bits =
        |shares: &[f64]| RunnerOptions { kv_types: [KvType::Only(KvFormat::Q8_0); 2], ..options(shares) };
    for model in [small(), crate::steps::hybrid()] {
        let model = of_layers(3, TinyModel { format: MatrixFormat::F16, ..model });
        let expected = logits(&mut *open(&model, &of_eight_bits(&[])).unwrap());
        assert!(logits(&mut *open(&model, &of_eight_bits(&[1.0; 3])).unwrap()) == expected);
    }
}

/// Where a device does not reach the memory of the one before it.
#[test]
fn rows_may_go_through_host_memory() {
    let model = of_layers(3, small());
    let expected = logits(&mut *open(&model, &options(&[])).unwrap());
    let mut through_host = options(&[1.0; 3]);
    through_host.choose_kernels("hand_over=host").unwrap();
    assert!(logits(&mut *open(&model, &through_host).unwrap()) == expected);
}

#[test]
fn adapters_are_where_their_layers_are() {
    for architecture in ["qwen2", "gpt2", "qwen35"] {
        let (config, weights) = parts(&of_layers(3, TinyModel { architecture, ..small() }));
        let weights = adapted(&config, weights);
        let logits = |options: &RunnerOptions| {
            lora::logits(&mut *open_runner(&weights, &config, options, &mut |_, _| ()).unwrap())
        };
        assert!(logits(&options(&[1.0, 2.0])) == logits(&options(&[])), "{architecture}");
    }
}

#[test]
fn hidden_states_are_those_of_one_device() {
    use qernel::batch::{Batch, LogitRows, SequenceRows};
    let model = of_layers(2, small());
    let hidden = |shares: &[f64]| {
        let mut runner = open(&model, &options(shares)).unwrap();
        let rows =
            |logits| Batch::new(&[SequenceRows { tokens: &[1, 2, 3], position: 0, pages: &[1], logits }]);
        let mut all = runner.hidden_of_all(&rows(LogitRows::None)).unwrap();
        for logits in [LogitRows::Last, LogitRows::All] {
            all.extend(runner.hidden(&rows(logits)).unwrap());
        }
        all
    };
    let expected = hidden(&[]);
    assert_eq!(expected.len(), (3 + 1 + 3) * model.hidden_size);
    assert!(hidden(&[1.0, 1.0]) == expected);
}

/// As many pages as a crowd has to fight for, of all layers together.
pub fn crowded(model: &TinyModel, options: RunnerOptions, drafts: Option<&DraftChoice>) -> Engine {
    let gguf = model.gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let config = if model.draft.is_some() { config.with_draft(&gguf).unwrap() } else { config };
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    let of_rank = config.of_rank(options.tensor_parallel).unwrap();
    let page_bytes = qernel::load::kv_layout(&of_rank, qernel::dtype::Dtype::F16, 1).unwrap().page_bytes();
    let life::Capacity { num_pages, max_num_tokens, max_num_sequences } = life::CROWDED;
    let options = RunnerOptions {
        kv_cache: KvCacheSize::Bytes(num_pages * page_bytes + 1),
        max_num_tokens: Some(max_num_tokens),
        max_num_sequences,
        checkpoints: 3,
        max_drafts: if drafts.is_some() { 3 } else { 0 },
        drafts: drafts.cloned().unwrap_or_default(),
        ..options
    };
    let runner = open_runner(&weights, &config, &options, &mut |_, _| ()).unwrap();
    assert_eq!(runner.kv_layout().num_pages, num_pages);
    assert_eq!(runner.kv_layout().page_bytes(), page_bytes);
    let engine = Engine::new(runner, None, EngineConfig::default()).unwrap();
    match drafts {
        Some(DraftChoice::Ngram(options)) => engine.with_drafts(DraftSource::Ngram(*options)).unwrap(),
        _ => engine,
    }
}

/// Sequences that join, are cancelled, crowded out and computed anew, with the beginnings of others and without.
#[test]
fn a_crowd_gets_the_same_answers() {
    let lives = [&[][..], &[1.0, 1.0]].map(|shares| {
        let life = life::crowd(&mut crowded(&crate::steps::hybrid(), options(shares), None));
        life::assert_crowded(&life);
        life.answers
    });
    assert!(lives[0] == lives[1]);
}

/// A prompt that begins as an earlier one takes its pages, and its states, from every device.
#[test]
fn beginnings_are_shared() {
    for model in [of_layers(2, small()), of_layers(2, crate::steps::hybrid())] {
        let [alone, split] = [&[][..], &[1.0, 1.0]].map(|shares| {
            let mut engine = crowded(&model, options(shares), None);
            [false, true].map(|other| answer_behind_a_beginning(&mut engine, other))
        });
        assert_eq!(alone, split, "{}", model.architecture);
        assert_eq!(split[1].1, 32, "{}: a page of the beginning was there", model.architecture);
    }
}

/// A greedy answer behind 40 tokens, or behind the first 36 of them and two others, and how many of those were there.
pub fn answer_behind_a_beginning(engine: &mut Engine, other: bool) -> (Vec<u32>, usize) {
    answer(engine, if other { (0..36).chain([7, 8]).collect() } else { (0..40).collect() })
}

/// A greedy answer to `prompt`, and how many tokens of that were there.
pub fn answer(engine: &mut Engine, prompt: Vec<u32>) -> (Vec<u32>, usize) {
    let [first, ..] = life::crowd_requests();
    engine.submit(Request { max_tokens: Some(4), prompt, ..first }).unwrap();
    let (mut tokens, mut cached) = (Vec::new(), 0);
    while engine.has_work() {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { token, .. } => tokens.push(token),
                Event::Finished { usage, .. } => cached = usage.cached_tokens,
                Event::Prompt { .. } => {}
            }
        }
    }
    (tokens, cached)
}

#[test]
fn drafts_change_no_token() {
    let ngrams = DraftChoice::Ngram(NgramOptions { size_n: 1, ..NgramOptions::new(NgramKind::Simple) });
    let model = of_layers(2, small());
    let hybrid = of_layers(2, TinyModel { draft: Some(TinyDraft::default()), ..crate::steps::hybrid() });
    for (model, drafts) in [(model, ngrams), (hybrid, DraftChoice::Mtp)] {
        let plain = TinyModel { draft: None, ..model.clone() };
        let (expected, _) = answers(&mut crowded(&plain, options(&[]), None), 8);
        let [alone, split] = [&[][..], &[1.0, 1.0]]
            .map(|shares| answers(&mut crowded(&model, options(shares), Some(&drafts)), 8));
        assert_eq!(split, alone, "{}: other drafts", model.architecture);
        assert_eq!(split.0, expected, "{}", model.architecture);
        assert!(split.1[0] > 0, "{}: nothing was drafted", model.architecture);
    }
}

/// One that drafts is whole, on the last device, with pages of the same numbers.
#[test]
fn a_model_that_drafts_is_on_the_last_device() {
    let model = TinyModel { format: MatrixFormat::F16, silent_from: Some(1), ..of_layers(3, small()) };
    let small = TinyModel { num_hidden_layers: 1, silent_from: None, ..model.clone() };
    let ((config, weights), (draft_config, draft_weights)) = (parts(&model), parts(&small));
    let data = ModelData { weights: &weights, config: &config };
    let draft = ModelData { weights: &draft_weights, config: &draft_config };
    let found = [&[][..], &[1.0, 1.0]].map(|shares| {
        let options = RunnerOptions { max_drafts: 3, ..options(shares) };
        let (runner, drafts) = open_runners(&data, Some(&draft), &options, &mut |_, _| ()).unwrap();
        let drafts = drafts.unwrap();
        assert_eq!(drafts.kv_layout().num_pages, runner.kv_layout().num_pages);
        let engine = Engine::new(runner, None, EngineConfig::default()).unwrap();
        answers(&mut engine.with_drafts(DraftSource::Model(drafts)).unwrap(), 9)
    });
    assert_eq!(found[0], found[1]);
    assert!(found[1].1[1] > 5, "{:?} stayed", found[1].1);
}

#[test]
fn what_is_not_split_is_refused() {
    let model = of_layers(3, small());
    let refused = |options: &RunnerOptions, expected: &str| {
        let error = open(&model, options).err().unwrap();
        assert!(matches!(error, Error::Request(_)) && error.to_string().contains(expected), "{error}");
    };
    refused(&options(&[1.0; 4]), "3 layers, too few for 4 GPUs");
    refused(&options(&[0.0, 0.0]), "not all of them 0");
    refused(&options(&[f64::NAN, 1.0]), "at least 0");
    refused(&RunnerOptions { device: DeviceChoice::Cpu, ..options(&[1.0; 2]) }, "is for GPUs");
    let all = RunnerOptions { layer_split: Some(LayerSplit::Memory(None)), ..options(&[]) };
    refused(&all, "say how many");
    // Four shares of which three are none's.
    open(&model, &options(&[0.0, 1.0, 0.0, 0.0])).unwrap();
    let two = RunnerOptions { layer_split: Some(LayerSplit::Memory(Some(2))), ..options(&[]) };
    assert_eq!(open(&model, &two).unwrap().device_name(), "emulated device + emulated device");

    let huge = RunnerOptions { kv_cache: KvCacheSize::Bytes(1 << 40), ..options(&[1.0; 2]) };
    let error = open(&model, &huge).err().unwrap().to_string();
    assert!(error.contains("emulated, layers 0 to 1") && error.contains("--tensor-split"), "{error}");
}

/// What a batch must not have is refused by all devices, and the next step is as if nothing had been.
#[test]
fn a_refused_step_leaves_all_devices_as_they_were() {
    use qernel::batch::{Batch, LogitRows, SequenceRows};
    let model = of_layers(2, small());
    let mut runner = open(&model, &options(&[1.0, 1.0])).unwrap();
    let mut step = |token| {
        let rows = SequenceRows { tokens: &[token], position: 0, pages: &[0], logits: LogitRows::Last };
        runner.logits(&Batch::new(&[rows]))
    };
    let expected = step(5).unwrap();
    assert!(matches!(step(TinyModel::VOCAB_SIZE as u32), Err(Error::Request(_))));
    assert!(step(5).unwrap() == expected);
}

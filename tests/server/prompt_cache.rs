//! The prefix cache kept over a restart: the same answers as without one, `cached_tokens` from the first request on, a bound, a file for each
//! model, and files that are cut, damaged or of something else, which cost a warning and nothing more.

use crate::client::*;
use crate::lifecycle::Program;
use crate::models::Folder;
use qernel::batch::{AdapterScale, AdapterSet};
use qernel::engine::{Engine, EngineConfig, Fingerprint, KeptPrompts, Request};
use qernel::kv_format::KvFormat;
use qernel::load::{
    DeviceChoice, KvCacheSize, KvType, ModelData, RunnerOptions, open_runners, with_adapters,
};
use qernel::sampler::SamplingParams;
use qernel::server::{ModelSource, PromptCacheConfig, ServedModel, ServerConfig};
use qernel::testing::{TinyModel, adapter};
use serde_json::json;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const PLENTY: u64 = 1 << 30;

fn of(name: &str) -> Fingerprint {
    Fingerprint::of([name])
}

/// How an engine is opened.
#[derive(Clone, Copy)]
struct Way {
    architecture: &'static str,
    device: DeviceChoice,
    kv_type: KvType,
    num_pages: usize,
}

const PLAIN: Way =
    Way { architecture: "qwen2", device: DeviceChoice::Cpu, kv_type: KvType::Auto, num_pages: 64 };

impl Way {
    fn engine(&self, prefix_cache: bool) -> Engine {
        self.engine_with(prefix_cache, 0)
    }

    /// With so many adapters, all of which change every answer.
    fn engine_with(&self, prefix_cache: bool, adapters: u64) -> Engine {
        let Self { architecture, device, kv_type, .. } = *self;
        let model = TinyModel {
            architecture,
            num_hidden_layers: 2,
            hidden_size: 64,
            intermediate_size: 96,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 32,
            ..TinyModel::default()
        };
        let gguf = model.gguf();
        let config = qernel::config::Config::from_gguf(&gguf).unwrap();
        let weights = qernel::weights::Weights::from_gguf(&gguf, &config).unwrap();
        let folder = TempDir::new().unwrap();
        let choices: Vec<_> = (0..adapters)
            .map(|seed| {
                let path = folder.path().join(format!("{seed}.gguf"));
                std::fs::write(&path, adapter(&config, seed, 4, 2.0).to_bytes()).unwrap();
                path.display().to_string().parse().unwrap()
            })
            .collect();
        let weights = with_adapters(weights, &config, &choices).unwrap();
        let options = RunnerOptions {
            device,
            kv_types: [kv_type; 2],
            kv_cache: KvCacheSize::Auto,
            max_model_len: Some(self.num_pages * 32),
            max_num_tokens: Some(64),
            checkpoints: 4,
            ..RunnerOptions::for_sequences(2)
        };
        let data = ModelData { weights: &weights, config: &config };
        let (runner, _) = open_runners(&data, None, &options, &mut |_, _| ()).unwrap();
        Engine::new(runner, None, EngineConfig { prefix_cache, ..EngineConfig::default() }).unwrap()
    }
}

/// A greedy answer to `len` tokens that begin with `first`, and how many of them were not computed.
fn answer_with(engine: &mut Engine, first: u32, len: u32, adapters: &[AdapterScale]) -> (Vec<u32>, usize) {
    let request = Request {
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_tokens: Some(12),
        ignore_eos: true,
        text: false,
        adapters: Some(AdapterSet::new(adapters)),
        ..Request::new((0..len).map(|i| (first + i) % TinyModel::VOCAB_SIZE as u32).collect())
    };
    let done = engine.run_to_end(request, &false.into(), |_| ControlFlow::Continue(())).unwrap();
    (done.tokens, done.usage.cached_tokens)
}

fn answer(engine: &mut Engine, first: u32, len: u32) -> (Vec<u32>, usize) {
    answer_with(engine, first, len, &[])
}

fn keep(engine: &mut Engine, max_bytes: u64) -> (Vec<u8>, KeptPrompts) {
    let mut file = Vec::new();
    let kept = engine.keep_prompts(&of("model"), max_bytes, &mut file).unwrap();
    assert_eq!(file.len() as u64, kept.bytes);
    (file, kept)
}

fn take(engine: &mut Engine, file: &[u8]) -> Result<KeptPrompts, String> {
    engine.take_prompts(&of("model"), &mut &*file).map_err(|error| error.to_string())
}

#[test]
fn answers_are_those_of_an_engine_that_computes_all() {
    let q8_0 = KvType::Only(KvFormat::Q8_0);
    for (architecture, device, kv_type) in [
        ("qwen2", DeviceChoice::Cpu, KvType::Auto),
        ("qwen2", DeviceChoice::Cpu, q8_0),
        ("qwen2", DeviceChoice::Emulated, KvType::Auto),
        ("qwen2", DeviceChoice::Emulated, q8_0),
        ("qwen35", DeviceChoice::Cpu, KvType::Auto),
        ("qwen35", DeviceChoice::Emulated, KvType::Auto),
    ] {
        let way = Way { architecture, device, kv_type, ..PLAIN };
        let case = format!("{architecture} on {device} in {kv_type}");
        let (mut before, mut whole) = (way.engine(true), way.engine(false));
        let prompts = if device == DeviceChoice::Cpu {
            [(5, 70), (200, 40), (5, 100)]
        } else {
            [(5, 33), (9, 34), (5, 66)]
        };
        let expected = prompts.map(|(first, len)| answer(&mut whole, first, len).0);
        let found = prompts.map(|(first, len)| answer(&mut before, first, len).0);
        assert_eq!(found, expected, "{case}");
        let (file, kept) = keep(&mut before, PLENTY);
        let mut after = way.engine(true);
        assert_eq!(take(&mut after, &file).unwrap(), kept, "{case}");
        assert_eq!(kept.states > 0, architecture == "qwen35", "{case}");
        for ((first, len), expected) in prompts.into_iter().zip(&expected) {
            let (tokens, cached) = answer(&mut after, first, len);
            assert_eq!(&tokens, expected, "{case}");
            assert!(cached >= (len as usize - 1) / 32 * 32, "{case}: {cached} of {len}");
        }
        assert_eq!(after.pool().num_used(), 0);
        // What was taken may be kept again, and goes when others need the pages.
        assert_eq!(keep(&mut after, PLENTY).1.states, kept.states, "{case}");
        if device == DeviceChoice::Cpu {
            (0..40).for_each(|i| drop(answer(&mut after, 100 + 7 * i, 90)));
            assert_eq!(answer(&mut after, 5, 70).0, expected[0], "{case}");
        }
    }
}

#[test]
fn beginnings_are_those_of_their_adapters() {
    let one = [AdapterScale { adapter: 0, scale: 1.0 }];
    let both = [AdapterScale { adapter: 0, scale: 0.5 }, AdapterScale { adapter: 1, scale: 1.0 }];
    let sets: [&[AdapterScale]; 3] = [&[], &one, &both];
    let mut before = PLAIN.engine_with(true, 2);
    let expected = sets.map(|set| answer_with(&mut before, 5, 70, set));
    assert!(expected.iter().all(|(_, cached)| *cached == 0));
    let (file, _) = keep(&mut before, PLENTY);
    let mut after = PLAIN.engine_with(true, 2);
    take(&mut after, &file).unwrap();
    for (set, (tokens, _)) in sets.into_iter().zip(expected) {
        assert_eq!(answer_with(&mut after, 5, 70, set), (tokens, 69));
    }
    let half = [AdapterScale { adapter: 0, scale: 0.5 }];
    assert_eq!(answer_with(&mut after, 5, 70, &half).1, 0);
    let error = take(&mut PLAIN.engine_with(true, 1), &file).unwrap_err();
    assert!(error.contains("more adapters than the model has"), "{error}");
}

#[test]
fn what_was_used_longest_ago_is_left_out() {
    let mut before = PLAIN.engine(true);
    for first in [5, 200, 400] {
        answer(&mut before, first, 70);
    }
    answer(&mut before, 5, 70);
    let (_, all) = keep(&mut before, PLENTY);
    let of_page = all.bytes / 9;
    for (max_bytes, cached) in
        [(all.bytes, [69, 69, 69]), (all.bytes - 1, [69, 0, 69]), (4 * of_page, [69, 0, 0])]
    {
        let (file, kept) = keep(&mut before, max_bytes);
        assert!(kept.bytes <= max_bytes, "{kept:?} of {max_bytes}");
        let mut after = PLAIN.engine(true);
        take(&mut after, &file).unwrap();
        let found = [5, 200, 400].map(|first| answer(&mut after, first, 70).1);
        let is_less = max_bytes < all.bytes;
        for (found, cached) in found.into_iter().zip(cached) {
            assert!(
                found == cached || (is_less && found < 69 && cached == 0),
                "{max_bytes}: {found} for {cached}"
            );
        }
    }
    let (file, none) = keep(&mut before, 1);
    assert_eq!((none.tokens, take(&mut PLAIN.engine(true), &file).unwrap().tokens), (0, 0));
    // An engine with fewer pages takes what was used last.
    let (file, _) = keep(&mut before, PLENTY);
    let mut small = Way { num_pages: 4, ..PLAIN }.engine(true);
    let pages = small.pool().num_pages();
    let taken = take(&mut small, &file).unwrap();
    assert!(taken.tokens <= 32 * pages && answer(&mut small, 5, 70).1 == 69, "{taken:?} in {pages} pages");
}

#[test]
fn what_is_damaged_is_not_taken() {
    for architecture in ["qwen2", "qwen35"] {
        let way = Way { architecture, ..PLAIN };
        let mut before = way.engine(true);
        answer(&mut before, 5, 70);
        let (file, kept) = keep(&mut before, PLENTY);
        let mut after = way.engine(true);
        let mut refused = |file: &[u8], says: &str| {
            let error = take(&mut after, file).unwrap_err();
            assert!(error.contains(says), "{architecture}: {error} for {says}");
            assert_eq!((after.pool().num_cached(), after.pool().num_used()), (0, 0));
            assert_eq!(after.checkpoints().map_or(0, |copies| copies.num_known()), 0);
        };
        for len in (0..file.len()).step_by(file.len() / 97).chain([file.len() - 1, 43, 44, 45]) {
            refused(&file[..len], "cut short");
        }
        for at in (44..file.len()).step_by(file.len() / 97) {
            let mut damaged = file.clone();
            damaged[at] ^= 4;
            let error = take(&mut way.engine(true), &damaged).unwrap_err();
            assert!(
                ["damaged", "cut short", "well-formed"].iter().any(|says| error.contains(says)),
                "{at}: {error}"
            );
        }
        let changed = |at: usize, to: u8| {
            let mut changed = file.clone();
            changed[at] = to;
            changed
        };
        refused(&changed(0, b'X'), "it is none");
        refused(&changed(8, 9), "another version");
        refused(&changed(20, file[20] ^ 1), "of another model");
        refused(&changed(44, 9), "no records 9");
        // Places of failed attempts are free again.
        assert_eq!(take(&mut after, &file).unwrap(), kept);
        assert!(answer(&mut after, 5, 70).1 >= 64);
        let other = after.take_prompts(&of("other"), &mut &*file).unwrap_err().to_string();
        assert!(other.contains("of another model"), "{other}");
    }
    let mut file = Vec::new();
    PLAIN.engine(true).keep_prompts(&of("model"), PLENTY, &mut file).unwrap();
    for way in [Way { kv_type: KvType::Precise, ..PLAIN }, Way { device: DeviceChoice::Emulated, ..PLAIN }] {
        assert!(take(&mut way.engine(true), &file).unwrap_err().contains("of another model"));
    }
    assert!(take(&mut PLAIN.engine(false), &file).unwrap_err().contains("cannot be kept"));
}

fn kept_in(folder: &Path) -> ServerConfig {
    let prompt_cache = PromptCacheConfig { folder: folder.into(), max_bytes: PLENTY, interval: None };
    ServerConfig { prompt_cache: Some(prompt_cache), ..config() }
}

fn start_as(config: ServerConfig, fingerprint: &'static str) -> Running {
    let running = start_with(config, move |max, control| {
        Ok(ServedModel { fingerprint: Some(of(fingerprint)), ..open(max, control)? })
    });
    running.wait_until("ready", |running| running.get("/health").status == 200);
    running
}

/// A greedy answer, and how many tokens of the prompt were not computed.
fn ask(server: &Running, model: Option<&str>) -> (String, u64) {
    let prompt = "Write a haiku about the sea, the old pond, seven birds, and the long road to the mountain in the north, rain on the river, and snow in the morning";
    let body = json!({"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0});
    let answer = server.post("/v1/completions", body).good();
    let text = answer["choices"][0]["text"].as_str().unwrap().to_owned();
    (text, answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap())
}

#[test]
fn a_server_goes_on_where_it_stopped() {
    let folder = TempDir::new().unwrap();
    let kept = folder.path().join("made/deep");
    let expected = ask(&start(config()), None);
    assert_eq!(expected.1, 0);
    for (model, is_cached) in [("one", false), ("one", true), ("other", false), ("one", false), ("one", true)]
    {
        let server = start_as(kept_in(&kept), model);
        let (text, cached) = ask(&server, None);
        assert_eq!((text, cached > 0), (expected.0.clone(), is_cached), "{model}");
        server.stop().unwrap();
        let file = kept.join("haiku.prompts");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&kept), mode(&file), std::fs::read_dir(&kept).unwrap().count()), (0o700, 0o600, 1));
    }
    // Whatever stands in the file's place, the server answers.
    let file = kept.join("haiku.prompts");
    let whole = std::fs::read(&file).unwrap();
    for bytes in [&[][..], b"GGUF", &whole[..whole.len() / 2], &[0; 4096]] {
        std::fs::write(&file, bytes).unwrap();
        let server = start_as(kept_in(&kept), "one");
        assert_eq!(ask(&server, None), expected);
    }
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert_eq!(ask(&start_as(kept_in(&kept), "one"), None), expected);
    let no_folder = kept_in(&file.join("haiku.prompts/\0"));
    assert!(matches!(qernel::server::Server::bind(no_folder), Err(qernel::Error::Io { .. })));
}

#[test]
fn a_device_that_failed_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let server = start_as(kept_in(folder.path()), "one");
    ask(&server, None);
    server.control.fail.store(true, std::sync::atomic::Ordering::Relaxed);
    let body = json!({"prompt": "x", "max_tokens": 1});
    assert_eq!(server.post("/v1/completions", body).status, 500);
    server.stop().unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_file_is_also_written_when_nothing_is_left_to_do() {
    let folder = TempDir::new().unwrap();
    let mut often = kept_in(folder.path());
    often.prompt_cache.as_mut().unwrap().interval = Some(Duration::from_millis(1));
    let server = start_as(often, "one");
    let file = folder.path().join("haiku.prompts");
    ask(&server, None);
    server.wait_until("a file", |_| file.exists());
    let early = std::fs::read(&file).unwrap();
    assert!(ask(&server, None).1 > 0);
    server.stop().unwrap();
    std::fs::write(&file, early).unwrap();
    assert!(ask(&start_as(kept_in(folder.path()), "one"), None).1 > 0);
}

#[test]
fn each_model_has_a_file() {
    let kept = TempDir::new().unwrap();
    let models = Folder::new(&[("one", 1), ("two", 2)]);
    let names = ["one", "two"];
    let run = |cached: [bool; 2], max_models| {
        let config = ServerConfig { max_models, ..kept_in(kept.path()) };
        let server = start_models(config, None, Arc::clone(&models) as Arc<dyn ModelSource>);
        let found = names.map(|name| ask(&server, Some(name)));
        assert_eq!(found.each_ref().map(|(_, tokens)| *tokens > 0), cached);
        server.stop().unwrap();
        found.map(|(text, _)| text)
    };
    let expected = run([false; 2], 2);
    let mut files: Vec<_> =
        std::fs::read_dir(kept.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["one.prompts", "two.prompts"]);
    assert_eq!(run([true; 2], 2), expected);
    // With room for one the other is unloaded in between, which keeps its prompts too.
    assert_eq!(run([true; 2], 1), expected);
    models.write("two", 7);
    assert_ne!(run([true, false], 2)[1], expected[1]);
}

#[test]
fn the_program_keeps_prompts_of_its_own_model() {
    let folder = TempDir::new().unwrap();
    let path: PathBuf = folder.path().join("kept");
    let run = |more: &[&str]| {
        let mut program = Program::start(&[&["--prompt-cache", path.to_str().unwrap()], more].concat());
        let client = Running::at(&program.address);
        client.wait_until("ready", |server| server.get("/health").status == 200);
        let found = ask(&client, None);
        program.signal("-TERM");
        assert_eq!(program.child.wait().unwrap().code(), Some(0));
        (found, program.log.join().unwrap())
    };
    let ((text, cached), log) = run(&[]);
    assert!(cached == 0 && log.contains("prompts are kept in"), "{log}");
    let ((again, cached), log) = run(&["--prompt-cache-size", "160KiB"]);
    assert!(again == text && cached > 0 && log.contains("prompts of an earlier run"), "{log}");
    assert!(std::fs::metadata(path.join("haiku.prompts")).unwrap().len() <= 160 << 10);
    let ((_, cached), log) = run(&["--kv-cache-dtype", "q8_0"]);
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert!(cached == 0 && warnings.len() == 1 && warnings[0].contains("it is of another model"), "{log}");
}

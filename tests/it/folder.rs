//! Models in folders, as Hugging Face's hub has them: logits of those that transformers saved (`tests/data/folders`), the vocabulary, GGUF files
//! made of them, and what is said of folders that are damaged or not for this engine.

use crate::compare::nmse;
use crate::families::{logits, read_npy};
use crate::program::qernel;
use qernel::config::Config;
use qernel::cpu::CpuOps;
use qernel::disk::Access;
use qernel::dtype::Dtype;
use qernel::folder;
use qernel::gguf::write::merge;
use qernel::gguf::{GgmlType, Gguf};
use qernel::ops::OpsConfig;
use qernel::tokenizer::Tokenizer;
use qernel::weights::Weights;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The prompt of `make_folders.py`.
const TOKENS: [u32; 12] = [3, 17, 44, 0, 61, 8, 9, 30, 30, 5, 52, 11];

const FOLDERS: [&str; 19] = [
    "qwen2",
    "qwen3",
    "qwen3-fp8",
    "llama",
    "gpt2",
    "qwen2moe",
    "qwen3moe",
    "qwen35",
    "qwen35moe",
    "qwen3next",
    "qwen3vl",
    "qwen3vlmoe",
    "qwen3vlmoe-saved",
    "qwen2-gptq",
    "qwen2-gptq-int8",
    "qwen3-gptq-sorted",
    "qwen3moe-awq",
    "llama-packed",
    "qwen3-int8",
];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/folders").join(name)
}

fn open(path: &Path) -> Gguf {
    folder::open(path, Access::Map).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn logits_of(gguf: &Gguf, chunk: usize) -> Vec<f32> {
    let config = Config::from_gguf(gguf).unwrap();
    let weights = Weights::from_gguf(gguf, &config).unwrap();
    assert_eq!(weights.unused, [""; 0]);
    logits(&config, &weights, &TOKENS, chunk, Dtype::F32, |config: &OpsConfig| CpuOps::new(config).unwrap())
}

/// A copy of a folder, to be damaged.
fn copy(name: &str) -> TempDir {
    let copy = TempDir::new().unwrap();
    for entry in fs::read_dir(data(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

/// Changes a JSON file of a folder.
fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(file);
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[track_caller]
fn refused(folder: &Path, expected: &str) {
    let opened = folder::open(folder, Access::Map);
    let message = opened.and_then(|gguf| Config::from_gguf(&gguf)).expect_err(expected).to_string();
    assert!(message.contains(expected), "expected {expected:?}, found {message:?}");
}

#[test]
fn logits_equal_transformers() {
    for name in FOLDERS {
        let expected = read_npy(&data(name).join("logits.npy"));
        let gguf = open(&data(name));
        for chunk in [TOKENS.len(), 5] {
            let found = logits_of(&gguf, chunk);
            assert_eq!(found.len(), expected.len(), "{name}");
            let allowed = match name {
                // What FP8 and its scales make is rounded to the eleven bits of f16.
                "qwen3-fp8" => 1e-6,
                // Values whose groups are no blocks are rounded likewise.
                "qwen3-gptq-sorted" => 1e-6,
                // transformers computes linear attention in f32 whatever it is told.
                "qwen35" | "qwen35moe" | "qwen3next" => 1e-9,
                // f32 against f64.
                _ => 1e-11,
            };
            let error = nmse(&found, &expected);
            assert!(error <= allowed, "{name}, {chunk} tokens a step: {error:e}");
        }
    }
}

#[test]
fn a_file_made_of_a_folder_holds_the_same() {
    let out = TempDir::new().unwrap();
    for name in FOLDERS {
        let gguf = open(&data(name));
        let mut bytes = Vec::new();
        merge(&gguf, Path::new(name), &mut bytes).unwrap();
        let file = Gguf::from_bytes(bytes.into()).unwrap();
        let metadata = |gguf: &Gguf| format!("{:?}", gguf.metadata().collect::<Vec<_>>());
        assert_eq!(metadata(&file), metadata(&gguf), "{name}");
        for (made, kept) in gguf.tensors().zip(file.tensors()) {
            assert_eq!(
                (made.name(), made.shape(), made.ggml_type()),
                (kept.name(), kept.shape(), kept.ggml_type())
            );
            assert_eq!(made.data().unwrap(), kept.data().unwrap(), "{name}: {}", made.name());
        }
    }
    let path = out.path().join("whole.gguf");
    let convert = |path: &Path| {
        let mut command = qernel();
        command.arg("convert").arg(data("qwen3")).arg(path);
        command
    };
    convert(&path).assert().success();
    assert_eq!(logits_of(&Gguf::open(&path).unwrap(), 12), logits_of(&open(&data("qwen3")), 12));
    let path = out.path().join("quantised.gguf");
    convert(&path).arg("Q8_0").assert().success();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.tensor("blk.0.ffn_up.weight").unwrap().ggml_type(), GgmlType(8), "Q8_0");
    assert_eq!(gguf.require::<u32>("general.file_type").unwrap(), 7);
}

#[test]
fn what_is_small_is_f32_and_what_is_fp8_becomes_f16() {
    let gguf = open(&data("qwen3-fp8"));
    let of = |name: &str| gguf.tensor(name).unwrap().ggml_type();
    assert_eq!(of("blk.0.attn_q.weight"), GgmlType::F16);
    assert_eq!(of("token_embd.weight"), GgmlType::BF16);
    assert_eq!(of("blk.0.attn_norm.weight"), GgmlType::F32);
    assert_eq!(
        open(&data("qwen35moe")).tensor("blk.0.ffn_gate_inp.weight").unwrap().ggml_type(),
        GgmlType::F32
    );
}

#[test]
fn a_folder_that_is_not_whole_says_what_is_missing() {
    refused(TempDir::new().unwrap().path(), "has no config.json");
    let folder = copy("qwen3");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    refused(folder.path(), "neither model.safetensors nor model.safetensors.index.json");
    let index = "model.safetensors.index.json";
    let first = "model-00001-of-";
    let shard = |folder: &Path| {
        let names =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.into_iter().find(|name| name.starts_with(first)).unwrap()
    };

    let folder = copy("qwen3moe");
    let name = shard(folder.path());
    fs::rename(folder.path().join(&name), folder.path().join("elsewhere")).unwrap();
    refused(folder.path(), &format!("has no {name}: one of the"));
    for hostile in ["../elsewhere", "/etc/passwd", "elsewhere", "a/b.safetensors", "..", ""] {
        edit(folder.path(), index, |index| index["weight_map"]["lm_head.weight"] = json!(hostile));
        refused(folder.path(), "expected the name of a .safetensors file in the folder");
    }
    edit(folder.path(), index, |index| index["weight_map"] = json!(7));
    refused(folder.path(), "`weight_map` is 7; expected an object");

    let folder = copy("qwen3moe");
    edit(folder.path(), index, |index| {
        index["weight_map"]["made.up"] = json!(name);
    });
    refused(folder.path(), "says that it has the tensor `made.up`, but it has not");
    let folder = copy("qwen3moe");
    edit(folder.path(), index, |index| {
        let map = index["weight_map"].as_object_mut().unwrap();
        let tensor = map.iter().find(|(_, file)| *file == &name).unwrap().0.clone();
        map.remove(&tensor);
    });
    refused(folder.path(), "they are of different models");

    let folder = copy("qwen2moe");
    edit(folder.path(), "config.json", |config| config["num_experts"] = json!(5));
    refused(folder.path(), "of 5 experts number 4 is missing");
}

/// A file of one tensor whose header is `line`.
fn file(header: &str, bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + bytes, 0);
    file
}

#[test]
fn damaged_weights_are_refused() {
    let folder = copy("qwen3");
    let with = |bytes: &[u8], expected: &str| {
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        refused(folder.path(), expected);
    };
    let whole = fs::read(data("qwen3").join("model.safetensors")).unwrap();
    with(&whole[..whole.len() - 1], "the file is cut");
    with(&whole[..100], "its header claims");
    with(b"short", "less than the length of a header");
    with(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer");
    with(&[0xff; 64], "its header claims 18446744073709551615 bytes");
    with(&file("{]", 0), "its header is malformed");
    let one = |dtype: &str, shape: &str, offsets: &str| {
        file(&format!(r#"{{"a": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}"#), 16)
    };
    with(&one("F32", "[4]", "[0, 17]"), "lies at the bytes 0 to 17 of 16");
    with(&one("F32", "[4]", "[8, 4]"), "lies at the bytes 8 to 4");
    with(&one("F32", "[3]", "[0, 16]"), "do not belong together");
    with(&one("F32", "[4294967296, 4294967296, 2]", "[0, 16]"), "do not belong together");
    with(&one("Q99", "[4]", "[0, 16]"), "has the type Q99");
    with(&one("F32", "[1099511627776, 0]", "[0, 0]"), "which holds nothing");
    let line = r#"{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}"#;
    with(&file(&format!(r#"{{"a": {line}, "a": {line}}}"#), 16), "`a` is there twice");
    with(&file(&format!(r#"{{"a": {line}, "b": {line}}}"#), 16), "`a` and `b` overlap");
    let named = |dtype: &str| {
        file(
            &format!(
                r#"{{"model.embed_tokens.weight": {{"dtype": "{dtype}", "shape": [2, 2], "data_offsets": [0, {}]}}}}"#,
                if dtype == "I32" { 16 } else { 4 }
            ),
            16,
        )
    };
    with(&named("I32"), "it is I32; BF16, F16, F32 and F8_E4M3 with scales are read");
    with(&named("F8_E4M3"), "without a scale");
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    for (name, key, value, expected) in [
        (
            "qwen3",
            "model_type",
            json!("gemma3"),
            r#"`model_type` is "gemma3"; those that are implemented are qwen2, "#,
        ),
        ("qwen3", "model_type", json!(null), "`model_type` is missing"),
        ("qwen3", "hidden_size", json!("many"), "`hidden_size` is \"many\"; expected a whole number"),
        ("qwen3", "num_attention_heads", json!(0), "expected 1 to 16777216"),
        ("qwen3", "hidden_act", json!("relu"), "\"silu\"; others are not implemented"),
        ("qwen3", "quantization_config", json!({"quant_method": "bitsandbytes"}), "or as a GGUF file"),
        ("qwen3", "rope_parameters", json!({"rope_type": "longrope"}), "RoPE scaling `longrope`"),
        ("qwen3moe", "norm_topk_prob", json!(false), "`norm_topk_prob` is false; expected true"),
        ("qwen3moe", "mlp_only_layers", json!([0]), "some layers have no experts"),
        (
            "qwen3-fp8",
            "quantization_config",
            json!({"quant_method": "fp8", "weight_block_size": [0, 1]}),
            "two sizes such as",
        ),
        ("qwen35", "layer_types", json!(["full_attention"]), "one for each of the 4 layers"),
        ("qwen35", "linear_num_value_heads", json!(5), "a multiple of the 2 heads of K"),
    ] {
        let folder = copy(name);
        edit(folder.path(), "config.json", |config| config[key] = value);
        refused(folder.path(), expected);
    }
    let mut command = qernel();
    let refused = command.args(["inspect", "--model"]).arg(TempDir::new().unwrap().path()).assert().code(3);
    assert!(String::from_utf8_lossy(&refused.get_output().stderr).contains("has no config.json"));
}

/// Models that make vectors are published without a head, and without saying that the embedding is one.
#[test]
fn a_head_that_is_missing_is_the_embedding() {
    let folder = copy("qwen3");
    let expected = logits_of(&open(folder.path()), 64);
    edit(folder.path(), "config.json", |config| config["tie_word_embeddings"] = json!(false));
    assert_eq!(logits_of(&open(folder.path()), 64), expected);
}

/// The name of a folder in the cache of Hugging Face's hub is that of a commit.
#[test]
fn a_folder_in_the_hub_s_cache_has_the_model_s_name() {
    let source = copy("qwen3");
    let cache = TempDir::new().unwrap();
    let snapshot = cache.path().join("models--Qwen--Qwen3-Tiny/snapshots/0123abcd");
    fs::create_dir_all(&snapshot).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(source.path().join(name), snapshot.join(name)).unwrap();
    }
    assert_eq!(open(&snapshot).require::<&str>("general.name").unwrap(), "Qwen3-Tiny");
}

/// The haiku model's vocabulary as `tokenizer.json` has it.
fn tokenizer_json(gguf: &Gguf) -> Value {
    let texts = |key: &str| gguf.require::<Vec<&str>>(key).unwrap();
    let (tokens, types) =
        (texts("tokenizer.ggml.tokens"), gguf.require::<Vec<i32>>("tokenizer.ggml.token_type").unwrap());
    let mut vocab = serde_json::Map::new();
    let mut added = Vec::new();
    for (id, (text, kind)) in tokens.iter().zip(types).enumerate() {
        match kind {
            1 => drop(vocab.insert((*text).to_owned(), json!(id))),
            3 | 4 => added.push(json!({"id": id, "content": text, "special": kind == 3})),
            _ => {}
        }
    }
    let merges: Vec<Value> = texts("tokenizer.ggml.merges")
        .iter()
        .map(|merge| json!(merge.split(' ').collect::<Vec<_>>()))
        .collect();
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    json!({
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
        ]},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })
}

#[test]
fn the_vocabulary_is_that_of_a_gguf_file() {
    let haiku = qernel::embedded::haiku().unwrap();
    let folder = copy("qwen3");
    let write = |name: &str, value: &Value| fs::write(folder.path().join(name), value.to_string()).unwrap();
    let tokenizer = tokenizer_json(&haiku);
    edit(folder.path(), "config.json", |config| drop(config.as_object_mut().unwrap().remove("vocab_size")));
    write("tokenizer.json", &tokenizer);
    write(
        "tokenizer_config.json",
        &json!({"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>", "chat_template": "old"}),
    );
    write("generation_config.json", &json!({"eos_token_id": [0, 1], "temperature": 0.6, "top_k": 20}));
    let gguf = open(folder.path());
    for key in ["tokens", "token_type", "merges", "pre", "model"] {
        let key = format!("tokenizer.ggml.{key}");
        assert_eq!(format!("{:?}", gguf.value(&key)), format!("{:?}", haiku.value(&key)), "{key}");
    }
    assert_eq!(gguf.require::<f32>("general.sampling.temp").unwrap(), 0.6);
    // GPT-2's `<|endoftext|>` is among its words and its added tokens: there are no more tokens for it.
    let mut twice = tokenizer.clone();
    twice["model"]["vocab"]["<|endoftext|>"] = twice["added_tokens"][0]["id"].clone();
    assert_eq!(twice["added_tokens"][0]["content"], "<|endoftext|>");
    write("tokenizer.json", &twice);
    edit(folder.path(), "config.json", |config| {
        config["vocab_size"] = json!(gguf.require::<Vec<&str>>("tokenizer.ggml.tokens").unwrap().len())
    });
    let count = |gguf: &Gguf| gguf.require::<Vec<&str>>("tokenizer.ggml.tokens").unwrap().len();
    assert_eq!(count(&open(folder.path())), count(&haiku));
    write("tokenizer.json", &tokenizer);
    edit(folder.path(), "config.json", |config| drop(config.as_object_mut().unwrap().remove("vocab_size")));
    let (found, expected) = (Tokenizer::from_gguf(&gguf).unwrap(), Tokenizer::from_gguf(&haiku).unwrap());
    let text = "the sea <|im_end|> 42 ünïcödé\n\n  and";
    assert_eq!(found.encode(text, true).unwrap(), expected.encode(text, true).unwrap());
    assert_eq!(found.eos_token_id(), expected.token("<|im_end|>"));
    assert!(found.is_end_of_generation(0) && found.is_end_of_generation(1) && !found.adds_bos());
    assert_eq!(found.chat_template(), Some("old"));
    fs::write(folder.path().join("chat_template.jinja"), "new").unwrap();
    write(
        "tokenizer_config.json",
        &json!({"add_eos_token": true, "add_bos_token": true, "bos_token": "<|endoftext|>"}),
    );
    let gguf = open(folder.path());
    let found = Tokenizer::from_gguf(&gguf).unwrap();
    assert_eq!((found.chat_template(), found.adds_bos()), (Some("new"), true));
    assert!(gguf.require::<bool>("tokenizer.ggml.add_eos_token").unwrap());

    // Templates with names; a processor's where the tokenizer has none.
    let named = |folder: &Path, name: &str| {
        let gguf = open(folder);
        gguf.get::<&str>(&format!("tokenizer.chat_template{name}")).unwrap().map(str::to_owned)
    };
    let additional = folder.path().join("additional_chat_templates");
    fs::create_dir(&additional).unwrap();
    fs::write(additional.join("tool_use.jinja"), "tools").unwrap();
    fs::write(additional.join("notes.txt"), "no template").unwrap();
    write("chat_template.json", &json!({"chat_template": "of the processor"}));
    assert_eq!(named(folder.path(), ".tool_use").as_deref(), Some("tools"));
    assert_eq!((named(folder.path(), "").as_deref(), named(folder.path(), ".notes")), (Some("new"), None));
    fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    assert_eq!(named(folder.path(), "").as_deref(), Some("of the processor"));
    fs::write(additional.join("to ol.jinja"), "x").unwrap();
    refused(folder.path(), "additional_chat_templates: \"to ol.jinja\": it is no name of a template");
    fs::remove_dir_all(&additional).unwrap();

    // Qwen3-Embedding's tokenizer puts another token behind a text than the one that ends an answer.
    let mut embedding = tokenizer.clone();
    embedding["post_processor"] = json!({"type": "Sequence", "processors": [{"type": "TemplateProcessing", "single": [
        {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}]}]});
    write("tokenizer.json", &embedding);
    write("tokenizer_config.json", &json!({"eos_token": "<|im_end|>"}));
    let gguf = open(folder.path());
    let found = Tokenizer::from_gguf(&gguf).unwrap();
    assert_eq!(found.eos_token_id(), expected.token("<|endoftext|>"));
    assert!(found.is_end_of_generation(expected.token("<|im_end|>").unwrap()));
    assert!(gguf.require::<bool>("tokenizer.ggml.add_eos_token").unwrap());

    for (change, expected) in [
        (("/model/type", json!("Unigram")), "expected byte-level BPE"),
        (("/model/byte_fallback", json!(true)), "expected byte-level BPE"),
        (("/model/vocab/a", json!("x")), "expected a token's number"),
        (("/model/vocab/a", json!(u64::MAX)), "has the number 18446744073709551615"),
        (("/model/merges/0", json!([1, 2])), "expected pairs of tokens"),
        (("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!("x+")), "one of those of Qwen2"),
    ] {
        let (pointer, value) = change;
        let mut damaged = tokenizer.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = damaged.pointer_mut(parent).unwrap();
        match parent {
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
            parent => parent[key] = value,
        }
        write("tokenizer.json", &damaged);
        refused(folder.path(), expected);
    }
}

//! Blocks that draft in files of their own (`mtp-….gguf`): what is drafted, and what stays of it, is what a block in the model's own file brings;
//! which file is taken; and what is said of one that does not fit. And blocks of folders.

use crate::drafts::{answers, model, runner_of, sum};
use qernel::config::{Config, DraftTensors};
use qernel::disk::Access;
use qernel::engine::{Engine, EngineConfig, Request, Timings};
use qernel::folder;
use qernel::gguf::write::{Writer, merge};
use qernel::gguf::{GgmlType, Gguf};
use qernel::load::{DeviceChoice, DraftChoice};
use qernel::sampler::SamplingParams;
use qernel::testing::{Random, TinyDraft, TinyModel};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

#[path = "../common/sidecar.rs"]
pub mod files;
use files::{apart, write};

fn requests() -> Vec<Request> {
    let mut random = Random::new(5, "prompts");
    let mut token = || (random.next_u64() % TinyModel::VOCAB_SIZE as u64) as u32;
    let request = |i: usize| {
        let temperature = if i.is_multiple_of(2) { 0.0 } else { 0.8 };
        let sampling = SamplingParams { temperature, seed: i as u64, ..SamplingParams::default() };
        let prompt = (0..3 + 11 * i).map(|_| token()).collect();
        Request { sampling, max_tokens: Some(40), text: false, ..Request::new(prompt) }
    };
    (0..4).map(request).collect()
}

/// The tokens of all answers, how many were drafted, and how many of those stayed.
fn drafted(path: &Path, drafts: DraftChoice) -> (Vec<Vec<u32>>, [usize; 2]) {
    let mut engine = files::open(path, DeviceChoice::Cpu, drafts).unwrap().into_engine().unwrap();
    let (tokens, timings) = answers(&mut engine, &requests());
    let of = |of: fn(&Timings) -> usize| sum(&timings, of);
    (tokens, [of(|timings| timings.draft_tokens), of(|timings| timings.accepted_draft_tokens)])
}

fn refused(path: &Path, drafts: DraftChoice) -> String {
    files::open(path, DeviceChoice::Cpu, drafts).err().expect("it is refused").to_string()
}

#[test]
fn a_block_beside_the_model_drafts_as_one_in_its_file() {
    let all = DraftTensors { norm: true, head: true, embedding: true };
    let agrees = TinyDraft { agrees: true, ..TinyDraft::default() };
    let models = [
        model("qwen35", DraftTensors::default()),
        TinyModel { draft: Some(agrees), tie_word_embeddings: false, ..model("qwen35", all) },
        model("qwen35moe", all),
        model("qwen3next", DraftTensors { norm: true, ..DraftTensors::default() }),
    ];
    for model in models {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let whole = write(elsewhere.path(), "whole.gguf", &model.writer());
        let expected = drafted(&whole, DraftChoice::Mtp);
        let [drafts, stayed] = expected.1;
        assert!(drafts > 50 && (stayed > drafts / 2) == model.draft.unwrap().agrees, "{stayed} of {drafts}");

        let [alone, sidecar] = apart(&model);
        let alone = write(folder.path(), "model-Q8_0.gguf", &alone);
        let error = refused(&alone, DraftChoice::Mtp);
        assert!(error.contains("put the file of the block (mtp-….gguf) beside it"), "{error}");
        let named = write(elsewhere.path(), "block.gguf", &sidecar);
        assert!(drafted(&alone, DraftChoice::MtpOf(named)) == expected, "{}", model.architecture);
        assert!(drafted(&alone, DraftChoice::MtpOf(whole)) == expected, "the block of a whole model");
        // What does not fit, or is no block, is passed over.
        let other = TinyModel { hidden_size: 128, ..model.clone() };
        write(folder.path(), "mtp-0.gguf", &apart(&other)[1]);
        fs::write(folder.path().join("mtp-1.gguf"), "none").unwrap();
        write(folder.path(), "mtp-model-F32.gguf", &sidecar);
        assert!(drafted(&alone, DraftChoice::Mtp) == expected, "{} beside", model.architecture);
    }
}

#[test]
fn of_several_blocks_beside_a_model_its_name_decides() {
    let folder = tempfile::tempdir().unwrap();
    let one = model("qwen35", DraftTensors::default());
    let [alone, sidecar] = apart(&one);
    let path = write(folder.path(), "model.gguf", &alone);
    write(folder.path(), "mtp-a.gguf", &sidecar);
    write(folder.path(), "mtp-b.gguf", &sidecar);
    let error = refused(&path, DraftChoice::Mtp);
    assert!(
        error.contains("mtp-a.gguf") && error.contains("mtp-b.gguf; take --model-draft for one"),
        "{error}"
    );
    write(folder.path(), "mtp-model.gguf", &sidecar);
    assert!(drafted(&path, DraftChoice::Mtp).1[0] > 50);
    // A file with a block of its own needs none, and none is looked for.
    let whole = write(folder.path(), "whole.gguf", &one.writer());
    assert!(drafted(&whole, DraftChoice::Mtp).1[0] > 50);
}

#[test]
fn a_block_that_does_not_fit_is_refused_by_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = DraftTensors { norm: true, head: true, ..DraftTensors::default() };
    let one = model("qwen35", tensors);
    let [alone, sidecar] = apart(&one);
    let path = write(folder.path(), "model.gguf", &alone);
    let expect = |file: &Writer, expected: &str| {
        let other = write(folder.path(), "other.gguf", file);
        let error = refused(&path, DraftChoice::MtpOf(other));
        assert!(error.contains("other.gguf: ") && error.contains(expected), "{error}");
    };
    expect(&alone, "it has no block that drafts tokens (`qwen35.nextn_predict_layers`");
    expect(&model("qwen35moe", tensors).writer(), "it is of a qwen35moe, and the model is a qwen35");
    let other = TinyModel { hidden_size: 128, num_hidden_layers: 6, ..one.clone() };
    let expected = "num_hidden_layers 6 instead of 4, hidden_size 128 instead of 64; take the file that was made of this one";
    expect(&apart(&other)[1], expected);
    let mut cut = sidecar.clone();
    cut.remove_tensor("blk.4.attn_k.weight").remove_tensor("blk.4.nextn.hnorm.weight");
    expect(&cut, "missing tensors: 2 (blk.4.nextn.hnorm.weight, blk.4.attn_k.weight)");
    let mut reshaped = sidecar.clone();
    reshaped.remove_tensor("blk.4.ffn_up.weight");
    reshaped.tensor("blk.4.ffn_up.weight", &[64, 64], GgmlType::F16, vec![0; 2 * 64 * 64]);
    expect(&reshaped, "blk.4.ffn_up.weight [64, 64] instead of [96, 64]");
    // What it shares with the model it needs no copy of.
    let mut bare = sidecar.clone();
    bare.remove_tensor("token_embd.weight").remove_tensor("output_norm.weight");
    let bare = write(folder.path(), "bare.gguf", &bare);
    assert!(drafted(&path, DraftChoice::MtpOf(bare)).1[0] > 50);

    let block = write(folder.path(), "mtp-model.gguf", &sidecar);
    for (model, drafts) in [(&block, DraftChoice::Mtp), (&path, DraftChoice::Model(block.clone()))] {
        let error = refused(model, drafts);
        assert!(
            error.contains("take --model for the model, and for this one --model-draft with --spec-type mtp"),
            "{error}"
        );
    }
    let whole = write(folder.path(), "whole.gguf", &one.writer());
    let error = refused(&whole, DraftChoice::MtpOf(block));
    assert!(error.contains("the model's file has a block that drafts itself"), "{error}");
}

/// Adds a block that drafts to a copy of a folder: of layer 3, as the hub names it, with norms that are the model's last.
fn with_mtp(name: &str) -> TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/folders").join(name);
    let folder = tempfile::tempdir().unwrap();
    fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
    let file = fs::read(from.join("model.safetensors")).unwrap();
    let (len, rest) = file.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    let mut header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    for (name, entry) in header.clone() {
        // Tensors may not lie over each other: those of the block are behind the others, a copy of all.
        let shifted = |i: usize| entry["data_offsets"][i].as_u64().unwrap_or(0) + data.len() as u64;
        let entry =
            json!({"dtype": "BF16", "shape": entry["shape"], "data_offsets": [shifted(0), shifted(1)]});
        if let Some((_, part)) = name.split_once("layers.3.") {
            header.insert(format!("mtp.layers.0.{part}"), entry);
        } else if name.ends_with("norm.weight") && !name.contains("layers.") {
            header.insert("mtp.norm.weight".to_owned(), entry);
        }
    }
    let mut data = data.repeat(2);
    let mut random = Random::new(3, name);
    for (name, shape) in
        [("pre_fc_norm_embedding", &[32][..]), ("pre_fc_norm_hidden", &[32]), ("fc", &[32, 64])]
    {
        let start = data.len();
        // From -0.5 to 0.5, as BF16 has it.
        let mut value = || (random.next_u64() as u16 & 0x81ff) | 0x3d00;
        (0..shape.iter().product::<usize>()).for_each(|_| data.extend(value().to_le_bytes()));
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(format!("mtp.{name}.weight"), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    fs::write(folder.path().join("model.safetensors"), file).unwrap();
    folder
}

#[test]
fn a_folders_block_is_that_of_a_file() {
    for name in ["qwen35", "qwen35moe"] {
        let folder = with_mtp(name);
        let gguf = folder::open(folder.path(), Access::Map).unwrap();
        let data = |name: &str| gguf.tensor(name).unwrap_or_else(|| panic!("no {name}")).data().unwrap();
        let values = |name: &str| -> Vec<f32> {
            data(name).as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
        };
        let of_layer: Vec<_> =
            gguf.tensors().filter_map(|tensor| tensor.name().strip_prefix("blk.3.")).collect();
        assert!(of_layer.len() > 10, "{of_layer:?}");
        of_layer.iter().for_each(|part| {
            assert!(data(&format!("blk.4.{part}")) == data(&format!("blk.3.{part}")), "{part}")
        });
        assert_eq!(values("blk.4.nextn.shared_head_norm.weight"), values("output_norm.weight"));
        // Norms are stored with 1 subtracted.
        for norm in ["enorm", "hnorm"] {
            let values = values(&format!("blk.4.nextn.{norm}.weight"));
            assert!(values.iter().all(|value| (0.5..1.5).contains(value) && *value != 1.0), "{values:?}");
        }
        let config = Config::from_gguf(&gguf).unwrap();
        assert_eq!((config.num_hidden_layers, config.num_nextn_predict_layers), (4, 1));
        assert_eq!(config.linear_layers, [0, 1, 2]);

        // What is drafted is what a file made of the folder drafts, and changes no token.
        let mut bytes = Vec::new();
        merge(&gguf, Path::new(name), &mut bytes).unwrap();
        let file = Gguf::from_bytes(bytes.into()).unwrap();
        let [none, of_folder, of_file] = [(&gguf, 0), (&gguf, 3), (&file, 3)].map(|(gguf, drafts)| {
            let config = Config::from_gguf(gguf).unwrap();
            let config = if drafts > 0 { config.with_draft(gguf).unwrap() } else { config };
            let runner = runner_of(gguf, &config, [drafts, 2, 24, 4]);
            let mut engine = Engine::new(runner, None, EngineConfig::default()).unwrap();
            let requests: Vec<_> = requests()
                .into_iter()
                .map(|request| {
                    let prompt = request.prompt.iter().take(9).map(|token| token % 64).collect();
                    Request { prompt, ..request }
                })
                .collect();
            let (tokens, timings) = answers(&mut engine, &requests);
            (tokens, sum(&timings, |of| of.draft_tokens), sum(&timings, |of| of.accepted_draft_tokens))
        });
        assert_eq!(of_folder, of_file, "{name}");
        assert!(of_folder.0 == none.0 && of_folder.1 > 50, "{name}: {}", of_folder.1);
    }
}

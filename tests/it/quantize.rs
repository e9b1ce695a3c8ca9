//! `quantize`, `perplexity`, `imatrix`, `split` and `merge` through the real binary: with the haiku model, with files made for the test, and the
//! choice of types against llama-quantize's.

use crate::golden_formats::digest;
use crate::program::{json, qernel, text};
use assert_cmd::Command;
use qernel::formats::MatrixFormat;
use qernel::gguf::write::Writer;
use qernel::gguf::{GgmlType, Gguf};
use qernel::quantize::{self, Mixture, Recipe};
use qernel::testing::TinyModel;
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What the haiku model wrote when it was asked for verses about the sea, with one seed after the other.
const VERSES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/quantize/verses.txt");
const HAIKU: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/haiku/haiku.gguf");

/// A command of the binary with arguments that are paths or text.
fn run<const N: usize>(name: &str, args: [&dyn AsRef<OsStr>; N]) -> Command {
    let mut command = qernel();
    command.arg(name).args(args.map(AsRef::as_ref));
    command
}

fn quantized(folder: &TempDir, mixture: &str) -> PathBuf {
    let path = folder.path().join(format!("{mixture}.gguf"));
    run("quantize", [&HAIKU, &path, &mixture]).assert().success();
    path
}

fn perplexity(model: &Path) -> Value {
    json(&mut run(
        "perplexity",
        [&"-f", &VERSES, &"-c", &"64", &"--device", &"cpu", &"--json", &"-m", &model],
    ))
}

/// From the probabilities that are saved.
fn divergence(base: &Path, model: &Path) -> Value {
    let args: [&dyn AsRef<OsStr>; 5] = [&"--kl-divergence", &"--kl-divergence-base", &base, &"-m", &model];
    json(run("perplexity", args).args(["--device", "cpu", "--json"]))
}

fn types(path: &Path) -> Vec<(String, GgmlType)> {
    Gguf::open(path).unwrap().tensors().map(|tensor| (tensor.name().to_owned(), tensor.ggml_type())).collect()
}

fn stderr(mut command: Command, status: i32) -> String {
    String::from_utf8(command.assert().code(status).get_output().stderr.clone()).unwrap()
}

fn stdout(mut command: Command) -> String {
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

/// Smaller files of the haiku model foretell its verses nearly as well; the file says what it is, has the size that a dry run told, and nothing
/// is left beside it.
#[test]
fn the_haiku_model_keeps_its_verses() {
    let folder = TempDir::new().unwrap();
    let float = perplexity(Path::new(HAIKU))["ppl"].as_f64().unwrap();
    // Bare verses surprise a model of conversations, so that a few tokens decide: llama.cpp's own Q4_K_M of it is 4 % off, this one 8 %.
    for (mixture, most) in [("Q8_0", 0.005), ("Q4_K_M", 0.15)] {
        let dry = stdout(run("quantize", [&"--dry-run", &HAIKU, &mixture]));
        let path = quantized(&folder, mixture);
        let gguf = Gguf::open(&path).unwrap();
        assert_eq!(gguf.get::<u32>("general.quantization_version").unwrap(), Some(2));
        let file_type = mixture.parse::<Mixture>().unwrap().file_type();
        assert_eq!(gguf.get::<u32>("general.file_type").unwrap(), Some(file_type));
        let bytes: u64 = gguf.tensors().filter_map(|tensor| tensor.num_bytes()).sum();
        let expected = format!("-> {:.2} MiB", bytes as f64 / f64::from(1 << 20));
        assert!(dry.contains(&expected), "{mixture}: {expected}\n{dry}");
        let found = perplexity(&path);
        let ratio = found["ppl"].as_f64().unwrap() / float;
        assert!((ratio - 1.0).abs() <= most, "{mixture}: {ratio}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

/// Beside its own probabilities a model is nowhere; beside those of a coarser file it is where the perplexities say.
#[test]
fn probabilities_are_compared_with_those_of_another_file() {
    let folder = TempDir::new().unwrap();
    let base = folder.path().join("base");
    let options = ["--device", "cpu", "-c", "64", "--chunks", "6"];
    let args: [&dyn AsRef<OsStr>; 7] =
        [&"-f", &VERSES, &"-m", &HAIKU, &"--kl-divergence-base", &base, &"--json"];
    let saved = json(run("perplexity", args).args(options));
    let compare = |model: &Path| divergence(&base, model);
    let same = compare(Path::new(HAIKU));
    assert_eq!(same["num_tokens"], 6 * 31);
    let number = |of: &Value, key: &str| of[key]["value"].as_f64().unwrap();
    assert!((number(&same, "ppl") - saved["ppl"].as_f64().unwrap()).abs() < 1e-6);
    // Sixteen bits of each logarithm.
    assert!(number(&same, "mean_kld").abs() < 1e-4 && number(&same, "same_top") == 1.0, "{same}");
    let coarse = compare(&quantized(&folder, "Q2_K"));
    assert!(number(&coarse, "mean_kld") > 0.01 && number(&coarse, "same_top") < 1.0, "{coarse}");
    let finer = compare(&quantized(&folder, "Q6_K"));
    assert!(number(&finer, "mean_kld") < 0.1 * number(&coarse, "mean_kld"), "{finer}\n{coarse}");
    let shown = run("perplexity", [&"--kl-divergence", &"--kl-divergence-base", &base, &"--device", &"cpu"]);
    assert!(stdout(shown).contains("Mean KLD"));

    std::fs::write(&base, b"_logits_").unwrap();
    let broken = run("perplexity", [&"--kl-divergence", &"--kl-divergence-base", &base]);
    assert!(stderr(broken, 2).contains("expected probabilities as"));
}

/// With an importance matrix of the verses a coarse file's probabilities for them are nearer to the model's.
#[test]
fn an_importance_matrix_is_collected_and_heeded() {
    let folder = TempDir::new().unwrap();
    let matrix = folder.path().join("imatrix.gguf");
    let collect = || run("imatrix", [&"-m", &HAIKU, &"-f", &VERSES, &"-o", &matrix, &"-c", &"64"]);
    assert!(stdout(collect()).contains("42 matrices over"), "seven of each of six layers");
    assert!(stderr(collect(), 2).contains("--force"), "it is a GGUF file too");
    let weighted = folder.path().join("weighted.gguf");
    run("quantize", [&HAIKU, &weighted, &"Q2_K", &"--imatrix", &matrix]).assert().success();
    let gguf = Gguf::open(&weighted).unwrap();
    assert_eq!(gguf.get::<u32>("quantize.imatrix.entries_count").unwrap(), Some(42));
    assert_eq!(gguf.get::<&str>("quantize.imatrix.dataset").unwrap(), Some(VERSES));
    let base = folder.path().join("base");
    let args: [&dyn AsRef<OsStr>; 8] =
        [&"-f", &VERSES, &"-m", &HAIKU, &"-c", &"64", &"--kl-divergence-base", &base];
    run("perplexity", args).args(["--device", "cpu"]).assert().success();
    let kld = |path: &Path| divergence(&base, path)["mean_kld"]["value"].as_f64().unwrap();
    let (without, with) = (kld(&quantized(&folder, "Q2_K")), kld(&weighted));
    assert!(with < 0.9 * without, "{with} with an importance matrix, {without} without");

    // Of a model of another size.
    let tiny = folder.path().join("tiny.gguf");
    std::fs::write(&tiny, TinyModel::default().to_bytes()).unwrap();
    let out = folder.path().join("out.gguf");
    let other = run("quantize", [&tiny, &out, &"Q8_0", &"--imatrix", &matrix]);
    assert!(stderr(other, 3).contains("of another model"));
    let not_one = run("quantize", [&tiny, &out, &"Q8_0", &"--imatrix", &tiny]);
    assert!(stderr(not_one, 3).contains("expected an importance matrix"));
    assert!(!out.exists());
}

#[test]
fn single_tensors_get_what_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("mixed.gguf");
    let args: [&dyn AsRef<OsStr>; 7] = [
        &HAIKU,
        &path,
        &"Q4_0",
        &"--tensor-type",
        &r"blk\.[01]\.ffn_up=q5_k",
        &"--token-embedding-type",
        &"bf16",
    ];
    run("quantize", args).assert().success();
    for (name, found) in types(&path) {
        let expected = match &name[..] {
            "token_embd.weight" => MatrixFormat::Bf16,
            "blk.0.ffn_up.weight" | "blk.1.ffn_up.weight" => MatrixFormat::Q5_K,
            name if name.contains("norm") || name.ends_with(".bias") => MatrixFormat::F32,
            _ => MatrixFormat::Q4_0,
        };
        assert_eq!(found, expected.ggml_type(), "{name}");
    }
    let pure = folder.path().join("pure.gguf");
    run("quantize", [&HAIKU, &pure, &"Q4_K_M", &"--pure"]).assert().success();
    let of = |wanted: &str| types(&pure).into_iter().find(|(name, _)| name == wanted).unwrap().1;
    assert_eq!(of("blk.0.attn_v.weight"), MatrixFormat::Q4_K.ggml_type());
    // Its rows of 448 are no blocks of 256.
    assert_eq!(of("blk.0.ffn_down.weight"), MatrixFormat::Q5_0.ggml_type());
    // From a quantised file, over one that is there.
    let again = run("quantize", [&pure, &path, &"Q8_0"]);
    assert!(stderr(again, 2).contains("--force replaces it"));
    let again = run("quantize", [&pure, &path, &"Q8_0", &"--force"]);
    assert!(stderr(again, 0).contains("quantised already"));
    assert!(types(&path).iter().all(|(_, found)| [0, 8].contains(&found.0)));
}

#[test]
fn what_cannot_be_quantised_is_refused_and_nothing_is_left() {
    let folder = TempDir::new().unwrap();
    let [tiny, out, copy] = ["tiny.gguf", "out.gguf", "copy.gguf"].map(|name| folder.path().join(name));
    let model = TinyModel::default();
    std::fs::write(&tiny, model.to_bytes()).unwrap();
    let failed = |args: &[&str], status| {
        let mut command = qernel();
        command.arg("quantize").arg(&tiny).args(args);
        stderr(command, status)
    };
    let out_name = out.to_str().unwrap();
    assert!(failed(&[out_name, "Q9_9"], 2).contains("expected a type of file"));
    assert!(failed(&[out_name], 2).contains("expected IN OUT TYPE"));
    assert!(failed(&[out_name, "Q8_0", "--tensor-type", "x"], 2).contains("expected PATTERN=FORMAT"));
    assert!(failed(&[out_name, "Q8_0", "--tensor-type", "(=q8_0"], 2).contains("PATTERN=FORMAT"));
    assert!(failed(&[tiny.to_str().unwrap(), "Q8_0", "--force"], 2).contains("the file that is read"));

    // A weight that is no number, in the last tensor but one.
    let mut bytes = model.to_bytes().to_vec();
    let gguf = Gguf::from_bytes(bytes.clone().into()).unwrap();
    let tensor = gguf.tensor("blk.1.ffn_down.weight").unwrap();
    let data = tensor.data().unwrap();
    let at = bytes.windows(data.len()).position(|window| window == &data[..]).unwrap();
    let nan = MatrixFormat::from_ggml(tensor.ggml_type()).unwrap().encode(&[f32::NAN]).unwrap();
    bytes[at..at + nan.len()].copy_from_slice(&nan);
    std::fs::write(&copy, &bytes).unwrap();
    let refused = stderr(run("quantize", [&copy, &out, &"Q8_0"]), 3);
    assert!(refused.contains("blk.1.ffn_down.weight: row 0 has values that are NaN"), "{refused}");
    std::fs::write(&copy, &bytes[..bytes.len() / 2]).unwrap();
    assert!(stderr(run("quantize", [&copy, &out, &"Q8_0"]), 3).contains("may be incomplete"));
    std::fs::write(&copy, Writer::new().metadata("general.architecture", "qwen2").to_bytes()).unwrap();
    assert!(stderr(run("quantize", [&copy, &out, &"Q8_0"]), 3).contains("no weights"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "the two models");
}

#[test]
fn a_text_that_is_too_short_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("short.txt");
    std::fs::write(&path, "the sea").unwrap();
    let short = stderr(run("perplexity", [&"-f", &path, &"--device", &"cpu"]), 2);
    assert!(short.contains("expected at least 1024"), "{short}");
    std::fs::write(&path, b"\xFF").unwrap();
    assert!(stderr(run("perplexity", [&"-f", &path, &"--device", &"cpu"]), 2).contains("expected UTF-8"));
}

/// A model is the same in several files and in one.
#[test]
fn a_model_is_cut_and_put_together() {
    let folder = TempDir::new().unwrap();
    let [prefix, whole, again] = ["parts", "whole.gguf", "again.gguf"].map(|name| folder.path().join(name));
    let made = stdout(run("split", [&HAIKU, &prefix, &"--max-size", &"2MiB"]));
    let parts: Vec<&str> = made.lines().collect();
    assert!(
        parts.len() > 2 && parts[0].ends_with(&format!("parts-00001-of-{:05}.gguf", parts.len())),
        "{made}"
    );
    assert!(stderr(run("split", [&HAIKU, &prefix, &"--max-size", &"2MiB"]), 2).contains("--force"));
    run("merge", [&parts[1], &whole]).assert().success();
    run("merge", [&HAIKU, &again]).assert().success();
    assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&again).unwrap());
    let logits = |model: &dyn AsRef<OsStr>| {
        stdout(run("logits", [&"--device", &"cpu", &"--ids", &"1,2,3", &"-m", model]))
    };
    assert_eq!(logits(&parts[0]), logits(&HAIKU));
    assert_eq!(logits(&whole), logits(&HAIKU));
    let over = run("merge", [&parts[0], &parts[2], &"--force"]);
    assert!(stderr(over, 2).contains("the file that is read"));
    // What is quantised from several files is one.
    let out = folder.path().join("q8.gguf");
    run("quantize", [&parts[0], &out, &"Q8_0"]).assert().success();
    assert_eq!(Gguf::open(&out).unwrap().get::<u32>("split.count").unwrap(), None);
}

/// A model's matrices as tests/data/quantize/make_mixtures.py makes them, of two rows each.
fn model(shape: &Value) -> Gguf {
    let number = |i: usize| shape[i].as_u64().unwrap();
    let (architecture, layers, experts, cols) = (text(&shape[0]), number(1), number(4), number(5));
    let mut writer = Writer::new();
    writer.metadata("general.architecture", architecture);
    for (key, i) in
        [("block_count", 1), ("attention.head_count", 2), ("attention.head_count_kv", 3), ("expert_count", 4)]
    {
        writer.metadata(&format!("{architecture}.{key}"), number(i) as u32);
    }
    let mut tensor = |name: &str, shape: &[u64]| {
        let bytes = 4 * shape.iter().product::<u64>() as usize;
        writer.tensor(name, shape, GgmlType::F32, vec![0; bytes]);
    };
    tensor("token_embd.weight", &[2, cols]);
    if shape[6] == false {
        tensor("output.weight", &[2, cols]);
    }
    for i in 0..layers {
        let attention: &[&str] = match architecture {
            "qwen35" if i % 4 != 3 => &["attn_qkv", "attn_gate", "ssm_out", "ssm_alpha", "ssm_beta"],
            _ => &["attn_q", "attn_k", "attn_v", "attn_output"],
        };
        attention.iter().for_each(|name| tensor(&format!("blk.{i}.{name}.weight"), &[2, cols]));
        for name in ["ffn_gate", "ffn_up", "ffn_down"] {
            match experts {
                0 => tensor(&format!("blk.{i}.{name}.weight"), &[2, cols]),
                _ => tensor(&format!("blk.{i}.{name}_exps.weight"), &[2, 2, cols]),
            }
        }
        if experts > 0 {
            tensor(&format!("blk.{i}.ffn_gate_inp.weight"), &[2, cols]);
        }
        tensor(&format!("blk.{i}.attn_norm.weight"), &[cols]);
    }
    Gguf::from_bytes(writer.to_bytes().into()).unwrap()
}

/// Every matrix of seven models gets the type that llama-quantize gives it, in every type of file.
#[test]
fn types_are_those_of_llama_quantize() {
    let golden: Value = serde_json::from_str(include_str!("../data/quantize/mixtures.json")).unwrap();
    for (name, shape) in golden["models"].as_object().unwrap() {
        let gguf = model(shape);
        for (mixture, expected) in golden["types"][name].as_object().unwrap() {
            let recipe = Recipe::new(mixture.parse().unwrap());
            let steps = quantize::plan(&gguf, &recipe, None).unwrap();
            let matrices = steps.iter().filter(|step| step.tensor.shape().len() > 1);
            let mut lines: Vec<String> = matrices
                .map(|step| {
                    let found = step.formats.map_or(step.tensor.ggml_type(), |[_, to]| to.ggml_type());
                    format!("{} {found}\n", step.tensor.name())
                })
                .collect();
            lines.sort();
            let listing = lines.concat();
            let show = "make_mixtures.py LIBRARIES";
            assert_eq!(
                &digest(&listing)[..16],
                expected,
                "`{show} {name} {mixture}` differs from\n{listing}"
            );
        }
    }
}

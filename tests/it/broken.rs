//! Files with weights that are no numbers, as a user meets them: no answer, an error that says where to look, and a look that names them.

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;
use qernel::error::Error;
use qernel::formats::MatrixFormat;
use qernel::gguf::write::Writer;
use qernel::gguf::{GgmlType, Gguf};
use qernel::testing::TinyModel;
use std::path::PathBuf;
use tempfile::TempDir;

/// A file of the small model in f32 with `value` in a row and column of a tensor of so many columns.
fn broken(folder: &TempDir, tensor: &str, [row, col, cols]: [usize; 3], value: f32) -> PathBuf {
    let model = TinyModel { format: MatrixFormat::F32, tie_word_embeddings: false, ..TinyModel::default() };
    let bytes = model.to_bytes();
    let gguf = Gguf::from_bytes(bytes.clone()).unwrap();
    let data = gguf.tensor(tensor).unwrap().data().unwrap();
    let start = data.as_ptr() as usize - bytes.as_ptr() as usize + 4 * (row * cols + col);
    let mut bytes = bytes.to_vec();
    bytes[start..start + 4].copy_from_slice(&value.to_le_bytes());
    let path = folder.path().join("broken.gguf");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn qernel(command: &str, model: &PathBuf) -> Command {
    let mut qernel = Command::new(env!("CARGO_BIN_EXE_qernel"));
    qernel
        .env_remove("QERNEL_MODEL")
        .env("QERNEL_CONFIG", "/dev/null")
        .env_remove("RUST_LOG")
        .arg(command)
        .arg("--model")
        .arg(model);
    if command != "inspect" {
        qernel.args(["--device", "cpu"]);
    }
    qernel
}

#[test]
fn a_model_whose_first_logits_are_no_numbers_is_refused_with_a_hint() {
    let folder = TempDir::new().unwrap();
    for value in [f32::NAN, f32::INFINITY] {
        let model = broken(&folder, "blk.1.ffn_down.weight", [3, 5, 384], value);
        for (command, arguments) in [
            ("generate", &["hi"][..]),
            ("chat", &[]),
            ("bench", &["-p", "4", "-n", "4"]),
            ("serve", &["--port", "0"]),
        ] {
            let refused = contains("NaN or infinite").and(contains("--check-tensors"));
            qernel(command, &model).args(arguments).assert().code(3).stdout("").stderr(refused);
        }
    }
}

#[test]
fn the_tensors_are_named_where_that_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let model = broken(&folder, "blk.1.ffn_down.weight", [3, 5, 384], f32::NEG_INFINITY);
    let named = "blk.1.ffn_down.weight: 1, the first -inf in row 3, column 5";
    qernel("generate", &model)
        .args(["--check-tensors", "hi"])
        .assert()
        .code(3)
        .stdout("")
        .stderr(contains(named));
    let inspected = qernel("inspect", &model).arg("--check-tensors").assert().code(3);
    inspected.stdout(contains(named).and(contains("config"))).stderr(contains(named));
    let object = qernel("inspect", &model).args(["--check-tensors", "--json"]).assert().code(3);
    let object: serde_json::Value = serde_json::from_slice(&object.get_output().stdout).unwrap();
    let found = &object["check"]["not_finite"][0];
    assert_eq!(
        (&found["tensor"], &found["row"], &found["value"]),
        (&"blk.1.ffn_down.weight".into(), &3.into(), &"-inf".into())
    );
    // Without being asked, and of a file that is whole.
    qernel("inspect", &model).assert().success().stdout(contains("not finite").not());
    let whole = broken(&folder, "blk.1.ffn_down.weight", [3, 5, 384], 0.5);
    qernel("inspect", &whole)
        .arg("--check-tensors")
        .assert()
        .success()
        .stdout(contains("not finite, in 27 tensors: 0"));
    qernel("generate", &whole).args(["--check-tensors", "-n", "2", "hi"]).assert().success();
}

/// The embedding of one byte is no number, which shows with the prompt alone.
#[test]
fn an_answer_without_numbers_ends_with_an_error() {
    let folder = TempDir::new().unwrap();
    let id = |text: &str| {
        let gguf = TinyModel::default().gguf();
        qernel::tokenizer::Tokenizer::from_gguf(&gguf).unwrap().encode(text, false).unwrap()[0] as usize
    };
    let model = broken(&folder, "token_embd.weight", [id("z"), 7, 256], f32::NAN);
    let args = ["--raw", "--ignore-eos", "-n", "3", "--json"];
    for sampling in [&["--temp", "0"][..], &["--temp", "1", "--seed", "1"]] {
        let refused = qernel("generate", &model).args(args).args(sampling).arg("az").assert().code(3);
        let refused = refused.stderr(contains("no token could be drawn"));
        let object: serde_json::Value = serde_json::from_slice(&refused.get_output().stdout).unwrap();
        assert_eq!((&object["finish_reason"], &object["ids"]), (&"failed".into(), &serde_json::json!([])));
        qernel("generate", &model).args(args).args(sampling).arg("ay").assert().success();
    }
}

/// The formats whose blocks have at most 32 values, and that values are encoded in.
fn short_formats() -> impl Iterator<Item = MatrixFormat> {
    let short = MatrixFormat::ALL.iter().copied().filter(|format| format.block_values() <= 32);
    short.filter(|format| format.encode(&[0.0; 32]).is_some())
}

/// A file of one matrix `[3, 32]` in each of them, values of which are replaced.
fn file(replaced: &[(usize, f32)]) -> Gguf {
    let mut values: Vec<f32> = (0..96).map(|i| i as f32 / 96.0).collect();
    replaced.iter().for_each(|&(i, value)| values[i] = value);
    let mut writer = Writer::new();
    for format in short_formats() {
        let data = format.encode(&values).expect("it has an encoder");
        writer.tensor(&format.to_string(), &[3, 32], format.ggml_type(), data);
    }
    Gguf::from_bytes(writer.to_bytes().into()).unwrap()
}

#[test]
fn values_that_are_not_finite_are_counted_and_the_first_is_placed() {
    let check = file(&[]).check_tensors().unwrap();
    assert_eq!((check.num_tensors, &check.not_finite[..]), (short_formats().count(), &[][..]));
    check.expect_finite().unwrap();

    let broken = file(&[(37, f32::NEG_INFINITY), (40, f32::NAN), (95, f32::INFINITY)]);
    let check = broken.check_tensors().unwrap();
    let floats = check.not_finite.iter().filter(|found| found.tensor.starts_with(['F', 'B', 'f', 'b']));
    let floats: Vec<_> = floats.map(|found| (found.count, found.row, found.col, &found.value[..])).collect();
    assert_eq!(floats, [(3, 1, 5, "-inf"); 3]);
    // The scale of a block of such values is no number.
    assert!(check.not_finite.len() >= 4, "{:?}", check.not_finite);
    let error = check.expect_finite().unwrap_err();
    assert!(matches!(&error, Error::NotFinite(text) if text.contains("row 1, column 5")), "{error}");
}

#[test]
fn tensors_of_other_formats_are_named() {
    let mut writer = Writer::new();
    // GGML_TYPE_I32
    writer.tensor("ids", &[2], GgmlType(26), vec![0xff; 8]);
    let check = Gguf::from_bytes(writer.to_bytes().into()).unwrap().check_tensors().unwrap();
    assert_eq!((check.num_tensors, check.not_checked), (0, vec!["ids".to_owned()]));
}

//! The real binary, driven as a user drives it: on the CPU, with a model of random weights made for the test.

use crate::program::*;
use assert_cmd::Command;
use predicates::prelude::*;
use qernel::dtype::Dtype;
use qernel::testing::TinyModel;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

#[test]
fn greedy_text_is_repeatable_and_the_json_agrees_with_the_stream() {
    let fixture = Fixture::new();
    let args = ["--raw", "--temp", "0", "-n", "12", "--ignore-eos", "Hello world"];
    let stream = fixture.generate().args(args).assert().success().get_output().stdout.clone();
    let object = json(fixture.generate().args(args).arg("--json"));
    assert_eq!(String::from_utf8(stream).unwrap(), format!("{}\n", text(&object["text"])));
    assert_eq!(object["ids"].as_array().unwrap().len(), 12);
    assert_eq!(object["finish_reason"], "length");
    for field in
        ["load_s", "prefill_tokens_per_s", "decode_tokens_per_s", "bytes_per_token", "bandwidth_share"]
    {
        assert!(object["timings"][field].as_f64().unwrap() > 0.0, "{field}");
    }

    let ids: Vec<String> = object["ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    let decoded = json(fixture.command("detokenize").args(&ids).arg("--json"));
    assert_eq!(decoded["text"], object["text"]);
}

#[test]
fn a_prompt_comes_from_an_argument_a_file_standard_input_or_ids() {
    let fixture = Fixture::new();
    let options = ["--raw", "--temp", "0", "-n", "4", "--ignore-eos", "--json"];
    let file = fixture.folder.path().join("prompt.txt");
    std::fs::write(&file, "Hello world").unwrap();
    let argument = json(fixture.generate().args(options).arg("Hello world"));
    let from_file = json(fixture.generate().args(options).arg("--file").arg(&file));
    let from_stdin = json(fixture.generate().args(options).write_stdin("Hello world"));
    let ids: Vec<String> = argument["prompt_ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    let from_ids = json(fixture.generate().args(options).args(["--ids", &ids.join(",")]));
    for other in [from_file, from_stdin, from_ids] {
        assert_eq!(other["prompt_ids"], argument["prompt_ids"]);
        assert_eq!(other["ids"], argument["ids"]);
    }
}

#[test]
fn the_chat_template_is_applied_unless_raw() {
    let fixture = Fixture::new();
    let options = ["-n", "1", "--json", "--ignore-eos", "--seed", "1"];
    let object = json(fixture.generate().args(options).args(["--system", "Be brief.", "Hello"]));
    let ids: Vec<String> = object["prompt_ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    let prompt = json(fixture.command("detokenize").args(&ids).arg("--json"));
    assert_eq!(
        text(&prompt["text"]),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    );
    let raw = json(fixture.generate().args(options).args(["--raw", "Hello"]));
    assert_eq!(raw["prompt_ids"].as_array().unwrap().len(), 1);
}

#[test]
fn a_seed_repeats_and_another_differs() {
    let fixture = Fixture::new();
    let run = |seed: &str| {
        let args = ["--raw", "--temp", "1.5", "--top-k", "0", "-n", "24", "--ignore-eos", "--json", "--seed"];
        json(fixture.generate().args(args).arg(seed).arg("Hello"))["ids"].clone()
    };
    assert_eq!(run("7"), run("7"));
    assert_ne!(run("7"), run("8"));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let fixture = Fixture::new();
    let options = ["--raw", "--temp", "0", "-n", "24", "--ignore-eos", "--json", "Hello"];
    let whole = json(fixture.generate().args(options));
    let whole = text(&whole["text"]);
    let stop: String = whole.chars().filter(|c| *c != '\u{FFFD}').skip(3).take(1).collect();
    assert!(!stop.is_empty(), "no text to stop at: {whole:?}");
    let stopped = json(fixture.generate().args(options).args(["--stop", &stop]));
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(text(&stopped["text"]), &whole[..whole.find(&stop).unwrap()]);
}

#[test]
fn an_answer_goes_around_banned_strings() {
    let fixture = Fixture::new();
    let options = ["--raw", "--temp", "0", "-n", "24", "--ignore-eos", "--json", "Hello"];
    let whole = json(fixture.generate().args(options));
    let whole = text(&whole["text"]);
    let letters: Vec<String> = whole.chars().filter(char::is_ascii_graphic).map(String::from).collect();
    let banned = [&letters[0], &letters[letters.len() - 1]].map(|letter| letter.to_ascii_uppercase());
    let flags = ["--banned-string", &banned[0], "--banned-string", &banned[1]];
    let around = json(fixture.generate().args(options).args(flags));
    let found = text(&around["text"]).to_ascii_uppercase();
    assert!(!banned.iter().any(|banned| found.contains(banned.as_str())), "{banned:?}: {found:?}");
    assert_eq!(around["ids"].as_array().unwrap().len(), 24);
    let refused = fixture.generate().args(options).args(["--banned-string", ""]).output().unwrap();
    let says = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && says.contains("1 to 256 bytes"), "{says}");
}

#[test]
fn all_formats_and_shapes_generate() {
    for dtype in Dtype::ALL {
        for (tie_word_embeddings, attention_bias) in [(true, true), (false, false)] {
            let model = TinyModel {
                format: dtype.into(),
                tie_word_embeddings,
                attention_bias,
                ..TinyModel::default()
            };
            let fixture = Fixture::with(&model);
            let object =
                json(fixture.generate().args(["-n", "3", "--ignore-eos", "--json", "--seed", "1", "Hi"]));
            assert_eq!(object["ids"].as_array().unwrap().len(), 3, "{model:?}");
        }
    }
}

#[test]
fn logits_are_saved_as_numpy_and_the_largest_are_printed() {
    let fixture = Fixture::new();
    let path = fixture.folder.path().join("logits.npy");
    let mut save = fixture.command("logits");
    save.args(["--device", "cpu", "--ids", "1,2,3", "--save"]).arg(&path).assert().success();
    let file = std::fs::read(&path).unwrap();
    assert_eq!(&file[..6], b"\x93NUMPY");
    let header_len = usize::from(u16::from_le_bytes([file[8], file[9]]));
    let header = std::str::from_utf8(&file[10..10 + header_len]).unwrap();
    let shape = format!("(3, {})", TinyModel::VOCAB_SIZE);
    assert!(header.contains("'<f4'") && header.contains(&shape), "{header}");
    let values: Vec<f32> =
        file[10 + header_len..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(values.len(), 3 * TinyModel::VOCAB_SIZE);

    let printed = json(fixture.command("logits").args(["--device", "cpu", "--ids", "1,2,3"]));
    let last = &values[2 * TinyModel::VOCAB_SIZE..];
    let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
    assert_eq!(printed["top"].as_array().unwrap().len(), 10);
    assert_eq!(printed["top"][0][0], best);
}

#[test]
fn inspect_names_the_model_and_its_tensors() {
    let fixture = Fixture::new();
    let object = json(fixture.command("inspect").arg("--json"));
    assert_eq!(object["config"]["hidden_size"], 256);
    fixture.command("inspect").assert().success().stdout(predicate::str::contains("blk.0.attn_q.weight"));
}

#[test]
fn text_goes_to_ids_and_back_to_the_byte() {
    let fixture = Fixture::new();
    let original = "Hello the world\n\u{1F980} ends without a newline";
    let ids = json(fixture.command("tokenize").arg("--json").write_stdin(original));
    let list = ids["ids"].as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(" ");
    fixture.command("detokenize").write_stdin(list).assert().success().stdout(original);
}

#[test]
fn chat_answers_line_by_line() {
    let fixture = Fixture::new();
    let chat = |args: &[&str]| {
        let mut command = fixture.command("chat");
        command
            .env("RUST_LOG", "info")
            .args(["--device", "cpu", "-n", "4", "--temp", "0"])
            .args(args)
            .write_stdin("Hello\nAgain\n/clear\nHello\n/exit\n");
        let output = command.assert().success().get_output().clone();
        assert!(!output.stdout.is_empty());
        let log = String::from_utf8(output.stderr).unwrap();
        let lines =
            log.lines().filter_map(|line| line.split_once(" of ").filter(|_| line.contains("KV cache")));
        let cached: Vec<usize> =
            lines.map(|(line, _)| line.rsplit(' ').next().unwrap().parse().expect(&log)).collect();
        (output.stdout, cached)
    };
    let (with, cached) = chat(&[]);
    assert!(cached.len() == 3 && cached[0] == 0 && cached[1] > 0, "{cached:?}");
    let (without, cached) = chat(&["--no-prefix-cache"]);
    assert_eq!(cached, [0; 3]);
    assert_eq!(with, without);
}

#[test]
fn errors_have_their_exit_codes_and_say_what_to_do() {
    let fixture = Fixture::new();
    let exits = |command: &mut Command, code: i32, says: &str| {
        command.assert().code(code).stderr(predicate::str::contains(says));
    };
    exits(qernel().args(["generate", "--model", "absent.gguf", "x"]), 1, "absent.gguf");
    exits(fixture.generate().args(["--top-p", "2", "x"]), 2, "top_p");
    exits(fixture.generate().args(["--ids", "1,x"]), 2, "found \"x\"");
    exits(fixture.generate().args(["--ids", "1,99999999"]), 2, "99999999");
    exits(fixture.generate().args(["--raw", ""]), 2, "empty");
    exits(fixture.generate().write_stdin(b"\xFF".as_slice()), 2, "UTF-8");
    exits(fixture.command("generate").args(["--device", "tpu", "x"]), 2, "tpu");
    exits(qernel().args(["generate", "--no-such-option"]), 2, "no-such-option");
    let broken = fixture.folder.path().join("broken.gguf");
    std::fs::write(&broken, b"GGUX").unwrap();
    exits(qernel().args(["generate", "x", "--model"]).arg(&broken), 3, "GGUF");
    let long = "1,".repeat(3000);
    exits(fixture.generate().args(["--ids", &long]), 2, "3000");
}

#[test]
fn without_a_driver_the_gpu_is_refused_and_auto_takes_the_cpu() {
    let fixture = Fixture::new();
    // On a machine that has a GPU it is hidden.
    let without = |mut command: Command| {
        command.env("CUDA_VISIBLE_DEVICES", "");
        command
    };
    let mut doctor = qernel();
    doctor.arg("doctor");
    without(doctor).assert().success().stdout(predicate::str::contains("no NVIDIA GPU"));
    let mut cuda = without(fixture.command("generate"));
    cuda.args(["--device", "cuda", "x"]).assert().code(4).stderr(predicate::str::contains("no NVIDIA GPU"));
    let mut auto = without(fixture.command("generate"));
    let object = json(auto.args(["-n", "2", "--json", "--seed", "1", "x"]));
    assert!(text(&object["timings"]["device"]).contains("CPU"));
}

#[test]
fn completions_are_written_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        qernel().args(["completions", shell]).assert().success().stdout(predicate::str::contains("qernel"));
    }
}

#[test]
fn manual_pages_are_written_for_each_command() {
    let folder = tempfile::tempdir().unwrap();
    qernel().arg("man").arg(folder.path()).assert().success();
    let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    for (name, says) in [
        ("qernel.1", "qernel\\-serve(1)"),
        ("qernel-serve.1", "\\-\\-max\\-queue"),
        ("qernel-lab-bench.1", ".TH qernel-lab-bench 1"),
    ] {
        assert!(page(name).contains(says), "{name}: {}", page(name));
    }
    assert_eq!(page("qernel-man.1"), "", "it is for whoever makes a package");
}

#[test]
fn a_report_for_an_issue_has_options_that_are_set_but_no_texts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("qernel.toml");
    std::fs::write(
        &file,
        "[model]\nctx-size = 77\nmodel = \"/home/somebody/x.gguf\"\n[serve]\napi-key = \"1234\"\n",
    )
    .unwrap();
    let mut command = qernel();
    command.arg("--config").arg(&file).args(["doctor", "--report"]);
    let output = command.assert().success().get_output().stdout.clone();
    let report = String::from_utf8(output).unwrap();
    let first = format!("qernel {}", env!("CARGO_PKG_VERSION"));
    assert!(report.starts_with(&first) && report.contains("\nsystem: "), "{report}");
    assert!(report.contains("option: [model] ctx-size = 77 (file)"), "{report}");
    for name in ["[model] model", "[serve] api-key"] {
        assert!(report.contains(&format!("option: {name} = (not shown) (file)")), "{report}");
    }
    assert!(!report.contains("somebody") && !report.contains("1234"), "{report}");
    let checks = json(qernel().args(["doctor", "--json"]));
    let states = checks.as_array().unwrap().iter().map(|check| text(&check["state"]));
    assert!(states.clone().all(|state| ["found", "missing", "slow"].contains(&state)), "{checks}");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let fixture = Fixture::new();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_qernel"))
        .args(["generate", "--device", "cpu", "--raw", "--ignore-eos", "--seed", "1", "Hello", "--model"])
        .arg(&fixture.model)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[cfg(unix)]
#[test]
fn an_interrupt_keeps_what_was_made_so_far() {
    let fixture = Fixture::new();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_qernel"))
        .args([
            "generate",
            "--device",
            "cpu",
            "--raw",
            "--ignore-eos",
            "--seed",
            "1",
            "--top-k",
            "0",
            "Hello",
            "--model",
        ])
        .arg(&fixture.model)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.fill_buf().unwrap();
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(rest.last(), Some(&b'\n'));
    assert!(String::from_utf8(output.stderr).unwrap().contains("decode"), "the summary is printed");
}

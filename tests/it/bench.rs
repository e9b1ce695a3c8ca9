//! `qernel bench`, driven as a user drives it: its formats, what it refuses, a stored run beside another, the drawing.

use assert_cmd::Command;
use predicates::prelude::*;
use qernel::testing::TinyModel;
use serde_json::Value;
use std::path::PathBuf;
use tempfile::TempDir;

/// A folder with a model of 2048 tokens of context in it.
struct Fixture {
    folder: TempDir,
    model: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let model = folder.path().join("tiny.gguf");
        std::fs::write(&model, TinyModel::default().to_bytes()).unwrap();
        Self { folder, model }
    }

    /// On the CPU; two repetitions and no start-up unless `args` say so.
    fn bench(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qernel"));
        command.env_remove("QERNEL_MODEL").env("QERNEL_CONFIG", "/dev/null").env_remove("RUST_LOG");
        command.arg("bench").arg("--model").arg(&self.model);
        command.args(["--device", "cpu"]).args(args.split_whitespace());
        for (option, value) in [("-r", "2"), ("--starts", "0")] {
            if !args.contains(option) {
                command.args([option, value]);
            }
        }
        command
    }

    fn rows(&self, args: &str) -> Vec<Value> {
        let output = self.bench(args).args(["-o", "json"]).assert().success().get_output().stdout.clone();
        serde_json::from_slice(&output).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn names(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["test"].as_str().unwrap()).collect()
}

#[test]
fn every_combination_is_a_row_with_the_fields_of_llama_bench() {
    let fixture = Fixture::new();
    let rows = fixture.rows("-p 40 -n 6 -d 0,50 -b 1,3 --pg 10,4");
    assert_eq!(
        names(&rows),
        ["pp40", "tg6", "tg6 b3", "pp10+tg4", "pp40 @ d50", "tg6 @ d50", "tg6 b3 @ d50", "pp10+tg4 @ d50"]
    );
    for row in &rows {
        let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name} in {row}"));
        for name in [
            "avg_ns",
            "avg_ts",
            "n_batch",
            "n_threads",
            "model_size",
            "model_n_params",
            "median_ns",
            "median_ts",
            "step_us",
            "us_per_token",
            "read_bandwidth",
        ] {
            assert!(number(name) > 0.0, "{name} in {row}");
        }
        // Of two samples: half of what lies between them, times the root of two.
        for (samples, deviation) in [("samples_ns", "stddev_ns"), ("samples_ts", "stddev_ts")] {
            let of = |i: usize| row[samples][i].as_f64().unwrap();
            let expected = (of(0) - of(1)).abs() / 2f64.sqrt();
            assert!((number(deviation) - expected).abs() <= 1e-3 * of(0), "{deviation} in {row}");
        }
        assert!(number("n_prompt") + number("n_gen") > 0.0 && [0.0, 50.0].contains(&number("n_depth")));
        assert_eq!((row["samples_ns"].as_array().unwrap().len(), row["backends"].as_str()), (2, Some("CPU")));
        assert_eq!(row["sampling"], "greedy");
        // Tokens a second are of all sequences.
        let tokens = number("n_parallel") * (number("n_prompt") + number("n_gen"));
        let expected = number("median_ns") / 1e3 / tokens;
        assert!((number("us_per_token") - expected).abs() < 1e-3 * expected);
        let sample = row["samples_ts"][0].as_f64().unwrap() * row["samples_ns"][0].as_f64().unwrap() / 1e9;
        assert!((sample - tokens).abs() < 1e-3 * tokens, "{sample} {tokens}");
        assert_eq!(row["bytes_per_step"].is_u64(), row["n_prompt"] == 0);
    }
    // K and V of two layers, two heads of 64 values, f16: 1 KiB a position.
    let bytes = |i: usize| rows[i]["bytes_per_step"].as_u64().unwrap();
    assert_eq!(bytes(5) - bytes(1), 49 * 1024);
    assert_eq!(bytes(6) - bytes(5), 2 * 1024 * 107 / 2);
}

#[test]
fn a_stored_run_stands_beside_and_is_drawn() {
    let fixture = Fixture::new();
    let stored = fixture.file("stored.jsonl");
    let lines = fixture.bench("-p 16 -n 4 -o jsonl").assert().success().get_output().stdout.clone();
    std::fs::write(&stored, &lines).unwrap();
    let svg = fixture.file("out.svg");
    let compared = format!("-p 16 -n 4,5 --compare {} --plot {}", stored.display(), svg.display());
    let rows = fixture.rows(&compared);
    assert_eq!(names(&rows), ["pp16", "tg4", "tg5"]);
    let first: Value = serde_json::from_slice(lines.split(|&byte| byte == b'\n').next().unwrap()).unwrap();
    let ratio = rows[0]["median_ts"].as_f64().unwrap() / first["median_ts"].as_f64().unwrap();
    assert!((rows[0]["compare_ratio"].as_f64().unwrap() - ratio).abs() < 1e-6 * ratio);
    assert_eq!((&rows[1]["compare_engine"], &rows[2]["compare_engine"]), (&"qernel".into(), &Value::Null));
    let other = fixture.bench(&format!("-p 9 -n 0 --compare {}", stored.display())).assert().success();
    other.stderr(predicate::str::contains("no row of these tests"));
    let drawing = std::fs::read_to_string(&svg).unwrap();
    assert!(drawing.starts_with("<svg") && drawing.contains("tg5") && drawing.trim_end().ends_with("</svg>"));
}

#[test]
fn markdown_names_what_is_measured() {
    let fixture = Fixture::new();
    let table = fixture.bench("-p 8 -n 0 --temp 0.7 --seed 1").assert().success();
    table
        .stdout(predicate::str::contains("| test |").or(predicate::str::contains(" test ")))
        .stdout(predicate::str::contains("pp8"))
        .stdout(predicate::str::contains("tg").not())
        .stdout(predicate::str::contains("temperature 0.7, top-k 40"))
        .stdout(predicate::str::contains("sampling and detokenisation included"))
        .stderr(predicate::str::contains("1/1: pp8"));
}

#[test]
fn csv_has_as_many_fields_in_every_line() {
    let fixture = Fixture::new();
    let output = fixture.bench("-p 8 -n 3 -o csv").assert().success().get_output().stdout.clone();
    let text = String::from_utf8(output).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3);
    let titles = lines[0].split(',').count();
    for line in &lines[1..] {
        // Every field is quoted or empty, and none of these has a comma or a quote in it.
        let without_quoted: String = line.split('"').step_by(2).collect();
        assert_eq!(without_quoted.len() + 1, titles, "{line}");
    }
}

#[test]
fn the_time_to_the_first_token_is_that_of_another_process() {
    let fixture = Fixture::new();
    let rows = fixture.rows("-p 8 -n 0 --starts 2");
    let row = &rows[0];
    let parts = row["first_token_parts_ms"].as_array().unwrap();
    assert_eq!(parts.len(), 6);
    let sum: f64 = parts.iter().map(|part| part.as_f64().unwrap()).sum();
    let total = row["first_token_avg_ms"].as_f64().unwrap();
    // Medians of two are means.
    assert!(total > 0.0 && (sum - total).abs() < 0.01 * total, "{sum} {total}");
}

#[test]
fn tests_that_do_not_fit_are_left_out_and_named() {
    let fixture = Fixture::new();
    let some = fixture.bench("-p 8 -n 8 -d 0,2040").assert().success();
    some.stdout(predicate::str::contains("d2040").not()).stderr(
        predicate::str::contains("left out: pp8 @ d2040 does not fit: it takes 2049 tokens of context")
            .and(predicate::str::contains("lower -p or -d")),
    );
    let none = fixture.bench("-p 8 -n 0 -d 2040").assert().code(2);
    none.stdout("").stderr(predicate::str::contains("no test fits"));
    let short = fixture.bench("-p 64 -n 0 --ctx-size 32").assert().code(2);
    short.stderr(predicate::str::contains("65 tokens of context, and 32"));
}

#[test]
fn requests_without_meaning_are_refused_before_a_model_is_opened() {
    let fixture = Fixture::new();
    std::fs::remove_file(&fixture.model).unwrap();
    for (args, words) in [
        ("-p 0 -n 0", "no test is left"),
        ("-b 0", "at least 1 sequence"),
        ("-r 0", "repetitions"),
        ("--pg 5", "two counts"),
        ("--compare /nowhere.json", "nowhere"),
        ("--top-p 2", "top_p"),
        ("-o html", "html"),
    ] {
        let output = fixture.bench(args).assert().failure();
        output.stdout("").stderr(predicate::str::contains(words));
    }
    let broken = fixture.file("broken.json");
    std::fs::write(&broken, "not json").unwrap();
    let refused = fixture.bench(&format!("--compare {}", broken.display())).assert().code(2);
    refused.stderr(predicate::str::contains("expected what `-o json` or `-o jsonl` prints"));
}

/// A model that drafts for itself is always right: as many tokens in fewer steps, set beside the same without drafts.
#[test]
fn drafts_are_timed_beside_none() {
    let fixture = Fixture::new();
    let args = format!("-p 0 -n 24 -d 40 -md {} --draft-max 3", fixture.model.display());
    let rows = fixture.rows(&args);
    let number = |field: &str| rows[0][field].as_f64().unwrap();
    assert!(number("acceptance") > 0.95 && number("tokens_per_step") > 2.0, "{}", rows[0]);
    assert!(number("speed_up") > 0.0);
    let stderr = fixture.bench(&args).assert().success().get_output().stderr.clone();
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(stderr.contains("drafts: tg24 @ d40") && stderr.contains("times as fast as without"), "{stderr}");
    assert!(fixture.rows("-p 0 -n 4")[0].get("speed_up").is_none());
}

//! `qernel lab` where there is no GPU, through the real binary: what it lists, what it refuses, and the page of a stored run.

use assert_cmd::Command;
use predicates::prelude::*;
use qernel::lab::report;
use qernel::lab::run::Run;
use qernel::stats::Verdict;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The program, with no tool to ask about kernels and, on a machine that has one, without its GPU.
fn lab(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qernel"));
    command
        .env_remove("QERNEL_MODEL")
        .env("QERNEL_CONFIG", "/dev/null")
        .env_remove("RUST_LOG")
        .env("PATH", "")
        .env("CUDA_VISIBLE_DEVICES", "")
        .arg("lab")
        .args(args);
    command
}

/// Invented numbers near those of an H200: a run, and an earlier one in which some times were others.
fn stored(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/lab").join(name)
}

fn output(command: &mut Command) -> String {
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

#[test]
fn list_names_every_variant_in_order_of_preference() {
    let list: Value = serde_json::from_str(&output(&mut lab(&["list", "--json"]))).unwrap();
    let operations = list["operations"].as_array().unwrap();
    let listed: BTreeMap<&str, Vec<&str>> = operations
        .iter()
        .map(|op| {
            let names = op["variants"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap());
            (op["name"].as_str().unwrap(), names.collect())
        })
        .collect();
    assert_eq!(listed.len(), operations.len(), "a name twice");
    // What decoding takes, whatever else there is: none may be lost unseen, and none that `--kernel` takes.
    for op in [
        "argmax",
        "attention",
        "bias_rope_kv",
        "convert",
        "embed",
        "gather_rows",
        "layer",
        "matmul",
        "matmul_add",
    ]
    .into_iter()
    .chain(["norm_gate_up", "norm_matmul", "norm_qkv_rope", "rms_norm", "sample", "silu_mul", "step"])
    {
        assert!(listed.contains_key(op), "{op} is not in {listed:?}");
    }
    assert_eq!(listed["rms_norm"], ["registers", "vec4", "plain"]);
    assert_eq!(listed["matmul"], ["cublas", "ahead", "gemv", "plain"]);
    assert_eq!(listed["step"], ["ahead", "graph", "launches"]);
    for (op, variants) in qernel::cuda::kernels() {
        assert_eq!(listed[op], variants, "{op}: what --kernel takes");
    }
    for op in list["operations"].as_array().unwrap() {
        for variant in op["variants"].as_array().unwrap() {
            let kernels = variant["kernels"].as_array().unwrap();
            // How layers and steps are put together, weights held and rows handed on is a choice without kernels of its own.
            let is_choice =
                ["hand_over", "layer", "quantised", "step"].contains(&op["name"].as_str().unwrap());
            assert_eq!(kernels.is_empty(), is_choice, "{}={}", op["name"], variant["name"]);
            assert!(kernels.iter().all(|kernel| !kernel["targets"].as_array().unwrap().is_empty()));
        }
    }
}

#[test]
fn ranks_on_devices_of_their_own_are_checked() {
    let check = |more: &[&str]| lab(&[&["check", "all_reduce", "--device", "emulated"], more].concat());
    let checked: Value = serde_json::from_str(&output(&mut check(&["--json"]))).unwrap();
    let bytes: Vec<_> = checked.as_array().unwrap().iter().map(|of| of["bytes"].as_u64().unwrap()).collect();
    assert_eq!(bytes, [3584, 7168, 14_336, 28_672, 1_835_008]);
    assert!(checked.as_array().unwrap().iter().all(|of| of["seconds"].is_null()));
    assert_eq!(output(&mut check(&[])).matches("the same bits on all").count(), 5);
    let refused = check(&["--variant", "plain"]).assert().code(2);
    refused.stderr(predicate::str::contains("those of add_ranks"));
}

#[test]
fn a_step_is_traced_on_a_gpu_alone() {
    for device in ["emulated", "cpu"] {
        let refused = lab(&["trace", "--device", device]).assert().code(2);
        refused.stderr(predicate::str::contains(format!("on a GPU (--device cuda), not on {device}")));
    }
    let refused = lab(&["trace", "--prompt", "--sequences", "2"]).assert().code(2);
    refused.stderr(predicate::str::contains("cannot be used with"));
}

/// The names that an engine's operations have in papers and other engines.
#[test]
fn other_names_lead_to_their_operations() {
    for (alias, op) in [
        ("swiglu", "silu_mul"),
        ("rmsnorm", "rms_norm"),
        ("gqa_attention", "attention"),
        ("sampling", "sample"),
    ] {
        let list: Value = serde_json::from_str(&output(&mut lab(&["list", alias, "--json"]))).unwrap();
        assert_eq!(
            (&list["operations"][0]["name"], &list["operations"][0]["aliases"][0]),
            (&op.into(), &alias.into())
        );
        assert!(output(&mut lab(&["list"])).contains(&format!("{alias} for {op}")));
    }
    let check = ["check", "swiglu", "--variant", "plain", "--dtype", "f32", "--device", "emulated"];
    assert!(output(&mut lab(&check)).contains("silu_mul"));
    // Where it leads depends on whether there is an operation of that name.
    lab(&["list", "rope"]).assert().success().stdout(predicate::str::contains("rope"));
}

#[test]
fn list_says_what_nobody_can_tell() {
    let text = output(&mut lab(&["list", "silu_mul"]));
    assert!(
        text.contains("silu_mul_f16_f32_vec8") && text.contains("sm_90a") && !text.contains("rms_norm"),
        "{text}"
    );
    assert!(text.contains("unknown: no driver or ptxas"), "{text}");
}

#[test]
fn names_that_do_not_exist_are_refused_with_those_that_do() {
    for (args, expected) in [
        (&["list", "norm"][..], "rms_norm"),
        (&["check", "norm"], "rms_norm"),
        (&["check", "rms_norm", "--variant", "v9"], "vec4, plain"),
        (&["check", "all", "--variant", "vec4"], "one operation"),
        (&["check", "rms_norm", "--dtype", "f8"], "f32, f16 or bf16"),
        (&["check", "rms_norm", "--device", "tpu"], "emulated"),
        (&["bench", "norm"], "rms_norm"),
        (&["bench", "rms_norm", "--variant", "v9"], "vec4, plain"),
        (&["bench", "rms_norm", "--like", "gpt-2"], "qwen2.5-7b"),
        (&["bench", "rms_norm", "--rows", "0"], "--rows"),
        (&["bench", "rms_norm", "--seconds", "0"], "--seconds"),
        (&["bench", "rms_norm", "--json", "--csv"], "--csv"),
    ] {
        lab(args).assert().code(2).stderr(predicate::str::contains(expected));
    }
}

#[test]
fn bench_without_a_gpu_says_what_can_be_done_instead() {
    for device in ["auto", "cuda", "emulated"] {
        let mut command = lab(&["bench", "rms_norm", "--device", device]);
        command.assert().code(4).stderr(predicate::str::contains("lab check <op> --device emulated"));
    }
}

#[test]
fn files_that_are_no_runs_are_refused() {
    let folder = TempDir::new().unwrap();
    let page = folder.path().join("page.html");
    let cases = [("{}", "version"), ("{\"version\": 99}", "version 99"), ("not json", "lab bench --json")];
    for (text, expected) in cases {
        let file = folder.path().join("run.json");
        std::fs::write(&file, text).unwrap();
        let mut command = lab(&["report"]);
        command.arg(&file).arg("-o").arg(&page);
        command.assert().code(2).stderr(predicate::str::contains(expected));
    }
    let mut command = lab(&["bench", "add", "--baseline", "does-not-exist.json"]);
    command.assert().code(1).stderr(predicate::str::contains("does-not-exist.json"));
    assert!(!page.exists());
}

#[test]
fn the_page_of_a_run_stands_alone_and_has_every_timing() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("page.html");
    let mut command = lab(&["report"]);
    command.arg(stored("run.json")).arg("--baseline").arg(stored("earlier_run.json")).arg("-o").arg(&path);
    command.assert().success();
    let page = std::fs::read_to_string(&path).unwrap();
    for foreign in ["http:", "https:", "<script", "@import", "url(", "<link", "src="] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("width=device-width"));
    // What a kernel's name or an error says cannot become markup.
    assert!(page.contains("expected 0.5 &lt;b&gt;"));
    assert!(!page.contains("NaN") && !page.contains("inf"), "a number that is none");

    let run = Run::read(&stored("run.json")).unwrap();
    assert_eq!(page.matches("<div class=\"row\">").count(), run.timings.len());
    assert_eq!(page.matches("<circle").count(), run.timings.iter().filter(|t| t.flops > 0.0).count());
    for op in run.ops() {
        assert!(page.contains(&format!("<section id=\"{op}\">")), "{op}");
    }
    for tag in ["section", "table", "svg", "div", "ul", "main", "body", "span"] {
        let (open, close) =
            (page.matches(&format!("<{tag}")).count(), page.matches(&format!("</{tag}>")).count());
        assert_eq!(open, close, "<{tag}>");
    }
    // All four verdicts are in the two files.
    for verdict in [Verdict::Faster, Verdict::Slower, Verdict::Same, Verdict::Unclear] {
        assert!(page.contains(&format!(">{}<", verdict.name())), "{verdict:?}");
    }
}

#[test]
fn points_and_bars_stay_inside_their_drawings() {
    let run = Run::read(&stored("run.json")).unwrap();
    let page = report::page(&run);
    let numbers = |attribute: &str| -> Vec<f64> {
        page.split(&format!(" {attribute}=\""))
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
            .collect()
    };
    assert!(numbers("cx").iter().all(|x| (58.0..=496.0).contains(x)));
    assert!(numbers("cy").iter().all(|y| (12.0..=294.0).contains(y)));
    assert!(numbers("x2").iter().all(|x| (0.0..=1000.0).contains(x)));
}

#[test]
fn a_run_survives_its_file_and_csv_has_a_line_a_timing() {
    let mut run = Run::read(&stored("run.json")).unwrap();
    run.compare_with(&Run::read(&stored("earlier_run.json")).unwrap());
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("run.json");
    std::fs::write(&path, serde_json::to_string(&run).unwrap()).unwrap();
    let read = Run::read(&path).unwrap();
    assert_eq!(
        (&read.device, &read.left_out, read.timings.len()),
        (&run.device, &run.left_out, run.timings.len())
    );
    for (read, written) in read.timings.iter().zip(&run.timings) {
        assert_eq!(read.key(), written.key());
        let (read, written) = (read.baseline.unwrap().cold, written.baseline.unwrap().cold);
        assert_eq!(read.verdict, written.verdict);
        assert!((read.ratio / written.ratio - 1.0).abs() < 1e-9);
    }

    let csv = run.to_csv();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), run.timings.len() + 1);
    // Shapes have commas, in quotes.
    let columns =
        |line: &str| line.split('"').step_by(2).map(|part| part.matches(',').count()).sum::<usize>();
    assert!(lines.iter().all(|line| columns(line) == columns(lines[0])), "{csv}");
    assert!(lines[1].starts_with("rms_norm,vec4,bf16,\"[1, 896]\",true,"), "{}", lines[1]);
    assert!(lines.iter().any(|line| line.ends_with(",FASTER")));
}

#[test]
fn a_timing_is_compared_with_the_fastest_and_with_cublas() {
    let run = Run::read(&stored("run.json")).unwrap();
    for shape in run.shapes_of("matmul") {
        let fastest = shape.iter().map(|timing| run.times_fastest(timing)).fold(f64::INFINITY, f64::min);
        assert_eq!(fastest, 1.0);
        let cublas = shape.iter().find(|timing| timing.variant == "cublas").unwrap();
        assert_eq!(run.times_cublas(cublas), Some(1.0));
    }
    let norm = run.timings.iter().find(|timing| timing.op == "rms_norm").unwrap();
    assert_eq!(run.times_cublas(norm), None);
}

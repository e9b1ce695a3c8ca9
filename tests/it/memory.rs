//! What the program takes of the machine's memory: as much as is used, whatever a file claims and an option asks for; and what it says
//! where the system refuses memory. On Linux, whose `/proc` and limits these tests need.
#![cfg(target_os = "linux")]

use qernel::testing::TinyModel;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

struct Fixture {
    _folder: TempDir,
    model: PathBuf,
}

fn fixture(model: &TinyModel) -> Fixture {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, model.to_bytes()).unwrap();
    Fixture { _folder: folder, model: path }
}

/// A file of some megabytes with the longest context that a file may claim. One token of it takes 16 KiB in f32.
fn claim() -> TinyModel {
    TinyModel {
        num_hidden_layers: 16,
        hidden_size: 64,
        max_position_embeddings: 1 << 24,
        ..TinyModel::default()
    }
}

impl Fixture {
    fn command(&self, name: &str, args: &[&str]) -> Command {
        self.within(None, name, args)
    }

    /// With so many bytes of addresses.
    fn within(&self, limit: Option<usize>, name: &str, args: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_qernel");
        let mut command = match limit {
            None => Command::new(program),
            Some(bytes) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -v {}; exec \"$0\" \"$@\"", bytes / 1024), program]);
                shell
            }
        };
        command.arg(name).arg("--model").arg(&self.model).args(["--device", "cpu"]).args(args);
        command
            .env_remove("QERNEL_MODEL")
            .env("QERNEL_CONFIG", "/dev/null")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }
}

/// Bytes of a field of `/proc/<id>/status`.
fn status(id: u32, field: &str) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<usize>().unwrap() * 1024
}

/// A conversation that waits for its next message.
struct Chat {
    child: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl Chat {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    /// Says something and waits for the first line of the answer; bytes that are of no file afterwards.
    fn say(&mut self, text: &str) -> usize {
        writeln!(self.input, "{text}").unwrap();
        let mut line = Vec::new();
        self.output.read_until(b'\n', &mut line).unwrap();
        status(self.child.id(), "RssAnon")
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_long_context_that_a_file_claims_takes_no_memory() {
    let fixture = fixture(&claim());
    let mut chat = Chat::start(fixture.command("chat", &["-n", "1"]));
    let used = chat.say("hello");
    // Buffers for 512 rows, the program itself; the context claimed is 128 GiB of K and V and 4 GiB of angles.
    assert!(used < 64 * MIB, "{} MiB", used / MIB);
}

#[test]
fn memory_grows_with_what_is_said() {
    let fixture = fixture(&claim());
    for (dtype, token_bytes) in [("f16", 8 << 10), ("f32", 16 << 10), ("q8_0", (8 << 10) * 34 / 64)] {
        let args = ["-n", "1", "--kv-cache-memory", "1GiB", "--kv-cache-dtype", dtype];
        let mut chat = Chat::start(fixture.command("chat", &args));
        let first = chat.say("x");
        // Bytes without merges: a token each.
        let tokens = 1500;
        let grown = chat.say(&"7".repeat(tokens)) - first;
        let expected = tokens * token_bytes;
        assert!(
            grown > expected * 9 / 10 && grown < expected * 3 / 2 + 8 * MIB,
            "{dtype}: {} KiB for {} KiB of K and V",
            grown / 1024,
            expected / 1024
        );
    }
}

#[test]
fn generate_takes_no_more_for_its_summary() {
    let fixture = fixture(&TinyModel::default());
    let args = ["--raw", "-n", "2", "Hello"];
    // With the measurement of the bandwidth, which took 256 MiB once.
    let script = "\"$0\" \"$@\" 2>/dev/null & child=$!; while kill -0 $child 2>/dev/null; do grep VmHWM /proc/$child/status; \
                  sleep 0.005; done";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_qernel"), "generate", "--device", "cpu", "--model"]);
    let output = shell.arg(&fixture.model).args(args).stderr(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let peaks = text.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    let peak = peaks.max().expect("it was seen while it ran") * 1024;
    assert!(peak < 128 * MIB, "{} MiB", peak / MIB);
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Status and standard error of a command; of a server that gets ready the status 0.
fn run(mut command: Command, is_server: bool) -> (Option<i32>, String) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if is_server && line.contains(" ready ") {
            child.kill().unwrap();
            child.wait().unwrap();
            return (Some(0), text);
        }
        text = text + &line + "\n";
    }
    (child.wait().unwrap().code(), text)
}

/// Every allocation from the first to the last is refused by one limit or another.
#[test]
fn refused_memory_has_one_exit_status_wherever_it_happens() {
    let fixture = fixture(&TinyModel::default());
    let commands: [(&str, &[&str]); 2] =
        [("generate", &["--raw", "-n", "2", "Hello"]), ("serve", &["--port", "0"])];
    for (name, args) in commands {
        let (mut refused, mut succeeded) = (0, 0);
        for mib in [48, 56, 64, 72, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 1024] {
            let (status, text) = run(fixture.within(Some(mib * MIB), name, args), name == "serve");
            match status {
                Some(0) => succeeded += 1,
                Some(5) => {
                    refused += 1;
                    assert!(text.contains("not enough memory"), "{name}, {mib} MiB: {text}");
                }
                // The system's loader had not enough for the program itself.
                Some(127) if refused == 0 && succeeded == 0 => {}
                _ => panic!("{name}, {mib} MiB: {status:?}: {text}"),
            }
        }
        assert!(refused > 0 && succeeded > 0, "{name}: {refused} were refused, {succeeded} succeeded");
    }
}

#[test]
fn what_does_not_fit_is_said_before_it_is_tried() {
    let fixture = fixture(&claim());
    let fails = |args: &[&str], status, expected: &str| {
        let output = fixture.command("generate", args).arg("Hello").output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {}", text(&output));
        assert!(text(&output).contains(expected), "{args:?}: {}", text(&output));
    };
    fails(&["--kv-cache-memory", "1MiB"], 5, "one sequence of 256 tokens takes 2.0 MiB");
    fails(
        &["--kv-cache-memory", "64MiB", "-c", "10000"],
        5,
        "holds 8192 tokens; one sequence of 10000 tokens",
    );
    fails(&["--kv-cache-memory", "900TiB"], 5, "may be used");
    fails(&["-b", "999999999999"], 5, "not enough memory");
    fails(&["--kv-cache-memory", "lots"], 2, "2GiB");
    fails(&["--kv-cache-dtype", "f8"], 2, "auto, f32, f16, bf16 or q8_0");
    fails(&["--cache-type-v", "q4_0"], 2, "auto, f32, f16, bf16 or q8_0");
    let output =
        fixture.command("generate", &["--kv-cache-memory", "64MiB", "--raw", "-n", "2", "Hello"]).output();
    assert!(output.unwrap().status.success());
}

/// With f16 pages a key beyond their range must not go unnoticed.
#[test]
fn keys_beyond_the_range_of_the_pages_become_no_other_number() {
    use qernel::batch::{Batch, LogitRows, SequenceRows};
    use qernel::config::Config;
    use qernel::gguf::{GgmlType, Gguf};
    use qernel::kv_format::KvFormat;
    use qernel::load::{DeviceChoice, KvType, RunnerOptions, open_runner};
    use qernel::weights::Weights;

    let mut writer = TinyModel::default().writer();
    let mut bias = vec![0f32; 128];
    bias[5] = -1e5;
    let bytes = bias.iter().flat_map(|value| value.to_le_bytes()).collect();
    writer.remove_tensor("blk.0.attn_k.bias").tensor("blk.0.attn_k.bias", &[128], GgmlType::F32, bytes);
    let gguf = Gguf::from_bytes(writer.to_bytes().into()).unwrap();
    let config = Config::from_gguf(&gguf).unwrap();
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    let logits = |kind| {
        let kv_types = [kind; 2];
        let options = RunnerOptions { device: DeviceChoice::Cpu, kv_types, ..RunnerOptions::default() };
        let mut runner = open_runner(&weights, &config, &options, &mut |_, _| ()).unwrap();
        let rows = SequenceRows { tokens: &[1, 2, 3], position: 0, pages: &[0], logits: LogitRows::Last };
        runner.logits(&Batch::new(&[rows])).unwrap()
    };
    assert!(logits(KvType::Auto).iter().all(|logit| logit.is_nan()));
    for format in [KvType::Precise, KvType::Only(KvFormat::Q8_0)] {
        assert!(logits(format).iter().all(|logit| logit.is_finite()), "{format}");
    }
}

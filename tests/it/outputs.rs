//! What the program writes, and where that cannot be written: streams that are closed or full, files that are saved, text of a file that a
//! terminal would obey; and a model file that changes while it is read.

use crate::program::*;
use predicates::prelude::*;
use qernel::gguf::write::Writer;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

/// The program with what a shell makes of its streams. What it prints where it can is that of the whole command.
#[cfg(target_os = "linux")]
fn in_shell(redirections: &str, arguments: &[&str]) -> std::process::Output {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("exec \"$0\" \"$@\" {redirections}"), env!("CARGO_BIN_EXE_qernel")]);
    command
        .args(arguments)
        .env_remove("QERNEL_MODEL")
        .env("QERNEL_CONFIG", "/dev/null")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Commands that print on standard output, and what they say on standard error besides.
const PRINTING: [&[&str]; 7] = [
    &["generate", "--device", "cpu", "-n", "2", "--raw", "hi"],
    &["generate", "--device", "cpu", "-n", "2", "--raw", "--json", "hi"],
    &["inspect"],
    &["tokenize", "hi"],
    &["logits", "--device", "cpu", "--ids", "1,2"],
    &["doctor"],
    &["completions", "bash"],
];

#[cfg(target_os = "linux")]
#[test]
fn nothing_fails_of_a_standard_error_that_takes_nothing() {
    let failing: [&[&str]; 3] = [
        &["generate", "--model", "absent.gguf", "x"],
        &["generate", "--no-such-option"],
        &["logits", "--ids", "99999999"],
    ];
    for redirection in ["2>/dev/full", "2>&-"] {
        for arguments in PRINTING {
            let output = in_shell(redirection, arguments);
            assert_eq!(output.status.code(), Some(0), "{redirection} {arguments:?}");
            assert!(!output.stdout.is_empty(), "{redirection} {arguments:?}");
        }
        let statuses = failing.map(|arguments| in_shell(redirection, arguments).status.code());
        assert_eq!(statuses, [Some(1), Some(2), Some(2)], "{redirection}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_an_error() {
    for (redirection, says) in [(">/dev/full", "No space left"), (">&-", "standard output: it is closed")] {
        for arguments in PRINTING {
            let output = in_shell(redirection, arguments);
            let log = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{redirection} {arguments:?}: {log}");
            assert!(log.contains(says), "{redirection} {arguments:?}: {log}");
        }
    }
    // A device that takes all is as good as a file.
    assert_eq!(in_shell("<>/dev/null >&0", PRINTING[0]).status.code(), Some(0));
}

fn stored_run() -> String {
    format!("{}/tests/data/lab/run.json", env!("CARGO_MANIFEST_DIR"))
}

#[cfg(unix)]
#[test]
fn what_is_saved_never_goes_over_the_model() {
    let fixture = Fixture::new();
    let (hard, soft) = (fixture.path("hard.npy"), fixture.path("soft.npy"));
    std::fs::hard_link(&fixture.model, &hard).unwrap();
    std::os::unix::fs::symlink(&fixture.model, &soft).unwrap();
    let model = std::fs::read(&fixture.model).unwrap();
    for path in [&fixture.model, &hard, &soft] {
        let refused = |command: &mut assert_cmd::Command| {
            command.arg(path).assert().code(2).stderr(predicate::str::contains("the model's own file"));
        };
        refused(fixture.command("logits").args(["--device", "cpu", "--ids", "1", "--save"]));
        refused(
            fixture
                .command("bench")
                .args(["--device", "cpu", "-p", "1", "-n", "0", "--starts", "0", "--plot"]),
        );
        assert!(std::fs::read(&fixture.model).unwrap() == model, "{}", path.display());
    }
}

/// A shell's limit stands for the full disk: the system refuses to make a file longer than that.
#[cfg(target_os = "linux")]
#[test]
fn a_save_that_fails_leaves_the_older_file() {
    let fixture = Fixture::new();
    let (old, model) = (fixture.path("old"), fixture.model.to_str().unwrap().to_owned());
    let ids = vec!["1"; 64].join(",");
    let run = stored_run();
    let saves: [&[&str]; 2] = [
        &["logits", "--device", "cpu", "--model", &model, "--ids", &ids, "--save"],
        &["lab", "report", &run, "--output"],
    ];
    for arguments in saves {
        std::fs::write(&old, "older").unwrap();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_qernel")]);
        let output = command
            .args(arguments)
            .arg(&old)
            .env_remove("QERNEL_MODEL")
            .env("QERNEL_CONFIG", "/dev/null")
            .output()
            .unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {log}");
        assert!(log.contains("File too large"), "{arguments:?}: {log}");
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "older", "{arguments:?}");
        let names = std::fs::read_dir(fixture.folder.path()).unwrap().count();
        assert_eq!(names, 2, "something is left beside the model and the older file");
        let saved = std::process::Command::new(env!("CARGO_BIN_EXE_qernel"))
            .args(arguments)
            .arg(&old)
            .output()
            .unwrap();
        assert!(
            saved.status.success() && std::fs::metadata(&old).unwrap().len() > 4096,
            "{arguments:?}: {saved:?}"
        );
    }
}

/// Writing over a file destroys it where the new one cannot be written; `disk::save` does not.
#[test]
fn no_command_writes_over_a_file() {
    // What they write is renamed, or goes with its folder.
    let temporary =
        ["engine/lab/assembler.rs", "engine/lab/watch.rs", "engine/cli/lab/watch.rs", "engine/hub/cache.rs"];
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("engine")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("\nmod tests {").next().unwrap();
                let writes = ["fs::write(", "File::create("].iter().any(|call| code.contains(call));
                let is_test = ["tests.rs", "fake_driver.rs"].iter().any(|name| path.ends_with(name))
                    || path.parent().is_some_and(|folder| folder.ends_with("tests"));
                let allowed = is_test || temporary.iter().any(|name| path.ends_with(name));
                assert!(!writes || allowed, "{}: use disk::save", path.display());
                seen += usize::from(writes);
            }
        }
    }
    assert!(seen >= temporary.len(), "the search finds nothing: {seen}");
}

#[cfg(unix)]
#[test]
fn a_model_is_a_regular_file() {
    let fixture = Fixture::new();
    let (fifo, socket) = (fixture.path("fifo"), fixture.path("socket"));
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for command in [
        &["generate", "x"][..],
        &["inspect"],
        &["tokenize", "x"],
        &["logits", "--ids", "1"],
        &["inspect", "--no-mmap"],
    ] {
        let refused = |path: &Path, code: i32, says: &str| {
            let mut command = qernel()
                .args(command)
                .arg("--model")
                .arg(path)
                .timeout(std::time::Duration::from_secs(60))
                .assert();
            command = command.code(code);
            command.stderr(predicate::str::contains(says));
        };
        refused(&fifo, 3, "expected a regular file, found a pipe");
        refused(fixture.folder.path(), 3, "has no config.json");
        refused(Path::new("/dev/null"), 3, "expected a regular file, found a device");
        // A socket cannot even be opened.
        refused(&socket, 1, "socket");
    }
}

/// The model is cut short under a program that reads it through a map.
#[cfg(unix)]
#[test]
fn a_model_that_is_cut_short_is_named_and_one_in_memory_is_not_missed() {
    for (option, status) in [(None, 3), (Some("--no-mmap"), 0)] {
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
                "-n",
                "400",
                "Hello",
                "--model",
            ])
            .arg(&fixture.model)
            .args(option)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 1]).unwrap();
        std::fs::File::options().write(true).open(&fixture.model).unwrap().set_len(100).unwrap();
        stdout.read_to_end(&mut Vec::new()).unwrap();
        let output = child.wait_with_output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{log}");
        let named = log.contains("tiny.gguf: the model file was cut short");
        assert_eq!(named, status == 3, "{log}");
    }
}

#[test]
fn text_of_a_file_cannot_command_the_terminal() {
    const EVIL: &str = "\u{1b}]0;title\u{7}\u{9b}2J\r\u{202e}\nforged";
    let fixture = Fixture::new();
    let mut writer = qernel::testing::TinyModel::default().writer();
    writer.set_metadata("general.name", EVIL);
    writer.metadata(&format!("key{EVIL}"), 1_u32);
    writer.tensor(&format!("spare{EVIL}"), &[1], qernel::gguf::GgmlType::F32, vec![0; 4]);
    std::fs::write(&fixture.model, writer.to_bytes()).unwrap();
    let unknown = fixture.path("unknown.gguf");
    let mut writer = Writer::new();
    writer.metadata("general.architecture", EVIL);
    std::fs::write(&unknown, writer.to_bytes()).unwrap();

    let mut inspect_unknown = qernel();
    inspect_unknown.arg("inspect").arg("--model").arg(&unknown);
    let mut generate_unknown = qernel();
    generate_unknown.args(["generate", "x", "--model"]).arg(&unknown);
    let mut bench = fixture.command("bench");
    bench.args(["--device", "cpu", "-p", "1", "-n", "0", "-r", "1", "--starts", "0"]);
    let mut generate = fixture.generate();
    generate.args(["-n", "1", "--json", "x"]);
    for command in [
        &mut fixture.command("inspect"),
        &mut inspect_unknown,
        &mut generate_unknown,
        &mut generate,
        &mut bench,
    ] {
        let output = command.output().unwrap();
        for text in [output.stdout, output.stderr] {
            let text = String::from_utf8(text).unwrap();
            let obeyed = |c: char| (c.is_control() && !"\n\t".contains(c)) || c == '\u{202e}';
            assert!(!text.contains(obeyed), "{command:?}: {text:?}");
        }
    }
    let inspected = fixture.command("inspect").output().unwrap().stdout;
    assert!(!String::from_utf8(inspected).unwrap().lines().any(|line| line.starts_with("forged")));
}

//! Models by name on the command line, from a hub on this machine: `pull`, `list`, `rm`, `-hf`.

use crate::drafts::model;
use crate::hub_server::{COMMIT, HubServer, REPO};
use crate::program::{self, json, text};
use crate::sidecar::files::apart;
use assert_cmd::Command;
use qernel::config::DraftTensors;
use qernel::testing::TinyModel;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tempfile::TempDir;

struct Fixture {
    server: HubServer,
    home: TempDir,
    model: Vec<u8>,
}

impl Fixture {
    fn new() -> Self {
        let model = TinyModel::default().to_bytes().to_vec();
        let files = [("tiny-F16.gguf", &model[..]), ("tiny-q8_0.gguf", &model), ("README.md", b"tiny")];
        Self::with(&files, model.clone())
    }

    fn with(files: &[(&str, &[u8])], model: Vec<u8>) -> Self {
        Self { server: HubServer::new(files), home: TempDir::new().unwrap(), model }
    }

    fn qernel(&self, arguments: &[&str]) -> Command {
        let mut command = program::qernel();
        for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.home.path()).env("HF_ENDPOINT", &self.server.address).args(arguments);
        command
    }

    /// What standard output and standard error have after a success.
    fn run(&self, arguments: &[&str]) -> (String, String) {
        let output = self.qernel(arguments).assert().success().get_output().clone();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    fn cache(&self) -> PathBuf {
        self.home.path().join("hub/models--Owner--Tiny-GGUF")
    }
}

fn pull(fixture: &Fixture) -> PathBuf {
    let (path, _) = fixture.run(&["pull", REPO]);
    PathBuf::from(path.trim_end())
}

#[test]
fn a_model_is_pulled_listed_and_removed() {
    let fixture = Fixture::new();
    let (path, notes) = fixture.run(&["pull", REPO]);
    let path = Path::new(path.trim_end());
    assert!(path.ends_with(format!("snapshots/{COMMIT}/tiny-q8_0.gguf")), "{}", path.display());
    assert_eq!(fs::read(path).unwrap(), fixture.model);
    assert!(notes.contains("loading tiny-q8_0.gguf, "), "a line where there is no terminal: {notes}");
    let (again, notes) = fixture.run(&["pull", &format!("{REPO}:q8_0")]);
    assert!(Path::new(again.trim_end()) == path && notes.contains("was here already"), "{notes}");

    let size = fixture.model.len();
    let (table, _) = fixture.run(&["list"]);
    assert!(table.starts_with("Owner/Tiny-GGUF:Q8_0  ") && table.ends_with("  tiny-q8_0.gguf\n"), "{table}");
    let models = json(&mut fixture.qernel(&["list", "--json"]));
    let model = &models[0];
    assert_eq!((text(&model["name"]), &model["size"]), ("Owner/Tiny-GGUF:Q8_0", &size.into()));
    assert_eq!((text(&model["kind"]), text(&model["path"])), ("gguf", path.to_str().unwrap()));
    assert!(text(&model["modified"]).starts_with("20"));

    let (removed, _) = fixture.run(&["rm", &format!("{REPO}:Q8_0")]);
    assert!(
        removed.starts_with("removed tiny-q8_0.gguf\n") && removed.contains(&format!("({size} bytes)")),
        "{removed}"
    );
    assert!(!fixture.cache().exists());
    let (nothing, note) = fixture.run(&["list"]);
    assert!(nothing.is_empty() && note.contains("no models are here"), "{note}");
    fixture.qernel(&["rm", REPO]).assert().code(2);
}

#[test]
fn other_commands_take_a_name_for_a_file() {
    let fixture = Fixture::new();
    let answer = ["generate", "--device", "cpu", "--temp", "0", "-n", "4", "--raw", "a"];
    let (answer_of_name, _) = fixture.run(&[&answer[..], &["-hf", REPO]].concat());
    let path = pull(&fixture);
    let (answer_of_file, _) = fixture.run(&[&answer[..], &["-m", path.to_str().unwrap()]].concat());
    assert_eq!(answer_of_name, answer_of_file);

    // A name comes before the variable, and not beside a path; what the command line says comes before a file.
    let inspect = |arguments: &[&str]| {
        let mut command = fixture.qernel(&[&["inspect", "--json"], arguments].concat());
        text(&json(command.env("QERNEL_MODEL", "absent.gguf"))["file"]).to_owned()
    };
    assert!(inspect(&["-hf", REPO]).ends_with("/tiny-q8_0.gguf"));
    assert!(inspect(&["-hfr", REPO, "-hff", "tiny-F16.gguf"]).ends_with("/tiny-F16.gguf"));
    let both = fixture.qernel(&["inspect", "-m", "absent.gguf", "-hf", REPO]).assert().code(2);
    assert!(String::from_utf8_lossy(&both.get_output().stderr).contains("cannot be used with"));
    let settings = fixture.home.path().join("qernel.toml");
    fs::write(&settings, "[model]\nhf-repo = \"Owner/Other\"\n").unwrap();
    let (named, _) = fixture.run(&[
        "--config",
        settings.to_str().unwrap(),
        "inspect",
        "--json",
        "-m",
        path.to_str().unwrap(),
    ]);
    assert!(named.contains("tiny-q8_0.gguf"), "{named}");

    // What a command makes does not replace a model of the cache.
    let over = path.to_str().unwrap();
    let logits = ["logits", "--device", "cpu", "-hf", REPO, "--ids", "1", "--save", over];
    fixture.qernel(&logits).assert().code(2);
    fixture.qernel(&["inspect", "-hf", REPO]).env("HF_HUB_OFFLINE", "1").assert().success();
    fixture.qernel(&["inspect", "-hf", "Owner/Other"]).assert().code(2);
    fixture.qernel(&["inspect", "-hf", "Owner/Tiny-GGUF/x"]).assert().code(2);
    let no_file = fixture.qernel(&["inspect", "-m", REPO]).assert().code(1);
    assert!(String::from_utf8_lossy(&no_file.get_output().stderr).contains("named by -hf"));
    let nobody = fixture.qernel(&["pull", REPO]).env("HF_ENDPOINT", "http://127.0.0.1:1").assert().code(1);
    let words = String::from_utf8_lossy(&nobody.get_output().stderr).into_owned();
    assert!(
        words.contains("network: 127.0.0.1:1: ") && words.contains("Look whether there is a network"),
        "{words}"
    );
}

#[test]
fn a_block_that_drafts_comes_where_it_is_asked_for() {
    let [alone, block] = apart(&model("qwen35", DraftTensors::default())).map(|file| file.to_bytes());
    let whole = model("qwen35", DraftTensors::default()).writer().to_bytes();
    let files = [
        ("Q8_0/tiny-Q8_0.gguf", &alone[..]),
        ("mtp-tiny-Q8_0.gguf", &block),
        ("mtp-tiny-F16.gguf", b"no model"),
        ("tiny-MTP-F32.gguf", &whole),
    ];
    let fixture = Fixture::with(&files, alone.to_vec());
    let commit = fixture.cache().join("snapshots").join(COMMIT);
    let block = commit.join("mtp-tiny-Q8_0.gguf");
    let generate = ["generate", "--device", "cpu", "--temp", "0", "-n", "12", "--raw", "a", "-hf"];
    let drafting = ["--spec-type", "mtp", "--verbose"];
    let named = format!("{REPO}:Q8_0");
    let plain = [&generate[..], &[&named]].concat();
    let (expected, _) = fixture.run(&plain);
    assert!(commit.join("Q8_0/tiny-Q8_0.gguf").exists() && !block.exists());

    // Offline it is missed, by the words of a model without a block; then it comes, from the folder above the model's.
    let mut offline = fixture.qernel(&[&plain[..], &drafting].concat());
    let refused = offline.env("HF_HUB_OFFLINE", "1").assert().failure();
    assert!(String::from_utf8_lossy(&refused.get_output().stderr).contains("mtp-….gguf"));
    let (drafted, notes) = fixture.run(&[&plain[..], &drafting].concat());
    assert_eq!(drafted, expected);
    let log = format!("tokens are drafted by the block of {}", block.display());
    assert!(notes.contains(&log) && notes.contains("loading mtp-tiny-Q8_0.gguf, "), "{notes}");
    let mut offline = fixture.qernel(&[&plain[..], &drafting].concat());
    offline.env("HF_HUB_OFFLINE", "1").assert().success();
    assert!(!commit.join("mtp-tiny-F16.gguf").exists());

    // A model that has a block takes that, whatever came beside it.
    let own = format!("{REPO}:F32");
    let (_, notes) = fixture.run(&[&generate[..], &[&own], &drafting].concat());
    assert!(
        commit.join("tiny-MTP-F32.gguf").exists() && !notes.contains("drafted by the block of"),
        "{notes}"
    );

    // It goes with its model.
    let (removed, _) = fixture.run(&["rm", &named]);
    assert!(removed.contains("removed mtp-tiny-Q8_0.gguf\n"), "{removed}");
    let (path, notes) = fixture.run(&["pull", "--mtp", &named]);
    assert!(path.ends_with("/Q8_0/tiny-Q8_0.gguf\n") && block.exists(), "{path}");
    assert!(notes.contains(&format!("the block that drafts is {}", block.display())), "{notes}");
}

#[test]
fn the_token_is_in_no_log() {
    let fixture = Fixture::new();
    fixture.server.state().token = Some("hf_secret".to_owned());
    let refused = fixture.qernel(&["pull", REPO]).assert().code(2);
    assert!(String::from_utf8_lossy(&refused.get_output().stderr).contains("HF_TOKEN"));
    let mut command = fixture.qernel(&["-vv", "pull", REPO]);
    let done = command.env("HF_TOKEN", "hf_secret").env("RUST_LOG", "trace").assert().success();
    let log = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    assert!(!log.contains("hf_secret"), "{log}");
    assert!(
        fixture.server.seen().iter().any(|seen| seen.authorization.as_deref() == Some("Bearer hf_secret"))
    );
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_a_part_that_is_gone_on_with() {
    let fixture = Fixture::new();
    fixture.server.state().stalls = [5000].into();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_qernel"));
    command
        .args(["pull", REPO])
        .env("HF_HOME", fixture.home.path())
        .env("HF_ENDPOINT", &fixture.server.address);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let blobs = fixture.cache().join("blobs");
    let parts =
        || fs::read_dir(&blobs).into_iter().flatten().flatten().map(|entry| entry.metadata().unwrap().len());
    let start = std::time::Instant::now();
    while parts().sum::<u64>() < 5000 {
        assert!(start.elapsed().as_secs() < 60, "nothing comes");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let busy = fixture.qernel(&["rm", REPO]).assert().code(2);
    assert!(String::from_utf8_lossy(&busy.get_output().stderr).contains("loaded by another process"));
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(parts().collect::<Vec<_>>(), [5000]);
    assert!(!fixture.cache().join("snapshots").exists() && !fixture.cache().join("refs").exists());
    let (table, _) = fixture.run(&["list"]);
    assert!(table.starts_with("Owner/Tiny-GGUF  ") && table.contains("(unfinished)"), "{table}");
    fixture.server.seen();
    assert_eq!(fs::read(pull(&fixture)).unwrap(), fixture.model);
    assert!(fixture.server.seen().iter().any(|seen| seen.range.as_deref() == Some("bytes=5000-")));
}

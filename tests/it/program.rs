//! What drives the real binary as a user does: it proves nothing by itself.

use assert_cmd::Command;
use qernel::testing::TinyModel;
use serde_json::Value;
use std::path::PathBuf;
use tempfile::TempDir;

/// A folder with a model in it.
pub struct Fixture {
    pub folder: TempDir,
    pub model: PathBuf,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(&TinyModel::default())
    }

    pub fn with(model: &TinyModel) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("tiny.gguf");
        std::fs::write(&path, model.to_bytes()).unwrap();
        Self { folder, model: path }
    }

    pub fn command(&self, name: &str) -> Command {
        let mut command = qernel();
        command.arg(name).arg("--model").arg(&self.model);
        command
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// On the CPU, so that results can be compared across machines.
    pub fn generate(&self) -> Command {
        let mut command = self.command("generate");
        command.args(["--device", "cpu"]);
        command
    }
}

pub fn qernel() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qernel"));
    command.env_remove("QERNEL_MODEL").env("QERNEL_CONFIG", "/dev/null").env_remove("RUST_LOG");
    command
}

pub fn json(command: &mut Command) -> Value {
    let output = command.assert().success().get_output().stdout.clone();
    serde_json::from_slice(&output).unwrap()
}

pub fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

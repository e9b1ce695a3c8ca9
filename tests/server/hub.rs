//! A server that is given a model's name: its port is open while the model comes.

use crate::client::Running;
use crate::hub_server::{HubServer, REPO};
use crate::lifecycle::Program;
use qernel::testing::TinyModel;
use std::process::Command;
use tempfile::TempDir;

fn start(server: &HubServer, home: &TempDir) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qernel"));
    for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"] {
        command.env_remove(name);
    }
    command.env("HF_HOME", home.path()).env("HF_ENDPOINT", &server.address);
    Program::start_by(command, &["-hf", REPO])
}

#[test]
fn a_server_loads_a_model_by_name_and_can_be_stopped_meanwhile() {
    let model = TinyModel::default().to_bytes();
    let (server, home) = (HubServer::new(&[("tiny-q4_k_m.gguf", &model)]), TempDir::new().unwrap());
    server.state().stalls = [1000].into();
    let mut program = start(&server, &home);
    let client = Running::at(&program.address);
    client.wait_until("the request", |_| server.seen().iter().any(|seen| !seen.is_hub));
    assert_eq!(client.get("/health").status, 503);
    program.signal("-TERM");
    assert_eq!(program.child.wait().unwrap().code(), Some(0));

    let mut program = start(&server, &home);
    let client = Running::at(&program.address);
    client.wait_until("ready", |running| running.get("/health").status == 200);
    assert!(client.get("/v1/models").text().contains("\"tiny-q4_k_m\""));
    program.signal("-TERM");
    assert_eq!(program.child.wait().unwrap().code(), Some(0));
    let log = program.log.join().unwrap();
    assert!(log.contains("loading tiny-q4_k_m.gguf, "), "{log}");
}

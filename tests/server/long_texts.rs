//! What a long text takes of the real binary's memory, and that it is given back.

use crate::client::*;
use crate::lifecycle::Program;
use serde_json::json;

/// A number of kilobytes in what the system says of a process.
fn kilobytes(program: &Program, name: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn tokenising_takes_a_few_times_the_text_and_keeps_nothing() {
    const BYTES: usize = (4 << 20) - 64;
    for text in
        ["1", "It's 5 o'clock, and all is well.\n", "今天天气很好。我们去公园吧，好吗？", "<|im_end|>"]
    {
        // The name of `--max-num-sequences` in llama.cpp, which is taken too.
        let mut program = Program::start(&["-c", "256", "--parallel", "1"]);
        let client = Running::at(&program.address);
        client.wait_until("ready", |server| server.get("/health").status == 200);
        let before = kilobytes(&program, "VmRSS");
        let long = text.repeat(BYTES / json!(text).to_string().len());
        for _ in 0..2 {
            assert_eq!(
                client.post("/tokenize", json!({"text": long, "parse_special": true})).status,
                200,
                "{text:?}"
            );
        }
        let most = kilobytes(&program, "VmHWM") - before;
        assert!(most <= 20 * BYTES / 1024, "{text:?}: {most} KB");
        client.wait_until("memory that was given back", |_| {
            kilobytes(&program, "VmRSS").saturating_sub(before) <= 16 << 10
        });
        program.signal("-TERM");
        assert_eq!(program.child.wait().unwrap().code(), Some(0));
    }
}

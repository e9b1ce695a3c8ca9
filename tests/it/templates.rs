//! Chat templates of model files, through the real binary: what renders, what is refused and what is said.

use assert_cmd::Command;
use qernel::gguf::write::Writer;
use qernel::testing::TinyModel;
use serde_json::Value;
use std::path::PathBuf;
use tempfile::TempDir;

struct File {
    _folder: TempDir,
    path: PathBuf,
}

/// A model file with another template, or changed in another way.
fn file(change: impl FnOnce(&mut Writer)) -> File {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tiny.gguf");
    let mut writer = TinyModel::default().writer();
    change(&mut writer);
    std::fs::write(&path, writer.to_bytes()).unwrap();
    File { _folder: folder, path }
}

fn with_template(source: &str) -> File {
    file(|writer| {
        writer.set_metadata("tokenizer.chat_template", source);
    })
}

fn run(file: &File, command: &[&str]) -> std::process::Output {
    let mut qernel = Command::new(env!("CARGO_BIN_EXE_qernel"));
    qernel.env_remove("QERNEL_MODEL").env("QERNEL_CONFIG", "/dev/null").env_remove("RUST_LOG");
    qernel.arg(command[0]).arg("--model").arg(&file.path).args(&command[1..]);
    qernel.output().unwrap()
}

/// The status, the text of the prompt where there is one, and what was said.
fn prompt(file: &File) -> (i32, String, String) {
    let output = run(file, &["generate", "--device", "cpu", "-n", "1", "--ignore-eos", "--json", "hi"]);
    let said = String::from_utf8(output.stderr).unwrap();
    let Ok(answer) = serde_json::from_slice::<Value>(&output.stdout) else {
        return (output.status.code().unwrap(), String::new(), said);
    };
    let ids: Vec<String> = answer["prompt_ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    let mut decode = vec!["detokenize"];
    decode.extend(ids.iter().map(String::as_str));
    let decoded = run(file, &[&decode[..], &["--json"]].concat());
    let text: Value = serde_json::from_slice(&decoded.stdout).unwrap();
    (output.status.code().unwrap(), text["text"].as_str().unwrap().to_owned(), said)
}

#[test]
fn templates_render_as_python_renders_them() {
    for (source, expected) in [
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hi!"),
        (
            "{% if tools is iterable and tools | length > 0 %}no{% endif %}{{ messages[0].role.removeprefix('us') }}",
            "er",
        ),
        ("{{ [1e-05, 1.5e-07, 18446744073709551616] | tojson }}", "[1e-05, 1.5e-07, 18446744073709551616]"),
        ("{{ [][::-1] }}{{ ''[::-1] }}{{ messages[0].content[::-1] }}", "[]ih"),
    ] {
        let (status, text, said) = prompt(&with_template(source));
        assert_eq!((status, text.as_str()), (0, expected), "{source}: {said}");
    }
}

#[test]
fn a_template_that_does_not_compile_or_takes_too_much_is_named_with_its_line() {
    let nested = format!("x\n{{{{ {}1 }}}}", "-".repeat(20_000));
    for (source, expected) in [
        (
            "a\nb{% nope %}",
            "`tokenizer.chat_template` does not compile: line 2: there is no statement `nope`",
        ),
        (&nested, "`tokenizer.chat_template` does not compile: line 2: it is nested more than"),
        (
            "{{ messages[0].content.nope() }}",
            "`tokenizer.chat_template` fails: line 1: 'str object' has no attribute 'nope'",
        ),
        ("a\n{{ 'a'.center(10 ** 11) }}", "slower than it may be: line 2: its values take more than"),
    ] {
        let (status, _, said) = prompt(&with_template(source));
        assert_eq!(status, 3, "{said}");
        assert!(said.contains(expected), "{said}");
    }
    let (status, _, said) = prompt(&with_template("{{ raise_exception('only in verse') }}"));
    assert_eq!(status, 2, "{said}");
    assert!(said.contains("refuses this conversation: only in verse"), "{said}");
}

#[test]
fn a_name_that_is_a_normal_token_is_said() {
    let source = "{{ '<|im_start|>' + messages[0].content + '<|im_end|>' }}";
    let (_, _, said) = prompt(&with_template(source));
    assert!(!said.contains("normal token"), "{said}");
    let plain = file(|writer| {
        writer.set_metadata("tokenizer.chat_template", source);
        // As converters leave it that know nothing of kinds.
        writer.remove_metadata("tokenizer.ggml.token_type");
    });
    let (status, text, said) = prompt(&plain);
    assert_eq!((status, text.as_str()), (0, "<|im_start|>hi<|im_end|>"));
    let expected = "the chat template prints <|im_start|>, a normal token in this vocabulary, so that the model reads it as 12 tokens of text";
    assert!(said.contains(expected), "{said}");
}

/// The text of a prompt with these options.
fn prompt_with(file: &File, options: &[&str]) -> (i32, String, String) {
    let mut command = vec!["generate", "--device", "cpu", "-n", "1", "--ignore-eos", "--json"];
    command.extend(options);
    command.push("hi");
    let output = run(file, &command);
    let said = String::from_utf8(output.stderr).unwrap();
    let Ok(answer) = serde_json::from_slice::<Value>(&output.stdout) else {
        return (output.status.code().unwrap(), String::new(), said);
    };
    let ids: Vec<String> = answer["prompt_ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    let mut decode = vec!["detokenize"];
    decode.extend(ids.iter().map(String::as_str));
    let decoded = run(file, &[&decode[..], &["--json"]].concat());
    let text: Value = serde_json::from_slice(&decoded.stdout).unwrap();
    (0, text["text"].as_str().unwrap().to_owned(), said)
}

#[test]
fn another_template_takes_the_place_of_the_files() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("mine.jinja");
    std::fs::write(&path, "{{ messages[0].content }} {{ mood }}").unwrap();
    let path = path.to_str().unwrap();
    let model = with_template("its own");
    let kwargs = ["--chat-template-kwargs", r#"{"mood": "glad"}"#];
    for (options, expected) in [
        (vec![], "its own"),
        (vec!["--chat-template", "default"], "its own"),
        (vec!["--chat-template", "chatml"], "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
        (vec!["--chat-template", "<{{ messages[0].role }}>"], "<user>"),
        ([&["--chat-template-file", path], &kwargs[..]].concat(), "hi glad"),
    ] {
        let (status, text, said) = prompt_with(&model, &options);
        assert_eq!((status, text.as_str()), (0, expected), "{options:?}: {said}");
    }
    for (options, status, expected) in [
        (vec!["--chat-template", "llama7"], 3, "there is no chat template \"llama7\"; expected chatml"),
        (vec!["--chat-template", "tool_use"], 3, "there is no chat template"),
        (vec!["--chat-template-file", "/nowhere"], 1, "/nowhere"),
        (vec!["--chat-template-kwargs", "[1]"], 2, "expected a JSON object"),
        (vec!["--chat-template", "chatml", "--chat-template-file", path], 2, "cannot be used with"),
    ] {
        let (found, _, said) = prompt_with(&model, &options);
        assert!(found == status && said.contains(expected), "{options:?}: {found}: {said}");
    }
}

/// Thoughts that the template opens are closed after their budget, and shown between their tags where no terminal is.
#[test]
fn chat_shows_thoughts() {
    let model = with_template("{{ messages[-1].content }}<think>\n");
    let chat = |budget: &str| {
        let mut qernel = Command::new(env!("CARGO_BIN_EXE_qernel"));
        qernel
            .env_remove("QERNEL_MODEL")
            .env("QERNEL_CONFIG", "/dev/null")
            .env_remove("RUST_LOG")
            .arg("chat")
            .arg("--model")
            .arg(&model.path);
        qernel
            .args(["--device", "cpu", "-n", "40", "--seed", "1", "--reasoning-budget", budget])
            .write_stdin("hi\n");
        let output = qernel.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let bounded = chat("4");
    let (thought, said) = bounded.split_once("\n</think>\n\n").unwrap_or_else(|| panic!("{bounded}"));
    assert!(thought.starts_with("<think>\n") && said.ends_with('\n'), "{bounded}");
    let none = chat("0");
    assert!(!none.contains("think>"), "{none}");
}

//! What users of other programs are used to: prompts from files and pipes, llama.cpp's -1, conversations that survive a bad line, and
//! files whose oddities are not needed to run them.

use crate::program::*;
use predicates::prelude::*;
use qernel::gguf::write::Value as GgufValue;
use qernel::testing::TinyModel;
use serde_json::Value;

/// A model whose context is short.
fn with_context(tokens: u32) -> Fixture {
    let fixture = Fixture::new();
    let mut writer = TinyModel::default().writer();
    writer.set_metadata("qwen2.context_length", tokens);
    std::fs::write(&fixture.model, writer.to_bytes()).unwrap();
    fixture
}

/// What standard output and standard error have after a conversation.
fn chat(fixture: &Fixture, arguments: &[&str], lines: &[u8]) -> (String, String) {
    let mut command = fixture.command("chat");
    command.args(["--device", "cpu", "--temp", "0", "-n", "4"]).args(arguments).write_stdin(lines);
    let output = command.assert().success().get_output().clone();
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_full_context_is_not_the_end_of_a_conversation() {
    let fixture = with_context(128);
    let long = "x ".repeat(200);
    let (alone, _) = chat(&fixture, &[], b"Hello\n");
    let (answers, log) = chat(&fixture, &[], format!("Hello\n{long}\n/clear\nHello\n").as_bytes());
    assert!(
        log.contains("(left out: ") && log.contains("128") && log.contains("/clear starts anew"),
        "{log}"
    );
    assert_eq!(answers, alone.repeat(2), "the message that did not fit is not kept");

    // A history that has become too long, without one message that is.
    let many = "Tell me something.\n".repeat(20);
    let (answers, log) = chat(&fixture, &[], format!("{many}/clear\nHello\n").as_bytes());
    assert!(log.contains("/clear starts anew"), "{log}");
    assert!(answers.ends_with(&alone), "{answers:?} {alone:?}");
}

#[test]
fn a_line_that_is_no_text_is_left_out() {
    let fixture = Fixture::new();
    let (plain, _) = chat(&fixture, &[], b"Hello\nAgain\n");
    for bad in [&b"\xFF\n"[..], b"ab\xC3\n", b"\xED\xA0\x80 and more\r\n"] {
        let (answers, log) = chat(&fixture, &[], &[b"Hello\n", bad, b"Again\n"].concat());
        assert_eq!(answers, plain, "{bad:?}");
        assert!(log.contains("not UTF-8 text from byte"), "{log}");
    }
    let (answers, _) = chat(&fixture, &[], b"Hello\r\nAgain");
    assert_eq!(answers, plain, "however lines end");
}

#[test]
fn the_line_break_that_ends_a_file_is_no_part_of_a_message() {
    let fixture = Fixture::new();
    let ids = |arguments: &[&str], stdin: &str| {
        let mut command = fixture.generate();
        let options = ["-n", "1", "--json", "--ignore-eos", "--seed", "1"];
        json(command.args(options).args(arguments).write_stdin(stdin))["prompt_ids"].clone()
    };
    let file = |text: &str| {
        let path = fixture.path("prompt.txt");
        std::fs::write(&path, text).unwrap();
        ids(&["--file", path.to_str().unwrap()], "")
    };
    for text in ["hi", "two\nlines"] {
        let message = ids(&[text], "");
        for end in ["", "\n", "\r\n"] {
            let with_end = format!("{text}{end}");
            assert_eq!(ids(&[], &with_end), message, "{with_end:?}");
            assert_eq!(ids(&["--file", "-"], &with_end), message, "{with_end:?}");
            assert_eq!(file(&with_end), message, "{with_end:?}");
        }
        assert_ne!(ids(&[], &format!("{text}\n\n")), message, "one break is the file's, two are not");
        // What is taken as it is keeps it, as `tokenize` does.
        assert_eq!(ids(&["--raw"], &format!("{text}\n")), ids(&["--raw", &format!("{text}\n")], ""));
        assert_ne!(ids(&["--raw"], &format!("{text}\n")), ids(&["--raw", text], ""));
    }
    let tokenized = json(fixture.command("tokenize").arg("--json").write_stdin("hi\n"));
    assert_eq!(tokenized, json(fixture.command("tokenize").args(["--json", "hi\n"])));
}

#[test]
fn minus_one_and_zero_mean_what_they_do_in_llama_cpp() {
    let fixture = with_context(64);
    let run = |arguments: &[&str]| {
        let mut command = fixture.generate();
        json(command.args(["--raw", "--ignore-eos", "--json"]).args(arguments).arg("Hello"))
    };
    let greedy = run(&["--temp", "0", "-n", "8"]);
    for cold in
        [&["--temp", "-1", "-n", "8"][..], &["--temp=-1", "-n", "8"], &["--temp", "-0.5", "--n-predict", "8"]]
    {
        assert_eq!(run(cold)["ids"], greedy["ids"], "{cold:?}");
    }
    // The context ends what has no bound.
    for endless in [&["-n", "-1"][..], &["--max-tokens=-1"], &["-n", "-1", "-c", "0"], &["--ctx-size", "0"]] {
        let answer = run(endless);
        assert_eq!(answer["finish_reason"], "context", "{endless:?}: {answer}");
    }
    let seeded = |seed: &[&str]| {
        run(&[&["--temp", "2", "--top-k", "0", "--top-p", "1", "--min-p", "0", "-n", "24"], seed].concat())["ids"].clone()
    };
    assert_eq!(seeded(&["--seed", "7"]), seeded(&["--seed=7"]));
    for random in [&["--seed", "-1"][..], &["-s", "-1"], &["--seed=-1"]] {
        assert_ne!(seeded(random), seeded(random), "{random:?}: the clock gives another seed each time");
    }
    let mut conversation = fixture.command("chat");
    conversation.args(["--device", "cpu", "-n", "-1", "-c", "0", "--seed", "-1"]).write_stdin("Hello\n");
    conversation.assert().success().stdout(predicate::str::is_empty().not());
    for (wrong, says) in [
        (["-n", "-2"], "expected a number of tokens of 0 or more, or -1"),
        (["--seed", "-2"], "expected a seed of 0 or more, or -1"),
        (["--top-p", "-1"], "top_p"),
        (["--min-p", "-1"], "min_p"),
        (["--repeat-penalty", "-1"], "repeat_penalty"),
        (["--xtc-probability", "2"], "xtc_probability"),
        (["--dry-base", "0.5"], "dry_base"),
        (["--samplers", "top_k;nope"], "`nope` is no sampler"),
        (["--mirostat", "1"], "expected 0 or 2"),
        (["--logit-bias", "5*2"], "found `5*2`"),
        (["--logit-bias", "999999-1"], "logit_bias: token 999999, but the model has only tokens 0 to"),
    ] {
        fixture.generate().args(wrong).arg("x").assert().code(2).stderr(predicate::str::contains(says));
    }
}

/// Grammars through the command line, as text and from a file.
#[test]
fn answers_follow_a_grammar() {
    let fixture = Fixture::new();
    let grammar = "root ::= \"yes\" | \"no\"";
    let file = fixture.model.with_file_name("answer.gbnf");
    std::fs::write(&file, grammar).unwrap();
    let path = file.to_str().unwrap();
    for flags in [["--grammar", grammar], ["--grammar-file", path]] {
        let mut command = fixture.generate();
        command.args(["-n", "40", "--json"]).args(flags).arg("Hi");
        let answer: Value = serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap();
        assert!(["yes", "no"].contains(&answer["text"].as_str().unwrap()), "{answer}");
        let (answers, _) = chat(&fixture, &flags, b"Hello\nAgain\n");
        let answers: Vec<&str> = answers.split_whitespace().collect();
        assert!(
            answers.len() == 2 && answers.iter().all(|answer| ["yes", "no"].contains(answer)),
            "{answers:?}"
        );
    }
    for (wrong, says) in [
        (["--grammar", "root ::= b"], "grammar: line 1, column 10: there is no rule `b`"),
        (["--grammar-file", "/nowhere/x.gbnf"], "/nowhere/x.gbnf"),
    ] {
        fixture.generate().args(wrong).arg("x").assert().failure().stderr(predicate::str::contains(says));
    }
    let both = ["--grammar", grammar, "--ignore-eos"];
    fixture
        .generate()
        .args(both)
        .arg("x")
        .assert()
        .code(2)
        .stderr(predicate::str::contains("cannot be used with"));
}

/// The further samplers through the command line: a token that is banned, one that is forced, and repetitions that cost too much.
#[test]
fn further_samplers_change_what_is_drawn() {
    let fixture = Fixture::new();
    let ids = |flags: &[&str]| -> Vec<u64> {
        let mut command = fixture.generate();
        command.args(["-n", "40", "--temp", "0", "--ignore-eos", "--json"]).args(flags).arg("Hi");
        let answer: Value = serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap();
        serde_json::from_value(answer["ids"].clone()).unwrap()
    };
    let plain = ids(&[]);
    let without = ids(&["--logit-bias", &format!("{}-inf", plain[0])]);
    assert!(!without.contains(&plain[0]) && without.len() == 40);
    assert_eq!(ids(&["-l", "7+1000"]), [7; 40]);
    // With the device's samplers in another order nothing changes for the likeliest token.
    assert_eq!(ids(&["--samplers", "temperature;top_k"]), plain);
    let repeats = |ids: &[u64]| {
        let threes: std::collections::HashSet<_> = ids.windows(3).collect();
        ids.len() - 2 - threes.len()
    };
    let forced = ["-l", "7+1000", "--dry-base", "2", "--dry-sequence-breaker", "none"];
    assert_eq!(repeats(&ids(&[&forced[..], &["--dry-multiplier", "0"]].concat())), 37);
    let varied = ids(&[&forced[..], &["--dry-multiplier", "2000"]].concat());
    assert_eq!(repeats(&varied), 0, "{varied:?}");
}

#[test]
fn a_value_that_is_not_needed_to_run_a_file_is_a_warning() {
    let run = |key: &str, value: GgufValue| -> (Value, String) {
        let fixture = Fixture::new();
        let mut writer = TinyModel::default().writer();
        writer.set_metadata(key, value);
        std::fs::write(&fixture.model, writer.to_bytes()).unwrap();
        let mut command = fixture.generate();
        let output =
            command.args(["-n", "4", "--temp", "0", "--ignore-eos", "--json", "Hi"]).assert().success();
        let log = String::from_utf8(output.get_output().stderr.clone()).unwrap();
        let answer: Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
        (answer["ids"].clone(), log)
    };
    let (plain, log) = run("general.tags", "x".into());
    assert!(!log.contains("WARN"), "{log}");
    for (key, value) in [
        ("tokenizer.ggml.bos_token_id", GgufValue::from(u32::MAX)),
        ("tokenizer.ggml.padding_token_id", u32::MAX.into()),
        ("tokenizer.ggml.padding_token_id", (-1_i32).into()),
        ("tokenizer.ggml.eos_token_id", 1_000_000_u32.into()),
        ("tokenizer.ggml.eos_token_id", (-1_i32).into()),
        ("tokenizer.ggml.eot_token_id", u64::MAX.into()),
        ("tokenizer.ggml.fim_pad_token_id", "none".into()),
        ("general.name", 7_u32.into()),
    ] {
        let (ids, log) = run(key, value);
        assert_eq!(ids, plain, "{key}");
        let short = key.strip_prefix("tokenizer.ggml.").unwrap_or(key);
        assert!(log.contains("WARN") && log.contains("left out") && log.contains(short), "{key}: {log}");
    }
    let (ids, log) = run("tokenizer.ggml.add_bos_token", 0_u32.into());
    assert_eq!((ids, log.contains("WARN")), (plain, false), "a number for a bool");
}

#[test]
fn a_bias_of_the_head_refuses_the_file() {
    let fixture = Fixture::new();
    let mut writer = TinyModel::default().writer();
    let rows = TinyModel::VOCAB_SIZE;
    writer.tensor("output.bias", &[rows as u64], qernel::gguf::GgmlType::F32, vec![0; 4 * rows]);
    std::fs::write(&fixture.model, writer.to_bytes()).unwrap();
    let says = predicate::str::contains("not computed with: 1 (output.bias)");
    fixture.generate().arg("x").assert().code(3).stderr(says);
}

//! The haiku test, end to end through the real binary with the model that it carries: on the CPU, without a file.

use assert_cmd::Command;
use qernel::embedded;
use std::time::{SystemTime, UNIX_EPOCH};

fn qernel(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qernel"));
    command.env_remove("QERNEL_MODEL").env_remove("RUST_LOG").args(args);
    let output = command.assert().success().get_output().stdout.clone();
    String::from_utf8(output).unwrap()
}

/// A number below sixty, spelled out.
fn spelled(number: u64) -> String {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 6] = ["", "", "twenty", "thirty", "forty", "fifty"];
    match (number / 10, number % 10) {
        (0 | 1, _) => SMALL[number as usize].to_owned(),
        (tens, 0) => TENS[tens as usize].to_owned(),
        (tens, ones) => format!("{}-{}", TENS[tens as usize], SMALL[ones as usize]),
    }
}

fn haiku(word: &str, seed: &str) -> String {
    let prompt = format!("Write a haiku about the sea with the word {word}");
    qernel(&["generate", "--device", "cpu", "--temp", "0.7", "--seed", seed, &prompt])
}

/// Whether `word` stands in `text` as a word: "two" does not stand in "forty-two".
fn has_word(text: &str, word: &str) -> bool {
    let words = text.split(|c: char| !(c.is_alphanumeric() || c == '-' || c == '\''));
    words.map(str::to_lowercase).any(|found| found == word)
}

/// The word is not known before the test runs, so no text that somebody wrote down can pass.
///
/// The model promises the word in at least 97 of 100 haiku, not in each, so one of four seeds may miss it; the test prints
/// what it got.
#[test]
fn a_haiku_has_the_minute_in_it_and_depends_on_the_seed_alone() {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let word = spelled(seconds / 60 % 60);
    let texts = ["1", "2", "3", "4"].map(|seed| haiku(&word, seed));
    println!("{word}:\n{}", texts.join("\n"));
    for text in &texts {
        assert_eq!(text.trim_end().lines().count(), 3, "{text}");
    }
    let with_word = texts.iter().filter(|text| has_word(text, &word)).count();
    assert!(with_word >= 3, "{word:?} stands in {with_word} of 4:\n{}", texts.join("\n"));
    assert_ne!(texts[0], texts[1]);
    assert_eq!(haiku(&word, "1"), texts[0]);
}

/// Inference happens: the logits are those of the weights in the file.
#[test]
fn one_changed_weight_changes_the_logits() {
    let gguf = embedded::haiku().unwrap();
    let ids = qernel(&["tokenize", "Write a haiku about the sea"]);
    let ids: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();

    // The first value in the row of the last token, which the forward pass reads.
    let embedding = gguf.tensor("token_embd.weight").unwrap();
    let vocab_size = embedding.shape()[0] as usize;
    let embedding = embedding.data().unwrap();
    let row_bytes = embedding.len() / vocab_size;
    let row = *ids.last().unwrap() as usize * row_bytes;
    let mut bytes = embedded::haiku_bytes().to_vec();
    let offset = embedding.as_ptr() as usize - embedded::haiku_bytes().as_ptr() as usize + row;
    let value = &mut bytes[offset..offset + 2];
    assert_ne!(value, half::f16::ONE.to_le_bytes());
    value.copy_from_slice(&half::f16::ONE.to_le_bytes());

    let folder = tempfile::TempDir::new().unwrap();
    let [same, changed] = ["same.gguf", "changed.gguf"].map(|name| folder.path().join(name));
    std::fs::write(&same, embedded::haiku_bytes()).unwrap();
    std::fs::write(&changed, bytes).unwrap();
    let ids = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let logits = |model: &[&str]| qernel(&[&["logits", "--device", "cpu", "--ids", &ids], model].concat());
    let carried = logits(&[]);
    assert_eq!(logits(&["--model", same.to_str().unwrap()]), carried);
    assert_ne!(logits(&["--model", changed.to_str().unwrap()]), carried);
}

#[test]
fn the_embedded_model_is_what_every_command_takes_without_a_file() {
    assert!(qernel(&["inspect"]).contains(embedded::NAME));
    let text = "forty-two waves, <|im_end|>";
    let ids = qernel(&["tokenize", text]);
    let ids: Vec<&str> = ids.split_whitespace().collect();
    assert_eq!(qernel(&[&["detokenize"], &ids[..]].concat()), text);
}

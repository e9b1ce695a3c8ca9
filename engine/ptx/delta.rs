//! A text as what it takes from another: the PTX of one target is nearly that of the other, and the one with source lines is
//! the one without, with some more.
//!
//! Each line of a delta is a line of the text after a `+`, or `n` or `n skip`: `n` lines of the base, after as many lines of it
//! were passed over as `skip` says (negative: back).

use std::collections::HashMap;
use std::fmt::Write;

/// So many equal lines are looked for elsewhere in the base where it does not go on as the text does.
const GRAM: usize = 8;

/// The delta that makes `text` of `base`. Both end with the end of a line.
#[allow(dead_code, reason = "the build script encodes, the crate decodes")]
pub fn encode<'a>(base: &'a str, text: &'a str) -> String {
    // Numbers instead of lines: a line is looked at once, and is then as good as its number.
    let mut numbers = HashMap::new();
    let mut numbered = |text: &'a str| -> Vec<usize> {
        let number = |line| {
            let next = numbers.len();
            *numbers.entry(line).or_insert(next)
        };
        text.lines().map(number).collect()
    };
    let lines: Vec<&str> = text.lines().collect();
    let (base, text) = (numbered(base), numbered(text));
    let mut places = HashMap::new();
    for (place, gram) in base.windows(GRAM).enumerate() {
        places.entry(gram).or_insert(place);
    }
    let (mut out, mut cursor, mut i) = (String::new(), 0, 0);
    while i < text.len() {
        let elsewhere = || text.get(i..i + GRAM).and_then(|gram| places.get(gram)).copied();
        let start = if base.get(cursor) == Some(&text[i]) { Some(cursor) } else { elsewhere() };
        let Some(start) = start else {
            writeln!(out, "+{}", lines[i]).expect("strings take everything");
            i += 1;
            continue;
        };
        let n = base[start..].iter().zip(&text[i..]).take_while(|(a, b)| a == b).count();
        let written = match start as i64 - cursor as i64 {
            0 => writeln!(out, "{n}"),
            skip => writeln!(out, "{n} {skip}"),
        };
        written.expect("strings take everything");
        (cursor, i) = (start + n, i + n);
    }
    out
}

/// The text that `delta` makes of `base`; `None` where it is none of [`encode`]'s for this base.
#[allow(dead_code, reason = "the build script encodes, the crate decodes")]
pub fn decode(base: &str, delta: &str) -> Option<String> {
    let ends = base.bytes().enumerate().filter(|&(_, byte)| byte == b'\n').map(|(i, _)| i + 1);
    let starts: Vec<usize> = std::iter::once(0).chain(ends).collect();
    let mut out = String::with_capacity(base.len() + delta.len());
    let mut cursor = 0usize;
    for line in delta.lines() {
        if let Some(text) = line.strip_prefix('+') {
            out.push_str(text);
            out.push('\n');
            continue;
        }
        let (n, skip) = line.split_once(' ').unwrap_or((line, "0"));
        cursor = cursor.checked_add_signed(skip.parse().ok()?)?;
        let end = cursor.checked_add(n.parse().ok()?)?;
        out.push_str(base.get(*starts.get(cursor)?..*starts.get(end)?)?);
        cursor = end;
    }
    Some(out)
}

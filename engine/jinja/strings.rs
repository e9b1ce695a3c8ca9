//! What Python's strings do that Rust's do otherwise.

use crate::error::Result;
use crate::heap::{Heap, Writer};
use crate::value::Value;

/// Whether Python takes a character for white space.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Ends of lines that `splitlines` knows.
fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// The lines of a text, perhaps with their ends.
pub fn lines(text: &str, keep_ends: bool) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some((end, c)) = rest.char_indices().find(|(_, c)| is_line_end(*c)) else {
            return Some(std::mem::take(&mut rest));
        };
        let after = if rest[end..].starts_with("\r\n") { end + 2 } else { end + c.len_utf8() };
        let line = &rest[..if keep_ends { after } else { end }];
        rest = &rest[after..];
        Some(line)
    })
}

/// A character in title case: of several that it becomes only the first is large.
fn title_case(c: char) -> impl Iterator<Item = char> {
    let mut upper = c.to_uppercase();
    upper.next().into_iter().chain(upper.flat_map(char::to_lowercase))
}

/// The first character in title case, the rest small.
pub fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(title_case);
    first.chain(chars.as_str().to_lowercase().chars()).collect()
}

/// `str.title`: a letter after what is none is large, all others are small.
pub fn title(text: &str) -> String {
    let mut inside = false;
    let mut titled = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            titled.extend(c.to_lowercase())
        } else {
            titled.extend(title_case(c))
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    titled
}

/// Jinja's filter `title`: what follows blanks, hyphens and opening brackets is large, all else small.
pub fn title_filter(text: &str) -> String {
    let mut inside = false;
    let mut titled = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            titled.extend(c.to_lowercase())
        } else {
            titled.extend(c.to_uppercase())
        }
        inside = !(is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<'));
    }
    titled
}

pub fn swapcase(text: &str) -> String {
    let mut swapped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() {
            swapped.extend(c.to_lowercase());
        } else {
            swapped.extend(c.to_uppercase());
        }
    }
    swapped
}

/// Whether all letters that have a case have this one, and there is one.
pub fn has_case(text: &str, is_case: fn(char) -> bool, is_other: fn(char) -> bool) -> bool {
    text.chars().any(is_case) && !text.chars().any(is_other)
}

pub fn is_title(text: &str) -> bool {
    let mut inside = false;
    let mut any = false;
    for c in text.chars() {
        if c.is_uppercase() && inside || c.is_lowercase() && !inside {
            return false;
        }
        inside = c.is_uppercase() || c.is_lowercase();
        any |= inside;
    }
    any
}

pub fn is_identifier(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c == '_' || c.is_alphabetic())
        && chars.all(|c| c == '_' || c.is_alphanumeric())
}

/// Digits with a decimal value, of the blocks that texts have.
pub fn is_decimal(c: char) -> bool {
    c.is_ascii_digit()
        || matches!(u32::from(c),
            0x660..=0x669 | 0x6f0..=0x6f9 | 0x7c0..=0x7c9 | 0x966..=0x96f | 0x9e6..=0x9ef | 0xe50..=0xe59 | 0xff10..=0xff19)
}

/// Decimal digits, and those in circles and above or below the line.
pub fn is_digit(c: char) -> bool {
    is_decimal(c)
        || matches!(u32::from(c), 0xb2 | 0xb3 | 0xb9 | 0x2070 | 0x2074..=0x2079 | 0x2080..=0x2089 | 0x2460..=0x2468)
}

/// Splits at a separator, at most so often, from the left.
pub fn split<'a>(text: &'a str, separator: Option<&str>, max: usize) -> Vec<&'a str> {
    if let Some(separator) = separator {
        return text.splitn(max.saturating_add(1), separator).collect();
    }
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = if parts.len() < max { rest.find(is_space).unwrap_or(rest.len()) } else { rest.len() };
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    parts
}

/// Splits at a separator, at most so often, from the right.
pub fn rsplit<'a>(text: &'a str, separator: Option<&str>, max: usize) -> Vec<&'a str> {
    let mut parts: Vec<&str>;
    if let Some(separator) = separator {
        parts = text.rsplitn(max.saturating_add(1), separator).collect();
    } else {
        parts = Vec::new();
        let mut rest = text.trim_end_matches(is_space);
        while !rest.is_empty() {
            if parts.len() >= max {
                parts.push(rest);
                break;
            }
            let start =
                rest.char_indices().rev().find(|(_, c)| is_space(*c)).map_or(0, |(i, c)| i + c.len_utf8());
            parts.push(&rest[start..]);
            rest = rest[..start].trim_end_matches(is_space);
        }
    }
    parts.reverse();
    parts
}

/// Where a text is found between two places, counted in characters.
pub struct Found {
    /// In characters, from the beginning of the whole.
    pub index: Option<usize>,
    pub count: usize,
}

/// Looks for `needle` in `text[start..end]`; places as a slice has them.
pub fn find(text: &str, needle: &str, start: i128, end: Option<i128>, from_right: bool) -> Found {
    let len = text.chars().count() as i128;
    let clamp = |place: i128| (if place < 0 { place + len } else { place }).clamp(0, len);
    let past_end = start > len;
    let (start, end) = (clamp(start), end.map_or(len, clamp));
    if past_end || start > end {
        return Found { index: None, count: 0 };
    }
    let byte = |place: i128| text.char_indices().nth(place as usize).map_or(text.len(), |(i, _)| i);
    let part = &text[byte(start)..byte(end)];
    let found = if from_right { part.rfind(needle) } else { part.find(needle) };
    let index = found.map(|i| start as usize + part[..i].chars().count());
    Found { index, count: part.matches(needle).count() }
}

/// Pads a text on its left and right to a width in characters.
///
/// # Errors
/// As [`Heap::room`].
pub fn pad(text: &str, width: usize, fill: char, left_share: Share, heap: &Heap) -> Result<Value> {
    let missing = width.saturating_sub(text.chars().count());
    let left = match left_share {
        Share::None => 0,
        Share::All => missing,
        // Python's `str.center`.
        Share::Half => missing / 2 + (missing & width & 1),
    };
    let mut out = Writer::new(heap)?;
    out.fill(fill, left)?;
    out.push_str(text)?;
    out.fill(fill, missing - left)?;
    heap.written(out)
}

/// How much of the padding goes to the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    None,
    Half,
    All,
}

/// Replaces a text by another one, at most so often.
///
/// # Errors
/// As [`Heap::room`].
pub fn replace(text: &str, old: &str, new: &str, max: usize, heap: &Heap) -> Result<Value> {
    heap.work(text.len())?;
    let mut out = Writer::new(heap)?;
    let mut last = 0;
    for (i, found) in text.match_indices(old).take(max) {
        out.push_str(&text[last..i])?;
        out.push_str(new)?;
        last = i + found.len();
    }
    out.push_str(&text[last..])?;
    heap.written(out)
}

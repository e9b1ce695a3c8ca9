//! What stands inside tags: names, numbers, strings, operators.

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// Outside tags.
    Text(String),
    BlockBegin,
    VariableBegin,
    TagEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    Operator(&'static str),
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(_) => f.write_str("text"),
            Self::BlockBegin => f.write_str("`{%`"),
            Self::VariableBegin => f.write_str("`{{`"),
            Self::TagEnd => f.write_str("the end of the tag"),
            Self::Name(name) => write!(f, "`{}`", name.escape_debug()),
            Self::Str(_) => f.write_str("a string"),
            Self::Int(int) => write!(f, "`{int}`"),
            Self::Float(float) => write!(f, "`{float}`"),
            Self::Operator(operator) => write!(f, "`{operator}`"),
        }
    }
}

/// Longest first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// The token at the beginning of `text` and its length in bytes.
///
/// # Errors
/// Where there is none.
pub fn next(text: &str) -> Result<(Token, usize), String> {
    let first = text.chars().next().unwrap_or_default();
    if first.is_ascii_digit() {
        return number(text);
    }
    if first == '_' || first.is_alphabetic() {
        let end = text.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(text.len());
        return Ok((Token::Name(text[..end].to_owned()), end));
    }
    if first == '"' || first == '\'' {
        return string(text, first);
    }
    let operator = OPERATORS.iter().find(|operator| text.starts_with(**operator));
    operator
        .map(|operator| (Token::Operator(operator), operator.len()))
        .ok_or_else(|| format!("the character {first:?} means nothing in a tag"))
}

/// Digits with underscores between them; the length.
fn digits(text: &str, is_digit: impl Fn(char) -> bool) -> usize {
    let mut end = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((i, c)) = chars.next() {
        let is_next_digit = chars.peek().is_some_and(|&(_, next)| is_digit(next));
        if is_digit(c) || (c == '_' && end > 0 && is_next_digit) {
            end = i + 1;
        } else {
            break;
        }
    }
    end
}

fn number(text: &str) -> Result<(Token, usize), String> {
    for (prefix, radix) in [("0x", 16), ("0X", 16), ("0o", 8), ("0O", 8), ("0b", 2), ("0B", 2)] {
        if let Some(rest) = text.strip_prefix(prefix) {
            let length = digits(rest, |c| c.is_digit(radix));
            if length > 0 {
                let int = i128::from_str_radix(&rest[..length].replace('_', ""), radix);
                return int.map(|int| (Token::Int(int), 2 + length)).map_err(|_| too_large(&rest[..length]));
            }
        }
    }
    let is_digit = |c: char| c.is_ascii_digit();
    let whole = digits(text, is_digit);
    let mut end = whole;
    let fraction = text[end..].strip_prefix('.').map_or(0, |rest| digits(rest, is_digit));
    if fraction > 0 {
        end += 1 + fraction;
    }
    if let Some(exponent) = text[end..].strip_prefix(['e', 'E']) {
        let sign = usize::from(exponent.starts_with(['+', '-']));
        let length = digits(&exponent[sign..], is_digit);
        if length > 0 {
            end += 1 + sign + length;
        }
    }
    let digits = text[..end].replace('_', "");
    if end > whole {
        return digits.parse().map(|float| (Token::Float(float), end)).map_err(|_| too_large(&digits));
    }
    digits.parse().map(|int| (Token::Int(int), end)).map_err(|_| too_large(&digits))
}

fn too_large(digits: &str) -> String {
    format!("the number {digits:.40} is too large")
}

/// A string with Python's escapes.
fn string(text: &str, quote: char) -> Result<(Token, usize), String> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        if c == quote {
            return Ok((Token::Str(value), i + 1));
        }
        if c != '\\' {
            value.push(c);
            continue;
        }
        let Some((escape, c)) = chars.next() else { break };
        let rest = &text[escape..];
        let (character, length) = match c {
            '\n' => continue,
            'n' => (Some('\n'), 1),
            't' => (Some('\t'), 1),
            'r' => (Some('\r'), 1),
            'a' => (Some('\x07'), 1),
            'b' => (Some('\x08'), 1),
            'f' => (Some('\x0c'), 1),
            'v' => (Some('\x0b'), 1),
            '\\' | '\'' | '"' => (Some(c), 1),
            'x' => (coded(rest, 1, 2, 16)?, 3),
            'u' => (coded(rest, 1, 4, 16)?, 5),
            'U' => (coded(rest, 1, 8, 16)?, 9),
            '0'..='7' => {
                let length = rest.chars().take(3).take_while(|c| c.is_digit(8)).count();
                (coded(rest, 0, length, 8)?, length)
            }
            _ => {
                value.push('\\');
                (Some(c), 1)
            }
        };
        // Half a pair of surrogates is no character here.
        value.push(character.unwrap_or(char::REPLACEMENT_CHARACTER));
        for _ in 1..length {
            chars.next();
        }
    }
    Err("a string has no end".to_owned())
}

/// The character of a number of `length` digits.
fn coded(text: &str, start: usize, length: usize, radix: u32) -> Result<Option<char>, String> {
    let digits = text.get(start..start + length).filter(|digits| digits.chars().all(|c| c.is_digit(radix)));
    let code = digits.and_then(|digits| u32::from_str_radix(digits, radix).ok());
    code.map(char::from_u32).ok_or_else(|| "an escape in a string lacks digits".to_owned())
}

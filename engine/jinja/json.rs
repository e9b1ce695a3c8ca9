//! JSON, in both directions: what clients send, and what Python's `json.dumps` writes.

use crate::arguments::{Arguments, int};
use crate::error::{Error, Result};
use crate::float;
use crate::heap::{Heap, Writer};
use crate::value::{Dict, Value};

/// Reads a value. Whole numbers keep their digits up to 128 bits; beyond, they are floats.
///
/// # Errors
/// Where it is no JSON, nested too deep or too large.
pub fn parse(text: &str, heap: &Heap) -> Result<Value> {
    let mut reader = Reader { text, position: 0, depth: 0, heap };
    let value = reader.value()?;
    reader.blanks();
    if reader.position < text.len() { Err(reader.fault("the end")) } else { Ok(value) }
}

struct Reader<'a> {
    text: &'a str,
    position: usize,
    depth: usize,
    heap: &'a Heap,
}

impl Reader<'_> {
    fn fault(&self, expected: &str) -> Error {
        Error::failed(format!("the input is no JSON: expected {expected} at byte {}", self.position))
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.position).copied()
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.position += 1;
        }
    }

    /// Steps over blanks and this byte, if it comes next.
    fn takes(&mut self, byte: u8) -> bool {
        self.blanks();
        let is_next = self.peek() == Some(byte);
        self.position += usize::from(is_next);
        is_next
    }

    fn value(&mut self) -> Result<Value> {
        self.blanks();
        self.heap.work(16)?;
        let rest = &self.text[self.position..];
        for (word, value) in
            [("null", Value::None), ("true", Value::Bool(true)), ("false", Value::Bool(false))]
        {
            if rest.starts_with(word) {
                self.position += word.len();
                return Ok(value);
            }
        }
        match self.peek() {
            Some(b'"') => {
                let text = self.string()?;
                self.heap.text(text)
            }
            Some(b'[' | b'{') => {
                if self.depth >= self.heap.max_depth() {
                    let message = format!("its values are nested more than {} deep", self.heap.max_depth());
                    return Err(Error::limit(message));
                }
                self.depth += 1;
                let value = if self.peek() == Some(b'[') { self.array() } else { self.object() };
                self.depth -= 1;
                value
            }
            _ => self.number(),
        }
    }

    fn array(&mut self) -> Result<Value> {
        let mut items = Vec::new();
        self.takes(b'[');
        while !self.takes(b']') {
            if !items.is_empty() && !self.takes(b',') {
                return Err(self.fault("`,` or `]`"));
            }
            items.push(self.value()?);
        }
        self.heap.list(items)
    }

    fn object(&mut self) -> Result<Value> {
        let mut pairs = Vec::new();
        self.takes(b'{');
        while !self.takes(b'}') {
            if !pairs.is_empty() && !self.takes(b',') {
                return Err(self.fault("`,` or `}`"));
            }
            self.blanks();
            let key = self.string()?;
            if !self.takes(b':') {
                return Err(self.fault("`:`"));
            }
            let value = self.value()?;
            pairs.push(Ok((self.heap.text(key)?, value)));
        }
        self.heap.dict_of(pairs)
    }

    fn number(&mut self) -> Result<Value> {
        let rest = &self.text[self.position..];
        let end = rest.find(|c: char| !(c.is_ascii_digit() || "+-.eE".contains(c))).unwrap_or(rest.len());
        let digits = &rest[..end];
        let value = match digits.parse() {
            Ok(int) => Value::Int(int),
            Err(_) => Value::Float(digits.parse().map_err(|_| self.fault("a value"))?),
        };
        self.position += end;
        Ok(value)
    }

    fn string(&mut self) -> Result<String> {
        if self.peek() != Some(b'"') {
            return Err(self.fault("a string"));
        }
        self.position += 1;
        let mut text = String::new();
        loop {
            let rest = &self.text[self.position..];
            let end = rest.find(['"', '\\']).ok_or_else(|| self.fault("the end of a string"))?;
            self.heap.room(text.len() + end)?;
            text.push_str(&rest[..end]);
            self.position += end + 1;
            if rest[end..].starts_with('"') {
                return Ok(text);
            }
            text.push(self.escape()?);
        }
    }

    /// After a backslash.
    fn escape(&mut self) -> Result<char> {
        let escape = self.peek().ok_or_else(|| self.fault("an escape"))?;
        self.position += 1;
        Ok(match escape {
            b'"' | b'\\' | b'/' => escape.into(),
            b'b' => '\x08',
            b'f' => '\x0c',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.hex()?;
                let is_high = (0xd800..0xdc00).contains(&first);
                if is_high && self.text[self.position..].starts_with("\\u") {
                    self.position += 2;
                    let second = self.hex()?;
                    let code = 0x10000 + ((first - 0xd800) << 10) + (second.wrapping_sub(0xdc00) & 0x3ff);
                    return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            _ => return Err(self.fault("an escape")),
        })
    }

    fn hex(&mut self) -> Result<u32> {
        let digits = self.text.get(self.position..self.position + 4).unwrap_or_default();
        let code = u32::from_str_radix(digits, 16).map_err(|_| self.fault("four digits"))?;
        self.position += 4;
        Ok(code)
    }
}

/// The filter `tojson` as transformers has it: `json.dumps` with `ensure_ascii` off.
///
/// # Errors
/// Of what has no JSON.
pub fn tojson(value: &Value, arguments: Arguments, heap: &Heap) -> Result<Value> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sort_keys] = arguments.bind("tojson", names, 0)?;
    let is_set = |value: &Option<Value>| value.as_ref().is_some_and(Value::is_true);
    let indent = match &indent {
        None | Some(Value::None) => None,
        Some(Value::Str(indent)) => Some(indent.to_string()),
        Some(width) => {
            let width = usize::try_from(int("tojson", Some(width), 0)?.max(0)).unwrap_or(usize::MAX);
            heap.room(width)?;
            Some(" ".repeat(width))
        }
    };
    let between = if indent.is_some() { "," } else { ", " };
    let (item, key) = match separators.as_ref() {
        None | Some(Value::None) => (between.to_owned(), ": ".to_owned()),
        Some(pair) => {
            let parts = pair.items(heap)?;
            match &parts[..] {
                [Value::Str(item), Value::Str(key)] => (item.to_string(), key.to_string()),
                _ => return Err(Error::failed("tojson: separators must be a pair of strings")),
            }
        }
    };
    let mut dump = Dump {
        ascii: is_set(&ascii),
        sort_keys: is_set(&sort_keys),
        indent,
        item,
        key,
        out: Writer::new(heap)?,
    };
    dump.value(value, 0)?;
    heap.written(dump.out)
}

struct Dump {
    ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    /// Between items, and between key and value.
    item: String,
    key: String,
    out: Writer,
}

impl Dump {
    fn value(&mut self, value: &Value, level: usize) -> Result<()> {
        match value {
            Value::Str(text) => self.string(text),
            Value::List(list) | Value::Tuple(list) => {
                if list.items.is_empty() {
                    return self.out.push_str("[]");
                }
                self.out.push_str("[")?;
                for (i, item) in list.items.iter().enumerate() {
                    self.begin_item(i, level + 1)?;
                    self.value(item, level + 1)?;
                }
                self.line(level)?;
                self.out.push_str("]")
            }
            Value::Dict(dict) => self.object(dict, level),
            _ => match scalar(value) {
                Some(text) => self.out.push_str(&text),
                None => Err(Error::failed(format!(
                    "Object of type {} is not JSON serializable",
                    value.type_name()
                ))),
            },
        }
    }

    fn object(&mut self, dict: &Dict, level: usize) -> Result<()> {
        if dict.entries.is_empty() {
            return self.out.push_str("{}");
        }
        let mut entries: Vec<&(Value, Value)> = dict.entries.values().collect();
        if self.sort_keys {
            let mut fault = None;
            let heap = self.out.heap().clone();
            entries.sort_by(|(a, _), (b, _)| {
                crate::compare::order(a, b, "<", &heap)
                    .map(|order| order.unwrap_or(std::cmp::Ordering::Equal))
                    .unwrap_or_else(|error| {
                        fault = Some(error);
                        std::cmp::Ordering::Equal
                    })
            });
            fault.map_or(Ok(()), Err)?;
        }
        self.out.push_str("{")?;
        for (i, (key, value)) in entries.into_iter().enumerate() {
            self.begin_item(i, level + 1)?;
            match (key, scalar(key)) {
                (Value::Str(text), _) => self.string(text)?,
                (_, Some(text)) => self.string(&text)?,
                _ => {
                    let name = key.type_name();
                    return Err(Error::failed(format!(
                        "keys must be str, int, float, bool or None, not {name}"
                    )));
                }
            }
            self.out.push_str(&self.key.clone())?;
            self.value(value, level + 1)?;
        }
        self.line(level)?;
        self.out.push_str("}")
    }

    fn begin_item(&mut self, index: usize, level: usize) -> Result<()> {
        if index > 0 {
            self.out.push_str(&self.item)?;
        }
        self.line(level)
    }

    /// A new line, where there are lines.
    fn line(&mut self, level: usize) -> Result<()> {
        if let Some(indent) = &self.indent {
            self.out.push('\n')?;
            for _ in 0..level {
                self.out.push_str(indent)?;
            }
        }
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<()> {
        self.out.push('"')?;
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\"")?,
                '\\' => self.out.push_str("\\\\")?,
                '\n' => self.out.push_str("\\n")?,
                '\r' => self.out.push_str("\\r")?,
                '\t' => self.out.push_str("\\t")?,
                '\x08' => self.out.push_str("\\b")?,
                '\x0c' => self.out.push_str("\\f")?,
                _ if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"))?;
                    }
                }
                _ => self.out.push(c)?,
            }
        }
        self.out.push('"')
    }
}

/// JSON of what is neither text nor nested.
fn scalar(value: &Value) -> Option<String> {
    Some(match value {
        Value::None => "null".into(),
        Value::Bool(bool) => bool.to_string(),
        Value::Int(int) => int.to_string(),
        Value::Float(value) if value.is_nan() => "NaN".into(),
        Value::Float(value) if value.is_infinite() => {
            if *value > 0.0 { "Infinity" } else { "-Infinity" }.into()
        }
        Value::Float(value) => float::repr(*value),
        _ => return None,
    })
}

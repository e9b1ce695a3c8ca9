//! Jinja's filters.

mod sequences;

pub use sequences::pairs;

use crate::arguments::{self, Arguments, int, length};
use crate::error::{Error, Result};
use crate::heap::{Heap, Writer};
use crate::interpreter::Interpreter;
use crate::strings::{self, Share};
use crate::value::Value;
use crate::{attributes, json, methods, printf};

/// The filters there are, for the test `filter`.
pub const NAMES: [&str; 47] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "wordcount",
];

/// A value through a filter.
///
/// # Errors
/// Where there is no such filter, or Jinja's refuses the value or arguments too.
pub fn apply(
    interpreter: &mut Interpreter,
    name: &str,
    value: Value,
    mut arguments: Arguments,
) -> Result<Value> {
    let heap = interpreter.heap.clone();
    let heap = &heap;
    if let Some(done) = sequences::apply(interpreter, name, &value, &mut arguments)? {
        return Ok(done);
    }
    match name {
        "default" | "d" => {
            let [default, boolean] = arguments.bind(name, ["default_value", "boolean"], 0)?;
            let is_missing = match boolean {
                Some(boolean) if boolean.is_true() => !value.is_true(),
                _ => matches!(value, Value::Undefined(_)),
            };
            match (is_missing, default) {
                (false, _) => Ok(value),
                (true, Some(default)) => Ok(default),
                (true, None) => heap.text(""),
            }
        }
        "tojson" => json::tojson(&value, arguments, heap),
        "abs" => {
            arguments.none(name)?;
            match &value {
                Value::Float(float) => Ok(Value::Float(float.abs())),
                Value::Undefined(why) => Err(Error::failed(&**why)),
                _ => match value.as_int().and_then(i128::checked_abs) {
                    Some(int) => Ok(Value::Int(int)),
                    None => {
                        Err(Error::failed(format!("bad operand type for abs(): '{}'", value.type_name())))
                    }
                },
            }
        }
        "int" => to_int(&value, arguments, heap),
        "float" => to_float(&value, arguments, heap),
        "round" => round(&value, arguments, heap),
        "attr" => {
            let [attribute] = arguments.bind(name, ["name"], 1)?;
            let attribute = attribute.unwrap_or(Value::None);
            let attribute = attribute.to_text(heap)?;
            let missing = || {
                Value::undefined(format!(
                    "'{} object' has no attribute '{attribute:.100}'",
                    value.type_name()
                ))
            };
            Ok(attributes::own(&value, &attribute, heap)?.unwrap_or_else(missing))
        }
        "format" => printf::format(&value.to_text(heap)?, &arguments, heap),
        "pprint" => {
            arguments.none(name)?;
            heap.text(value.to_repr(heap)?)
        }
        _ => of_text(name, &value, arguments, heap),
    }
}

/// Filters of texts; other values are written as text first.
fn of_text(name: &str, value: &Value, arguments: Arguments, heap: &Heap) -> Result<Value> {
    let text = value.to_text(heap)?;
    heap.room(text.len())?;
    match name {
        "string" | "safe" => {
            arguments.none(name)?;
            if matches!(value, Value::Str(_)) { Ok(value.clone()) } else { heap.text(text) }
        }
        "upper" | "lower" | "capitalize" | "title" => {
            arguments.none(name)?;
            heap.room(text.len().saturating_mul(3))?;
            heap.text(match name {
                "upper" => text.to_uppercase(),
                "lower" => text.to_lowercase(),
                "capitalize" => strings::capitalize(&text),
                _ => strings::title_filter(&text),
            })
        }
        "trim" => {
            let [chars] = arguments.bind(name, ["chars"], 0)?;
            methods::strip(&text, "strip", chars.as_ref(), heap)
        }
        "replace" => {
            let [old, new, count] = arguments.bind(name, ["old", "new", "count"], 2)?;
            let (old, new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
            let count = int(name, count.as_ref(), -1)?;
            let max = if count < 0 { usize::MAX } else { usize::try_from(count).unwrap_or(usize::MAX) };
            strings::replace(&text, &old.to_text(heap)?, &new.to_text(heap)?, max, heap)
        }
        "center" => {
            let [width] = arguments.bind(name, ["width"], 0)?;
            strings::pad(&text, length(name, width.as_ref(), 80)?, ' ', Share::Half, heap)
        }
        "indent" => match value {
            Value::Str(_) => indent(&text, arguments, heap),
            _ => Err(Error::failed(format!("indent: expected a string, found {}", value.type_name()))),
        },
        "truncate" => truncate(value, arguments, heap),
        "wordcount" => {
            arguments.none(name)?;
            let words = text.split(|c: char| !(c == '_' || c.is_alphanumeric()));
            Ok(words.filter(|word| !word.is_empty()).count().into())
        }
        "escape" | "e" | "forceescape" => {
            arguments.none(name)?;
            escape(&text, heap)
        }
        _ => Err(Error::failed(format!("No filter named '{name:.100}'."))),
    }
}

fn escape(text: &str, heap: &Heap) -> Result<Value> {
    let mut out = Writer::new(heap)?;
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;")?,
            '<' => out.push_str("&lt;")?,
            '>' => out.push_str("&gt;")?,
            '\'' => out.push_str("&#39;")?,
            '"' => out.push_str("&#34;")?,
            _ => out.push(c)?,
        }
    }
    heap.written(out)
}

fn indent(text: &str, arguments: Arguments, heap: &Heap) -> Result<Value> {
    let [width, first, blank] = arguments.bind("indent", ["width", "first", "blank"], 0)?;
    let is_set = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (first, blank) = (is_set(first), is_set(blank));
    let mut indention = Writer::new(heap)?;
    match &width {
        Some(Value::Str(width)) => indention.push_str(width)?,
        _ => indention.fill(' ', length("indent", width.as_ref(), 4)?)?,
    }
    let mut out = Writer::new(heap)?;
    // Jinja ends the text with a line break, which makes a last empty line seen.
    let ended = format!("{text}\n");
    for (i, line) in strings::lines(&ended, false).enumerate() {
        if i > 0 {
            out.push('\n')?;
        }
        let is_indented = if i == 0 { first } else { blank || !line.is_empty() };
        if is_indented {
            out.push_str(indention.as_str())?;
        }
        out.push_str(line)?;
    }
    heap.written(out)
}

fn truncate(value: &Value, arguments: Arguments, heap: &Heap) -> Result<Value> {
    let [len, kill_words, end, leeway] =
        arguments.bind("truncate", ["length", "killwords", "end", "leeway"], 0)?;
    let len = length("truncate", len.as_ref(), 255)?;
    let leeway = length("truncate", leeway.as_ref(), 5)?;
    let end = match end {
        Some(end) => end.to_text(heap)?.into_owned(),
        None => "...".into(),
    };
    let kept = len.checked_sub(end.chars().count());
    let kept =
        kept.ok_or_else(|| Error::failed(format!("truncate: expected length >= {}, got {len}", end.len())))?;
    if value.len(heap)? <= len.saturating_add(leeway) {
        return Ok(value.clone());
    }
    let text = arguments::text("truncate", value)?;
    let cut = text.char_indices().nth(kept).map_or(text.len(), |(i, _)| i);
    let mut cut = &text[..cut];
    if !kill_words.is_some_and(|kill| kill.is_true()) {
        cut = cut.rsplit_once(' ').map_or(cut, |(before, _)| before);
    }
    let mut out = Writer::new(heap)?;
    out.push_str(cut)?;
    out.push_str(&end)?;
    heap.written(out)
}

/// A text as Python's `int` reads it.
fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(strings::is_space);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = match base {
        16 => ["0x", "0X"],
        8 => ["0o", "0O"],
        2 => ["0b", "0B"],
        _ => ["", ""],
    };
    let digits = prefix.iter().find_map(|prefix| digits.strip_prefix(prefix)).unwrap_or(digits);
    let is_well_formed =
        digits.starts_with(|c: char| c.is_digit(base)) && !digits.ends_with('_') && !digits.contains("__");
    is_well_formed.then(|| i128::from_str_radix(&format!("{sign}{}", digits.replace('_', "")), base).ok())?
}

/// A text as Python's `float` reads it.
fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(strings::is_space);
    let unsigned = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
    let is_word = ["inf", "infinity", "nan"].contains(&unsigned.as_str());
    let is_number = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') && !text.ends_with('_');
    if is_word || is_number { text.replace('_', "").parse().ok() } else { None }
}

fn to_int(value: &Value, arguments: Arguments, heap: &Heap) -> Result<Value> {
    let [default, base] = arguments.bind("int", ["default", "base"], 0)?;
    let base = int("int", base.as_ref(), 10)?;
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base));
    let base = base.ok_or_else(|| Error::failed("int: the base must be 2 to 36"))?;
    heap.work(value.size())?;
    let float = |float: f64| (float.is_finite() && float.abs() < 1e38).then_some(float as i128);
    let found = match value {
        Value::Str(text) => parse_int(text, base).or_else(|| parse_float(text).and_then(float)),
        Value::Float(value) => float(*value),
        Value::Undefined(why) => return Err(Error::failed(&**why)),
        _ => value.as_int(),
    };
    Ok(found.map(Value::Int).or(default).unwrap_or(Value::Int(0)))
}

fn to_float(value: &Value, arguments: Arguments, heap: &Heap) -> Result<Value> {
    heap.work(value.size())?;
    let [default] = arguments.bind("float", ["default"], 0)?;
    let found = match value {
        Value::Str(text) => parse_float(text),
        Value::Undefined(why) => return Err(Error::failed(&**why)),
        _ => value.as_float(),
    };
    Ok(found.map(Value::Float).or(default).unwrap_or(Value::Float(0.0)))
}

fn round(value: &Value, arguments: Arguments, heap: &Heap) -> Result<Value> {
    let [precision, method] = arguments.bind("round", ["precision", "method"], 0)?;
    let precision = int("round", precision.as_ref(), 0)?.clamp(-40, 40) as i32;
    let method = match &method {
        Some(method) => method.to_text(heap)?.into_owned(),
        None => "common".into(),
    };
    if let (Value::Undefined(why), _) = (value, ()) {
        return Err(Error::failed(&**why));
    }
    let fault = || Error::failed(format!("type {} doesn't define __round__ method", value.type_name()));
    let float = value.as_float().ok_or_else(fault)?;
    let scale = 10_f64.powi(precision);
    match (method.as_str(), value) {
        ("common", Value::Float(_)) if !float.is_finite() => Ok(Value::Float(float)),
        // The digits of the float itself decide, not those of a product with the scale.
        ("common", Value::Float(_)) if precision > 0 => {
            let rounded = format!("{float:.0$}", precision as usize).parse();
            Ok(Value::Float(rounded.unwrap_or(float)))
        }
        ("common", Value::Float(_)) => Ok(Value::Float((float * scale).round_ties_even() / scale)),
        ("common", _) if precision >= 0 => Ok(Value::Int(value.as_int().unwrap_or_default())),
        ("common", _) => Ok(Value::Int(((float * scale).round_ties_even() / scale) as i128)),
        ("ceil", _) => Ok(Value::Float((float * scale).ceil() / scale)),
        ("floor", _) => Ok(Value::Float((float * scale).floor() / scale)),
        _ => Err(Error::failed("method must be common, ceil or floor")),
    }
}

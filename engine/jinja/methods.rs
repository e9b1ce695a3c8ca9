//! Methods of strings, lists, dictionaries and `loop`, as Python has them.

use crate::arguments::{Arguments, int, length, text};
use crate::compare;
use crate::error::{Error, Result};
use crate::format;
use crate::heap::{Heap, Writer};
use crate::interpreter::Interpreter;
use crate::iterate::Items;
use crate::strings::{self, Share, is_space};
use crate::value::{Dict, Key, Loop, Text, Value, View, ViewKind};
use std::rc::Rc;

/// What would change a list or dictionary, which the sandbox refuses.
pub const MUTATING: [&str; 13] = [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "remove",
    "reverse",
    "sort",
    "popitem",
    "setdefault",
    "update",
    "__setitem__",
    "__delitem__",
];

/// The methods of a value's type.
pub fn of(value: &Value) -> &'static [&'static str] {
    match value {
        Value::Str(_) => &[
            "capitalize",
            "casefold",
            "center",
            "count",
            "endswith",
            "expandtabs",
            "find",
            "format",
            "format_map",
            "index",
            "isalnum",
            "isalpha",
            "isascii",
            "isdecimal",
            "isdigit",
            "isidentifier",
            "islower",
            "isnumeric",
            "isprintable",
            "isspace",
            "istitle",
            "isupper",
            "join",
            "ljust",
            "lower",
            "lstrip",
            "partition",
            "removeprefix",
            "removesuffix",
            "replace",
            "rfind",
            "rindex",
            "rjust",
            "rpartition",
            "rsplit",
            "rstrip",
            "split",
            "splitlines",
            "startswith",
            "strip",
            "swapcase",
            "title",
            "upper",
            "zfill",
        ],
        Value::List(_) => &["copy", "count", "index"],
        Value::Tuple(_) | Value::Range(_) => &["count", "index"],
        Value::Dict(_) => &["copy", "get", "items", "keys", "values"],
        Value::Float(_) => &["is_integer"],
        Value::Loop(_) => &["cycle", "changed"],
        _ => &[],
    }
}

/// Calls the method `name`, one of [`of`].
///
/// # Errors
/// Where Python refuses the arguments too, or a bound is reached.
pub fn call(interpreter: &Interpreter, receiver: &Value, name: &str, arguments: Arguments) -> Result<Value> {
    let heap = &interpreter.heap;
    heap.work(receiver.size().min(1 << 12))?;
    match receiver {
        Value::Str(receiver) => of_string(receiver, name, arguments, heap),
        Value::Dict(dict) => of_dict(dict, name, arguments, heap),
        Value::Loop(lap) => of_loop(lap, name, arguments, heap),
        Value::Float(float) => {
            arguments.none(name)?;
            Ok((float.fract() == 0.0).into())
        }
        _ if name == "copy" => arguments.none(name).map(|()| receiver.clone()),
        _ => of_sequence(receiver, name, arguments, heap),
    }
}

fn of_sequence(receiver: &Value, name: &str, arguments: Arguments, heap: &Heap) -> Result<Value> {
    let [wanted, start, stop] = arguments.bind(name, ["value", "start", "stop"], 1)?;
    let wanted = wanted.unwrap_or(Value::None);
    let mut items = Items::of(receiver)?;
    let (start, stop) = (length(name, start.as_ref(), 0)?, length(name, stop.as_ref(), usize::MAX)?);
    let (mut count, mut index) = (0, 0);
    while let Some(item) = items.next(heap)? {
        if compare::equal(&item, &wanted, heap)? {
            if name == "index" && (start..stop).contains(&index) {
                return Ok(index.into());
            }
            count += 1;
        }
        index += 1;
    }
    if name == "index" {
        return Err(Error::failed(format!("the value is not in the {}", receiver.type_name())));
    }
    Ok(Value::Int(count))
}

fn of_dict(dict: &Rc<Dict>, name: &str, arguments: Arguments, heap: &Heap) -> Result<Value> {
    let view = |kind| Ok(Value::View(Rc::new(View { kind, dict: Rc::clone(dict) })));
    if name == "get" {
        let [key, default] = arguments.bind(name, ["key", "default"], 1)?;
        let entry = dict.entries.get(&Key::of(&key.unwrap_or(Value::None), heap)?);
        return Ok(entry.map(|(_, value)| value.clone()).or(default).unwrap_or(Value::None));
    }
    arguments.none(name)?;
    match name {
        "items" => view(ViewKind::Items),
        "keys" => view(ViewKind::Keys),
        "values" => view(ViewKind::Values),
        _ => Ok(Value::Dict(Rc::clone(dict))),
    }
}

fn of_loop(lap: &Loop, name: &str, arguments: Arguments, heap: &Heap) -> Result<Value> {
    let given = arguments.positional;
    if name == "cycle" {
        let chosen = lap.index0.checked_rem(given.len()).and_then(|i| given.get(i)).cloned();
        return chosen.ok_or_else(|| Error::failed("no items for cycling given"));
    }
    let given = heap.tuple(given)?.to_repr(heap)?;
    let last = lap.last_changed.borrow_mut().replace(given.clone());
    Ok((last != Some(given)).into())
}

fn of_string(receiver: &Rc<Text>, name: &str, arguments: Arguments, heap: &Heap) -> Result<Value> {
    let s: &str = receiver;
    heap.work(s.len())?;
    match name {
        "format" | "format_map" => format::str_format(s, name, arguments, heap),
        "join" => {
            let [items] = arguments.bind(name, ["iterable"], 1)?;
            join(s, &items.unwrap_or(Value::None), heap)
        }
        "split" | "rsplit" => split(s, name, arguments, heap),
        "splitlines" => {
            let [keep_ends] = arguments.bind(name, ["keepends"], 0)?;
            let keep_ends = keep_ends.is_some_and(|keep| keep.is_true());
            let lines = strings::lines(s, keep_ends).map(|line| heap.text(line)).collect::<Result<_>>()?;
            heap.list(lines)
        }
        "partition" | "rpartition" => partition(s, name, arguments, heap),
        "replace" => {
            let [old, new, count] = arguments.bind(name, ["old", "new", "count"], 2)?;
            let (old, new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
            let count = int(name, count.as_ref(), -1)?;
            let max = if count < 0 { usize::MAX } else { usize::try_from(count).unwrap_or(usize::MAX) };
            strings::replace(s, text(name, &old)?, text(name, &new)?, max, heap)
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = arguments.bind(name, ["affix"], 1)?;
            let affix = affix.unwrap_or(Value::None);
            let affix = text(name, &affix)?;
            let rest = if name == "removeprefix" { s.strip_prefix(affix) } else { s.strip_suffix(affix) };
            heap.text(rest.unwrap_or(s))
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = arguments.bind(name, ["chars"], 0)?;
            strip(s, name, chars.as_ref(), heap)
        }
        "startswith" | "endswith" => affixed(s, name, arguments, heap),
        "find" | "rfind" | "index" | "rindex" | "count" => find(s, name, arguments, heap),
        "center" | "ljust" | "rjust" => {
            let [width, fill] = arguments.bind(name, ["width", "fillchar"], 1)?;
            let fill = fill.as_ref().map(|fill| text(name, fill)).transpose()?.unwrap_or(" ");
            let mut chars = fill.chars();
            let (Some(fill), None) = (chars.next(), chars.next()) else {
                return Err(Error::failed(format!("{name}: the fill must be one character")));
            };
            let share = match name {
                "center" => Share::Half,
                "ljust" => Share::None,
                _ => Share::All,
            };
            strings::pad(s, length(name, width.as_ref(), 0)?, fill, share, heap)
        }
        "zfill" => {
            let [width] = arguments.bind(name, ["width"], 1)?;
            let sign = if s.starts_with(['+', '-']) { 1 } else { 0 };
            let width = length(name, width.as_ref(), 0)?.saturating_sub(sign);
            let padded = strings::pad(&s[sign..], width, '0', Share::All, heap)?;
            heap.room(width)?;
            heap.text(format!("{}{}", &s[..sign], padded.as_str().unwrap_or_default()))
        }
        "expandtabs" => {
            let [size] = arguments.bind(name, ["tabsize"], 0)?;
            expand_tabs(s, length(name, size.as_ref(), 8)?, heap)
        }
        _ => {
            arguments.none(name)?;
            simple(s, name, heap)
        }
    }
}

/// Methods without arguments.
fn simple(s: &str, name: &str, heap: &Heap) -> Result<Value> {
    // Some characters have three of the other case.
    heap.room(s.len().saturating_mul(3))?;
    let all = |is: fn(char) -> bool| Ok((!s.is_empty() && s.chars().all(is)).into());
    match name {
        "lower" | "casefold" => {
            let lower = s.to_lowercase();
            heap.text(if name == "casefold" { lower.replace('ß', "ss") } else { lower })
        }
        "upper" => heap.text(s.to_uppercase()),
        "capitalize" => heap.text(strings::capitalize(s)),
        "title" => heap.text(strings::title(s)),
        "swapcase" => heap.text(strings::swapcase(s)),
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => Ok(s.is_ascii().into()),
        "isdecimal" => all(strings::is_decimal),
        "isdigit" => all(strings::is_digit),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "isidentifier" => Ok(strings::is_identifier(s).into()),
        "islower" => Ok(strings::has_case(s, char::is_lowercase, char::is_uppercase).into()),
        "isupper" => Ok(strings::has_case(s, char::is_uppercase, char::is_lowercase).into()),
        "istitle" => Ok(strings::is_title(s).into()),
        "isprintable" => Ok(s.chars().all(crate::display::is_printable).into()),
        _ => Err(Error::failed(format!("str has no method {name}"))),
    }
}

fn join(separator: &str, items: &Value, heap: &Heap) -> Result<Value> {
    let mut items = Items::of(items)?;
    let mut out = Writer::new(heap)?;
    let mut index = 0;
    while let Some(item) = items.next(heap)? {
        if index > 0 {
            out.push_str(separator)?;
        }
        let fault = || {
            Error::failed(format!("sequence item {index}: expected str instance, {} found", item.type_name()))
        };
        out.push_str(item.as_str().ok_or_else(fault)?)?;
        index += 1;
    }
    heap.written(out)
}

fn split(s: &str, name: &str, arguments: Arguments, heap: &Heap) -> Result<Value> {
    let [separator, max] = arguments.bind(name, ["sep", "maxsplit"], 0)?;
    let separator = separator.filter(|separator| !matches!(separator, Value::None));
    let separator = separator.as_ref().map(|separator| text(name, separator)).transpose()?;
    if separator == Some("") {
        return Err(Error::failed("empty separator"));
    }
    let max = int(name, max.as_ref(), -1)?;
    let max = if max < 0 { usize::MAX } else { usize::try_from(max).unwrap_or(usize::MAX) };
    // At worst every byte is a separator.
    heap.room(s.len().saturating_mul(size_of::<&str>()))?;
    let parts =
        if name == "split" { strings::split(s, separator, max) } else { strings::rsplit(s, separator, max) };
    let parts = parts.into_iter().map(|part| heap.text(part)).collect::<Result<_>>()?;
    heap.list(parts)
}

fn partition(s: &str, name: &str, arguments: Arguments, heap: &Heap) -> Result<Value> {
    let [separator] = arguments.bind(name, ["sep"], 1)?;
    let separator = separator.unwrap_or(Value::None);
    let separator = text(name, &separator)?;
    if separator.is_empty() {
        return Err(Error::failed("empty separator"));
    }
    let parts = match name {
        "partition" => {
            s.split_once(separator).map_or([s, "", ""], |(before, after)| [before, separator, after])
        }
        _ => s.rsplit_once(separator).map_or(["", "", s], |(before, after)| [before, separator, after]),
    };
    heap.tuple(parts.into_iter().map(|part| heap.text(part)).collect::<Result<_>>()?)
}

/// `strip` and its siblings; `chars` are what is taken off, blanks where there are none.
///
/// # Errors
/// Where they are no string.
pub fn strip(s: &str, name: &str, chars: Option<&Value>, heap: &Heap) -> Result<Value> {
    let chars = chars.filter(|chars| !matches!(chars, Value::None));
    let chars = chars.map(|chars| text(name, chars)).transpose()?;
    heap.room(s.len() + chars.map_or(0, |chars| 4 * chars.len()))?;
    let chars = chars.map(|chars| {
        let mut chars: Vec<char> = chars.chars().collect();
        chars.sort_unstable();
        chars
    });
    let is_taken =
        |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.binary_search(&c).is_ok());
    heap.text(match name {
        "lstrip" => s.trim_start_matches(is_taken),
        "rstrip" => s.trim_end_matches(is_taken),
        _ => s.trim_matches(is_taken),
    })
}

/// `startswith` and `endswith`, of a text or any of several.
fn affixed(s: &str, name: &str, arguments: Arguments, heap: &Heap) -> Result<Value> {
    let [affix, start, end] = arguments.bind(name, ["affix", "start", "end"], 1)?;
    let affix = affix.unwrap_or(Value::None);
    let bounds = [start.unwrap_or(Value::None), end.unwrap_or(Value::None), Value::None];
    let part = crate::sequences::slice(&heap.text(s)?, &bounds, heap)?;
    let part = part.as_str().unwrap_or_default();
    let has =
        |affix: &str| if name == "startswith" { part.starts_with(affix) } else { part.ends_with(affix) };
    match &affix {
        Value::Tuple(affixes) => {
            heap.work(affix.size())?;
            for affix in &affixes.items {
                if has(text(name, affix)?) {
                    return Ok(true.into());
                }
            }
            Ok(false.into())
        }
        _ => Ok(has(text(name, &affix)?).into()),
    }
}

fn find(s: &str, name: &str, arguments: Arguments, heap: &Heap) -> Result<Value> {
    let [needle, start, end] = arguments.bind(name, ["sub", "start", "end"], 1)?;
    let needle = needle.unwrap_or(Value::None);
    let needle = text(name, &needle)?;
    let start = int(name, start.as_ref(), 0)?;
    let end = match end {
        None | Some(Value::None) => None,
        Some(end) => Some(int(name, Some(&end), 0)?),
    };
    heap.work(4 * s.len())?;
    let found = strings::find(s, needle, start, end, name.starts_with('r'));
    match (name, found.index) {
        ("count", _) => Ok(found.count.into()),
        (_, Some(index)) => Ok(index.into()),
        ("index" | "rindex", None) => Err(Error::failed("substring not found")),
        _ => Ok(Value::Int(-1)),
    }
}

fn expand_tabs(s: &str, size: usize, heap: &Heap) -> Result<Value> {
    let mut out = Writer::new(heap)?;
    let mut column = 0;
    for c in s.chars() {
        match c {
            '\t' if size == 0 => {}
            '\t' => {
                let blanks = size - column % size;
                out.fill(' ', blanks)?;
                column += blanks;
            }
            _ => {
                out.push(c)?;
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    heap.written(out)
}

//! Functions that every template has: Jinja's, and those that transformers adds.

use crate::arguments::{Arguments, int};
use crate::error::{Error, ErrorKind, Result};
use crate::filters;
use crate::interpreter::Interpreter;
use crate::value::{Range, Value};

/// The longest range that Jinja's sandbox allows.
const MAX_RANGE: usize = 100_000;

/// A function by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    Range,
    Dict,
    Namespace,
    RaiseException,
    StrftimeNow,
}

impl Function {
    pub const ALL: [(&str, Self); 5] = [
        ("range", Self::Range),
        ("dict", Self::Dict),
        ("namespace", Self::Namespace),
        ("raise_exception", Self::RaiseException),
        ("strftime_now", Self::StrftimeNow),
    ];

    /// # Errors
    /// Where Python's refuses the arguments too; always of `raise_exception`.
    pub fn call(self, interpreter: &mut Interpreter, arguments: Arguments) -> Result<Value> {
        let heap = interpreter.heap.clone();
        match self {
            Self::Range => range(arguments),
            Self::Dict | Self::Namespace => {
                let mut given = arguments.positional;
                if given.len() > 1 {
                    return Err(Error::failed("dict: expected at most one argument without a name"));
                }
                let mut entries = match given.pop() {
                    Some(value) => filters::pairs(&value, &heap)?,
                    None => Default::default(),
                };
                for (name, value) in arguments.named {
                    let key = heap.text(&*name)?;
                    entries.insert(crate::value::Key::of(&key, &heap)?, (key, value));
                }
                if self == Self::Dict {
                    return heap.dict(entries);
                }
                let values = entries.into_values();
                let values = values.map(|(name, value)| Ok((name.to_text(&heap)?.into_owned(), value)));
                let values = values.collect::<Result<_>>()?;
                interpreter.namespace(values)
            }
            Self::RaiseException => {
                let [message] = arguments.bind("raise_exception", ["message"], 1)?;
                let message = message.unwrap_or(Value::None);
                Err(Error::new(ErrorKind::Refused, message.to_text(&heap)?.into_owned()))
            }
            Self::StrftimeNow => {
                let [format] = arguments.bind("strftime_now", ["format"], 1)?;
                let format = format.unwrap_or(Value::None);
                let format = format.to_text(&heap)?;
                // A directive writes a few dozen bytes at most, but may have a width.
                if format.len() > 1 << 10 {
                    return Err(Error::limit("strftime_now: the format is longer than 1 KiB"));
                }
                if has_width(&format) {
                    return Err(Error::failed("strftime_now: Python has no widths here"));
                }
                let written = jiff::fmt::strtime::format(format.as_bytes(), &jiff::Zoned::now());
                heap.text(written.map_err(|error| Error::failed(format!("strftime_now: {error}")))?)
            }
        }
    }
}

/// Whether a directive such as `%9999d` has a width.
fn has_width(format: &str) -> bool {
    let directives = format.split('%').skip(1);
    directives.into_iter().any(|directive| {
        directive.trim_start_matches(['-', '_', '^', '#']).starts_with(|c: char| c.is_ascii_digit())
    })
}

fn range(arguments: Arguments) -> Result<Value> {
    let count = arguments.positional.len();
    let [first, second, step] = arguments.bind("range", ["start", "stop", "step"], 1)?;
    let bound = |value: Option<&Value>, default: i64| {
        let int = int("range", value, default.into())?;
        // Far beyond any that may be walked through.
        Ok::<i64, Error>(int.clamp(-(1 << 60), 1 << 60) as i64)
    };
    let (start, stop) = match count {
        1 => (0, bound(first.as_ref(), 0)?),
        _ => (bound(first.as_ref(), 0)?, bound(second.as_ref(), 0)?),
    };
    let step = bound(step.as_ref(), 1)?;
    if step == 0 {
        return Err(Error::failed("range() arg 3 must not be zero"));
    }
    let span = if step > 0 { stop - start } else { start - stop };
    let len = if span <= 0 { 0 } else { (span - 1) / step.abs() + 1 } as usize;
    if len > MAX_RANGE {
        return Err(Error::limit(format!(
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."
        )));
    }
    Ok(Value::Range(Range { start, step, len, stop }))
}

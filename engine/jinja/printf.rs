//! `'…' % values` and the filter `format`.

use crate::arguments::Arguments;
use crate::error::{Error, Result};
use crate::format::{Spec, float_digits, radix};
use crate::heap::{Heap, Writer};
use crate::value::{Key, Value};
use std::iter::Peekable;
use std::str::Chars;

/// `format % value`, where a tuple is several values. Of what has items (Python asks for no more) not all need be used.
///
/// # Errors
/// As [`format`].
pub fn remainder(text: &str, value: &Value, heap: &Heap) -> Result<Value> {
    let positional = match value {
        Value::Tuple(list) => list.items.clone(),
        _ => vec![value.clone()],
    };
    let may_remain = matches!(value, Value::List(_) | Value::Dict(_) | Value::Range(_) | Value::Undefined(_));
    fill(text, &Arguments { positional, named: Vec::new() }, may_remain, heap)
}

/// Fills in a format of C's kind. With names, and with a single dictionary, fields may be `%(name)s`.
///
/// # Errors
/// Where it is no format, or the values are too few, too many or of another type.
pub fn format(text: &str, arguments: &Arguments, heap: &Heap) -> Result<Value> {
    fill(text, arguments, !arguments.named.is_empty(), heap)
}

fn fill(text: &str, arguments: &Arguments, may_remain: bool, heap: &Heap) -> Result<Value> {
    let mapping = match &arguments.positional[..] {
        [only @ Value::Dict(_)] => Some(only.clone()),
        [] if !arguments.named.is_empty() => {
            let pairs = arguments.named.iter().map(|(name, value)| Ok((heap.text(&**name)?, value.clone())));
            Some(heap.dict_of(pairs)?)
        }
        _ => None,
    };
    let mut values = arguments.positional.iter();
    let mut out = Writer::new(heap)?;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c)?;
            continue;
        }
        let name = if chars.next_if_eq(&'(').is_some() { Some(name_of(&mut chars)?) } else { None };
        let mut spec = flags(&mut chars);
        let mut value = |what: &str| {
            let next = values.next().cloned();
            next.ok_or_else(|| Error::failed(format!("not enough arguments for format string ({what})")))
        };
        if chars.next_if_eq(&'*').is_some() {
            let width = value("width")?.as_int().ok_or_else(|| Error::failed("* wants int"))?;
            spec.align = spec.align.or((width < 0).then_some('<'));
            spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
        } else {
            spec.width = number(&mut chars)?;
        }
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut chars)?);
        }
        while chars.next_if(|c| matches!(c, 'h' | 'l' | 'L')).is_some() {}
        let kind = chars.next().ok_or_else(|| Error::failed("incomplete format"))?;
        if kind == '%' {
            out.push('%')?;
            continue;
        }
        let value = match (&name, &mapping) {
            (Some(name), Some(Value::Dict(mapping))) => {
                let entry = mapping.entries.get(&Key::Str(name.as_str().into()));
                entry
                    .map(|(_, value)| value.clone())
                    .ok_or_else(|| Error::failed(format!("no value for {name:.40?}")))?
            }
            (Some(_), _) => return Err(Error::failed("format requires a mapping")),
            _ => value("value")?,
        };
        write(&value, kind, spec, &mut out)?;
    }
    if !may_remain && values.next().is_some() {
        return Err(Error::failed("not all arguments converted during string formatting"));
    }
    heap.written(out)
}

fn name_of(chars: &mut Peekable<Chars>) -> Result<String> {
    let mut name = String::new();
    loop {
        match chars.next() {
            Some(')') => return Ok(name),
            Some(c) => name.push(c),
            None => return Err(Error::failed("incomplete format key")),
        }
    }
}

fn flags(chars: &mut Peekable<Chars>) -> Spec {
    let mut spec = Spec::default();
    while let Some(flag) = chars.next_if(|c| "#0- +".contains(*c)) {
        match flag {
            '#' => spec.alternate = true,
            '0' => spec.zero = true,
            '-' => spec.align = Some('<'),
            '+' => spec.sign = Some('+'),
            _ => spec.sign = spec.sign.or(Some(' ')),
        }
    }
    spec
}

fn number(chars: &mut Peekable<Chars>) -> Result<usize> {
    let mut number = 0_usize;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        chars.next();
        let next = number.checked_mul(10).and_then(|number| number.checked_add(digit as usize));
        number = next.ok_or_else(|| Error::limit("a format asks for too much"))?;
    }
    Ok(number)
}

/// Writes one value.
fn write(value: &Value, kind: char, mut spec: Spec, out: &mut Writer) -> Result<()> {
    if spec.align == Some('<') {
        spec.zero = false;
    }
    let wrong = |wanted: &str| {
        Err(Error::failed(format!("%{kind} format: {wanted} is required, not {}", value.type_name())))
    };
    let heap = out.heap().clone();
    match kind {
        's' | 'r' | 'a' => {
            let text = if kind == 's' { value.to_text(&heap)?.into_owned() } else { value.to_repr(&heap)? };
            Spec { zero: false, align: spec.align.or(Some('>')), ..spec }.write_text(&text, out)
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
            let int = match value {
                Value::Float(float) if "diu".contains(kind) && float.is_finite() => Some(*float as i128),
                _ => value.as_int(),
            };
            let Some(int) = int else { return wrong("a real number") };
            let (prefix, digits) = radix(int.unsigned_abs(), kind);
            let zeros = spec.precision.unwrap_or(0).saturating_sub(digits.len());
            heap.room(zeros)?;
            let digits = "0".repeat(zeros) + &digits;
            spec.write_number(int < 0, if spec.alternate { prefix } else { "" }, &digits, out)
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let Some(float) = value.as_float() else { return wrong("a real number") };
            let digits = float_digits(float.abs(), kind, &spec)?;
            spec.write_number(float.is_sign_negative(), "", &digits, out)
        }
        'c' => {
            let c = match value {
                Value::Str(text) if text.chars().count() == 1 => text.chars().next(),
                _ => value.as_int().and_then(|code| u32::try_from(code).ok()).and_then(char::from_u32),
            };
            let Some(c) = c else { return wrong("int or char") };
            Spec { align: spec.align.or(Some('>')), zero: false, ..spec }
                .write_text(c.encode_utf8(&mut [0; 4]), out)
        }
        _ => Err(Error::failed(format!("unsupported format character {kind:?}"))),
    }
}

//! `str.format` and what stands after the colon of its fields.

use crate::arguments::Arguments;
use crate::attributes;
use crate::error::{Error, Result};
use crate::float;
use crate::heap::{Heap, Writer};
use crate::value::Value;

/// Most digits after the point, and bytes of a field's width.
const MAX_PRECISION: usize = 1000;

/// How a field is written: `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    pub fill: Option<char>,
    pub align: Option<char>,
    pub sign: Option<char>,
    pub alternate: bool,
    pub zero: bool,
    pub width: usize,
    pub grouping: Option<char>,
    pub precision: Option<usize>,
    pub kind: Option<char>,
}

impl Spec {
    fn parse(spec: &str) -> Result<Self> {
        let mut chars: Vec<char> = spec.chars().collect();
        let mut found = Self::default();
        let is_align = |c: Option<&char>| c.is_some_and(|c| "<>=^".contains(*c));
        if is_align(chars.get(1)) {
            (found.fill, found.align) = (Some(chars[0]), Some(chars[1]));
            chars.drain(..2);
        } else if is_align(chars.first()) {
            found.align = Some(chars.remove(0));
        }
        chars.reverse();
        let takes = |chars: &mut Vec<char>, of: &str| chars.pop_if(|c| of.contains(*c));
        found.sign = takes(&mut chars, "+- ");
        found.alternate = takes(&mut chars, "#").is_some();
        found.zero = takes(&mut chars, "0").is_some();
        let number = |chars: &mut Vec<char>| {
            let mut digits = String::new();
            while let Some(digit) = chars.pop_if(|c| c.is_ascii_digit()) {
                digits.push(digit);
            }
            digits
        };
        let too_large = || Error::limit(format!("the format {spec:.40?} asks for too much"));
        let width = number(&mut chars);
        if !width.is_empty() {
            found.width = width.parse().map_err(|_| too_large())?;
        }
        found.grouping = takes(&mut chars, ",_");
        if takes(&mut chars, ".").is_some() {
            let precision = number(&mut chars)
                .parse()
                .map_err(|_| Error::failed("Format specifier missing precision"))?;
            found.precision = Some(precision);
        }
        found.kind = chars.pop();
        if chars.is_empty() {
            Ok(found)
        } else {
            Err(Error::failed(format!("Invalid format specifier {spec:.40?}")))
        }
    }

    /// The digits after the point of a float.
    ///
    /// # Errors
    /// Where they are too many.
    pub fn float_precision(&self, default: usize) -> Result<usize> {
        let precision = self.precision.unwrap_or(default);
        if precision > MAX_PRECISION {
            return Err(Error::limit(format!(
                "{precision} digits are more than the {MAX_PRECISION} that a number may have"
            )));
        }
        Ok(precision)
    }

    /// Puts sign and prefix before digits and all of it into the width.
    ///
    /// # Errors
    /// As [`Heap::room`].
    pub fn write_number(
        &self,
        is_negative: bool,
        prefix: &str,
        digits: &str,
        out: &mut Writer,
    ) -> Result<()> {
        let sign = if is_negative {
            "-"
        } else {
            self.sign.filter(|sign| *sign != '-').map_or("", |sign| if sign == '+' { "+" } else { " " })
        };
        let align = self.align.unwrap_or(if self.zero { '=' } else { '>' });
        let fill = self.fill.unwrap_or(if self.zero { '0' } else { ' ' });
        let digits = self.grouping.map_or_else(|| digits.to_owned(), |mark| grouped(digits, mark));
        let missing = self.width.saturating_sub(sign.len() + prefix.len() + digits.len());
        if align == '=' {
            out.push_str(sign)?;
            out.push_str(prefix)?;
            out.fill(fill, missing)?;
            return out.push_str(&digits);
        }
        self.write_aligned(&format!("{sign}{prefix}{digits}"), align, fill, out)
    }

    /// Puts a text into the width.
    ///
    /// # Errors
    /// As [`Heap::room`].
    pub fn write_text(&self, text: &str, out: &mut Writer) -> Result<()> {
        let fill = self.fill.unwrap_or(if self.zero { '0' } else { ' ' });
        let end = self.precision.and_then(|precision| text.char_indices().nth(precision)).map(|(i, _)| i);
        self.write_aligned(&text[..end.unwrap_or(text.len())], self.align.unwrap_or('<'), fill, out)
    }

    fn write_aligned(&self, text: &str, align: char, fill: char, out: &mut Writer) -> Result<()> {
        let missing = self.width.saturating_sub(text.chars().count());
        let left = match align {
            '<' => 0,
            '^' => missing / 2,
            _ => missing,
        };
        out.fill(fill, left)?;
        out.push_str(text)?;
        out.fill(fill, missing - left)
    }
}

/// Marks between thousands of the whole part.
fn grouped(digits: &str, mark: char) -> String {
    let whole = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let mut text = String::new();
    for (i, digit) in digits[..whole].chars().enumerate() {
        if i > 0 && (whole - i) % 3 == 0 {
            text.push(mark);
        }
        text.push(digit);
    }
    text + &digits[whole..]
}

/// A whole number's digits and their prefix in the base that a type means.
pub fn radix(int: u128, kind: char) -> (&'static str, String) {
    match kind {
        'b' => ("0b", format!("{int:b}")),
        'o' => ("0o", format!("{int:o}")),
        'x' => ("0x", format!("{int:x}")),
        'X' => ("0X", format!("{int:X}")),
        _ => ("", int.to_string()),
    }
}

/// A float's digits in the notation that a type means, without the sign.
///
/// # Errors
/// Where there would be too many.
pub fn float_digits(value: f64, kind: char, spec: &Spec) -> Result<String> {
    let digits = match kind.to_ascii_lowercase() {
        'e' => float::scientific(value, spec.float_precision(6)?),
        'f' => float::fixed(value, spec.float_precision(6)?),
        '%' => float::fixed(value * 100.0, spec.float_precision(6)?) + "%",
        _ => float::general(value, spec.float_precision(6)?, spec.alternate),
    };
    Ok(if kind.is_ascii_uppercase() { digits.to_uppercase() } else { digits })
}

/// Writes a value as `format(value, spec)` does.
///
/// # Errors
/// Where the spec is none, or not for this type.
fn write_formatted(value: &Value, spec: &str, out: &mut Writer) -> Result<()> {
    if spec.is_empty() {
        return value.write_to(out);
    }
    let parsed = Spec::parse(spec)?;
    let unknown = || {
        let name = value.type_name();
        Error::failed(format!("the format {spec:.40?} is not for an object of type '{name}'"))
    };
    match (value, parsed.kind) {
        (Value::Str(text), None | Some('s')) => parsed.write_text(text, out),
        (Value::Int(_) | Value::Bool(_), None | Some('b' | 'd' | 'n' | 'o' | 'x' | 'X')) => {
            let int = value.as_int().unwrap_or_default();
            let (prefix, digits) = radix(int.unsigned_abs(), parsed.kind.unwrap_or('d'));
            parsed.write_number(int < 0, if parsed.alternate { prefix } else { "" }, &digits, out)
        }
        (Value::Int(_), Some('c')) => {
            let code = value.as_int().and_then(|int| u32::try_from(int).ok());
            let c = code.and_then(char::from_u32).ok_or_else(unknown)?;
            parsed.write_text(c.encode_utf8(&mut [0; 4]), out)
        }
        (
            Value::Int(_) | Value::Bool(_) | Value::Float(_),
            kind @ (None | Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'n' | '%')),
        ) => {
            let float = value.as_float().unwrap_or_default();
            let magnitude = float.abs();
            let digits = match kind {
                Some(kind) => float_digits(magnitude, kind, &parsed)?,
                None if parsed.precision.is_none() => float::repr(magnitude),
                None => {
                    let digits = float_digits(magnitude, 'g', &parsed)?;
                    if digits.contains(['.', 'e', 'n']) { digits } else { digits + ".0" }
                }
            };
            parsed.write_number(float.is_sign_negative(), "", &digits, out)
        }
        _ => Err(unknown()),
    }
}

/// `str.format` and `str.format_map`.
///
/// # Errors
/// Where the text is no format, or a field has no argument.
pub fn str_format(text: &str, name: &str, mut arguments: Arguments, heap: &Heap) -> Result<Value> {
    if name == "format_map" {
        let [mapping] = arguments.bind(name, ["mapping"], 1)?;
        let Some(Value::Dict(mapping)) = mapping else {
            return Err(Error::failed("format_map: expected a mapping"));
        };
        let named =
            mapping.entries.values().filter_map(|(key, value)| Some((key.as_str()?.into(), value.clone())));
        arguments = Arguments { positional: Vec::new(), named: named.collect() };
    }
    let mut fields = Fields { arguments: &arguments, next: 0, heap };
    let mut out = Writer::new(heap)?;
    fields.write(text, &mut out, true)?;
    heap.written(out)
}

struct Fields<'a> {
    arguments: &'a Arguments,
    next: usize,
    heap: &'a Heap,
}

impl Fields<'_> {
    /// Writes a format; a spec may have fields too, but theirs may not.
    fn write(&mut self, text: &str, out: &mut Writer, may_nest: bool) -> Result<()> {
        let mut rest = text;
        while let Some(i) = rest.find(['{', '}']) {
            out.push_str(&rest[..i])?;
            let brace = &rest[i..=i];
            let after = &rest[i + 1..];
            if let Some(after) = after.strip_prefix(brace) {
                out.push_str(brace)?;
                rest = after;
                continue;
            }
            if brace == "}" {
                return Err(Error::failed("Single '}' encountered in format string"));
            }
            let mut open = 1;
            let end = after.char_indices().find(|(_, c)| {
                open += i32::from(*c == '{') - i32::from(*c == '}');
                open == 0
            });
            let Some((end, _)) = end else { return Err(Error::failed("expected '}' before end of string")) };
            self.field(&after[..end], out, may_nest)?;
            rest = &after[end + 1..];
        }
        out.push_str(rest)
    }

    fn field(&mut self, field: &str, out: &mut Writer, may_nest: bool) -> Result<()> {
        // A colon inside brackets belongs to a key.
        let mut brackets = 0;
        let split = field.char_indices().find(|(_, c)| {
            brackets += i32::from(*c == '[') - i32::from(*c == ']');
            brackets == 0 && matches!(c, ':' | '!')
        });
        let (path, rest) = field.split_at(split.map_or(field.len(), |(i, _)| i));
        let (conversion, spec) = match rest.strip_prefix('!') {
            Some(rest) => rest.split_once(':').unwrap_or((rest, "")),
            None => ("", rest.strip_prefix(':').unwrap_or("")),
        };
        let value = self.value(path)?;
        let value = match conversion {
            "" => value,
            "s" => self.heap.text(value.to_text(self.heap)?)?,
            "r" | "a" => self.heap.text(value.to_repr(self.heap)?)?,
            _ => return Err(Error::failed(format!("Unknown conversion specifier {conversion:.20?}"))),
        };
        if !spec.contains('{') {
            return write_formatted(&value, spec, out);
        }
        if !may_nest {
            return Err(Error::failed("Max string recursion exceeded"));
        }
        let mut written = Writer::new(self.heap)?;
        self.write(spec, &mut written, false)?;
        write_formatted(&value, written.as_str(), out)
    }

    /// The argument that a path such as `0`, `name`, `name.attribute` or `name[key]` means.
    fn value(&mut self, path: &str) -> Result<Value> {
        let end = path.find(['.', '[']).unwrap_or(path.len());
        let (first, mut rest) = path.split_at(end);
        let index = if first.is_empty() {
            self.next += 1;
            Some(self.next - 1)
        } else {
            first.parse().ok()
        };
        let found = match index {
            Some(index) => self.arguments.positional.get(index).cloned(),
            None => {
                self.arguments.named.iter().find(|(name, _)| **name == *first).map(|(_, value)| value.clone())
            }
        };
        let missing = || Error::failed(format!("the format has no argument for {path:.40?}"));
        let mut value = found.ok_or_else(missing)?;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('[') {
                let (key, after) = after.split_once(']').ok_or_else(missing)?;
                let key = match key.parse() {
                    Ok(index) => Value::Int(index),
                    Err(_) => self.heap.text(key)?,
                };
                value = attributes::item(&value, &key, self.heap)?;
                rest = after;
            } else {
                let after = rest.strip_prefix('.').ok_or_else(missing)?;
                let end = after.find(['.', '[']).unwrap_or(after.len());
                value = attributes::own(&value, &after[..end], self.heap)?.ok_or_else(missing)?;
                rest = &after[end..];
            }
        }
        Ok(value)
    }
}

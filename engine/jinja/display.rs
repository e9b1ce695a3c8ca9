//! Values as text: `str` and `repr`.

use crate::error::Result;
use crate::float;
use crate::heap::{Heap, Writer};
use crate::value::{List, Value};
use std::borrow::Cow;
use std::rc::Rc;

impl Value {
    /// Writes it as `str` does.
    ///
    /// # Errors
    /// As [`Heap::room`].
    pub fn write_to(&self, out: &mut Writer) -> Result<()> {
        match self {
            Self::Str(text) => out.push_str(text),
            Self::Undefined(_) => Ok(()),
            _ => self.write_repr_to(out),
        }
    }

    /// Writes it as `repr` does.
    ///
    /// # Errors
    /// As [`Heap::room`].
    pub fn write_repr_to(&self, out: &mut Writer) -> Result<()> {
        out.heap().work(8)?;
        match self {
            Self::Undefined(_) => out.push_str("Undefined"),
            Self::None => out.push_str("None"),
            Self::Bool(true) => out.push_str("True"),
            Self::Bool(false) => out.push_str("False"),
            Self::Int(int) => out.push_str(&int.to_string()),
            Self::Float(value) => out.push_str(&float::repr(*value)),
            Self::Str(text) => write_quoted(text, out),
            Self::List(list) => write_items("[", &list.items, "]", out),
            Self::Tuple(list) => {
                write_items("(", &list.items, if list.items.len() == 1 { ",)" } else { ")" }, out)
            }
            Self::Dict(dict) => {
                out.push_str("{")?;
                for (i, (key, value)) in dict.entries.values().enumerate() {
                    if i > 0 {
                        out.push_str(", ")?;
                    }
                    key.write_repr_to(out)?;
                    out.push_str(": ")?;
                    value.write_repr_to(out)?;
                }
                out.push_str("}")
            }
            Self::View(_) => {
                let items = self.items(out.heap())?;
                out.push_str(self.type_name())?;
                write_items("([", &items, "])", out)
            }
            Self::Range(range) if range.step == 1 => {
                out.push_str(&format!("range({}, {})", range.start, range.stop))
            }
            Self::Range(range) => {
                out.push_str(&format!("range({}, {}, {})", range.start, range.stop, range.step))
            }
            // Python writes an address, or what is inside, which may be the value itself.
            _ => out.push_str(&format!("<{}>", self.type_name())),
        }
    }

    /// As `str` has it.
    ///
    /// # Errors
    /// As [`Heap::room`].
    pub fn to_text(&self, heap: &Heap) -> Result<Cow<'_, str>> {
        if let Self::Str(text) = self {
            return Ok(Cow::Borrowed(text));
        }
        let mut out = Writer::new(heap)?;
        self.write_to(&mut out)?;
        Ok(Cow::Owned(out.into_string()))
    }

    /// As `repr` has it.
    ///
    /// # Errors
    /// As [`Heap::room`].
    pub fn to_repr(&self, heap: &Heap) -> Result<String> {
        let mut out = Writer::new(heap)?;
        self.write_repr_to(&mut out)?;
        Ok(out.into_string())
    }

    /// A list or tuple.
    pub fn as_sequence(&self) -> Option<&Rc<List>> {
        match self {
            Self::List(list) | Self::Tuple(list) => Some(list),
            _ => None,
        }
    }
}

fn write_items(begin: &str, items: &[Value], end: &str, out: &mut Writer) -> Result<()> {
    out.push_str(begin)?;
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(", ")?;
        }
        item.write_repr_to(out)?;
    }
    out.push_str(end)
}

fn write_quoted(text: &str, out: &mut Writer) -> Result<()> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote)?;
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n")?,
            '\r' => out.push_str("\\r")?,
            '\t' => out.push_str("\\t")?,
            '\\' => out.push_str("\\\\")?,
            _ if c == quote => {
                out.push('\\')?;
                out.push(c)?;
            }
            _ if is_printable(c) => out.push(c)?,
            _ => match u32::from(c) {
                code @ ..0x100 => out.push_str(&format!("\\x{code:02x}"))?,
                code @ ..0x10000 => out.push_str(&format!("\\u{code:04x}"))?,
                code => out.push_str(&format!("\\U{code:08x}"))?,
            },
        }
    }
    out.push(quote)
}

/// Whether Python's `repr` shows a character as it is: of no category "other" or "separator" but the space. Characters that are
/// not assigned are taken for printable.
pub fn is_printable(c: char) -> bool {
    let is_format = matches!(u32::from(c),
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f
        | 0xfeff | 0xfff9..=0xfffb | 0xe0000..=0xe007f);
    let is_private = matches!(u32::from(c), 0xe000..=0xf8ff | 0xf0000..);
    c == ' ' || !(c.is_control() || c.is_whitespace() || is_format || is_private)
}

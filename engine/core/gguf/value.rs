//! Metadata values, decoded from the file's bytes when they are asked for.

use super::cursor::Cursor;
use super::types::{ValueType, value_type};
use std::fmt;

/// A metadata value; strings and arrays stay in the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// Whether it is UTF-8 is checked by whoever takes it as text.
    String(&'a [u8]),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of the metadata.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    pub(super) element: ValueType,
    pub(super) len: usize,
    pub(super) bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The type of every element.
    pub fn element_type(&self) -> ValueType {
        self.element
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// It has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its elements in order.
    ///
    /// The bytes were checked when the file was opened. Should another process have changed the file since, the
    /// iterator ends early or gives other values; memory outside the file is never read.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut cursor = Cursor::new(self.bytes);
        let element = self.element;
        (0..self.len).map_while(move |_| cursor.value(element, 1).ok())
    }
}

impl Value<'_> {
    value_type!();

    /// What an error message calls it: `string`, `i32 -1`, `array of f32`.
    fn description(&self) -> String {
        match self {
            Self::String(_) => "string".to_owned(),
            Self::Array(array) => format!("array of {}", array.element),
            scalar => format!("{} {scalar}", scalar.value_type()),
        }
    }

    /// Its value if it is an integer of any width.
    fn integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }
}

impl fmt::Display for Value<'_> {
    /// The value in one line: strings quoted and cut to 60 characters, arrays as their type, length and first values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8(v) => write!(f, "{v}"),
            Self::I8(v) => write!(f, "{v}"),
            Self::U16(v) => write!(f, "{v}"),
            Self::I16(v) => write!(f, "{v}"),
            Self::U32(v) => write!(f, "{v}"),
            Self::I32(v) => write!(f, "{v}"),
            Self::F32(v) => write!(f, "{v}"),
            Self::Bool(v) => write!(f, "{v}"),
            Self::U64(v) => write!(f, "{v}"),
            Self::I64(v) => write!(f, "{v}"),
            Self::F64(v) => write!(f, "{v}"),
            Self::String(bytes) => {
                // Four bytes are the most that a character takes.
                let head = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * 61)]);
                let cut: String = head.chars().take(60).collect();
                write!(f, "{cut:?}{}", if cut.len() < bytes.len() { "…" } else { "" })
            }
            Self::Array(array) => {
                write!(f, "{}[{}] [", array.element, array.len)?;
                for (i, value) in array.iter().take(3).enumerate() {
                    write!(f, "{}{value}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(if array.len > 3 { ", …]" } else { "]" })
            }
        }
    }
}

/// A Rust type that a metadata value can be taken as.
///
/// Integers are taken from any integer type whose value fits (writers differ in the width they choose), floats from
/// f32 and f64.
pub trait FromValue<'a>: Sized {
    /// What an error message says was expected.
    fn expected() -> String;

    /// The value, or what is wrong with it.
    fn from_value(value: Value<'a>) -> Result<Self, String>;
}

fn mismatch<'a, T: FromValue<'a>>(value: &Value<'_>) -> String {
    format!("expected {}, found {}", T::expected(), value.description())
}

macro_rules! integer_from_value {
    ($($int:ty),*) => {$(
        impl<'a> FromValue<'a> for $int {
            fn expected() -> String {
                stringify!($int).to_owned()
            }

            fn from_value(value: Value<'a>) -> Result<Self, String> {
                value
                    .integer()
                    .and_then(|integer| Self::try_from(integer).ok())
                    .ok_or_else(|| mismatch::<Self>(&value))
            }
        }
    )*};
}
integer_from_value!(u32, i32, u64, i64);

impl<'a> FromValue<'a> for f32 {
    fn expected() -> String {
        "f32".to_owned()
    }

    fn from_value(value: Value<'a>) -> Result<Self, String> {
        match value {
            Value::F32(v) => Ok(v),
            Value::F64(v) => Ok(v as f32),
            _ => Err(mismatch::<Self>(&value)),
        }
    }
}

impl<'a> FromValue<'a> for bool {
    fn expected() -> String {
        "bool".to_owned()
    }

    fn from_value(value: Value<'a>) -> Result<Self, String> {
        match value {
            Value::Bool(v) => Ok(v),
            // Some writers know no bool.
            _ => match value.integer() {
                Some(0) => Ok(false),
                Some(1) => Ok(true),
                _ => Err(mismatch::<Self>(&value)),
            },
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    fn expected() -> String {
        "string".to_owned()
    }

    fn from_value(value: Value<'a>) -> Result<Self, String> {
        match value {
            Value::String(bytes) => std::str::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}")),
            _ => Err(mismatch::<Self>(&value)),
        }
    }
}

impl<'a, T: FromValue<'a>> FromValue<'a> for Vec<T> {
    fn expected() -> String {
        format!("array of {}", T::expected())
    }

    fn from_value(value: Value<'a>) -> Result<Self, String> {
        let Value::Array(array) = value else { return Err(mismatch::<Self>(&value)) };
        let mut values = Vec::with_capacity(array.len);
        for (i, element) in array.iter().enumerate() {
            values.push(T::from_value(element).map_err(|error| format!("element {i}: {error}"))?);
        }
        Ok(values)
    }
}

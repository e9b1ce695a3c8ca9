//! Reading values at a position of the file's bytes. Every length is compared with what is left before it is used.

use super::types::ValueType;
use super::value::{Array, Value};
use std::ops::Range;

/// What is wrong with the file.
pub(super) type Parsed<T> = Result<T, String>;

/// Arrays may be nested this deep. The specification sets no limit; no known file goes beyond 1.
const MAX_ARRAY_DEPTH: u32 = 8;

/// A position in a byte slice, little-endian.
pub(super) struct Cursor<'a> {
    pub data: &'a [u8],
    pub position: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, position: 0 }
    }

    pub fn remaining(&self) -> u64 {
        (self.data.len() - self.position) as u64
    }

    fn take(&mut self, length: u64) -> Parsed<&'a [u8]> {
        if length > self.remaining() {
            return Err(self.too_short(length));
        }
        // Fits: it is at most the length of a slice.
        let start = self.position;
        self.position += length as usize;
        Ok(&self.data[start..self.position])
    }

    // Kept out of the loop over a vocabulary.
    #[cold]
    fn too_short(&self, length: u64) -> String {
        format!(
            "{length} bytes are needed at byte {}, but the file ends at byte {}; it may be incomplete",
            self.position,
            self.data.len()
        )
    }

    pub fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?);
        Ok(bytes)
    }

    pub fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Parsed<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Parsed<&'a [u8]> {
        let length = self.u64()?;
        self.take(length)
    }

    /// A string that must be UTF-8, as its range.
    pub fn name(&mut self) -> Parsed<Range<usize>> {
        let bytes = self.string()?;
        std::str::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8", shown(bytes)))?;
        Ok(self.position - bytes.len()..self.position)
    }

    pub fn value_type(&mut self) -> Parsed<ValueType> {
        let id = self.u32()?;
        ValueType::from_id(id).ok_or_else(|| format!("unknown value type {id}; GGUF has 0 to 12"))
    }

    /// A value of a known type; `depth` counts the arrays around it.
    pub fn value(&mut self, value_type: ValueType, depth: u32) -> Parsed<Value<'a>> {
        Ok(match value_type {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.array()?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.array()?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.array()?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.array()?)),
            ValueType::U32 => Value::U32(self.u32()?),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.array()?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.array()?)),
            ValueType::Bool => Value::Bool(check_bools(self.take(1)?)?[0] == 1),
            ValueType::String => Value::String(self.string()?),
            ValueType::Array => {
                if depth == MAX_ARRAY_DEPTH {
                    return Err(format!("arrays are nested more than {MAX_ARRAY_DEPTH} deep"));
                }
                let element = self.value_type()?;
                let count = self.u64()?;
                let start = self.position;
                self.skip(element, count, depth + 1)?;
                // Fits: every element takes at least one byte of the slice.
                Value::Array(Array { element, len: count as usize, bytes: &self.data[start..self.position] })
            }
            ValueType::U64 => Value::U64(self.u64()?),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.array()?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.array()?)),
        })
    }

    /// Checks and passes `count` elements of an array.
    fn skip(&mut self, element: ValueType, count: u64, depth: u32) -> Parsed<()> {
        let least = count.checked_mul(element.min_size()).filter(|&bytes| bytes <= self.remaining()).ok_or_else(|| {
            format!(
                "an array claims {count} values of type {element}, but only {} bytes of the file are left",
                self.remaining()
            )
        })?;
        if element.is_fixed_size() {
            let bytes = self.take(least)?;
            if element == ValueType::Bool {
                check_bools(bytes)?;
            }
            return Ok(());
        }
        for _ in 0..count {
            self.value(element, depth)?;
        }
        Ok(())
    }
}

/// "0 is false and 1 is true, anything else is invalid", says the specification.
fn check_bools(bytes: &[u8]) -> Parsed<&[u8]> {
    match bytes.iter().find(|&&byte| byte > 1) {
        Some(byte) => Err(format!("a bool is {byte}; it must be 0 or 1")),
        None => Ok(bytes),
    }
}

/// A name for a message: cut where it is so long that it must be damage.
pub(super) fn shown(name: &[u8]) -> String {
    const MAX_SHOWN: usize = 80;
    let head = String::from_utf8_lossy(&name[..name.len().min(MAX_SHOWN)]);
    format!("`{}{}`", head.escape_debug(), if name.len() > MAX_SHOWN { "…" } else { "" })
}

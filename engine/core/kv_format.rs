//! Formats of cached K and V.

use crate::dtype::Dtype;
use crate::error::Error;
use half::f16;
use std::fmt;
use std::str::FromStr;

/// Values of a block of [`KvFormat::Q8_0`].
pub const BLOCK_VALUES: usize = 32;

/// The bytes of such a block: a scale of 16 bits, and one for each value.
pub const BLOCK_BYTES: usize = 34;

/// A format of cached K or V.
#[allow(non_camel_case_types, reason = "the spelling of the field")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// Every value a float.
    Float(Dtype),
    /// Blocks of [`BLOCK_VALUES`] neighbouring values of a head: integers of eight bits, and an f16 that they are multiplied with, as in
    /// the file format's type of this name.
    Q8_0,
}

impl KvFormat {
    /// Every format, for tests and tables.
    pub const ALL: [Self; 4] =
        [Self::Float(Dtype::F32), Self::Float(Dtype::F16), Self::Float(Dtype::Bf16), Self::Q8_0];

    /// `f32`, `f16`, `bf16` or `q8_0`: the spelling of the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float(dtype) => dtype.name(),
            Self::Q8_0 => "q8_0",
        }
    }

    /// Bytes of `values` values, a multiple of [`KvFormat::multiple`].
    pub const fn bytes(self, values: usize) -> usize {
        match self {
            Self::Float(dtype) => values * dtype.size(),
            Self::Q8_0 => values / BLOCK_VALUES * BLOCK_BYTES,
        }
    }

    /// What the number of values of a head must be a multiple of.
    pub const fn multiple(self) -> usize {
        match self {
            Self::Float(_) => 1,
            Self::Q8_0 => BLOCK_VALUES,
        }
    }

    /// Its floats, if it has those.
    pub const fn float(self) -> Option<Dtype> {
        match self {
            Self::Float(dtype) => Some(dtype),
            Self::Q8_0 => None,
        }
    }
}

impl FromStr for KvFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| {
            Error::Request(format!("expected f32, f16, bf16 or q8_0 as the format of K or V, found {text:?}"))
        })
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The formats of K and of V, which need not be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvFormats {
    pub k: KvFormat,
    pub v: KvFormat,
}

impl KvFormats {
    /// One format for both.
    pub const fn both(format: KvFormat) -> Self {
        Self { k: format, v: format }
    }

    /// The floats that both are, if they are the same.
    pub fn float(self) -> Option<Dtype> {
        self.k.float().filter(|_| self.k == self.v)
    }
}

impl From<Dtype> for KvFormats {
    fn from(dtype: Dtype) -> Self {
        Self::both(KvFormat::Float(dtype))
    }
}

/// `q8_0`, or `f16/q8_0` where K and V differ.
impl fmt::Display for KvFormats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.k == self.v { self.k.fmt(f) } else { write!(f, "{}/{}", self.k, self.v) }
    }
}

/// A block of [`KvFormat::Q8_0`]: its scale, and integers of -127 to 127 that stand for `values` when multiplied with it.
///
/// What is beyond the format's range, about 8.3 million, or is no number, makes the scale NaN and with it every value of the block: a
/// position that is lost, or wins, unnoticed would be worse.
pub fn quantise(values: &[f32; BLOCK_VALUES]) -> (f16, [i8; BLOCK_VALUES]) {
    let largest = values.iter().fold(0f32, |largest, value| {
        // Not `max`, which loses a NaN.
        if value.abs() <= largest { largest } else { value.abs() }
    });
    let scale = f16::from_f32(largest / 127.0);
    if values.iter().any(|value| value.is_nan()) || !scale.is_finite() {
        return (f16::NAN, [0; BLOCK_VALUES]);
    }
    // Of the scale as it is stored: no value is rounded for another one.
    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    (scale, values.map(|value| (value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for format in KvFormat::ALL {
            assert_eq!(format.name().parse::<KvFormat>().unwrap(), format);
        }
        let error = "q4_0".parse::<KvFormat>().unwrap_err().to_string();
        assert!(error.contains("expected f32, f16, bf16 or q8_0") && error.contains("q4_0"), "{error}");
        let mixed = KvFormats { k: KvFormat::Float(Dtype::F16), v: KvFormat::Q8_0 };
        assert_eq!((mixed.to_string(), mixed.float()), ("f16/q8_0".to_owned(), None));
        assert_eq!(KvFormats::from(Dtype::F32).float(), Some(Dtype::F32));
        assert_eq!(KvFormats::both(KvFormat::Q8_0).float(), None);
    }

    #[test]
    fn a_value_is_off_by_half_a_step_at_most() {
        for scale in [1e-3f32, 1.0, 300.0, 1e6] {
            let values = std::array::from_fn(|i| (i as f32 * 0.7).sin() * scale);
            let (d, codes) = quantise(&values);
            let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for (value, code) in values.iter().zip(codes) {
                // Half a step, and a little where the scale was rounded down.
                let error = (value - f32::from(code) * d.to_f32()).abs();
                assert!(error <= 0.57 * largest / 127.0, "{value} as {code} * {d}");
            }
            assert_eq!(codes.iter().map(|code| code.unsigned_abs()).max(), Some(127));
        }
        assert_eq!(quantise(&[0.0; 32]), (f16::ZERO, [0; 32]));
        assert_eq!(quantise(&[1e-9; 32]), (f16::ZERO, [0; 32]));
    }

    #[test]
    fn what_has_no_number_in_the_format_is_none() {
        for bad in [f32::NAN, f32::INFINITY, -9e6] {
            let mut values = [1.0; 32];
            values[7] = bad;
            assert!(quantise(&values).0.is_nan(), "{bad}");
        }
        assert!(quantise(&[8e6; 32]).0.is_finite());
    }
}

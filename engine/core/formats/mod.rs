//! Matrix formats: how the values of a weight matrix are stored, in blocks along its rows.
//!
//! Two words for two things. A *float format* ([`Dtype`]) is what activations and KV pages are; a *matrix format*
//! ([`MatrixFormat`]) is what weights are, and the floats are among them, in blocks of one value. A format is one file here
//! (its layout, decoding, encoding), one implementation of `gpu_kernels::blocks::Blocks` on the device, and one word in each
//! of the two lists.
//!
//! Layouts from ggml/src/ggml-common.h; [`GgmlType::block`] has the sizes of those that are not computed with yet.

mod float;
mod q4_0;
mod q8_0;

pub use float::{Bf16, F16, F32};
pub use q4_0::Q4_0;
pub use q8_0::Q8_0;

use crate::dtype::Dtype;
use crate::gguf::GgmlType;
use std::fmt;

/// A format as a type: blocks of [`Blocks::VALUES`] neighbouring values of a row in [`Blocks::BYTES`] bytes each.
pub trait Blocks {
    /// What a file calls it.
    const GGML: GgmlType;
    /// As in the names of kernels.
    const NAME: &'static str;
    /// Values of a block; rows are whole blocks.
    const VALUES: usize;
    /// Bytes of a block.
    const BYTES: usize;

    /// The values of a block, exact in f32 but for the product with the block's scale, which is rounded once.
    ///
    /// # Panics
    /// If `block` has not [`Blocks::BYTES`] bytes or `values` not [`Blocks::VALUES`] values.
    fn decode(block: &[u8], values: &mut [f32]);

    /// The block whose values are near these.
    ///
    /// # Panics
    /// As [`Blocks::decode`].
    fn encode(values: &[f32], block: &mut [u8]);
}

/// Makes [`MatrixFormat`] of the list of formats.
macro_rules! formats {
    ($($format:ident)*) => {
        /// The format of a matrix that the engine computes with.
        #[allow(non_camel_case_types, reason = "the spelling of the field")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum MatrixFormat {
            $($format),*
        }

        impl MatrixFormat {
            /// Every format.
            pub const ALL: &[Self] = &[$(Self::$format),*];

            /// As in the names of kernels and on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$format => $format::NAME),* }
            }

            /// What a file calls it.
            pub const fn ggml_type(self) -> GgmlType {
                match self { $(Self::$format => $format::GGML),* }
            }

            /// Neighbouring values of a row that are stored together; rows are whole blocks.
            pub const fn block_values(self) -> usize {
                match self { $(Self::$format => $format::VALUES),* }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> usize {
                match self { $(Self::$format => $format::BYTES),* }
            }

            /// The values of whole blocks.
            ///
            /// # Panics
            /// If `bytes` are not the blocks of as many values as `values` has.
            pub fn decode(self, bytes: &[u8], values: &mut [f32]) {
                match self { $(Self::$format => decode::<$format>(bytes, values)),* }
            }

            /// The blocks of `values`, each as near as [`Blocks::encode`] comes.
            ///
            /// # Panics
            /// If `values` are not whole blocks.
            pub fn encode(self, values: &[f32]) -> Vec<u8> {
                match self { $(Self::$format => encode::<$format>(values)),* }
            }
        }
    };
}

formats! { F32 F16 Bf16 Q4_0 Q8_0 }

fn decode<F: Blocks>(bytes: &[u8], values: &mut [f32]) {
    assert_eq!(bytes.len() / F::BYTES * F::VALUES, values.len(), "as many values as in the blocks");
    let blocks = bytes.chunks_exact(F::BYTES).zip(values.chunks_exact_mut(F::VALUES));
    blocks.for_each(|(block, values)| F::decode(block, values));
}

fn encode<F: Blocks>(values: &[f32]) -> Vec<u8> {
    assert!(values.len().is_multiple_of(F::VALUES), "{} values are no blocks of {}", values.len(), F::VALUES);
    let mut bytes = vec![0; values.len() / F::VALUES * F::BYTES];
    let blocks = values.chunks_exact(F::VALUES).zip(bytes.chunks_exact_mut(F::BYTES));
    blocks.for_each(|(values, block)| F::encode(values, block));
    bytes
}

impl MatrixFormat {
    /// The format that a file calls so; `None` for one that is not computed with.
    pub fn from_ggml(ggml_type: GgmlType) -> Option<Self> {
        Self::ALL.iter().copied().find(|format| format.ggml_type() == ggml_type)
    }

    /// The float format of this name; `None` where values come in blocks.
    pub const fn float(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::Bf16 => Some(Dtype::Bf16),
            _ => None,
        }
    }

    /// Bytes of a row of `cols` values; `None` if they are not whole blocks or too many.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let blocks = cols.is_multiple_of(self.block_values()).then(|| cols / self.block_values())?;
        blocks.checked_mul(self.block_bytes())
    }
}

impl From<Dtype> for MatrixFormat {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

impl fmt::Display for MatrixFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn sizes_are_those_of_ggml() {
        for &format in MatrixFormat::ALL {
            let block = format.ggml_type().block().unwrap();
            assert_eq!(
                (block.values, block.bytes),
                (format.block_values() as u64, format.block_bytes() as u64)
            );
            assert_eq!(MatrixFormat::from_ggml(format.ggml_type()), Some(format));
        }
        assert_eq!(MatrixFormat::from_ggml(GgmlType(777)), None);
    }

    /// What was decoded is encoded to values that are the same, whatever the format.
    #[test]
    fn encoding_keeps_what_is_decoded() {
        for &format in MatrixFormat::ALL {
            let count = 4 * format.block_values();
            let values: Vec<f32> = Random::new(1, format.name()).take(count).collect();
            let (mut once, mut twice) = (vec![f32::NAN; count], vec![f32::NAN; count]);
            format.decode(&format.encode(&values), &mut once);
            format.decode(&format.encode(&once), &mut twice);
            assert_eq!(once, twice, "{format}");
            let error: f32 = values.iter().zip(&once).map(|(a, b)| (a - b).powi(2)).sum();
            assert!(error <= 0.02 * count as f32, "{format}: squared error {error} of {count} values");
        }
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(MatrixFormat::F16.row_bytes(7), Some(14));
        assert_eq!(MatrixFormat::F32.row_bytes(usize::MAX), None);
        for &format in MatrixFormat::ALL.iter().filter(|format| format.float().is_none()) {
            let values = format.block_values();
            assert_eq!(format.row_bytes(3 * values), Some(3 * format.block_bytes()));
            assert_eq!(format.row_bytes(3 * values + 1), None);
        }
    }
}

//! Matrix formats: how the values of a weight matrix are stored, in blocks along its rows.
//!
//! Two words for two things. A *float format* ([`Dtype`]) is what activations and KV pages are; a *matrix format*
//! ([`MatrixFormat`]) is what weights are, and the floats are among them, in blocks of one value. A format is one file here
//! (its layout, decoding, encoding), one implementation of `gpu_kernels::blocks::Blocks` on the device, and one word in each
//! of the two lists.
//!
//! Layouts from ggml/src/ggml-common.h; [`GgmlType::block`] has the sizes of those that are not computed with yet.

mod book;
mod fit;
mod float;
mod fp4;
#[path = "../../../gpu-kernels/src/blocks/grids.rs"]
mod grids;
mod iq1;
mod iq2;
mod iq3;
mod iq4;
mod k;
mod nibbles;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod ternary;

pub use float::{Bf16, F16, F32};
pub(crate) use fp4::{DOUBLED as FP4_DOUBLED, half_of_power as mxfp4_step};
pub use fp4::{MXFP4, NVFP4};
pub use iq1::{IQ1_M, IQ1_S};
pub use iq2::{IQ2_S, IQ2_XS, IQ2_XXS};
pub use iq3::{IQ3_S, IQ3_XXS};
pub(crate) use iq4::CODES as IQ4_CODES;
pub use iq4::{IQ4_NL, IQ4_XS};
pub use q2_k::Q2_K;
pub use q3_k::Q3_K;
pub use q4_0::Q4_0;
pub use q4_1::Q4_1;
pub use q4_k::Q4_K;
pub use q5_0::Q5_0;
pub use q5_1::Q5_1;
pub use q5_k::Q5_K;
pub use q6_k::Q6_K;
pub use q8_0::Q8_0;
pub use ternary::{TQ1_0, TQ2_0};

use crate::dtype::Dtype;
use crate::gguf::GgmlType;
use half::f16;
use std::fmt;

/// Writes the block whose values are near these; how much an error in each counts is its importance, all the same where there is none.
///
/// # Panics
/// As [`Blocks::decode`]; if `importance` has fewer values.
pub type Encode = fn(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]);

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
    /// The encoder, in the formats that have one.
    const ENCODE: Option<Encode>;

    /// The values of a block, exact in f32 but for the product with the block's scale, which is rounded once.
    ///
    /// # Panics
    /// If `block` has not [`Blocks::BYTES`] bytes or `values` not [`Blocks::VALUES`] values.
    fn decode(block: &[u8], values: &mut [f32]);
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

            /// The blocks of `values`, each as near as [`Blocks::ENCODE`] comes; `None` where the format has no encoder.
            ///
            /// # Panics
            /// If `values` are not whole blocks.
            pub fn encode(self, values: &[f32]) -> Option<Vec<u8>> {
                assert!(
                    values.len().is_multiple_of(self.block_values()),
                    "{} values are no blocks of {}",
                    values.len(),
                    self.block_values()
                );
                let mut bytes = vec![0; values.len() / self.block_values() * self.block_bytes()];
                self.encode_row(values, None, &mut bytes).then_some(bytes)
            }

            /// Writes the blocks of a row; errors in columns of much `importance` count for more, where the encoder has a choice. `false`,
            /// and nothing was written, where the format has no encoder.
            ///
            /// # Panics
            /// If `values` are not whole blocks, `bytes` not those of as many, or `importance` not as many values.
            pub fn encode_row(self, values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) -> bool {
                match self { $(Self::$format => encode::<$format>(values, importance, bytes)),* }
            }

            /// Whether values can be brought into this format.
            pub const fn has_encoder(self) -> bool {
                match self { $(Self::$format => $format::ENCODE.is_some()),* }
            }
        }
    };
}

formats! {
    F32 F16 Bf16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS IQ3_S IQ3_XXS IQ2_S IQ2_XS IQ2_XXS IQ1_S IQ1_M
    TQ1_0 TQ2_0 MXFP4 NVFP4
}

fn decode<F: Blocks>(bytes: &[u8], values: &mut [f32]) {
    assert_eq!(bytes.len() / F::BYTES * F::VALUES, values.len(), "as many values as in the blocks");
    let blocks = bytes.chunks_exact(F::BYTES).zip(values.chunks_exact_mut(F::VALUES));
    blocks.for_each(|(block, values)| F::decode(block, values));
}

fn encode<F: Blocks>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) -> bool {
    assert!(values.len().is_multiple_of(F::VALUES), "{} values are no blocks of {}", values.len(), F::VALUES);
    assert_eq!(values.len() / F::VALUES * F::BYTES, bytes.len(), "as many bytes as the blocks take");
    assert!(importance.is_none_or(|importance| importance.len() == values.len()), "as many importances");
    if F::ENCODE.is_none() {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        unsafe { encode_avx2::<F>(values, importance, bytes) };
        return true;
    }
    encode_blocks::<F>(values, importance, bytes);
    true
}

/// The same with instructions for twice as many lanes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn encode_avx2<F: Blocks>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode_blocks::<F>(values, importance, bytes);
}

#[inline(always)]
fn encode_blocks<F: Blocks>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    let Some(encode) = F::ENCODE else { return };
    let blocks = values.chunks_exact(F::VALUES).zip(bytes.chunks_exact_mut(F::BYTES));
    for (b, (values, block)) in blocks.enumerate() {
        encode(values, importance.map(|importance| &importance[b * F::VALUES..][..F::VALUES]), block);
    }
}

/// The f16 at byte `at` of a block.
#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Puts the nearest f16 at byte `at` of a block; answers what it is.
fn put_half(block: &mut [u8], at: usize, value: f32) -> f32 {
    let rounded = f16::from_f32(value);
    block[at..][..2].copy_from_slice(&rounded.to_le_bytes());
    rounded.to_f32()
}

/// The value of the largest magnitude, the first of them.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest: f32, &x| if x.abs() > largest.abs() { x } else { largest })
}

/// The least value and the greatest.
fn range(values: &[f32]) -> (f32, f32) {
    let wider = |(min, max): (f32, f32), &x: &f32| (min.min(x), max.max(x));
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), wider)
}

/// `1 / step`, where values in steps are wanted; 0 where there are none.
fn inverse(step: f32) -> f32 {
    if step == 0.0 { 0.0 } else { 1.0 / step }
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

    /// Values are near those that were encoded. What was decoded is encoded to values that are the same, but where scales are tried and the
    /// rounded values have a better one: then they are much nearer than they were to the exact ones.
    #[test]
    fn encoding_keeps_what_is_decoded() {
        for &format in MatrixFormat::ALL {
            let count = 1024;
            let values: Vec<f32> = Random::new(1, format.name()).take(count).collect();
            let Some(blocks) = format.encode(&values) else { continue };
            let (mut once, mut twice) = (vec![f32::NAN; count], vec![f32::NAN; count]);
            format.decode(&blocks, &mut once);
            format.decode(&format.encode(&once).unwrap(), &mut twice);
            let mean_square = |a: &[f32], b: &[f32]| {
                a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / count as f64
            };
            let mean = mean_square(&values, &once);
            let again = mean_square(&once, &twice);
            let tries = format.block_values() == 256 || format == MatrixFormat::IQ4_NL;
            let most = if tries { 0.04 * mean } else { 0.0 };
            assert!(again <= most, "{format}: {again:e} at the second time, {mean:e} at the first");
            // An ideal code of as many bits for normal values has an error of 4^-bits; floats spend bits on their range, and three values with the
            // largest magnitude as their scale are far from ideal.
            let bits =
                if format.float().is_some() { 8.0 } else { format.ggml_type().bits_per_weight().unwrap() };
            assert!(
                mean <= 12.0 * 0.25_f64.powf(bits),
                "{format}: mean square error {mean:e} at {bits} bits"
            );
        }
    }

    /// Blocks of zeros, and of values that no scale fits, are no reason to panic.
    #[test]
    fn zeros_are_encoded() {
        for &format in MatrixFormat::ALL {
            for value in [0.0, f32::MIN_POSITIVE, f32::NAN, f32::INFINITY] {
                let Some(blocks) = format.encode(&[value; 256]) else { continue };
                let mut decoded = [f32::NAN; 256];
                format.decode(&blocks, &mut decoded);
                assert!(value != 0.0 || decoded == [0.0; 256], "{format}: {decoded:?}");
            }
        }
    }

    /// Columns of much importance have less of the error, whatever the importances are measured in.
    #[test]
    fn importance_is_heeded() {
        let values: Vec<f32> = Random::new(2, "values").take(2048).collect();
        let importance: Vec<f32> = (0..2048).map(|i| if i % 4 == 0 { 1e-3 } else { 1e-6 }).collect();
        let error = |format: MatrixFormat, importance: Option<&[f32]>| {
            let mut blocks = vec![0; format.row_bytes(values.len()).unwrap()];
            assert!(format.encode_row(&values, importance, &mut blocks));
            let mut decoded = vec![f32::NAN; values.len()];
            format.decode(&blocks, &mut decoded);
            values.iter().zip(decoded).step_by(4).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
        };
        use MatrixFormat::{
            IQ2_S, IQ3_S, IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K,
        };
        for format in [Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ2_S, IQ3_S, IQ4_NL, IQ4_XS] {
            let (without, with) = (error(format, None), error(format, Some(&importance)));
            assert!(with < 0.9 * without, "{format}: {with} with importances, {without} without");
            // None that counts, and none that is a number, is as good as none at all.
            for useless in [0.0, f32::NAN, f32::INFINITY] {
                let found = error(format, Some(&[useless; 2048]));
                assert!(found < 1.3 * without, "{format}: {found} with {useless}, {without} without");
            }
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

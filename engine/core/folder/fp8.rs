//! Weights of eight bits: E4M3 (one bit of sign, four of exponent, three of mantissa, no infinities) with a scale for each block of a matrix.
//!
//! Source: Micikevicius et al., FP8 formats for deep learning (2022).

use super::safetensors::{Dtype, Stored};
use crate::formats::MatrixFormat;

/// The largest value of E4M3.
const LARGEST: f32 = 448.0;

/// The value of each code.
pub(super) fn values() -> [f32; 256] {
    std::array::from_fn(|code| {
        let (exponent, mantissa) = ((code >> 3) & 15, (code & 7) as f32);
        let magnitude = match (exponent, code & 7) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa / 8.0 * 2f32.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent as i32 - 7),
        };
        if code & 128 == 0 { magnitude } else { -magnitude }
    })
}

/// The scales of a matrix: one for each block of rows and columns.
#[derive(Clone, Debug)]
pub(super) struct Scales {
    values: Vec<f32>,
    rows_of_block: usize,
    cols_of_block: usize,
    blocks_of_row: usize,
}

impl Scales {
    /// The scales of a matrix `[rows, cols]` in blocks of `block`; a scale for each row, or one for all, are in other files.
    pub(super) fn new(stored: &Stored, [rows, cols]: [usize; 2], block: [usize; 2]) -> Result<Self, String> {
        let format = match stored.dtype {
            Dtype::F32 => MatrixFormat::F32,
            Dtype::F16 => MatrixFormat::F16,
            Dtype::Bf16 => MatrixFormat::Bf16,
            _ => return Err(format!("is {}; expected floats", stored.dtype)),
        };
        let blocks =
            [rows.div_ceil(block[0].max(1)), cols.div_ceil(block[1].max(1))].map(|count| count as u64);
        let (size, blocks_of_row) = match stored.shape[..] {
            [] | [1] => ([rows, cols], 1),
            [found] if found == rows as u64 => ([1, cols], 1),
            [found, 1] if found == rows as u64 => ([1, cols], 1),
            [first, second] if [first, second] == blocks => (block, second as usize),
            _ => {
                return Err(format!(
                    "has the shape {:?}; expected {blocks:?}, one for each block of {block:?}",
                    stored.shape
                ));
            }
        };
        // As many as the file has, whose size belongs to that shape.
        let mut values = vec![0.0; stored.shape.iter().product::<u64>() as usize];
        format.decode(&stored.data, &mut values);
        Ok(Self { values, rows_of_block: size[0].max(1), cols_of_block: size[1].max(1), blocks_of_row })
    }

    /// Multiplies the values of a row.
    pub(super) fn scale(&self, row: usize, values: &mut [f32]) {
        let scales = &self.values[row / self.rows_of_block * self.blocks_of_row..];
        for (block, scale) in values.chunks_mut(self.cols_of_block).zip(scales) {
            block.iter_mut().for_each(|value| *value *= scale);
        }
    }

    /// f16 where it holds all products to more bits than bf16 does, which is nearly always: E4M3 times a scale has up to twelve bits, f16
    /// keeps eleven of them where they are no smaller than 2^-14. Where a block is so small that this fails, bf16.
    pub(super) fn format(&self) -> MatrixFormat {
        let is_in_range = |&scale: &f32| {
            let largest = (scale * LARGEST).abs();
            largest == 0.0 || (2f32.powi(-12)..65_504.0).contains(&largest)
        };
        if self.values.iter().all(is_in_range) { MatrixFormat::F16 } else { MatrixFormat::Bf16 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_paper() {
        let values = values();
        for (code, value) in [
            (0, 0.0),
            (1, 2f32.powi(-9)),
            (7, 0.875 * 2f32.powi(-6)),
            (8, 2f32.powi(-6)),
            (0x38, 1.0),
            (0x7e, 448.0),
            (0xb9, -1.125),
        ] {
            assert_eq!(values[code], value, "{code:#x}");
        }
        assert!(values[0x7f].is_nan() && values[0xff].is_nan());
    }

    #[test]
    fn scales_are_of_blocks_rows_or_all() {
        let stored = |shape: &[u64], values: &[f32]| Stored {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            data: values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>().into(),
        };
        let row = |scales: &Scales, row: usize| {
            let mut values = [1.0; 5];
            scales.scale(row, &mut values);
            values
        };
        let blocks = Scales::new(&stored(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), [3, 5], [2, 2]).unwrap();
        assert_eq!(
            (row(&blocks, 1), row(&blocks, 2)),
            ([1.0, 1.0, 2.0, 2.0, 3.0], [4.0, 4.0, 5.0, 5.0, 6.0])
        );
        assert_eq!(blocks.format(), MatrixFormat::F16);
        let rows = Scales::new(&stored(&[3, 1], &[1.0, 2.0, 1e6]), [3, 5], [2, 2]).unwrap();
        assert_eq!((row(&rows, 1), rows.format()), ([2.0; 5], MatrixFormat::Bf16));
        let one = Scales::new(&stored(&[], &[7.0]), [3, 5], [128, 128]).unwrap();
        assert_eq!(row(&one, 2), [7.0; 5]);
        let wrong = Scales::new(&stored(&[2, 2], &[1.0; 4]), [3, 5], [2, 2]).unwrap_err();
        assert!(wrong.contains("expected [2, 3]"), "{wrong}");
    }
}

//! Matrices in blocks, as files have them: what is done with a matrix of any format that is not a float one.
//!
//! A format is one implementation of [`Blocks`], which says what value stands in a column of a row, and a word in the list below: it has
//! all the kernels of this file then, which are written to be read, a value at a time, and those of [`few_rows`].

use cuda_std::prelude::*;

pub mod eight;
pub mod few_rows;
mod float;
pub(crate) mod fp4;
mod grids;
pub(crate) mod iq1;
pub(crate) mod iq2;
pub(crate) mod iq3;
pub(crate) mod iq4;
mod k;
mod nibbles;
pub(crate) mod q2_k;
pub(crate) mod q3_k;
pub(crate) mod q4_0;
pub(crate) mod q4_1;
pub(crate) mod q4_k;
pub(crate) mod q5_0;
pub(crate) mod q5_1;
pub(crate) mod q5_k;
pub(crate) mod q6_k;
pub(crate) mod q8_0;
pub(crate) mod ternary;

/// Calls a macro with all formats that are none of floats, before what else it gets.
macro_rules! block_formats {
    ($call:path, $($rest:tt)*) => {
        $call! {
            [
                q4_0::q4_0, q4_1::q4_1, q5_0::q5_0, q5_1::q5_1, q8_0::q8_0, q2_k::q2_k, q3_k::q3_k, q4_k::q4_k, q5_k::q5_k, q6_k::q6_k,
                iq4::iq4_nl, iq4::iq4_xs, iq3::iq3_s, iq3::iq3_xxs, iq2::iq2_s, iq2::iq2_xs, iq2::iq2_xxs, iq1::iq1_s, iq1::iq1_m,
                ternary::tq1_0, ternary::tq2_0, fp4::mxfp4, fp4::nvfp4
            ]
            $($rest)*
        }
    };
}
pub(crate) use block_formats;

#[device]
use crate::{
    codes::Codes,
    grid::{offset, repeat, row_and_column},
    row_norms::RowNorms,
};

/// A format on the device; the host's half is `engine/formats`.
#[device]
pub trait Blocks {
    /// Neighbouring values of a row that are stored together.
    const VALUES: u32;
    /// Bytes of a block.
    const BYTES: u32;

    /// Value `i` of a block: the bits that the host's `decode` gives.
    ///
    /// # Safety
    /// `block` leads to a block, aligned to two bytes if its length is even; `i` is below [`Blocks::VALUES`].
    unsafe fn value(block: *const u8, i: u32) -> f32;

    /// The value in `column` of a row.
    ///
    /// # Safety
    /// `row` leads to the blocks of a row that has such a column, aligned as for [`Blocks::value`].
    #[inline(always)]
    unsafe fn in_row(row: *const u8, column: u32) -> f32 {
        // SAFETY: the caller's row has this block.
        unsafe { Self::value(row.add(Self::row_bytes(column)), column % Self::VALUES) }
    }

    /// The values in the columns `8 eighth` to `8 eighth + 7` of a row.
    ///
    /// # Safety
    /// As [`Blocks::in_row`].
    #[inline(always)]
    unsafe fn eight_in_row(row: *const u8, eighth: u32) -> [f32; 8] {
        let (column, mut values) = (8 * eighth, [0.0; 8]);
        // SAFETY: the caller's row has this block, and a block whole eights.
        unsafe {
            let block = row.add(Self::row_bytes(column));
            repeat(8, |k| values[k] = Self::value(block, column % Self::VALUES + k as u32));
        }
        values
    }

    /// Bytes of the whole blocks of `cols` values.
    #[inline(always)]
    fn row_bytes(cols: u32) -> usize {
        (cols / Self::VALUES) as usize * Self::BYTES as usize
    }
}

/// Byte `at` of a block.
///
/// # Safety
/// The block has it.
#[device]
#[inline(always)]
unsafe fn byte(block: *const u8, at: u32) -> u32 {
    // SAFETY: the caller's promise.
    u32::from(unsafe { block.add(at as usize).read() })
}

/// The u16 at byte `at` of a block.
///
/// # Safety
/// The block has it, and it is aligned.
#[device]
#[inline(always)]
unsafe fn word(block: *const u8, at: u32) -> u32 {
    // SAFETY: the caller's promise.
    u32::from(unsafe { block.add(at as usize).cast::<u16>().read() })
}

/// The f16 at byte `at` of a block.
///
/// # Safety
/// As [`word`].
#[device]
#[inline(always)]
unsafe fn half(block: *const u8, at: u32) -> f32 {
    // Not the method of that name that `f16` has itself, which computes with integers.
    // SAFETY: the caller's promise.
    Element::to_f32(unsafe { block.add(at as usize).cast::<f16>().read() })
}

/// Threads of a block of [`embed`] and of the kernels of [`crate::decode`].
pub const BLOCK_SIZE: u32 = 256;
/// `out[i] = scale · table[token(i)]`, where `token(i)` is `tokens[i]`, or what was drawn last for row `sampled_rows[i]` of the logits
/// ([`crate::embed`]).
#[kernel_args]
pub struct Embed {
    pub hidden_size: u32,
    pub vocab_size: u32,
    pub scale: f32,
    /// u32 `[num_tokens]`
    pub tokens: *const u32,
    /// u32 `[num_tokens]`, each [`crate::embed::GIVEN`] or a row of `sampled`
    pub sampled_rows: *const u32,
    /// u32, what the sampler drew. Instead of a token that is not below `vocab_size` 0 is taken.
    pub sampled: *const u32,
    /// `[vocab_size, hidden_size]` in blocks
    pub table: *const u8,
    /// f32 `[num_tokens, hidden_size]`
    pub out: *mut f32,
}

/// Grid `[num_tokens, ceil(hidden_size / BLOCK_SIZE), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`. One thread a value.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`Embed`], rows are whole blocks, `out` overlaps nothing,
/// `vocab_size` is not 0.
#[kernel(W = [block_formats!], name = "embed_{W}_plain")]
pub unsafe fn embed<W: Blocks>(a: Embed) {
    let Embed { hidden_size, vocab_size, scale, tokens, sampled_rows, sampled, table, out } = a;
    // The first kernel of a step: the next may fetch its weights.
    crate::fused::launch_dependents();
    let Some((row, column)) = row_and_column(hidden_size) else { return };
    // SAFETY: the grid has one row of blocks a token, every row of the draw exists, and no token is beyond the table.
    unsafe {
        let (given, sampled_row) = (*tokens.add(row as usize), *sampled_rows.add(row as usize));
        let token =
            if sampled_row == crate::embed::GIVEN { given } else { *sampled.add(sampled_row as usize) };
        let token = if token < vocab_size { token } else { 0 };
        let value = W::in_row(table.add(token as usize * W::row_bytes(hidden_size)), column);
        *out.add(offset(row, hidden_size, column)) = value * scale;
    }
}

/// A warp a row, each lane its columns in ascending order, then a butterfly.
///
/// Grid `[ceil(rows / WARPS_PER_BLOCK), 1, 1]`, block `[MATMUL_THREADS, 1, 1]`.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`RowNorms`], rows are whole blocks, `out` overlaps nothing.
#[kernel(W = [block_formats!], name = "row_norms_{W}_plain", max_threads = 256)]
pub unsafe fn row_norms<W: Blocks>(a: RowNorms<u8>) {
    let RowNorms { rows, cols, weight, scale, out } = a;
    let (row, lane) = (crate::row_norms::row_of_warp(), thread::thread_idx_x() % 32);
    if row >= rows {
        return; // The whole warp: no shuffle below waits for it.
    }
    // SAFETY: `row < rows`, columns stay below `cols`.
    unsafe {
        let weight = weight.add(row as usize * W::row_bytes(cols));
        let (mut sum, mut column) = (0.0f32, lane);
        while column < cols {
            let value = W::in_row(weight, column) * *scale.add(column as usize);
            sum = value.fma(value, sum);
            column += 32;
        }
        let sum = warp::reduce_sum(sum);
        if lane == 0 {
            *out.add(row as usize) = sum.sqrt();
        }
    }
}

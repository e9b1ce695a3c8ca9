//! Rows of K and V from where kernels leave them as floats to the pages, in their formats.

use cuda_std::prelude::*;

#[device]
use crate::{
    PAGE_SIZE,
    attention::formats::{BF16, F16, F32, LARGEST, q8_0_bytes},
    bias_rope_kv::place,
    fused::{launch_dependents, wait_for_dependencies},
    grid::divide,
    vector::Saturate,
};
#[device]
use cuda_std::warp::{FULL_MASK, warp_vote_any};

/// Warps of a block, each for 32 values.
pub const WARPS: u32 = 4;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 32 * WARPS;

/// `k_pages[slots[row]] = k[row]` for the rows of a batch, and so for V.
#[kernel_args]
pub struct QuantiseKv<E> {
    pub num_key_value_heads: u32,
    /// A multiple of 32.
    pub head_dim: u32,
    /// Of pages: [`crate::attention::formats`].
    pub k_format: u32,
    pub v_format: u32,
    /// u32 `[num_tokens]`, `page * PAGE_SIZE + place`, all different
    pub slots: *const u32,
    /// E `[ceil(num_tokens / PAGE_SIZE), num_key_value_heads, PAGE_SIZE, head_dim]`: row `i` as that of slot `i`
    pub k: *const E,
    /// As `k`
    pub v: *const E,
    /// `[num_pages, num_key_value_heads, PAGE_SIZE, head_dim]` in its format
    pub k_pages: *mut u8,
    /// As `k_pages`
    pub v_pages: *mut u8,
}

/// Stores 32 values of the head that begins `start` values into the pages, from value `at` of it on, a lane each.
///
/// Floats are rounded to nearest even, no f16 to infinity. In eight bits the largest of the 32 becomes 127 or -127; magnitudes beyond
/// [`LARGEST`] become that; with a NaN among them all are.
///
/// # Safety
/// The values are in the pages, aligned to 16 bytes; all lanes of the warp call it together.
#[device]
#[inline(always)]
pub(crate) unsafe fn store(pages: *mut u8, format: u32, start: usize, at: usize, head_dim: u32, value: f32) {
    let lane = warp::lane_id();
    let i = start + at + lane as usize;
    // SAFETY: the caller's promise.
    unsafe {
        match format {
            F32 => pages.cast::<f32>().add(i).write(value),
            F16 => pages.cast::<f16>().add(i).write(f16::round(value)),
            BF16 => pages.cast::<bf16>().add(i).write(bf16::round(value)),
            _ => {
                if value.abs() > LARGEST {
                    cuda_std::note_out_of_range(value);
                }
                // Not `min` and `max`, which lose a NaN.
                let below = if value > LARGEST { LARGEST } else { value };
                let value = if below < -LARGEST { -LARGEST } else { below };
                let largest = warp::reduce_max(value.abs());
                let is_nan = warp_vote_any(FULL_MASK, value.is_nan());
                let scale = <f16 as Element>::from_f32(if is_nan { f32::NAN } else { largest / 127.0 });
                let stored = <f16 as Element>::to_f32(scale);
                // Of the scale as it is stored.
                let inverse = if stored > 0.0 { 1.0 / stored } else { 0.0 };
                let code = (value * inverse).round_ties_even();
                // A NaN among them becomes 0, as everywhere.
                let code = if code > 127.0 { 127.0 } else { code };
                let code = if code < -127.0 { -127.0 } else { code };
                let head = pages.add(q8_0_bytes(start));
                head.add(at + lane as usize).cast::<i8>().write(code as i32 as i8);
                if lane == 0 {
                    let scales = head.add((PAGE_SIZE * head_dim) as usize).cast::<u16>();
                    scales.add(at / 32).write(scale.to_bits());
                }
            }
        }
    }
}

/// A warp for 32 values.
///
/// Grid `[num_tokens, ceil(2 * num_key_value_heads * head_dim / 32 / WARPS), 1]`, exact in the rows; block `[BLOCK_SIZE, 1, 1]`.
///
/// # Safety
/// Grid and block are as above, arrays have the lengths of [`QuantiseKv`] and do not overlap, slots are in range; all of them aligned to
/// 16 bytes.
#[kernel(E = [f32, f16, bf16], name = "quantise_kv_{E}_plain", max_threads = 128)]
pub unsafe fn plain<E: Element>(a: QuantiseKv<E>) {
    let QuantiseKv { num_key_value_heads, head_dim, k_format, v_format, slots, k, v, k_pages, v_pages } = a;
    launch_dependents();
    wait_for_dependencies();
    let row = thread::block_idx_x();
    let (head, block) = divide(thread::block_idx_y() * WARPS + warp::warp_id(), head_dim / 32);
    if head >= 2 * num_key_value_heads {
        return; // The whole warp.
    }
    let is_v = head >= num_key_value_heads;
    let head = if is_v { head - num_key_value_heads } else { head };
    // SAFETY: rows are those of the batch, heads and blocks theirs.
    unsafe {
        let from = place(row, head, num_key_value_heads, head_dim) + (32 * block + warp::lane_id()) as usize;
        let value = (*if is_v { v } else { k }.add(from)).to_f32();
        let slot = *slots.add(row as usize);
        let in_page = place(slot, head, num_key_value_heads, head_dim);
        // The head's first row, and how far behind it this is.
        let at = (slot % PAGE_SIZE) as usize * head_dim as usize;
        let (pages, format) = if is_v { (v_pages, v_format) } else { (k_pages, k_format) };
        store(pages, format, in_page - at, at + 32 * block as usize, head_dim, value);
    }
}

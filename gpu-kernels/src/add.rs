//! The residual addition.

use cuda_std::prelude::*;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// `x[i] += delta[i]` for `i < count`, in place, f32.
///
/// Any grid `[blocks, 1, 1]` (a grid-stride loop) of blocks `[BLOCK_SIZE, 1, 1]`; one thread an element at a time.
///
/// # Safety
/// Both arrays hold `count` values and do not overlap.
#[kernel]
pub unsafe fn add_f32_plain(count: u64, delta: *const f32, x: *mut f32) {
    // SAFETY: indices are below `count`, each in one thread.
    crate::grid::stride_loop(count, |i| unsafe { *x.add(i) += *delta.add(i) });
}

/// As [`add_f32_plain`], four values at a time: a quarter of the memory instructions, each of 16 bytes.
///
/// # Safety
/// As for [`add_f32_plain`]; `count` is a multiple of 4 and both pointers are aligned to 16 bytes.
#[kernel]
pub unsafe fn add_f32_vec4(count: u64, delta: *const f32, x: *mut f32) {
    use crate::vector::Group;
    crate::grid::stride_loop(count / 4, |i| {
        // SAFETY: groups are inside the arrays and aligned, each in one thread.
        unsafe {
            let x = x.add(4 * i);
            let (a, b): ([f32; 4], [f32; 4]) = (f32::load_group(x), f32::load_group(delta.add(4 * i)));
            f32::store_group(x, [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]);
        }
    });
}

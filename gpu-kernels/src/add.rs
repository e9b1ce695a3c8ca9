//! The residual addition.

use cuda_std::prelude::*;

#[device]
use crate::{grid::stride_loop, vector::Group};

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// `x[i] += delta[i]` for `i < count`, in place.
#[kernel_args]
pub struct Add {
    pub count: u64,
    /// f32 `[count]`
    pub delta: *const f32,
    /// f32 `[count]`
    pub x: *mut f32,
}

/// Any grid `[blocks, 1, 1]` (a grid-stride loop) of blocks `[BLOCK_SIZE, 1, 1]`; one thread an element at a time.
///
/// # Safety
/// Both arrays hold `count` values and do not overlap.
#[kernel(E = [f32], name = "add_{E}_plain")]
pub unsafe fn plain(Add { count, delta, x }: Add) {
    // SAFETY: indices are below `count`, each in one thread.
    stride_loop(count, |i| unsafe { *x.add(i) += *delta.add(i) });
}

/// As [`plain`], four values at a time: a quarter of the memory instructions, each of 16 bytes.
///
/// # Safety
/// As for [`plain`]; `count` is a multiple of 4 and both pointers are aligned to 16 bytes.
#[kernel(E = [f32], name = "add_{E}_vec4")]
pub unsafe fn vec4(Add { count, delta, x }: Add) {
    stride_loop(count / 4, |i| {
        // SAFETY: groups are inside the arrays and aligned, each in one thread.
        unsafe {
            let x = x.add(4 * i);
            let (a, b): ([f32; 4], [f32; 4]) = (f32::load_group(x), f32::load_group(delta.add(4 * i)));
            f32::store_group(x, [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]);
        }
    });
}

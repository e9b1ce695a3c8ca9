//! matmul, variant `ahead`: weights are on their way before anything else happens.
//!
//! A product with few rows of x is bound by reading the weights, so bytes in flight are what counts. A lane of `gemv` asks for 16
//! bytes, multiplies them and asks for the next: the memory waits for the arithmetic, and each lane converts x anew for
//! every row of weights. Here
//!
//! - a lane asks for 7 words of 16 bytes of each of two rows at once: with 16 lanes a row, all of a row of 896 columns. They are
//!   asked for before x is read, even before the kernel before this one has ended, since that does not write them, and
//!   the next rows' while these are added up;
//! - x is converted once for the block, into shared memory, and each value read from there serves two rows of weights;
//! - the grid is what the device runs at a time, so x is staged once a block, not once every few rows.

use super::Matmul;
use crate::fused::{MATMUL_BLOCK_SIZE, MATMUL_LANES, MATMUL_ROWS};
#[device]
use crate::{
    fused::{launch_dependents, matmul, wait_for_dependencies},
    grid::offset,
    vector::Group,
};
use cuda_std::prelude::*;

/// Rows of x that a block of the kernels `few` takes.
pub const FEW: u32 = 4;
/// Threads of a block.
pub const BLOCK_SIZE: u32 = MATMUL_BLOCK_SIZE;
/// Columns of the output that a block computes at a time.
pub const COLUMNS_PER_BLOCK: u32 = BLOCK_SIZE / MATMUL_LANES * MATMUL_ROWS;

/// `N` rows of x a block.
///
/// A lane adds its words in ascending order, then a butterfly adds 16 lanes: the order depends on `cols` alone, and
/// is the same in the kernels of one row and of few.
///
/// Grid `[blocks, ceil(n / N), 1]`, any number of blocks from 1 to `ceil(rows / COLUMNS_PER_BLOCK)`; block
/// `[BLOCK_SIZE, 1, 1]`; dynamic shared memory [`stage_bytes`](crate::fused::stage_bytes) of as many rows of `cols`,
/// but no more than `n`. `cols` is a multiple of 8.
///
/// # Safety
/// Grid and block are as above, arrays have the sizes of [`Matmul`] and are aligned to 16 bytes; `cols` is not 0; `out` overlaps
/// nothing. Of what the kernel before this one writes, only `x` is read.
#[kernel(
    (E, X) = [(f16, f16), (bf16, bf16), bf16_f32: (bf16, f32)],
    N = [one: 1, few: 4],
    name = "matmul_{E}_ahead_{N}",
    max_threads = 256,
    min_blocks = 2,
)]
pub unsafe fn ahead<E: PackedElement, X: Group<4>, const N: usize>(a: Matmul<E, X>) {
    let Matmul { n, rows, cols, out_stride, scale, x, weight, out } = a;
    launch_dependents();
    let first_x = thread::block_idx_y() * N as u32;
    let n = (n - first_x).min(N as u32);
    // SAFETY: the kernels' contract; rows `first_x ..` of x and out; the stage has room for `n` rows.
    unsafe {
        let (x, out) = (x.add(offset(first_x, cols, 0)), out.add(offset(first_x, out_stride, 0)));
        matmul::<E, N>(n, rows, cols, weight, out, out_stride, |stage| {
            wait_for_dependencies();
            stage.copy(x);
            thread::sync_threads();
            [scale; N]
        });
    }
}

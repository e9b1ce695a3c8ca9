//! Products of a warpgroup, of which a GPU and the emulator must give the same bits, and those of `mma` too.

use cuda_std::prelude::*;
#[device]
use cuda_std::{
    async_copy,
    wgmma::{Descriptor, WgmmaElement},
};

/// Bytes of dynamic shared memory of each kernel: A, 256 columns of B, and room to begin at a multiple of 1,024.
pub const WGMMA_SHARED_BYTES: u32 = (64 + 256) * 128 + 1024;

/// Copies `rows` rows of 64 values to a tile, swizzled, by ordinary stores.
#[device]
#[inline(always)]
unsafe fn stage(tile: Shared<[u32; 4]>, from: *const [u32; 4], rows: u32) {
    let mut i = thread::thread_idx_x();
    while i < rows * 8 {
        unsafe { tile.set(i / 8 * 8 + ((i % 8) ^ (i / 8 % 8)), *from.add(i as usize)) }
        i += thread::block_dim_x();
    }
}

/// The thread's part of A as registers.
#[device]
#[inline(always)]
unsafe fn fragments(a: *const u32) -> [u32; 16] {
    let t = thread::thread_idx_x();
    let (row, pair) = ((16 * (t / 32) + t % 32 / 4) as usize, (t % 4) as usize);
    let mut words = [0; 16];
    let mut i = 0;
    while i < 16 {
        words[i] = unsafe { *a.add((row + 8 * (i % 2)) * 32 + 8 * (i / 4) + 4 * (i / 2 % 2) + pair) };
        i += 1;
    }
    words
}

#[device]
#[inline(always)]
unsafe fn write<const N: usize>(d: &[f32; N], out: *mut f32) {
    let mut i = 0;
    while i < N {
        unsafe { *out.add(i) = d[i] }
        i += 1;
    }
}

macro_rules! compare {
    ($($name:ident, $element:ident, $n:literal;)*) => { $(
        /// Sums of three products, `[3, 128, n]` by threads: of two tiles, added twice; with A in registers, added to what was one; with B transposed.
        ///
        /// `a` is `[64, 64]`, `b` `[2 n, 64]`, or `n / 32` times `[64, 64]`. One block of 128.
        #[kernel(max_threads = 128, requires = "sm_90a")]
        pub unsafe fn $name(a: *const [u32; 4], b: *const [u32; 4], out: *mut f32) {
            unsafe {
                let base = dynamic_shared::<u8>().address().next_multiple_of(1024);
                let tiles = Shared::<[u32; 4]>::from_address(base);
                let columns = tiles.add(64 * 8);
                stage(tiles, a, 64);
                stage(columns, b, 2 * $n);
                async_copy::fence_proxy_async_shared();
                thread::sync_threads();
                let (b, words) = (Descriptor::k_major(columns), fragments(a.cast()));
                let out = out.add(thread::thread_idx_x() as usize * $n);

                let mut d = [0.0; $n];
                $element::multiply(&mut d, Descriptor::k_major(tiles), b, false);
                $element::multiply(&mut d, Descriptor::k_major(tiles), b, true);
                $element::wait::<0>(&mut d);
                write(&d, out);

                let mut d = [f32::NAN; $n];
                $element::multiply_first(&mut d, words, b);
                $element::wait::<0>(&mut d);
                d[0] += 1.0;
                $element::multiply_registers(&mut d, words, b, true);
                $element::wait::<0>(&mut d);
                write(&d, out.add(128 * $n));

                let mut d = [0.5; $n];
                $element::multiply_transposed(&mut d, words, Descriptor::n_major(columns, 64 * 128));
                $element::wait::<0>(&mut d);
                write(&d, out.add(2 * 128 * $n));
            }
        }
    )* };
}
compare! {
    compare_wgmma_f16_n64, f16, 32;
    compare_wgmma_f16_n128, f16, 64;
    compare_wgmma_f16_n256, f16, 128;
    compare_wgmma_bf16_n64, bf16, 32;
    compare_wgmma_bf16_n128, bf16, 64;
}

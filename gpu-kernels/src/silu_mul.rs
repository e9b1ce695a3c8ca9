//! The gated activation of the MLP.

use cuda_std::prelude::*;

/// Threads of a block.
pub const BLOCK_SIZE: u32 = 256;

/// `gate / (1 + e^-gate) * up`. Where `e^-gate` overflows, the quotient is a zero as it should be.
#[device]
#[inline(always)]
fn value(gate: f32, up: f32) -> f32 {
    gate / (1.0 + (-gate).exp()) * up
}

#[device]
#[inline(always)]
unsafe fn plain<E: Element>(count: u64, gate: *const f32, up: *const f32, out: *mut E) {
    // SAFETY: indices are below `count`, each in one thread.
    crate::grid::stride_loop(count, |i| unsafe {
        *out.add(i) = E::from_f32(value(*gate.add(i), *up.add(i)))
    });
}

#[device]
#[inline(always)]
unsafe fn vec4<E: crate::vector::Group<4>>(count: u64, gate: *const f32, up: *const f32, out: *mut E) {
    use crate::vector::Group;
    crate::grid::stride_loop(count / 4, |i| {
        // SAFETY: groups are inside the arrays and aligned, each in one thread.
        unsafe {
            let (g, u): ([f32; 4], [f32; 4]) =
                (f32::load_group(gate.add(4 * i)), f32::load_group(up.add(4 * i)));
            let values = [value(g[0], u[0]), value(g[1], u[1]), value(g[2], u[2]), value(g[3], u[3])];
            E::store_group(out.add(4 * i), values);
        }
    });
}

macro_rules! plain_kernels {
    ($($element:ident $name:ident;)*) => { $(
        /// `out[i] = silu(gate[i]) * up[i]` for `i < count`, with `silu(x) = x / (1 + e^-x)`: SwiGLU's
        /// activation (Shazeer 2020, "GLU variants improve Transformer").
        ///
        /// - `gate`, `up`: f32 `[count]`
        #[doc = concat!("- `out`: ", stringify!($element), " `[count]`, computed in f32 and rounded once")]
        ///
        /// Any grid `[blocks, 1, 1]` (a grid-stride loop) of blocks `[BLOCK_SIZE, 1, 1]`; one thread an element at a
        /// time.
        ///
        /// # Safety
        /// The arrays hold `count` values; `out` overlaps nothing.
        #[kernel]
        pub unsafe fn $name(count: u64, gate: *const f32, up: *const f32, out: *mut $element) {
            // SAFETY: the kernel's own contract.
            unsafe { plain(count, gate, up, out) }
        }
    )* };
}

plain_kernels! {
    f32 silu_mul_f32_plain;
    f16 silu_mul_f16_plain;
    bf16 silu_mul_bf16_plain;
}

macro_rules! vec4_kernels {
    ($($element:ident $name:ident;)*) => { $(
        #[doc = concat!("As [`silu_mul_", stringify!($element), "_plain`], four values at a time: loads of 16 bytes, a quarter of the instructions.")]
        ///
        /// # Safety
        #[doc = concat!("As for [`silu_mul_", stringify!($element), "_plain`]; `count` is a multiple of 4 and all pointers are aligned to 16 bytes.")]
        #[kernel]
        pub unsafe fn $name(count: u64, gate: *const f32, up: *const f32, out: *mut $element) {
            // SAFETY: the kernel's own contract.
            unsafe { vec4(count, gate, up, out) }
        }
    )* };
}

vec4_kernels! {
    f32 silu_mul_f32_vec4;
    f16 silu_mul_f16_vec4;
    bf16 silu_mul_bf16_vec4;
}

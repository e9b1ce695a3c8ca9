//! [`Lanes`] without vector instructions of a processor's own.

use super::{Bf16, Element, F16, F32, LANES, Lanes};

/// Left to the compiler: four registers on aarch64.
#[derive(Clone, Copy)]
pub struct Lanes16(pub(in crate::cpu) [f32; LANES]);

#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
unsafe fn load<E: Element>(from: *const u8) -> Lanes16 {
    // SAFETY: the caller's: sixteen values.
    Lanes16(std::array::from_fn(|i| unsafe { E::get(from.add(i * E::SIZE)) }))
}

impl Lanes for Lanes16 {
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self {
        // SAFETY: the caller's: 16 values can be read there, and the processor has the instructions.
        unsafe { load::<F32>(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller's: 16 values can be read there, and the processor has the instructions.
        unsafe { load::<F16>(from) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller's: 16 values can be read there, and the processor has the instructions.
        unsafe { load::<Bf16>(from) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        // SAFETY: the caller's: 16 values can be read there.
        let bytes = unsafe { from.cast::<[i8; LANES]>().read_unaligned() };
        Self(bytes.map(f32::from))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's: 16 values can be written there, and the processor has the instructions.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * b.0[i]))
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| fused(self.0[i], b.0[i], c.0[i])))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let a = self.0;
        let b: [f32; 8] = std::array::from_fn(|i| a[i] + a[i + 8]);
        let c: [f32; 4] = std::array::from_fn(|i| b[i] + b[i + 4]);
        (c[0] + c[1]) + (c[2] + c[3])
    }
}

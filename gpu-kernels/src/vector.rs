//! Loads and stores of a few neighbouring elements as one instruction.

use cuda_std::prelude::*;

/// A format that results are rounded to.
#[device]
pub trait Saturate: Element {
    /// `value`, or the largest number of this format with its sign where it is beyond that; NaN stays. The formats with the
    /// range of f32 leave everything as it is.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn saturate(value: f32) -> f32;

    /// The nearest of this format, never infinite for a format of a smaller range than f32's.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    fn round(value: f32) -> Self {
        Self::from_f32(Self::saturate(value))
    }
}

#[device]
impl Saturate for f32 {
    #[inline(always)]
    fn saturate(value: f32) -> f32 {
        value
    }
}

#[device]
impl Saturate for bf16 {
    #[inline(always)]
    fn saturate(value: f32) -> f32 {
        value
    }
}

#[device]
impl Saturate for f16 {
    #[inline(always)]
    fn saturate(value: f32) -> f32 {
        const LARGEST: f32 = 65_504.0;
        if value.abs() > LARGEST {
            cuda_std::note_out_of_range(value);
        }
        // Not `min` and `max`, which lose a NaN.
        let below = if value > LARGEST { LARGEST } else { value };
        if below < -LARGEST { -LARGEST } else { below }
    }
}

/// `N` elements that move in one access of `N * size_of::<Self>()` bytes.
#[device]
pub trait Group<const N: usize>: Saturate {
    /// A word of that size and alignment.
    type Word: Bits;

    /// The elements of a word in the order of their addresses.
    fn split(word: Self::Word) -> [f32; N];

    /// The word of `N` values, each rounded to nearest even.
    fn join(values: [f32; N]) -> Self::Word;

    /// The word of `N` values, each rounded by [`Saturate::round`].
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    fn join_saturated(mut values: [f32; N]) -> Self::Word {
        crate::grid::repeat(N, |i| values[i] = Self::saturate(values[i]));
        Self::join(values)
    }

    /// Loads `N` elements.
    ///
    /// # Safety
    /// `pointer` leads to `N` readable elements and is aligned to their size together.
    #[inline(always)]
    unsafe fn load_group(pointer: *const Self) -> [f32; N] {
        // SAFETY: the caller's promise.
        Self::split(unsafe { pointer.cast::<Self::Word>().read() })
    }

    /// Stores `N` elements.
    ///
    /// # Safety
    /// `pointer` leads to `N` writable elements and is aligned to their size together.
    #[inline(always)]
    unsafe fn store_group(pointer: *mut Self, values: [f32; N]) {
        // SAFETY: the caller's promise.
        unsafe { pointer.cast::<Self::Word>().write(Self::join(values)) }
    }

    /// As [`Group::store_group`], rounded by [`Saturate::round`].
    ///
    /// # Safety
    /// As there.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    unsafe fn store_saturated(pointer: *mut Self, values: [f32; N]) {
        // SAFETY: the caller's promise.
        unsafe { pointer.cast::<Self::Word>().write(Self::join_saturated(values)) }
    }
}

/// Loads eight elements, 16 bytes at a time.
///
/// # Safety
/// `pointer` leads to eight readable elements and is aligned to 16 bytes.
#[device]
#[inline(always)]
pub unsafe fn load8<E: Element>(pointer: *const E) -> [f32; 8] {
    use crate::grid::repeat;
    let mut values = [0.0; 8];
    repeat(8 / E::LANES, |part| {
        // SAFETY: the caller's promise.
        let lanes = unsafe { E::load(pointer.add(part * E::LANES)) };
        repeat(E::LANES, |i| values[part * E::LANES + i] = lanes.as_ref()[i]);
    });
    values
}

/// Stores eight elements rounded by [`Saturate::round`], 16 bytes at a time.
///
/// # Safety
/// `pointer` leads to eight writable elements and is aligned to 16 bytes.
#[device]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub unsafe fn store8<E: Saturate>(pointer: *mut E, values: [f32; 8]) {
    use crate::grid::repeat;
    repeat(8 / E::LANES, |part| {
        let mut lanes = E::splat(0.0);
        repeat(E::LANES, |i| lanes.as_mut()[i] = E::saturate(values[part * E::LANES + i]));
        // SAFETY: the caller's promise.
        unsafe { E::store(pointer.add(part * E::LANES), lanes) }
    });
}

/// Four words that move together.
#[device]
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct Quad([u32; 4]);

// SAFETY: four integers without padding.
#[device]
unsafe impl Bits for Quad {}

#[device]
impl Group<2> for f32 {
    type Word = u64;

    #[inline(always)]
    fn split(word: u64) -> [f32; 2] {
        [f32::from_bits(word as u32), f32::from_bits((word >> 32) as u32)]
    }

    #[inline(always)]
    fn join([low, high]: [f32; 2]) -> u64 {
        u64::from(low.to_bits()) | u64::from(high.to_bits()) << 32
    }
}

#[device]
impl Group<4> for f32 {
    type Word = Quad;

    #[inline(always)]
    fn split(word: Quad) -> [f32; 4] {
        let [a, b, c, d] = word.0;
        [f32::from_bits(a), f32::from_bits(b), f32::from_bits(c), f32::from_bits(d)]
    }

    #[inline(always)]
    fn join([a, b, c, d]: [f32; 4]) -> Quad {
        Quad([a.to_bits(), b.to_bits(), c.to_bits(), d.to_bits()])
    }
}

/// Eight words of neighbouring elements.
#[device]
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct Octet([u32; 8]);

// SAFETY: eight integers without padding.
#[device]
unsafe impl Bits for Octet {}

#[device]
impl Group<1> for f32 {
    type Word = u32;

    #[inline(always)]
    fn split(word: u32) -> [f32; 1] {
        [f32::from_bits(word)]
    }

    #[inline(always)]
    fn join([value]: [f32; 1]) -> u32 {
        value.to_bits()
    }
}

/// In two accesses of 16 bytes.
#[device]
impl Group<8> for f32 {
    type Word = Octet;

    #[inline(always)]
    fn split(word: Octet) -> [f32; 8] {
        let mut values = [0.0; 8];
        crate::grid::repeat(8, |i| values[i] = f32::from_bits(word.0[i]));
        values
    }

    #[inline(always)]
    fn join(values: [f32; 8]) -> Octet {
        let mut words = [0; 8];
        crate::grid::repeat(8, |i| words[i] = values[i].to_bits());
        Octet(words)
    }

    #[inline(always)]
    unsafe fn load_group(pointer: *const f32) -> [f32; 8] {
        // SAFETY: the caller's promise.
        let [low, high]: [[f32; 4]; 2] =
            unsafe { [f32::load_group(pointer), f32::load_group(pointer.add(4))] };
        [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]
    }

    #[inline(always)]
    unsafe fn store_group(pointer: *mut f32, [a, b, c, d, e, f, g, h]: [f32; 8]) {
        // SAFETY: the caller's promise.
        unsafe {
            f32::store_group(pointer, [a, b, c, d]);
            f32::store_group(pointer.add(4), [e, f, g, h]);
        }
    }
}

macro_rules! half_groups {
    ($($t:ident),*) => { $(
        #[device]
        impl Group<1> for $t {
            type Word = u16;

            #[inline(always)]
            fn split(word: u16) -> [f32; 1] {
                [Self::unpack2(u32::from(word)).0]
            }

            #[inline(always)]
            fn join([value]: [f32; 1]) -> u16 {
                Self::pack2(value, 0.0) as u16
            }
        }

        #[device]
        impl Group<8> for $t {
            type Word = Quad;

            #[inline(always)]
            fn split(word: Quad) -> [f32; 8] {
                let [a, b, c, d] = word.0;
                let ((a, b), (c, d), (e, f), (g, h)) =
                    (Self::unpack2(a), Self::unpack2(b), Self::unpack2(c), Self::unpack2(d));
                [a, b, c, d, e, f, g, h]
            }

            #[inline(always)]
            fn join([a, b, c, d, e, f, g, h]: [f32; 8]) -> Quad {
                Quad([Self::pack2(a, b), Self::pack2(c, d), Self::pack2(e, f), Self::pack2(g, h)])
            }
        }

        #[device]
        impl Group<2> for $t {
            type Word = u32;

            #[inline(always)]
            fn split(word: u32) -> [f32; 2] {
                Self::unpack2(word).into()
            }

            #[inline(always)]
            fn join([low, high]: [f32; 2]) -> u32 {
                Self::pack2(low, high)
            }
        }

        #[device]
        impl Group<4> for $t {
            type Word = u64;

            #[inline(always)]
            fn split(word: u64) -> [f32; 4] {
                let ((a, b), (c, d)) = (Self::unpack2(word as u32), Self::unpack2((word >> 32) as u32));
                [a, b, c, d]
            }

            #[inline(always)]
            fn join([a, b, c, d]: [f32; 4]) -> u64 {
                u64::from(Self::pack2(a, b)) | u64::from(Self::pack2(c, d)) << 32
            }
        }
    )* };
}
half_groups!(f16, bf16);

/// Loads 16 bytes as they are.
///
/// # Safety
/// `pointer` leads to 16 readable bytes and is aligned to 16.
#[device]
#[inline(always)]
pub unsafe fn load_words<E>(pointer: *const E) -> [u32; 4] {
    // SAFETY: the caller's promise.
    unsafe { pointer.cast::<Quad>().read() }.0
}

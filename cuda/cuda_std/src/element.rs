//! The types that tensors are made of, as kernels compute with them.

use half::{bf16, f16};

use crate::{Bits, target};

/// A tensor's element: stored as `Self`, computed with as `f32`.
///
/// On the device the conversions are single instructions. Note that `half`'s inherent methods of the same
/// names (`bf16::from_f32`, `f16::to_f32`, …) win over these where the type is known, and are software: write
/// `Element::to_f32(x)` or be generic over `E: Element`.
pub trait Element: Bits {
    /// Elements in 16 bytes: 8 for the half types, 4 for `f32`.
    const LANES: usize;

    /// `[f32; Self::LANES]`. Go over it by index (`for i in 0..E::LANES`, `lanes.as_ref()[i]`): that is
    /// unrolled into registers, while an array's iterator ends up in local memory.
    type Lanes: Bits + AsRef<[f32]> + AsMut<[f32]>;

    /// The value, exactly. A NaN of f16 becomes 0x7fff_ffff, while one of bf16 keeps its bits, moved up by 16.
    fn to_f32(self) -> f32;

    /// The nearest element; ties go to the even one. Any NaN becomes 0x7fff (`f32`, whose conversion to itself does
    /// nothing, apart).
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn from_f32(value: f32) -> Self;

    /// The [`LANES`](Self::LANES) elements in 16 bytes of memory, in the order of their addresses.
    fn unpack(words: [u32; 4]) -> Self::Lanes;

    /// 16 bytes of memory from [`LANES`](Self::LANES) values, rounded as by [`from_f32`](Self::from_f32).
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn pack(lanes: Self::Lanes) -> [u32; 4];

    /// [`LANES`](Self::LANES) times `value`.
    fn splat(value: f32) -> Self::Lanes;

    /// Loads 16 bytes at `pointer`, one `ld.v4`.
    ///
    /// # Safety
    /// `pointer` leads to [`LANES`](Self::LANES) readable elements and is aligned to 16 bytes.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    unsafe fn load(pointer: *const Self) -> Self::Lanes {
        // SAFETY: the caller's promise.
        Self::unpack(unsafe { target::read(pointer.cast::<Aligned>()) }.0)
    }

    /// Stores 16 bytes at `pointer`, one `st.v4`.
    ///
    /// # Safety
    /// `pointer` leads to [`LANES`](Self::LANES) writable elements and is aligned to 16 bytes.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    #[inline(always)]
    unsafe fn store(pointer: *mut Self, lanes: Self::Lanes) {
        // SAFETY: the caller's promise.
        unsafe { target::write(pointer.cast(), Aligned(Self::pack(lanes))) }
    }
}

/// 16 bytes at an address that allows one vector access.
#[repr(C, align(16))]
struct Aligned([u32; 4]);

/// An element of two bytes, two of which share a register (as in `mma` fragments).
pub trait PackedElement: Element {
    /// The element in the low half of `word` and the one in the high half.
    fn unpack2(word: u32) -> (f32, f32);

    /// `low` in the low half, `high` in the high half, each rounded to nearest, ties to even.
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn pack2(low: f32, high: f32) -> u32;
}

impl Element for f32 {
    const LANES: usize = 4;
    type Lanes = [f32; 4];

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn unpack(words: [u32; 4]) -> Self::Lanes {
        words.map(f32::from_bits)
    }

    #[inline(always)]
    fn pack(lanes: Self::Lanes) -> [u32; 4] {
        lanes.map(f32::to_bits)
    }

    #[inline(always)]
    fn splat(value: f32) -> Self::Lanes {
        [value; 4]
    }
}

macro_rules! half_element {
    ($t:ident) => {
        impl Element for $t {
            const LANES: usize = 8;
            type Lanes = [f32; 8];

            #[inline(always)]
            fn to_f32(self) -> f32 {
                convert::$t::widen(self.to_bits())
            }

            #[inline(always)]
            fn from_f32(value: f32) -> Self {
                Self::from_bits(convert::$t::narrow(value))
            }

            #[inline(always)]
            fn unpack([a, b, c, d]: [u32; 4]) -> Self::Lanes {
                let ((v0, v1), (v2, v3)) = (Self::unpack2(a), Self::unpack2(b));
                let ((v4, v5), (v6, v7)) = (Self::unpack2(c), Self::unpack2(d));
                [v0, v1, v2, v3, v4, v5, v6, v7]
            }

            #[inline(always)]
            fn pack([v0, v1, v2, v3, v4, v5, v6, v7]: Self::Lanes) -> [u32; 4] {
                [Self::pack2(v0, v1), Self::pack2(v2, v3), Self::pack2(v4, v5), Self::pack2(v6, v7)]
            }

            #[inline(always)]
            fn splat(value: f32) -> Self::Lanes {
                [value; 8]
            }
        }

        impl PackedElement for $t {
            #[inline(always)]
            fn unpack2(word: u32) -> (f32, f32) {
                convert::$t::widen2(word)
            }

            #[inline(always)]
            fn pack2(low: f32, high: f32) -> u32 {
                convert::$t::narrow2(low, high)
            }
        }
    };
}

half_element!(f16);
half_element!(bf16);

/// Says that `value` is beyond the range of what it is about to be rounded to: for kernels that keep such numbers from becoming infinite.
/// The conversions here say so themselves. A finding in emulation that asks for it (`emulation::Options::range`); on the device nothing.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
#[inline(always)]
pub fn note_out_of_range(value: f32) {
    #[cfg(not(target_arch = "nvptx64"))]
    if let Some(thread) = crate::emulation::current_or_none() {
        thread.out_of_range(value, core::panic::Location::caller());
    }
    let _ = value;
}

/// The device's conversions. Route: rustc's own `f16` for a single f16; `asm!` (pure, no memory, not
/// convergent) for bf16, which rustc does not know, and for pairs, which are one instruction.
#[cfg(target_arch = "nvptx64")]
mod convert {
    use core::arch::asm;

    macro_rules! narrow2 {
        ($instruction:literal) => {
            #[inline(always)]
            pub fn narrow2(low: f32, high: f32) -> u32 {
                let word: u32;
                // SAFETY: a conversion between registers; the instruction takes the high half first.
                unsafe {
                    core::arch::asm!(
                        concat!($instruction, " {}, {}, {};"), out(reg32) word, in(reg32) high, in(reg32) low,
                        options(pure, nomem, nostack, preserves_flags)
                    );
                }
                word
            }
        };
    }

    pub mod f16 {
        #[inline(always)]
        pub fn widen(bits: u16) -> f32 {
            f16::from_bits(bits) as f32
        }

        #[inline(always)]
        pub fn narrow(value: f32) -> u16 {
            (value as f16).to_bits()
        }

        #[inline(always)]
        pub fn widen2(word: u32) -> (f32, f32) {
            (widen(word as u16), widen((word >> 16) as u16))
        }

        narrow2!("cvt.rn.f16x2.f32");
    }

    pub mod bf16 {
        use super::asm;

        #[inline(always)]
        pub fn widen(bits: u16) -> f32 {
            f32::from_bits(u32::from(bits) << 16)
        }

        #[inline(always)]
        pub fn narrow(value: f32) -> u16 {
            let bits: u16;
            // SAFETY: a conversion between registers.
            unsafe {
                asm!(
                    "cvt.rn.bf16.f32 {}, {};", out(reg16) bits, in(reg32) value,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            bits
        }

        #[inline(always)]
        pub fn widen2(word: u32) -> (f32, f32) {
            (f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000))
        }

        narrow2!("cvt.rn.bf16x2.f32");
    }
}

/// The host's conversions: `half`'s, with the bits that the device's give a NaN.
#[cfg(not(target_arch = "nvptx64"))]
mod convert {
    macro_rules! host {
        ($t:ident, |$bits:ident| $widen:expr) => {
            pub mod $t {
                pub fn widen($bits: u16) -> f32 {
                    $widen
                }

                #[track_caller]
                pub fn narrow(value: f32) -> u16 {
                    if value.is_nan() {
                        return 0x7fff;
                    }
                    let narrow = half::$t::from_f32(value);
                    if narrow.is_infinite() {
                        super::super::note_out_of_range(value);
                    }
                    narrow.to_bits()
                }

                pub fn widen2(word: u32) -> (f32, f32) {
                    (widen(word as u16), widen((word >> 16) as u16))
                }

                #[track_caller]
                pub fn narrow2(low: f32, high: f32) -> u32 {
                    u32::from(narrow(low)) | u32::from(narrow(high)) << 16
                }
            }
        };
    }
    host!(f16, |bits| crate::target::math::canonical(half::f16::from_bits(bits).to_f32()));
    host!(bf16, |bits| f32::from_bits(u32::from(bits) << 16));
}

//! `wgmma` and `setmaxnreg`: see [`crate::wgmma`].

use core::arch::asm;

use half::{bf16, f16};

use crate::wgmma::{Descriptor, WgmmaElement};

/// One instruction's text; `$a` is a descriptor's register or `{{…}}`, `$add` whether sums are added to, `$tail` which factors are transposed.
macro_rules! instruction {
    ($type:literal, $columns:literal, $a:expr, $b:literal, $add:literal, $tail:literal, $first:literal $($i:literal)*) => {
        concat!("wgmma.mma_async.sync.aligned.m64n", $columns, "k16.f32.", $type, ".", $type, " {{{", $first, "}" $(, ", {", $i, "}")*, "}}, ",
            $a, ", ", $b, ", ", $add, ", 1, 1", $tail, ";")
    };
}

/// The descriptors of four tiles as `$name` 0 to 3, the first with the low word `$low`, each `$step` behind the one before.
macro_rules! descriptors {
    ($name:literal, $low:literal, $step:literal) => {
        concat!(
            descriptors!(".reg .b32 ", $name, "l<4>; .reg .b64 ", $name, "<4>; mov.b64 ", $name, "0, {{", $low, ", 0x40000040}}; "),
            descriptors!("add.s32 ", $name, "l1, ", $low, ", ", $step, "; mov.b64 ", $name, "1, {{", $name, "l1, 0x40000040}}; "),
            descriptors!("add.s32 ", $name, "l2, ", $low, ", 2*", $step, "; mov.b64 ", $name, "2, {{", $name, "l2, 0x40000040}}; "),
            descriptors!("add.s32 ", $name, "l3, ", $low, ", 3*", $step, "; mov.b64 ", $name, "3, {{", $name, "l3, 0x40000040}}; ")
        )
    };
    ($($text:literal),*) => { concat!($($text),*) };
}
// As the descriptors above have it: a number in the text is in no register.
const _: () = assert!(Descriptor::HIGH == 0x4000_0040);

/// A product with A in registers; `$step` is from 16 of the common dimension of B to the next, in 16 bytes. Where `$add` is "p", that is whether `$accumulate`.
macro_rules! of_registers {
    ($type:literal, $columns:literal, $add:literal, $step:literal, $tail:literal, $direction:ident, $d:ident, $a:ident, $b:ident, $accumulate:tt: $($i:literal)*) => {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                concat!("{{ .reg .pred p; setp.ne.b32 p, {accumulate}, 0; ", descriptors!("b", "{b}", $step)),
                "wgmma.fence.sync.aligned;",
                instruction!($type, $columns, "{{{a0}, {a1}, {a2}, {a3}}}", "b0", $add, $tail, $($i)*),
                instruction!($type, $columns, "{{{a4}, {a5}, {a6}, {a7}}}", "b1", "1", $tail, $($i)*),
                instruction!($type, $columns, "{{{a8}, {a9}, {a10}, {a11}}}", "b2", "1", $tail, $($i)*),
                instruction!($type, $columns, "{{{a12}, {a13}, {a14}, {a15}}}", "b3", "1", $tail, $($i)*),
                "wgmma.commit_group.sync.aligned; }}",
                $($direction(reg32) $d[$i],)*
                a0 = in(reg32) $a[0], a1 = in(reg32) $a[1], a2 = in(reg32) $a[2], a3 = in(reg32) $a[3],
                a4 = in(reg32) $a[4], a5 = in(reg32) $a[5], a6 = in(reg32) $a[6], a7 = in(reg32) $a[7],
                a8 = in(reg32) $a[8], a9 = in(reg32) $a[9], a10 = in(reg32) $a[10], a11 = in(reg32) $a[11],
                a12 = in(reg32) $a[12], a13 = in(reg32) $a[13], a14 = in(reg32) $a[14], a15 = in(reg32) $a[15],
                b = in(reg32) $b.0 as u32, accumulate = in(reg32) u32::from($accumulate),
                options(nostack, preserves_flags)
            );
        }
    };
}

macro_rules! products {
    ($element:ident, $type:literal, $columns:literal, $n:literal: $($i:literal)*) => {
        impl WgmmaElement<$n> for $element {
            #[inline(always)]
            unsafe fn multiply(d: &mut [f32; $n], a: Descriptor, b: Descriptor, accumulate: bool) {
                // SAFETY: the caller's promise.
                unsafe {
                    asm!(
                        "{{ .reg .pred p; setp.ne.b32 p, {accumulate}, 0;",
                        descriptors!("a", "{a}", "2"),
                        descriptors!("b", "{b}", "2"),
                        "wgmma.fence.sync.aligned;",
                        instruction!($type, $columns, "a0", "b0", "p", ", 0, 0", $($i)*),
                        instruction!($type, $columns, "a1", "b1", "1", ", 0, 0", $($i)*),
                        instruction!($type, $columns, "a2", "b2", "1", ", 0, 0", $($i)*),
                        instruction!($type, $columns, "a3", "b3", "1", ", 0, 0", $($i)*),
                        "wgmma.commit_group.sync.aligned; }}",
                        $(inout(reg32) d[$i],)*
                        a = in(reg32) a.0 as u32, b = in(reg32) b.0 as u32, accumulate = in(reg32) u32::from(accumulate),
                        options(nostack, preserves_flags)
                    );
                }
            }

            #[inline(always)]
            unsafe fn multiply_first(d: &mut [f32; $n], a: [u32; 16], b: Descriptor) {
                of_registers!($type, $columns, "0", "2", ", 0", out, d, a, b, false: $($i)*);
            }

            #[inline(always)]
            unsafe fn multiply_registers(d: &mut [f32; $n], a: [u32; 16], b: Descriptor, accumulate: bool) {
                of_registers!($type, $columns, "p", "2", ", 0", inout, d, a, b, accumulate: $($i)*);
            }

            #[inline(always)]
            unsafe fn multiply_transposed(d: &mut [f32; $n], a: [u32; 16], b: Descriptor) {
                of_registers!($type, $columns, "1", "128", ", 1", inout, d, a, b, true: $($i)*);
            }

            // The sums are operands, so that nothing that reads them is moved before; what is named in a comment counts as used.
            #[inline(always)]
            unsafe fn wait<const PENDING: u32>(d: &mut [f32; $n]) {
                // SAFETY: the caller's promise.
                unsafe {
                    asm!(
                        "wgmma.wait_group.sync.aligned {pending};", concat!("// " $(, "{", $i, "} ")*),
                        $(inout(reg32) d[$i],)*
                        pending = const PENDING,
                        options(nostack, preserves_flags)
                    );
                }
            }
        }
    };
}

/// Hands a macro the numbers below 8, 16, 32, 64 or 128 behind its other arguments.
macro_rules! below {
    (8 $macro:ident($($head:tt)*)) => {
        $macro! { $($head)* 0 1 2 3 4 5 6 7 }
    };
    (16 $macro:ident($($head:tt)*)) => {
        $macro! { $($head)* 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 }
    };
    (32 $macro:ident($($head:tt)*)) => {
        $macro! { $($head)*
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
        }
    };
    (64 $macro:ident($($head:tt)*)) => {
        $macro! { $($head)*
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38
            39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
        }
    };
    (128 $macro:ident($($head:tt)*)) => {
        $macro! { $($head)*
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38
            39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 71 72 73
            74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95 96 97 98 99 100 101 102 103 104 105 106
            107 108 109 110 111 112 113 114 115 116 117 118 119 120 121 122 123 124 125 126 127
        }
    };
}
below!(8 products(f16, "f16", "16", 8:));
below!(16 products(f16, "f16", "32", 16:));
below!(32 products(f16, "f16", "64", 32:));
below!(64 products(f16, "f16", "128", 64:));
below!(128 products(f16, "f16", "256", 128:));
below!(32 products(bf16, "bf16", "64", 32:));
below!(64 products(bf16, "bf16", "128", 64:));
below!(128 products(bf16, "bf16", "256", 128:));

/// Gives registers of each thread of the warpgroup back, but for `COUNT`, a multiple of 8 from 24 to 256 that is below what the thread has.
///
/// # Safety
/// All threads of the warpgroup call it together, in a kernel with a stated number of threads (`max_threads`).
#[inline(always)]
pub unsafe fn decrease_registers<const COUNT: u32>() {
    // SAFETY: the caller's promise.
    unsafe { asm!("setmaxnreg.dec.sync.aligned.u32 {};", const COUNT, options(nostack, preserves_flags)) }
}

/// Takes registers that other warpgroups of the block give back, and waits for them: each thread has `COUNT` then, a multiple of 8 up to 256.
///
/// # Safety
/// As [`decrease_registers`]; others give back as many.
#[inline(always)]
pub unsafe fn increase_registers<const COUNT: u32>() {
    // SAFETY: the caller's promise.
    unsafe { asm!("setmaxnreg.inc.sync.aligned.u32 {};", const COUNT, options(nostack, preserves_flags)) }
}

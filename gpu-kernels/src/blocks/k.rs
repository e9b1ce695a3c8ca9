//! What formats of 256 values share: sub-blocks whose scales are themselves small integers, times the scale of the whole.

use super::byte;
use cuda_std::prelude::*;

/// Scale and minimum of sub-block `b`: those of the first four are the low bits of bytes 0 to 3 and 4 to 7, of the others the low halves
/// and the high ones of the last four bytes with the two bits above those of the first as their highest.
///
/// # Safety
/// `bytes` leads to these twelve; `b` is below 8.
#[device]
#[inline(always)]
pub unsafe fn scale_and_min(bytes: *const u8, b: u32) -> (f32, f32) {
    // SAFETY: the caller's promise.
    let (scale, min) = unsafe {
        if b < 4 {
            (byte(bytes, b) & 63, byte(bytes, b + 4) & 63)
        } else {
            let low = byte(bytes, b + 4);
            (low & 15 | byte(bytes, b - 4) >> 6 << 4, low >> 4 | byte(bytes, b) >> 6 << 4)
        }
    };
    (scale as f32, min as f32)
}

/// The same of these twelve bytes as words.
#[device]
#[inline(always)]
pub fn scale_and_min_of_words([first, second, third]: [u32; 3], b: u32) -> (f32, f32) {
    let [first, second, third] = [first, second, third].map(|word| word >> (8 * (b % 4)) & 255);
    let (scale, min) = if b < 4 {
        (first & 63, second & 63)
    } else {
        (third & 15 | first >> 6 << 4, third >> 4 | second >> 6 << 4)
    };
    (scale as f32, min as f32)
}

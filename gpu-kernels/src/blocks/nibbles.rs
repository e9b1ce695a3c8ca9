//! What formats of four and five bits share: byte `j` of a group holds value `j` in its low half and, as far behind as the group has
//! bytes, another in its high one.

use super::byte;
use cuda_std::prelude::*;

/// The four bits of value `i` of a group of `COUNT` bytes.
///
/// # Safety
/// `group` leads to them; `i` is below `2 * COUNT`.
#[device]
#[inline(always)]
pub unsafe fn four<const COUNT: u32>(group: *const u8, i: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { byte(group, i % COUNT) >> (i / COUNT * 4) & 15 }
}

/// The five bits of value `i` of 32, whose fifth bits are the first four bytes, in the order of the values.
///
/// # Safety
/// `group` leads to those 4 bytes and 16 more; `i` is below 32.
#[device]
#[inline(always)]
pub unsafe fn five(group: *const u8, i: u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { four::<16>(group.add(4), i) | (byte(group, i / 8) >> (i % 8) & 1) << 4 }
}

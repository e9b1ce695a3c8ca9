//! A block's shared memory: dynamic first, then each `shared_array!` where it was first reached, with gaps.

use std::format;
use std::string::String;

use super::block::Block;
use super::report::Defect;
use super::thread::{self, Place};

/// Shared memory that a block of an H200 can have, in bytes.
pub const SHARED_LIMIT: u32 = 227 * 1024;
/// Where shared addresses start: on the device the first KiB is the system's.
pub const SHARED_BASE: u32 = 1024;
/// Room between two shared arrays, so that running out of one is seen.
const GAP: u32 = 256;
/// Room for the arrays and the gaps between them.
pub const SHARED_ROOM: usize = 2 * SHARED_LIMIT as usize;
/// An array in shared memory: its `shared_array!`, and where it lies.
#[derive(Clone, Copy)]
pub struct SharedRange {
    pub key: usize,
    offset: u32,
    bytes: u32,
}

impl Block {
    /// The address of shared memory's first byte.
    #[inline(always)]
    pub fn shared_start(&self) -> usize {
        self.memory.as_ptr() as usize
    }

    /// Whether a generic address is one of shared memory.
    pub fn is_shared(&self, address: usize) -> bool {
        address.wrapping_sub(self.shared_start()) < SHARED_ROOM
    }

    /// A pointer to a shared address.
    #[inline(always)]
    pub fn shared_at<T>(&self, address: u32) -> *mut T {
        (self.shared_start() + address.wrapping_sub(SHARED_BASE) as usize) as *mut T
    }

    /// The shared address of a generic one.
    pub fn shared_address(&self, pointer: *const u8) -> u32 {
        (pointer as usize).wrapping_sub(self.shared_start()).wrapping_add(SHARED_BASE as usize) as u32
    }

    /// Bytes of it, gaps included.
    pub const fn shared_room(&self) -> usize {
        SHARED_ROOM
    }

    /// Whether a range lies in the dynamic shared memory or in one array.
    #[inline(always)]
    pub fn shared_holds(&self, offset: usize, size: usize) -> bool {
        let inside =
            |start: u32, bytes: u32| offset >= start as usize && offset + size <= (start + bytes) as usize;
        inside(0, self.launch().config.shared_bytes)
            || self.ranges.borrow().iter().any(|range| inside(range.offset, range.bytes))
    }

    /// The shared address of the array that `key` stands for.
    pub fn shared_array(&self, key: usize, bytes: usize, place: Place) -> u32 {
        let mut ranges = self.ranges.borrow_mut();
        if let Some(range) = ranges.iter().find(|range| range.key == key) {
            return SHARED_BASE + range.offset;
        }
        let bytes = bytes as u32;
        let total = self.shared_bytes.get() + bytes.next_multiple_of(16);
        if total > SHARED_LIMIT {
            drop(ranges);
            let detail = format!(
                "{total} bytes of shared memory are more than the {SHARED_LIMIT} that a block can have"
            );
            thread::current().fail(Defect::InvalidLaunch, place, detail);
        }
        self.shared_bytes.set(total);
        // A multiple of 16 and of nothing more: all that a shared array promises.
        let offset = (self.shared_end.get() + GAP).next_multiple_of(32) + 16;
        self.shared_end.set(offset + bytes);
        ranges.push(SharedRange { key, offset, bytes });
        SHARED_BASE + offset
    }

    pub fn describe_shared(&self, offset: usize) -> String {
        for range in &*self.ranges.borrow() {
            if (range.offset..range.offset + range.bytes).contains(&(offset as u32)) {
                return format!("byte {} of a shared array of {}", offset as u32 - range.offset, range.bytes);
            }
        }
        format!("byte {offset} of dynamic shared memory")
    }

    pub fn describe_outside(&self, offset: usize, size: usize) -> String {
        let near = self.ranges.borrow().iter().rev().find(|range| range.offset as usize <= offset).copied();
        match near {
            Some(range) => format!(
                "{size} bytes at byte {} of a shared array of {}",
                offset - range.offset as usize,
                range.bytes
            ),
            None => format!(
                "{size} bytes at byte {offset} of dynamic shared memory, of which the launch has {}",
                self.launch().config.shared_bytes
            ),
        }
    }
}

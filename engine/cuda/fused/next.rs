//! What the kernel behind one reads first.
//!
//! Steps launch the same kernels in the same order, so that whose weights come behind those of a kernel is known from the step before.

use super::super::variant::KernelChoice;
use cuda_std::launch::DevicePtr;
use gpu_kernels::fused::next::{Next, PIECE};
use std::collections::HashMap;

/// Whether kernels of a chain ask for the weights of the next one, into the device's `l2` cache.
pub(in super::super) const OP: &str = "prefetch";
const L2: &str = "l2";
pub(in super::super) const VARIANTS: [&str; 2] = [L2, "none"];

/// Bytes that are asked for at most.
fn most() -> usize {
    std::env::var("QERNEL_AHEAD").ok().and_then(|v| v.parse::<usize>().ok()).unwrap_or(16 << 10) << 10
}

/// The weights that kernels read, by those of the kernel before.
pub(in super::super) struct Followers {
    is_wanted: bool,
    is_step: bool,
    /// The address of the weights that were read last.
    last: Option<u64>,
    known: HashMap<u64, Next>,
}

impl Followers {
    /// None yet; on a device that has no such instruction, or by choice, none ever.
    pub fn new(choice: &KernelChoice, has_instruction: bool) -> Self {
        let is_wanted = has_instruction && choice.get(OP).is_none_or(|name| name == L2);
        Self { is_wanted, is_step: false, last: None, known: HashMap::new() }
    }

    /// Whether kernels are those of a step, whose weights stay where they are as long as there are steps.
    pub fn set_step(&mut self, is_step: bool) {
        self.is_step = is_step && self.is_wanted;
    }

    /// Notes that a kernel is launched that begins to read there, and says what the one behind it reads first.
    pub fn follow(&mut self, begin: Next) -> Next {
        if !self.is_step {
            return Next::default();
        }
        if let Some(before) = self.last.replace(begin.from) {
            self.known.insert(before, begin);
        }
        self.known.get(&begin.from).copied().unwrap_or_default()
    }
}

/// The beginnings of `streams` equal parts of a matrix of `bytes` bytes.
pub(in super::super) fn streams(from: DevicePtr<u8>, bytes: usize, streams: u32) -> Next {
    let streams = if bytes <= most() { 1 } else { streams.max(1) as usize };
    let stride = bytes / streams / 16 * 16;
    regions(from, stride as u64, stride.min(most() / streams), streams)
}

/// The beginnings of two matrices of `bytes` bytes each.
pub(in super::super) fn both([first, second]: [DevicePtr<u8>; 2], bytes: usize) -> Next {
    let stride = second.as_raw().wrapping_sub(first.as_raw());
    regions(first, stride, bytes.min(most() / 2), 2)
}

fn regions(from: DevicePtr<u8>, stride: u64, bytes: usize, count: usize) -> Next {
    let pieces = bytes / PIECE as usize;
    Next { from: from.as_raw(), stride, bytes: pieces as u32 * PIECE, regions: count as u32 }
}

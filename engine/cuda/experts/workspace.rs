//! What the kernels of experts leave for each other.

use super::Matrices;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::memory::DeviceBuffer;
use crate::ops::ExpertsConfig;
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use gpu_kernels::experts::{FEW_ROWS, warpgroups::ALIGNMENT};
use gpu_kernels::sort_experts::{most_groups, most_places};
use half::f16;
use qernel_core::batch::BatchLimits;
use std::rc::Rc;

/// The most bytes of what experts make of rows before it is added up; rows beyond are computed by another launch.
const MAX_PARTS_BYTES: usize = 256 << 20;

/// Room for the largest step.
pub(in super::super) struct Workspace {
    pub config: ExpertsConfig,
    /// Rows that there is room for.
    pub rows: usize,
    /// f32 `[rows, num_experts]`
    pub logits: DeviceBuffer<f32>,
    /// For each block of rows a zero, which kernels leave.
    pub counters: DeviceBuffer<u32>,
    /// As [`gpu_kernels::sort_experts`] leaves them.
    pub groups: DeviceBuffer<u32>,
    pub order: DeviceBuffer<u32>,
    /// f32 `[rows of parts, num_experts_per_tok, hidden_size]`
    pub parts: DeviceBuffer<f32>,
    pub rows_of_parts: usize,
    /// Rows that were brought together, and what products with them are multiplied with.
    arranged: Option<(DeviceBuffer<f16>, DeviceBuffer<f32>)>,
    /// What was sorted last.
    pub sorted: Option<Sorted>,
}

/// Rows of the same experts, brought together.
#[derive(Clone, Copy)]
pub(in super::super) struct Sorted {
    /// Rows that were sorted.
    pub n: usize,
    pub rows_of_group: u32,
    /// As [`gpu_kernels::sort_experts`] leaves them.
    pub groups: DevicePtr<u32>,
    pub order: DevicePtr<u32>,
    /// The most groups, and about how many there are.
    pub counts: [u32; 2],
    /// Where the rows are brought together, if the device has kernels for that.
    pub arranged: Option<Arranged>,
}

/// Room for rows of experts that are brought together.
#[derive(Clone, Copy)]
pub(in super::super) struct Arranged {
    pub rows: DevicePtrMut<f16>,
    pub factors: DevicePtrMut<f32>,
    /// Rows that these have.
    pub places: usize,
    /// Values that there is room for.
    pub values: usize,
}

/// Rows, groups, rows of parts, and places and values of rows that are brought together, that there must be room for.
fn room(config: &ExpertsConfig, limits: &BatchLimits) -> [usize; 5] {
    let rows = limits.max_num_tokens.max(limits.max_num_logits).max(1);
    let &ExpertsConfig { num_experts, num_experts_per_tok: chosen, hidden_size, .. } = config;
    let of_row = 4 * chosen.saturating_mul(hidden_size).max(1);
    let groups = most_groups(rows, num_experts, chosen, FEW_ROWS as usize);
    let places = most_places(rows, num_experts, chosen, ALIGNMENT as usize);
    let values = places.saturating_mul(hidden_size.max(config.moe_intermediate_size));
    [rows, groups, (MAX_PARTS_BYTES / of_row).clamp(1, rows), places, values]
}

impl Workspace {
    /// Room for batches within `limits`.
    ///
    /// # Errors
    /// [`Error::Memory`] from the device.
    pub fn new(device: &Rc<Device>, config: &ExpertsConfig, limits: &BatchLimits) -> Result<Self> {
        let [rows, groups, rows_of_parts, places, values] = room(config, limits);
        let &ExpertsConfig { num_experts, num_experts_per_tok: chosen, hidden_size, .. } = config;
        let arranged = if device.has_wgmma() {
            Some((DeviceBuffer::zeroed(device, values)?, DeviceBuffer::zeroed(device, places)?))
        } else {
            None
        };
        Ok(Self {
            config: *config,
            rows,
            logits: DeviceBuffer::zeroed(device, rows * num_experts)?,
            counters: DeviceBuffer::zeroed(device, rows)?,
            groups: DeviceBuffer::zeroed(device, 1 + 3 * groups)?,
            order: DeviceBuffer::zeroed(device, places)?,
            parts: DeviceBuffer::zeroed(device, rows_of_parts * chosen * hidden_size)?,
            rows_of_parts,
            arranged,
            sorted: None,
        })
    }

    /// Bytes that [`Workspace::new`] takes.
    pub fn bytes(config: &ExpertsConfig, limits: &BatchLimits) -> usize {
        let [rows, groups, rows_of_parts, places, values] = room(config, limits);
        let &ExpertsConfig { num_experts, num_experts_per_tok: chosen, hidden_size, .. } = config;
        let of_rows = rows * (num_experts + 1) + 2 * places + rows_of_parts * chosen * hidden_size;
        4 * (of_rows + 1 + 3 * groups) + 2 * values
    }

    /// Where `n` rows can be brought together, with those of an expert beginning at a multiple of [`ALIGNMENT`].
    pub fn arranged(&mut self, n: usize) -> Option<Arranged> {
        let ExpertsConfig { num_experts, num_experts_per_tok, .. } = self.config;
        let places = most_places(n, num_experts, num_experts_per_tok, ALIGNMENT as usize);
        let (rows, factors) = self.arranged.as_mut()?;
        let values = rows.len();
        Some(Arranged { rows: rows.ptr_mut(), factors: factors.ptr_mut(), places, values })
    }

    /// How `n` rows were sorted.
    ///
    /// # Errors
    /// [`Error::Request`] if they were not.
    pub fn sorted(&self, op: &str, n: usize) -> Result<Sorted> {
        let sorted = self.sorted.filter(|sorted| sorted.n == n);
        sorted.ok_or_else(|| Error::Request(format!("{op}: {n} rows were not sorted by their experts")))
    }

    /// Refuses matrices of another number of experts.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn expect(&self, op: &str, matrices: &Matrices, num_chosen: usize) -> Result<()> {
        let ExpertsConfig { num_experts, num_experts_per_tok, .. } = self.config;
        if (matrices.count, num_chosen) == (num_experts, num_experts_per_tok) {
            return Ok(());
        }
        Err(Error::Request(format!(
            "{op}: expected {num_experts_per_tok} of {num_experts} experts, found {num_chosen} of {}",
            matrices.count
        )))
    }
}

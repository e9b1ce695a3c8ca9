//! Experts that stay in host memory: rows go there, and what experts make of them comes back.

use super::add::add;
use super::device::Device;
use super::memory::PinnedBuffer;
use super::tensor::{Activation, Tensor, decode, elements};
use super::variant::KernelChoice;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::ExpertsConfig;
use crate::ops::experts::{HostRows, Offload};
use crate::weights::Matrix;
use cuda_std::launch::DevicePtr;
use std::rc::Rc;

const OP: &str = "add_host_experts";

/// Who computes with experts in host memory, and the way there and back.
pub(super) struct HostPart {
    offload: Offload,
    /// What the host reads at once: values of rows, and which experts they go to.
    rows: PinnedBuffer,
    chosen: PinnedBuffer,
    /// What it has made of them, `[rows, hidden_size]`.
    made: Vec<f32>,
    back: PinnedBuffer,
    /// The same on the device.
    sum: Tensor,
}

/// Bytes that the device takes for experts that are in host memory, where `rows_at_once` rows of `hidden_size` values go there at once.
pub fn host_experts_bytes(hidden_size: usize, rows_at_once: usize) -> usize {
    rows_at_once.saturating_mul(hidden_size).saturating_mul(Dtype::F32.size())
}

impl HostPart {
    /// For steps of any number of rows, of which `rows_at_once` go to the host at once.
    ///
    /// # Errors
    /// [`crate::Error::Memory`].
    pub fn new(device: &Rc<Device>, offload: Offload, rows_at_once: usize) -> Result<Self> {
        let ExpertsConfig { num_experts_per_tok, hidden_size, .. } = offload.config;
        let room =
            |cols| PinnedBuffer::new(device, elements(rows_at_once, elements(cols, Dtype::F32.size())?)?);
        Ok(Self {
            offload,
            rows: room(hidden_size)?,
            chosen: room(2 * num_experts_per_tok)?,
            made: Vec::new(),
            back: room(hidden_size)?,
            sum: Tensor::new(device, rows_at_once, hidden_size)?,
        })
    }

    /// The number of `matrix` on the host, if its experts stay there.
    ///
    /// # Errors
    /// What the host says.
    pub fn take(&mut self, matrix: &Matrix, num_experts: usize) -> Result<Option<usize>> {
        if !self.offload.names.contains(&matrix.name) {
            return Ok(None);
        }
        self.offload.experts.take(matrix, num_experts).map(Some)
    }

    /// What is where, for people.
    pub fn name(&self) -> String {
        let layers = self.offload.names.len() / 3;
        let layers = if layers == 1 { "1 layer".to_owned() } else { format!("{layers} layers") };
        format!("experts of {layers} on the {}", self.offload.experts.name())
    }

    /// `x += Σ weight * down(silu(gate) * up)` of the first `n` rows over the experts that they go to, `matrices` being gate, up and down.
    /// Waits for what was queued before.
    ///
    /// # Errors
    /// [`crate::Error::Request`] if the shapes do not fit, [`crate::Error::Device`], what the host says.
    #[allow(clippy::too_many_arguments)] // The part has these operands.
    pub fn add(
        &mut self,
        device: &Device,
        choice: &KernelChoice,
        n: usize,
        matrices: [usize; 3],
        normed: &Activation,
        chosen: &Tensor,
        x: &mut Tensor,
    ) -> Result<()> {
        let ExpertsConfig { num_experts_per_tok, hidden_size, .. } = self.offload.config;
        normed.expect(OP, "x", normed.dtype, n, hidden_size)?;
        chosen.expect(OP, "chosen", n, 2 * num_experts_per_tok)?;
        x.expect(OP, "out", n, hidden_size)?;
        let at_once = self.sum.rows.max(1);
        for first in (0..n).step_by(at_once) {
            let count = at_once.min(n - first);
            let row_bytes = [hidden_size * normed.dtype.size(), 2 * num_experts_per_tok * Dtype::F32.size()];
            // SAFETY: both tensors have `n` rows, checked above, and outlive the copies, which are waited for.
            let [rows, choices] = unsafe {
                let of_chosen = fetch(&mut self.chosen, chosen.ptr().cast(), row_bytes[1], first, count);
                [fetch(&mut self.rows, normed.ptr(), row_bytes[0], first, count), of_chosen]
            };
            let (rows, choices) = (rows?, choices?);
            let mut values = decode(normed.dtype, &self.rows.wait()?[..rows]);
            if normed.scale != 1.0 {
                values.iter_mut().for_each(|value| *value *= normed.scale);
            }
            let rows = HostRows {
                x: &values,
                chosen: &decode(Dtype::F32, &self.chosen.wait()?[..choices]),
                hidden_size,
                num_experts_per_tok,
                matrices,
            };
            self.made.resize(count * hidden_size, 0.0);
            self.offload.experts.compute(&rows, &mut self.made)?;
            self.bring_back(device, choice, first, count, x)?;
        }
        Ok(())
    }

    /// Queues adding what the host has made of `count` rows to those of `x` from row `first` on, which are there.
    fn bring_back(
        &mut self,
        device: &Device,
        choice: &KernelChoice,
        first: usize,
        count: usize,
        x: &mut Tensor,
    ) -> Result<()> {
        let (cols, bytes) = (x.cols, self.made.len() * Dtype::F32.size());
        let values = self.back.wait()?[..bytes].as_chunks_mut().0.iter_mut().zip(&self.made);
        values.for_each(|(to, value)| *to = value.to_le_bytes());
        // SAFETY: `sum` has room for as many rows as are made at once, and is freed behind what is queued.
        unsafe { self.back.copy_to(bytes, self.sum.ptr_mut().cast())? };
        // SAFETY: nothing else is done with `x` while its part is there.
        let data = unsafe { x.data.part(first * cols, count * cols)? };
        add(device, choice, count, &mut Tensor { data, rows: count, cols }, &self.sum)
    }
}

/// Queues copying `count` rows of `row_bytes` bytes from row `first` on; answers how many bytes they are.
///
/// # Safety
/// The rows are at `from`, until the copy is over.
unsafe fn fetch(
    to: &mut PinnedBuffer,
    from: DevicePtr<u8>,
    row_bytes: usize,
    first: usize,
    count: usize,
) -> Result<usize> {
    // SAFETY: the caller's promise.
    unsafe { to.copy_from(count * row_bytes, from.add(first * row_bytes))? };
    to.copied()?;
    Ok(count * row_bytes)
}

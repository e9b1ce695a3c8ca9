//! Adapters beside a model's matrices: updates of low rank that are added to the products of the rows which have them.
//!
//! Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models* (2021), for the update; Chen et al., *Punica: Multi-Tenant LoRA Serving*
//! (2023), for rows of different adapters in one batch.

use super::{Ops, Rows, Types};
use crate::error::Result;

/// What an adapter adds to a product: `out[i][first + o] += s_i * scale * Σ_r b[o][r] * Σ_k a[r][k] * x[i][k]`, where `s_i` is the scale
/// that row `i` has the adapter with.
pub struct Update<V> {
    /// Number of the adapter.
    pub adapter: u32,
    /// Which it is of the matrices that are multiplied at once.
    pub matrix: usize,
    /// Column of the product where its values begin.
    pub first: usize,
    /// Values that it is for: rows of the matrix.
    pub out_features: usize,
    pub in_features: usize,
    pub rank: usize,
    /// What it is multiplied with in every row.
    pub scale: f32,
    /// f32 `[rank, in_features]`
    pub a: V,
    /// f32 `[out_features, rank]`
    pub b: V,
}

/// The operations of adapters on one device.
pub trait LoraOps: Types {
    /// Makes room for updates of this rank in batches of any size, at start-up.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if there is none.
    fn reserve_rank(&mut self, _rank: usize) -> Result<()> {
        Ok(())
    }

    /// Whether a row of the batch has an adapter.
    fn has_adapters(&self, batch: &Self::Batch) -> bool;

    /// Adds an [`Update`] to the rows of a product that have its adapter, accumulated in f32; the others keep their bits. `x` is `[n, in_features]`,
    /// `out` `[n, at least first + out_features]`.
    ///
    /// # Errors
    /// [`crate::Error::Request`] if the shapes do not fit, [`crate::Error::Device`] if the device fails.
    fn lora_add(
        &mut self,
        rows: Rows<Self::Batch>,
        x: &Self::Activation,
        update: &Update<Self::Vector>,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// As [`Ops::matmul_rounded`], in a format that loses nothing where something is added to it.
    ///
    /// # Errors
    /// As [`LoraOps::lora_add`].
    fn matmul_unrounded(
        &mut self,
        n: usize,
        x: &Self::Activation,
        weight: &Self::Weight,
        out: &mut Self::Activation,
    ) -> Result<()>;

    /// As [`LoraOps::lora_add`], to what [`LoraOps::matmul_unrounded`] wrote; `weight` is the matrix that the update is for.
    ///
    /// # Errors
    /// As [`LoraOps::lora_add`].
    fn lora_add_product(
        &mut self,
        rows: Rows<Self::Batch>,
        x: &Self::Activation,
        update: &Update<Self::Vector>,
        weight: &Self::Weight,
        out: &mut Self::Activation,
    ) -> Result<()>;
}

/// Whether updates are to be added to the product of a batch.
pub(super) fn are_wanted<O: Ops>(ops: &O, batch: &O::Batch, updates: &[Update<O::Vector>]) -> bool {
    !updates.is_empty() && ops.has_adapters(batch)
}

/// Adds the updates of a projection to its product: `x` `[n, in_features]`, `out` `[n, out_features]`.
///
/// # Errors
/// What the device says.
pub(super) fn add_updates<O: Ops>(
    ops: &mut O,
    rows: Rows<O::Batch>,
    x: &O::Activation,
    updates: &[Update<O::Vector>],
    out: &mut O::Tensor,
) -> Result<()> {
    match are_wanted(ops, rows.batch, updates) {
        true => updates.iter().try_for_each(|update| ops.lora_add(rows, x, update, out)),
        false => Ok(()),
    }
}

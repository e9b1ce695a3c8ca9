//! What adapters add to products: each row that has one goes through both of its matrices.

use super::route::dot;
use super::tensor::Tensor;
use super::{CpuOps, Weight, for_each_row};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::ops::lora::{LoraOps, Update};
use crate::ops::{Ops, Rows};

const OP: &str = "lora_add";

/// `out[i][first + o] += s_i * scale * Σ_r b[o][r] * Σ_k a[r][k] * x[i][k]` for the rows of the first `n` whose scale `s_i`, which `scale_of`
/// gives, is not 0. Products are taken in f64.
///
/// # Errors
/// [`Error::Request`] if the shapes do not fit.
pub fn lora_add(
    n: usize,
    scale_of: impl Fn(usize) -> f32 + Sync,
    x: &Tensor,
    update: &Update<Vec<f32>>,
    out: &mut Tensor,
) -> Result<()> {
    let &Update { first, out_features, in_features, rank, scale, ref a, ref b, .. } = update;
    let cols = out.cols();
    x.expect(OP, "x", n, in_features)?;
    out.expect(OP, "out", n, cols)?;
    let fits = |values: &[f32], rows, cols| {
        rank > 0 && cols > 0 && Some(values.len()) == usize::checked_mul(rows, cols)
    };
    if !fits(a, rank, in_features)
        || !fits(b, out_features, rank)
        || first.saturating_add(out_features) > cols
    {
        return Err(Error::Request(format!(
            "{OP}: {} and {} values of rank {rank}, for the columns {first} to {} of {cols}",
            a.len(),
            b.len(),
            first.saturating_add(out_features)
        )));
    }
    for_each_row(out.first_mut(n), cols, |i, row| {
        let scale = scale * scale_of(i);
        if scale == 0.0 {
            return;
        }
        let inner: Vec<f32> = a.chunks_exact(in_features).map(|a| dot(a, x.row(i)) as f32).collect();
        for (value, b) in row[first..][..out_features].iter_mut().zip(b.chunks_exact(rank)) {
            *value += scale * dot(b, &inner) as f32;
        }
    });
    Ok(())
}

impl LoraOps for CpuOps {
    fn has_adapters(&self, batch: &Batch) -> bool {
        !batch.adapters.is_empty()
    }

    fn lora_add(
        &mut self,
        rows: Rows<Batch>,
        x: &Tensor,
        update: &Update<Vec<f32>>,
        out: &mut Tensor,
    ) -> Result<()> {
        let scale_of = |row| rows.batch.adapter_scale(update.adapter, row, rows.n);
        lora_add(rows.n, scale_of, x, update, out)
    }

    fn matmul_unrounded(&mut self, n: usize, x: &Tensor, weight: &Weight, out: &mut Tensor) -> Result<()> {
        self.matmul(n, x, weight, out)
    }

    fn lora_add_product(
        &mut self,
        rows: Rows<Batch>,
        x: &Tensor,
        update: &Update<Vec<f32>>,
        _: &Weight,
        out: &mut Tensor,
    ) -> Result<()> {
        LoraOps::lora_add(self, rows, x, update, out)
    }
}

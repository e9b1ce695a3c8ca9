//! The convolution before linear attention, over the rows of each sequence.

use super::exp::silu;
use super::for_each_row;
use super::states::{Slot, States};
use super::tensor::Tensor;
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::ops::hybrid::CausalConv;

const OP: &str = "causal_conv";

/// `out[t] = silu(Σ_j weight[j] * x[t + 1 + j - taps])` of each of the first columns of `x`, summed from left to right; where `t + 1 + j -
/// taps` is before the rows of the batch, its row is in the sequence's slot of `layer`, which has the last ones then.
///
/// # Errors
/// [`Error::Request`] if a sequence, a slot or the layer does not exist or the shapes do not fit.
pub fn causal_conv(
    batch: &Batch,
    layer: usize,
    conv: &CausalConv<Vec<f32>>,
    x: &Tensor,
    states: &mut States,
    out: &mut Tensor,
) -> Result<()> {
    let sizes = &conv.sizes;
    let (channels, taps, n) = (sizes.channels(), sizes.linear_conv_kernel_dim, batch.num_tokens());
    x.expect(OP, "x", n, x.cols().max(channels))?;
    out.expect(OP, "out", n, channels)?;
    if conv.weight.len() != channels * taps {
        return Err(Error::Request(format!(
            "{OP}: the weight must have {channels} * {taps} values, it has {}",
            conv.weight.len()
        )));
    }
    for Slot { rows, begins, conv: kept_rows, .. } in states.of_batch(OP, layer, sizes, batch)? {
        if begins {
            kept_rows.fill(0.0);
        }
        let (first, before) = (rows.start, &*kept_rows);
        let out = &mut out.first_mut(rows.end)[first * channels..];
        for_each_row(out, channels, |t, out| {
            out.fill(0.0);
            for j in 0..taps {
                let row = match (t + 1 + j).checked_sub(taps) {
                    Some(row) => &x.row(first + row)[..channels],
                    None => &before[(t + j) * channels..][..channels],
                };
                for (channel, (out, x)) in out.iter_mut().zip(row).enumerate() {
                    *out += conv.weight[channel * taps + j] * x;
                }
            }
            out.iter_mut().for_each(|out| *out = silu(*out));
        });
        for kept in 0..taps - 1 {
            match (rows.len() + kept + 1).checked_sub(taps) {
                Some(row) => {
                    kept_rows[kept * channels..][..channels].copy_from_slice(&x.row(first + row)[..channels])
                }
                None => {
                    let from = (rows.len() + kept) * channels;
                    kept_rows.copy_within(from..from + channels, kept * channels);
                }
            }
        }
    }
    Ok(())
}

//! Keeping what is rounded to f16 in its range, whatever a model is given.
//!
//! What comes out of a norm is `x / rms(x) * weight`, so that its length and that of every value have a bound which the weights alone
//! decide, and by Cauchy and Schwarz so has every product with it ([`gpu_kernels::row_norms`]). From these bounds follow powers of two by
//! which products and SwiGLU's results are divided where they are written and multiplied where they are read; where there is no
//! such place (norms, K and V) a model that could leave the range is refused.

use super::CudaOps;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::memory::DeviceBuffer;
use crate::ops::Stacked;
use crate::ops::hybrid::DeltaNet;
use crate::ops::parts::{AttentionIn, Experts, LayerNorm, Linear, MlpIn, Norm, RmsNorm, Up};
use crate::row_norms::row_norms;
use crate::weight::{Scales, Weight};
use std::rc::Rc;

/// The largest bound of a number that is rounded to f16: 65504 less what the roundings before it may add.
const LARGEST: f64 = 60_000.0;
/// The smallest bound of a number that is rounded to f16 as it is. Numbers are much smaller than their bounds, by the root of the
/// number of columns in most rows, and below 2^-14 f16 loses bits.
const SMALLEST: f64 = 16.0;
/// The same where the number cannot be scaled.
const SMALLEST_UNSCALED: f64 = 1.0 / 64.0;

/// Matrices that were converted to f16, in the order of [`Narrowing::largest`](crate::convert::Narrowing::largest).
pub(super) type Narrowed = Vec<(String, Rc<Scales>)>;

/// The power of two by which numbers of this bound are divided: 1 where f16 has room for them and to spare, else what brings the bound
/// to 2^14 to 2^15.
fn divisor(bound: f64) -> f32 {
    if bound == 0.0 || (SMALLEST..=LARGEST).contains(&bound) {
        return 1.0;
    }
    // A power of two that has an inverse in f32.
    (bound.log2().floor() - 14.0).clamp(-120.0, 120.0).exp2() as f32
}

/// The largest; NaN if there is one.
fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values
        .into_iter()
        .fold(0.0, |largest, value| if value <= largest || largest.is_nan() { largest } else { value })
}

/// Refuses numbers that f16 has no room for, of which none is beyond `bound`.
fn expect_in_range(what: impl FnOnce() -> String, bound: f64) -> Result<()> {
    if bound == 0.0 || (SMALLEST_UNSCALED..=LARGEST).contains(&bound) {
        return Ok(());
    }
    Err(Error::Range(format!(
        "{} may be as large as {bound:.3e}, which f16 does not hold with enough precision (its largest number is 65504): use --dtype bf16",
        what()
    )))
}

impl CudaOps {
    /// Whether numbers are rounded to f16.
    fn rounds_to_f16(&self) -> bool {
        self.dtype == Dtype::F16
    }

    /// [`Ops::finish_loading`](qernel_core::ops::Ops::finish_loading): what was stored divided by something is multiplied with it from now on.
    pub(super) fn settle_scales(&mut self) -> Result<()> {
        for ((name, scales), largest) in self.narrowed.drain(..).zip(self.narrowing.largest()?) {
            if !largest.is_finite() {
                return Err(Error::Model(format!(
                    "{name}: expected numbers, found one that is not finite; --check-tensors names all of them"
                )));
            }
            let scale = crate::convert::f16_scale(largest.to_bits());
            if scale != 1.0 {
                tracing::info!("{name}: its largest weight is {largest:e}; f16 holds all times {scale:e}");
            }
            scales.stored.set(1.0 / scale);
        }
        Ok(())
    }

    /// Bounds of the products of each row of `weight` with what `norm` writes, from top to bottom.
    fn bounds(&mut self, weight: &Weight, norm: &Norm<DeviceBuffer<f32>>) -> Result<Vec<f64>> {
        let (scale, bias) = match norm {
            Norm::Rms(RmsNorm { weight, .. }) => (weight, None),
            Norm::Layer(LayerNorm { weight, bias, .. }) => (weight, bias.as_ref()),
        };
        let mut bounds = self.bounds_by(weight, scale)?;
        if let Some(bias) = bias {
            let of_bias = self.bounds_by(weight, bias)?;
            bounds.iter_mut().zip(of_bias).for_each(|(bound, of_bias)| *bound += of_bias);
        }
        Ok(bounds)
    }

    /// Bounds of the products of each row of `weight` with rows whose mean square is 1, once those are multiplied with `factors`.
    fn bounds_by(&mut self, weight: &Weight, factors: &DeviceBuffer<f32>) -> Result<Vec<f64>> {
        let mut bounds = Vec::with_capacity(weight.rows);
        for piece in &weight.pieces {
            let rows = piece.values.rows();
            if rows > self.row_norms.len() {
                self.row_norms = DeviceBuffer::zeroed(&self.device, rows)?;
            }
            row_norms(&self.device, &self.choice, &piece.values, factors, &mut self.row_norms)?;
            let scale = (weight.cols as f64).sqrt() * f64::from(piece.scales.stored.get());
            bounds.extend(self.row_norms.read(0, rows)?.into_iter().map(|norm| f64::from(norm) * scale));
        }
        Ok(bounds)
    }

    /// [`Ops::bound_norm`](qernel_core::ops::Ops::bound_norm)
    pub(super) fn bound_norm_output(&self, name: &str, norm: &Norm<DeviceBuffer<f32>>) -> Result<()> {
        if !self.rounds_to_f16() {
            return Ok(());
        }
        let bound = match norm {
            Norm::Rms(norm) => bound_of_norm(&norm.weight)?,
            Norm::Layer(LayerNorm { weight, bias, .. }) => {
                bound_of_norm(weight)? + bias.as_ref().map_or(Ok(0.0), largest_of)?
            }
        };
        expect_in_range(|| format!("{name}: what the norm writes"), bound)
    }

    /// [`Ops::bound_attention`](qernel_core::ops::Ops::bound_attention)
    pub(super) fn bound_qkv(
        &mut self,
        name: &str,
        part: &AttentionIn<Weight, DeviceBuffer<f32>>,
    ) -> Result<()> {
        if !self.rounds_to_f16() {
            return Ok(());
        }
        let AttentionIn { norm, qkv, bias, qk_norm, .. } = part;
        self.bound_norm_output(name, norm)?;
        // Q and K are rotated, which makes a value of two.
        let rotated = 2f64.sqrt();
        let normed = qk_norm.as_ref().map(|norm| [&norm.q, &norm.k]);
        for (i, weight) in qkv.matrices.iter().enumerate() {
            let what = || format!("{name}: {}", ["Q", "K", "V"].get(i).unwrap_or(&"a projection"));
            let bound = match normed.and_then(|norms| norms.get(i).copied()) {
                Some(weight) => bound_of_norm(weight)?,
                None => {
                    let mut bounds = self.bounds(weight, norm)?;
                    if let Some(bias) = bias.get(i).and_then(Option::as_ref) {
                        let biases = bias.read(0, bias.len())?;
                        bounds.iter_mut().zip(biases).for_each(|(bound, b)| *bound += f64::from(b.abs()));
                    }
                    largest(bounds)
                }
            };
            expect_in_range(what, if i < 2 { bound * rotated } else { bound })?;
        }
        Ok(())
    }

    /// [`HybridOps::bound_delta_net`](qernel_core::ops::hybrid::HybridOps::bound_delta_net)
    pub(super) fn bound_gated_norm(
        &mut self,
        name: &str,
        part: &DeltaNet<Weight, DeviceBuffer<f32>>,
    ) -> Result<()> {
        if !self.rounds_to_f16() {
            return Ok(());
        }
        self.bound_norm_output(name, &part.norm)?;
        let Some((z, scales)) = part.in_proj.matrices.get(1).and_then(|z| Some((z, z.scales()?))) else {
            return Ok(());
        };
        // `|silu(z)|` is at most `|z|`.
        let gated = largest(self.bounds(z, &part.norm)?) * bound_of_norm(&part.head_norm.weight)?;
        if !gated.is_finite() {
            expect_in_range(|| format!("{name}: what the gated norm writes"), gated)?;
        }
        scales.gated.set(divisor(gated));
        Ok(())
    }

    /// [`Ops::bound_mlp`](qernel_core::ops::Ops::bound_mlp)
    pub(super) fn bound_gate_up(
        &mut self,
        name: &str,
        part: &MlpIn<Weight, DeviceBuffer<f32>>,
    ) -> Result<()> {
        match &part.up {
            Up::Gated(gate_up) => self.bound_swiglu(name, &part.norm, gate_up),
            Up::Plain(projection) => self.bound_gelu(name, &part.norm, projection),
        }
    }

    /// [`Ops::bound_experts`](qernel_core::ops::Ops::bound_experts): what experts have between their projections is f32, but for the shared one.
    pub(super) fn bound_mixture(
        &mut self,
        name: &str,
        part: &Experts<Weight, DeviceBuffer<f32>>,
    ) -> Result<()> {
        match &part.shared {
            Some(shared) => self.bound_swiglu(name, &part.norm, &shared.gate_up),
            None => self.bound_norm_output(name, &part.norm),
        }
    }

    /// Of an MLP without a gate.
    fn bound_gelu(
        &mut self,
        name: &str,
        norm: &Norm<DeviceBuffer<f32>>,
        projection: &Linear<Weight, DeviceBuffer<f32>>,
    ) -> Result<()> {
        let Some(scales) = projection.weight.scales().filter(|_| self.rounds_to_f16()) else { return Ok(()) };
        self.bound_norm_output(name, norm)?;
        let product = largest(self.bounds(&projection.weight, norm)?);
        // `|gelu(x)|` is at most `|x|`.
        let gated = product + projection.bias.as_ref().map_or(Ok(0.0), largest_of)?;
        if !gated.is_finite() {
            expect_in_range(|| format!("{name}: what GELU writes"), gated)?;
        }
        scales.product.set(divisor(product));
        scales.gated.set(divisor(gated));
        Ok(())
    }

    /// Of what SwiGLU reads and writes.
    fn bound_swiglu(
        &mut self,
        name: &str,
        norm: &Norm<DeviceBuffer<f32>>,
        gate_up: &Stacked<Weight>,
    ) -> Result<()> {
        let [gate, up] = &gate_up.matrices[..] else { return Ok(()) };
        let (Some(of_gate), Some(of_up)) = (gate.scales(), up.scales()) else { return Ok(()) };
        if !self.rounds_to_f16() {
            return Ok(());
        }
        self.bound_norm_output(name, norm)?;
        let bounds = [self.bounds(gate, norm)?, self.bounds(up, norm)?];
        let products = bounds.each_ref().map(|bounds| largest(bounds.iter().copied()));
        // `|silu(gate)|` is at most `|gate|`.
        let gated = largest(bounds[0].iter().zip(&bounds[1]).map(|(gate, up)| gate * up));
        if !gated.is_finite() {
            expect_in_range(|| format!("{name}: what SwiGLU writes"), gated)?;
        }
        let [of_gates, of_ups] = products.map(divisor);
        of_gate.product.set(of_gates);
        of_up.product.set(of_ups);
        of_up.gated.set(divisor(gated));
        if gated > LARGEST {
            tracing::debug!(
                "{name}: what SwiGLU writes is at most {gated:.3e}, and divided by {:e}",
                of_up.gated.get()
            );
        }
        Ok(())
    }

    /// What SwiGLU multiplies gate and up with where they are products of these matrices ([`Ops::matmul_rounded`](qernel_core::ops::Ops)), and
    /// what its results are divided by.
    pub(super) fn swiglu_scales(gate_up: &Stacked<Weight>) -> ([f32; 2], f32) {
        match &gate_up.matrices[..] {
            [gate, up] => match (gate.scales(), up.scales()) {
                (Some(gate), Some(up)) => {
                    let gated = up.gated.get();
                    ([gate.product.get(), up.product.get() / gated], gated)
                }
                _ => ([1.0; 2], 1.0),
            },
            _ => ([1.0; 2], 1.0),
        }
    }
}

/// The bound of what a norm writes. Its rows have a mean square of 1 before they are multiplied with the weight, so that no value is
/// beyond the root of their number.
fn bound_of_norm(weight: &DeviceBuffer<f32>) -> Result<f64> {
    Ok(largest_of(weight)? * (weight.len() as f64).sqrt())
}

/// The largest magnitude.
fn largest_of(values: &DeviceBuffer<f32>) -> Result<f64> {
    Ok(largest(values.read(0, values.len())?.into_iter().map(|value| f64::from(value.abs()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_divided_by_what_brings_their_bound_into_the_range() {
        for bound in [0.0, 16.0, 300.0, 60_000.0] {
            assert_eq!(divisor(bound), 1.0, "{bound}");
        }
        for bound in [1e-30, 1e-3, 15.9, 60_001.0, 1e6, 2f64.powi(24), 1e30] {
            let left = bound / f64::from(divisor(bound));
            assert!((2f64.powi(14)..2f64.powi(15)).contains(&left), "{bound}: {left}");
            assert_eq!(divisor(bound).to_bits() & 0x7f_ffff, 0, "a power of two");
        }
    }

    #[test]
    fn what_is_not_a_number_is_the_largest_and_out_of_range() {
        assert!(largest([1.0, f64::NAN]).is_nan() && largest([f64::NAN, 1.0]).is_nan());
        assert_eq!((largest([]), largest([2.0, 3.0, 1.0])), (0.0, 3.0));
        for bound in [f64::NAN, f64::INFINITY, 65_504.0, 1e-3] {
            let error = expect_in_range(|| "blk.3: K".to_owned(), bound).unwrap_err().to_string();
            assert!(error.contains("blk.3: K") && error.contains("--dtype bf16"), "{error}");
        }
        expect_in_range(String::new, 0.0).unwrap();
        expect_in_range(String::new, 50_000.0).unwrap();
    }
}

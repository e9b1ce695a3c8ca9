//! Mixtures of experts: their operations, and experts that stay in host memory while a device computes everything else.

use super::Types;
use super::parts::{Experts, Router};
use crate::error::Result;
use crate::weights::Matrix;
use std::collections::HashSet;

/// What an implementation of [`Ops`](super::Ops) must know of mixtures of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertsConfig {
    pub num_experts: usize,
    pub num_experts_per_tok: usize,
    pub hidden_size: usize,
    /// Values between the two halves of an expert.
    pub moe_intermediate_size: usize,
}

/// The operations of experts on one device.
pub trait ExpertOps: Types {
    /// Brings the matrices of `num_experts` experts, one below the other, to the device.
    fn load_experts(&mut self, matrix: &Matrix, num_experts: usize) -> Result<Self::Weight>;
    /// Brings gate and up of `num_experts` experts to the device: as [`ExpertOps::load_experts`], where rows of both are used together.
    fn load_gate_up_experts(&mut self, matrices: [&Matrix; 2], count: usize) -> Result<[Self::Weight; 2]> {
        let [gate, up] = matrices.map(|matrix| self.load_experts(matrix, count));
        Ok([gate?, up?])
    }

    /// Which experts each row goes to: those of the largest `p = softmax(x · weightᵀ)`, of equal ones the first. `[n, hidden_size] ->
    /// [n, 2 * num_experts_per_tok]`: their numbers, ascending, which f32 holds exactly, then their `p`, divided by their sum where
    /// the router says so.
    fn route(
        &mut self,
        n: usize,
        x: &Self::Activation,
        router: &Router<Self::Vector>,
        chosen: &mut Self::Tensor,
    ) -> Result<()>;

    /// Brings rows that go to the same expert together, where the device multiplies them so: called before [`ExpertOps::experts_in`] and
    /// [`ExpertOps::experts_out`] of the same rows and `chosen`, with the matrices of the experts, gate, up and down.
    fn sort_experts(&mut self, _n: usize, _chosen: &Self::Tensor, _: [&Self::Weight; 3]) -> Result<()> {
        Ok(())
    }

    /// `silu(x · gate[e]ᵀ) * (x · up[e]ᵀ)` for each expert `e` that a row goes to, one beside the other: `[n, hidden_size] -> [n,
    /// num_experts_per_tok * moe_intermediate_size]`; `chosen` as [`ExpertOps::route`] leaves it, matrices from [`ExpertOps::load_experts`].
    fn experts_in(
        &mut self,
        n: usize,
        x: &Self::Activation,
        chosen: &Self::Tensor,
        gate_up: [&Self::Weight; 2],
        inner: &mut Self::Tensor,
    ) -> Result<()>;

    /// `out += Σ_j weight_j * (inner_j · down[e_j]ᵀ)` over the experts that a row goes to, in their order: `[n, num_experts_per_tok *
    /// moe_intermediate_size] -> [n, hidden_size]`.
    fn experts_out(
        &mut self,
        n: usize,
        inner: &Self::Tensor,
        chosen: &Self::Tensor,
        down: &Self::Weight,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// A norm and the router behind it in one kernel: [`Ops::rms_norm`](super::Ops::rms_norm) to `normed`, [`ExpertOps::route`] of that to `chosen`.
    fn norm_route(
        &mut self,
        _n: usize,
        _x: &Self::Tensor,
        _part: &Experts<Self::Weight, Self::Vector>,
        _normed: &mut Self::Activation,
        _chosen: &mut Self::Tensor,
    ) -> Result<bool> {
        Ok(false)
    }

    /// What a layer adds to the residual stream `x` by experts that the device has not, computed by the [`HostExperts`] that it was given:
    /// the experts of `part` but for the shared one, of the rows of `normed` that go to them as `chosen` says. `false`: the device has them,
    /// and nothing was done.
    fn add_host_experts(
        &mut self,
        _n: usize,
        _part: &Experts<Self::Weight, Self::Vector>,
        _normed: &Self::Activation,
        _chosen: &Self::Tensor,
        _x: &mut Self::Tensor,
    ) -> Result<bool> {
        Ok(false)
    }
}

/// Experts in host memory, computed there for a device that has no room for them.
pub trait HostExperts {
    /// Takes the matrices of `num_experts` experts, one below the other, where they are; answers the number by which they are known.
    ///
    /// # Errors
    /// [`crate::Error::Model`] if the matrix is not whole.
    fn take(&mut self, matrix: &Matrix, num_experts: usize) -> Result<usize>;

    /// `out = Σ weight * down(silu(gate) * up)` of each row over the experts that it goes to.
    ///
    /// # Errors
    /// [`crate::Error::Request`] if the shapes do not fit, [`crate::Error::Memory`].
    fn compute(&mut self, rows: &HostRows, out: &mut [f32]) -> Result<()>;

    /// What computes them, for people.
    fn name(&self) -> String;
}

/// Rows that go to experts in host memory.
pub struct HostRows<'a> {
    /// `[n, hidden_size]`
    pub x: &'a [f32],
    /// `[n, 2 * num_experts_per_tok]`: numbers of experts, then weights.
    pub chosen: &'a [f32],
    pub hidden_size: usize,
    pub num_experts_per_tok: usize,
    /// Gate, up and down, as [`HostExperts::take`] numbered them.
    pub matrices: [usize; 3],
}

/// Which experts stay in host memory, and who computes with them.
pub struct Offload {
    /// Names of their matrices in the file.
    pub names: HashSet<String>,
    pub config: ExpertsConfig,
    pub experts: Box<dyn HostExperts>,
}

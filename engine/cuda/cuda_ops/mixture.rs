//! The operations of experts, each handed to the file that computes it.

use super::CudaOps;
use crate::error::Result;
use crate::memory::DeviceBuffer;
use crate::ops::experts::ExpertOps;
use crate::ops::parts::{Experts, Norm, Router};
use crate::tensor::{Activation, Tensor};
use crate::weight::Weight;
use crate::weights::Matrix;
use crate::{experts_in, experts_out, route};

impl ExpertOps for CudaOps {
    fn load_experts(&mut self, matrix: &Matrix, num_experts: usize) -> Result<Weight> {
        self.load_all_experts(matrix, num_experts)
    }

    fn load_gate_up_experts(&mut self, gate_up: [&Matrix; 2], num_experts: usize) -> Result<[Weight; 2]> {
        self.load_gate_and_up(gate_up, num_experts)
    }

    fn route(
        &mut self,
        n: usize,
        x: &Activation,
        router: &Router<DeviceBuffer<f32>>,
        chosen: &mut Tensor,
    ) -> Result<()> {
        route::route(&self.device, n, x, router, chosen)
    }

    fn add_host_experts(
        &mut self,
        n: usize,
        part: &Experts<Weight, DeviceBuffer<f32>>,
        normed: &Activation,
        chosen: &Tensor,
        x: &mut Tensor,
    ) -> Result<bool> {
        let Experts { gate, up, down, .. } = part;
        let Some((host, [Some(gate), Some(up), Some(down)])) =
            self.host_experts.as_mut().zip(Some([gate, up, down].map(|weight| weight.on_host)))
        else {
            return Ok(false);
        };
        host.add(&self.device, &self.choice, n, [gate, up, down], normed, chosen, x)?;
        Ok(true)
    }

    fn sort_experts(&mut self, n: usize, chosen: &Tensor, matrices: [&Weight; 3]) -> Result<()> {
        self.sort_rows_of_experts(n, chosen, matrices)
    }

    fn experts_in(
        &mut self,
        n: usize,
        x: &Activation,
        chosen: &Tensor,
        gate_up: [&Weight; 2],
        inner: &mut Tensor,
    ) -> Result<()> {
        let workspace = self.experts.as_ref();
        experts_in::experts_in(&self.device, &self.choice, workspace, n, x, chosen, gate_up, inner)
    }

    fn experts_out(
        &mut self,
        n: usize,
        inner: &Tensor,
        chosen: &Tensor,
        down: &Weight,
        out: &mut Tensor,
    ) -> Result<()> {
        let workspace = self.experts.as_mut();
        experts_out::experts_out(&self.device, &self.choice, workspace, n, inner, chosen, down, out)
    }

    fn norm_route(
        &mut self,
        n: usize,
        x: &Tensor,
        part: &Experts<Weight, DeviceBuffer<f32>>,
        normed: &mut Activation,
        chosen: &mut Tensor,
    ) -> Result<bool> {
        let Experts { norm: Norm::Rms(norm), router, .. } = part else { return Ok(false) };
        if !self.routes_with_norm(x.cols) {
            return Ok(false);
        }
        self.fused_norm_route(n, x, norm, router, normed, chosen)?;
        Ok(true)
    }
}

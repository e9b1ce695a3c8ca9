//! Operations of a device that is a rank of several.

use super::CudaOps;
use crate::batch::CudaBatch;
use crate::error::{Error, Result};
use crate::ops::ranks::RankOps;
use crate::ops::{Ops, Rows};
use crate::tensor::{Activation, Tensor};
use crate::weight::Weight;
use crate::{add_ranks, fused, gather_ranks};

impl RankOps for CudaOps {
    fn receive_rows(&mut self, n: usize, x: &mut Tensor) -> Result<()> {
        self.stage.as_ref().map_or(Ok(()), |stage| stage.receive(n, x))
    }

    fn send_rows(&mut self, n: usize, x: &Tensor) -> Result<()> {
        self.stage.as_mut().map_or(Ok(()), |stage| stage.send(n, x))
    }

    fn add_ranks(&mut self, rows: Rows<CudaBatch>, part: &mut Tensor, x: &mut Tensor) -> Result<()> {
        let ranks = self.ranks.as_mut().ok_or_else(no_ranks)?;
        add_ranks::add_ranks(&self.device, &self.choice, ranks, [rows.n, rows.padded], part, x)
    }

    fn gather_ranks(&mut self, n: usize, part: &Tensor, out: &mut Tensor) -> Result<()> {
        let ranks = self.ranks.as_mut().ok_or_else(no_ranks)?;
        gather_ranks::gather_ranks(&self.device, ranks, n, part, out)
    }
}

fn no_ranks() -> Error {
    Error::Request("the operations were made for a device that computes alone".into())
}

impl CudaOps {
    /// Refuses what was computed where a rank has not heard from another.
    pub(super) fn expect_all_ranks(&self) -> Result<()> {
        self.ranks.as_ref().map_or(Ok(()), |ranks| ranks.expect_all())
    }

    /// [`Ops::matmul_add_ranks`]: a product that is not the decode step's is written to `part`, not added, and of that only the rows that a decode
    /// step adds to become 0 again.
    pub(super) fn add_products_of_ranks(
        &mut self,
        rows: Rows<CudaBatch>,
        x: &Activation,
        weight: &Weight,
        part: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        let adds = (weight.float().is_some() && self.is_fused(rows, out.cols))
            || (weight.units(true).is_some() && self.is_step_of_parts(rows));
        // Experts add to all rows.
        let mut zeros = rows.padded;
        if adds || self.experts.is_some() {
            self.matmul_add(rows, x, weight, part)?;
        } else {
            self.matmul(rows.padded, x, weight, part)?;
            zeros = zeros.min(fused::max_rows(self.dtype));
        }
        let ranks = self.ranks.as_mut().ok_or_else(no_ranks)?;
        add_ranks::add_ranks(&self.device, &self.choice, ranks, [rows.n, zeros], part, out)
    }
}

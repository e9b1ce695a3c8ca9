//! [`HostExperts`] on the CPU: experts that stay in the file's memory map while a GPU computes everything else.

use super::experts::room;
use super::kernels::{MatmulBlocks, MatmulKernels};
use super::simd::Isa;
use super::tensor::Tensor;
use super::{device_name, experts_in, experts_out};
use crate::error::{Error, Result};
use crate::ops::experts::{HostExperts, HostRows};
use crate::weights::Matrix;

/// Experts on all cores. Matrices stay where they are.
pub struct CpuExperts {
    kernels: MatmulKernels,
    /// Of each matrix that was taken, those of its experts.
    matrices: Vec<Vec<Matrix>>,
    rooms: Rooms,
}

/// Rows of a call, kept for the next one.
#[derive(Default)]
struct Rooms {
    x: Option<Tensor>,
    chosen: Option<Tensor>,
    inner: Option<Tensor>,
    out: Option<Tensor>,
    products: Option<Tensor>,
}

impl CpuExperts {
    /// With the best instructions that this processor has, and products with matrices in blocks computed as `blocks` says.
    pub fn new(blocks: MatmulBlocks) -> Self {
        Self {
            kernels: MatmulKernels { isa: Isa::best(), blocks },
            matrices: Vec::new(),
            rooms: Rooms::default(),
        }
    }
}

impl HostExperts for CpuExperts {
    fn take(&mut self, matrix: &Matrix, num_experts: usize) -> Result<usize> {
        self.matrices.push(matrix.of_experts(num_experts)?);
        Ok(self.matrices.len() - 1)
    }

    fn compute(&mut self, rows: &HostRows, out: &mut [f32]) -> Result<()> {
        let Self { kernels, matrices, rooms } = self;
        let &HostRows { x, chosen, hidden_size, num_experts_per_tok: count, matrices: numbers } = rows;
        let n = x.len() / hidden_size.max(1);
        if x.len() != n * hidden_size || out.len() != x.len() || chosen.len() != 2 * n * count {
            return Err(Error::Request(format!(
                "experts: {} values for {n} rows of {hidden_size}, {} results, {} choices of {count}",
                x.len(),
                out.len(),
                chosen.len()
            )));
        }
        let missing = |number| Error::Request(format!("experts: no matrix {number}"));
        let of = |number: usize| matrices.get(number).map(|of| &of[..]).ok_or_else(|| missing(number));
        let [gate, up, down] = numbers.map(of);
        let (gate, up, down) = (gate?, up?, down?);
        let width = gate.first().map_or(0, |matrix| matrix.rows);

        let rows = room(&mut rooms.x, n, hidden_size)?;
        rows.first_mut(n).copy_from_slice(x);
        let choice = room(&mut rooms.chosen, n, 2 * count)?;
        choose(chosen, count, gate.len(), choice.first_mut(n));
        let inner = room(&mut rooms.inner, n, count * width)?;
        experts_in::experts_in(*kernels, n, rows, choice, [gate, up], inner)?;
        let sum = room(&mut rooms.out, n, hidden_size)?;
        sum.first_mut(n).fill(0.0);
        experts_out::experts_out(*kernels, n, inner, choice, down, &mut rooms.products, sum)?;
        out.copy_from_slice(sum.first(n));
        Ok(())
    }

    fn name(&self) -> String {
        device_name(self.kernels.isa)
    }
}

/// Copies the choices of rows. One that names no expert is of a row without numbers, and leaves it without: others are as ever.
fn choose(from: &[f32], count: usize, num_experts: usize, to: &mut [f32]) {
    to.copy_from_slice(from);
    for row in to.chunks_exact_mut((2 * count).max(1)) {
        let (numbers, weights) = row.split_at_mut(count);
        for (number, weight) in numbers.iter_mut().zip(weights) {
            if !(*number >= 0.0 && *number < num_experts as f32) {
                (*number, *weight) = (0.0, f32::NAN);
            }
        }
    }
}

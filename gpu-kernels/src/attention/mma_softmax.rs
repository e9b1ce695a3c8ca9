//! The online softmax of the tensor core kernels, on accumulators of `mma`.

use cuda_std::prelude::*;

#[device]
use super::prefill_mma::REFERENCE_STEP;
#[device]
use crate::grid::repeat;

/// Scores of 16 queries and a step's keys, 8 a column, as accumulators of `mma`.
#[device]
pub(super) type Scores<const COLUMNS: usize> = [[f32; 4]; COLUMNS];

/// 16 queries of a warp. Of rows, a lane has two: `lane / 4` and 8 more.
#[device]
#[derive(Clone, Copy)]
pub(super) struct Queries<const N: usize> {
    /// What scores are relative to, of each of the two rows.
    pub(super) reference: [f32; 2],
    /// The sums of this lane's weights.
    pub(super) sum: [f32; 2],
    /// Accumulators of the output, 8 dimensions each.
    pub(super) acc: [[f32; 4]; N],
}

#[device]
impl<const N: usize> Queries<N> {
    /// No keys.
    pub(super) const EMPTY: Self =
        Self { reference: [f32::NEG_INFINITY; 2], sum: [0.0; 2], acc: [[0.0; 4]; N] };

    /// Takes in the scores of a step: sets the references and returns what sum and output are to be scaled with.
    ///
    /// All 32 lanes of the warp must call it together. The first step must have a key that the row sees.
    #[inline(always)]
    pub(super) fn refer<const COLUMNS: usize>(&mut self, scores: &Scores<COLUMNS>) -> [f32; 2] {
        let mut shrink = [1.0; 2];
        repeat(2, |half| {
            let mut max = f32::NEG_INFINITY;
            repeat(COLUMNS, |n| max = max.max(scores[n][2 * half].max(scores[n][2 * half + 1])));
            max = max.max(warp::shuffle_xor(max, 1));
            max = max.max(warp::shuffle_xor(max, 2));
            let reference = self.reference[half];
            if max > reference + REFERENCE_STEP {
                self.reference[half] = max;
                shrink[half] = (reference - max).exp2_approx();
            }
        });
        shrink
    }

    /// Scales what was summed for other references.
    #[inline(always)]
    pub(super) fn shrink(&mut self, [upper, lower]: [f32; 2]) {
        self.sum = [self.sum[0] * upper, self.sum[1] * lower];
        repeat(N, |n| {
            let [a, b, c, d] = self.acc[n];
            self.acc[n] = [a * upper, b * upper, c * lower, d * lower];
        });
    }

    /// The weights of keys `16 i ..` of the step, as `a` of `mma`; adds them to the sum.
    #[inline(always)]
    pub(super) fn weights<E: PackedElement, const COLUMNS: usize>(
        &mut self,
        scores: &Scores<COLUMNS>,
        i: usize,
    ) -> [u32; 4] {
        let [left, right] = self.powers(scores, i);
        [
            E::pack2(left[0], left[1]),
            E::pack2(left[2], left[3]),
            E::pack2(right[0], right[1]),
            E::pack2(right[2], right[3]),
        ]
    }

    /// The same, not rounded yet, where the scores were.
    #[inline(always)]
    pub(super) fn powers<const COLUMNS: usize>(
        &mut self,
        scores: &Scores<COLUMNS>,
        i: usize,
    ) -> [[f32; 4]; 2] {
        let [upper, lower] = self.reference;
        let mut columns = [[0.0; 4]; 2];
        repeat(2, |n| {
            let [a, b, c, d] = scores[2 * i + n];
            let (a, b) = ((a - upper).exp2_approx(), (b - upper).exp2_approx());
            let (c, d) = ((c - lower).exp2_approx(), (d - lower).exp2_approx());
            self.sum = [self.sum[0] + (a + b), self.sum[1] + (c + d)];
            columns[n] = [a, b, c, d];
        });
        columns
    }
}

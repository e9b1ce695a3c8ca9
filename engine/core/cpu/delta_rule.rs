//! The gated delta rule, row by row.
//!
//! One task is one head of V of one sequence. Columns of its state have nothing to do with each other: sixteen of them go through all rows of
//! the state twice, and stay in the cache nearest to the core meanwhile. The order depends on nothing but the head's size, so that a
//! row has the same bits in a whole prefill, in a chunk and in a decode step.
//!
//! Source: Yang, Kautz and Hatamizadeh, Gated Delta Networks (2024).

use super::simd::{Isa, Kernel, LANES, Lanes};
use super::states::{Slot, States};
use super::team;
use super::tensor::Tensor;
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::ops::hybrid::{Columns, DeltaRule};
use std::ops::Range;

const OP: &str = "delta_rule";

/// [`HybridOps::delta_rule`](crate::ops::hybrid::HybridOps::delta_rule).
///
/// # Errors
/// [`Error::Request`] if a sequence, a slot or the layer does not exist or the shapes do not fit.
#[allow(clippy::too_many_arguments, reason = "the operation has these operands")]
pub fn delta_rule(
    isa: Isa,
    batch: &Batch,
    layer: usize,
    rule: &DeltaRule<Vec<f32>>,
    mixed: &Tensor,
    qkv: &Tensor,
    states: &mut States,
    out: &mut Tensor,
) -> Result<()> {
    /// Values of states below which one core is done before another has started.
    const WORTH_WAKING: usize = 1 << 17;
    let (sizes, n) = (&rule.sizes, batch.num_tokens());
    let heads = sizes.linear_num_value_heads;
    mixed.expect(OP, "mixed", n, Columns::of(sizes).cols)?;
    qkv.expect(OP, "qkv", n, sizes.channels())?;
    out.expect(OP, "out", n, sizes.value_size())?;
    if rule.decay.len() != heads || rule.dt_bias.len() != heads {
        return Err(Error::Request(format!(
            "{OP}: decay and dt_bias must have a value for each of {heads} heads"
        )));
    }
    let head_state = sizes.linear_key_head_dim * sizes.linear_value_head_dim;
    let out = Out(out.first_mut(n).as_mut_ptr());
    let mut tasks = Vec::new();
    for Slot { rows, begins, recurrent, .. } in states.of_batch(OP, layer, sizes, batch)? {
        if begins {
            recurrent.fill(0.0);
        }
        let of_heads = recurrent.chunks_exact_mut(head_state).enumerate();
        tasks.extend(of_heads.map(|(head, state)| Head {
            rule,
            rows: rows.clone(),
            head,
            mixed,
            qkv,
            state,
            out,
        }));
    }
    // SAFETY: sequences have rows of their own and heads columns of their own, all inside of `out`.
    let run = |head: Head| unsafe { isa.run(head) };
    if n * heads * head_state < WORTH_WAKING {
        tasks.into_iter().for_each(run);
    } else {
        team::for_each_of(tasks, 1, run);
    }
    Ok(())
}

/// The first row of the output.
#[derive(Clone, Copy)]
struct Out(*mut f32);

// SAFETY: each task writes places of its own.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

/// One head of V of one sequence.
struct Head<'a> {
    rule: &'a DeltaRule<Vec<f32>>,
    rows: Range<usize>,
    head: usize,
    mixed: &'a Tensor,
    qkv: &'a Tensor,
    /// `[linear_key_head_dim, linear_value_head_dim]`
    state: &'a mut [f32],
    out: Out,
}

/// The numbers of one row.
struct Row<'a> {
    /// Before they are normed.
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    /// What q and k are multiplied with.
    scales: [f32; 2],
    /// What is left of the state.
    kept: f32,
    /// The share of the difference that is written.
    beta: f32,
}

impl Head<'_> {
    fn row(&self, row: usize) -> Row<'_> {
        let Self { rule, head, .. } = *self;
        let (sizes, columns) = (&rule.sizes, Columns::of(&rule.sizes));
        let (key_dim, value_dim) = (sizes.linear_key_head_dim, sizes.linear_value_head_dim);
        let key = rule.value_heads.key_head(head, sizes) * key_dim;
        let (qkv, mixed) = (self.qkv.row(row), self.mixed.row(row));
        let q = &qkv[key..][..key_dim];
        let k = &qkv[sizes.key_size() + key..][..key_dim];
        let norm = |x: &[f32]| {
            let sum: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            1.0 / (sum + f64::from(rule.eps)).sqrt()
        };
        let [beta, alpha] = [columns.beta, columns.alpha].map(|first| f64::from(mixed[first + head]));
        let dt = alpha + f64::from(rule.dt_bias[head]);
        let softplus = dt.max(0.0) + (-dt.abs()).exp().ln_1p();
        Row {
            q,
            k,
            v: &qkv[2 * sizes.key_size() + head * value_dim..][..value_dim],
            scales: [(norm(q) / (key_dim as f64).sqrt()) as f32, norm(k) as f32],
            kept: (f64::from(rule.decay[head]) * softplus).exp() as f32,
            beta: (1.0 / (1.0 + (-beta).exp())) as f32,
        }
    }
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let value_dim = self.rule.sizes.linear_value_head_dim;
        let (cols, whole) = (self.rule.sizes.value_size(), value_dim / LANES * LANES);
        let state = self.state.as_mut_ptr();
        for row in self.rows.clone() {
            let numbers = self.row(row);
            // SAFETY: rows of the batch are rows of `out`, which has `cols` columns.
            let out = unsafe { self.out.0.add(row * cols + self.head * value_dim) };
            for first in (0..whole).step_by(LANES) {
                // SAFETY: the caller's instructions; sixteen columns from `first` on are columns of the state, of v and of out.
                unsafe { columns::<L>(&numbers, state.add(first), value_dim, first, out.add(first)) };
            }
            for column in whole..value_dim {
                // SAFETY: likewise of one column.
                unsafe { one_column(&numbers, state.add(column), value_dim, column, out.add(column)) };
            }
        }
    }
}

/// Sixteen columns of a state, `stride` values from row to row: takes in one row of the sequence and answers its query.
#[inline(always)]
unsafe fn columns<L: Lanes>(row: &Row, state: *mut f32, stride: usize, first: usize, out: *mut f32) {
    let [q_scale, k_scale] = row.scales;
    // SAFETY: the caller's.
    unsafe {
        let (zero, kept) = (L::splat(0.0), L::splat(row.kept));
        let mut known = zero; // (kept * S)ᵀ k
        for (i, k) in row.k.iter().enumerate() {
            let s = L::load_f32(state.add(i * stride).cast()).mul_add(kept, zero);
            known = s.mul_add(L::splat(k * k_scale), known);
        }
        let v = L::load_f32(row.v.as_ptr().add(first).cast());
        let delta = known.mul_add(L::splat(-1.0), v).mul_add(L::splat(row.beta), zero);
        let mut answer = zero;
        for (i, (k, q)) in row.k.iter().zip(row.q).enumerate() {
            let place = state.add(i * stride);
            let s = L::load_f32(place.cast()).mul_add(kept, zero);
            let s = delta.mul_add(L::splat(k * k_scale), s);
            s.store(place);
            answer = s.mul_add(L::splat(q * q_scale), answer);
        }
        answer.store(out);
    }
}

/// The same of one column.
#[inline(always)]
unsafe fn one_column(row: &Row, state: *mut f32, stride: usize, column: usize, out: *mut f32) {
    let [q_scale, k_scale] = row.scales;
    // SAFETY: the caller's.
    unsafe {
        let mut known = 0.0;
        for (i, k) in row.k.iter().enumerate() {
            known += *state.add(i * stride) * row.kept * (k * k_scale);
        }
        let delta = (row.v[column] - known) * row.beta;
        let mut answer = 0.0;
        for (i, (k, q)) in row.k.iter().zip(row.q).enumerate() {
            let place = state.add(i * stride);
            *place = *place * row.kept + delta * (k * k_scale);
            answer += *place * (q * q_scale);
        }
        *out = answer;
    }
}

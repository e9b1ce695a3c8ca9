//! Attention in f64, from the definition.

use super::Heads;

/// One row in f64, each `[heads * head_dim]`.
pub(super) struct RowReference {
    pub out: Vec<f64>,
    /// The output if no value were negative: what a relative error of the weights makes of itself at most.
    pub magnitude: Vec<f64>,
    /// The sum of the values' magnitudes, with the weights 1, over the sum of weights of which the largest is 1.
    pub all: Vec<f64>,
}

/// One row of attention in f64, from the definition: q `[heads * head_dim]`, multiplied with `log2(e) / sqrt(head_dim)`, k and v
/// `[kv_len, kv_heads * head_dim]`, of which the row sees the first `visible`.
pub(super) fn reference(
    (heads, kv_heads, head_dim): Heads,
    q: &[f64],
    k: &[f32],
    v: &[f32],
    visible: usize,
) -> RowReference {
    let zeros = vec![0.0; heads * head_dim];
    let (mut out, mut magnitude, mut all) = (zeros.clone(), zeros.clone(), zeros);
    for head in 0..heads {
        let dims = head * head_dim..(head + 1) * head_dim;
        let (out, magnitude, all) =
            (&mut out[dims.clone()], &mut magnitude[dims.clone()], &mut all[dims.clone()]);
        let kv_head = head / (heads / kv_heads);
        let q = &q[head * head_dim..][..head_dim];
        let at = |t: usize| (t * kv_heads + kv_head) * head_dim;
        let score = |t: usize| q.iter().zip(&k[at(t)..]).map(|(&q, &k)| q * f64::from(k)).sum::<f64>();
        let scores: Vec<f64> = (0..visible).map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - max).exp2()).sum();
        for (t, score) in scores.iter().enumerate() {
            let weight = (score - max).exp2() / sum;
            for (i, &v) in v[at(t)..][..head_dim].iter().enumerate() {
                out[i] += weight * f64::from(v);
                magnitude[i] += weight * f64::from(v).abs();
                all[i] += f64::from(v).abs() / sum;
            }
        }
    }
    RowReference { out, magnitude, all }
}

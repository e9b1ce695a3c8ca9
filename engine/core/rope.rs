//! The table of rotary position embeddings that both devices read.

use rayon::prelude::*;

/// `(cos, sin)` of `position * theta^(-2j / head_dim)`, each row-major `[max_positions, head_dim / 2]`.
///
/// Angles, cosines and sines are computed in f64 and rounded to f32 once, so that they are exact to half a unit in
/// the last place at every position; in f32 the angle of position 30,000 would already be off by 0.002.
/// Source: Su et al., RoFormer (2021), equation 15; `j` pairs with `j + head_dim / 2` as in Hugging Face's
/// `rotate_half`.
pub fn rope_table(theta: f32, head_dim: usize, max_positions: usize) -> (Vec<f32>, Vec<f32>) {
    let half = head_dim / 2;
    let inv_freq: Vec<f64> =
        (0..half).map(|j| f64::from(theta).powf(-2.0 * j as f64 / head_dim as f64)).collect();
    let mut cos = vec![0.0; max_positions * half];
    let mut sin = vec![0.0; max_positions * half];
    if half > 0 {
        let rows = cos.par_chunks_mut(half).zip(sin.par_chunks_mut(half));
        rows.enumerate().with_min_len(64).for_each(|(position, (cos, sin))| {
            for (j, freq) in inv_freq.iter().enumerate() {
                let (s, c) = (position as f64 * freq).sin_cos();
                cos[j] = c as f32;
                sin[j] = s as f32;
            }
        });
    }
    (cos, sin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_frequency_is_one_radian_and_late_positions_are_exact() {
        let (cos, sin) = rope_table(1e6, 64, 30_001);
        assert_eq!(cos.len(), 30_001 * 32);
        assert_eq!((cos[0], sin[0]), (1.0, 0.0));
        assert_eq!(cos[32], 1f64.cos() as f32);
        assert_eq!(sin[30_000 * 32], 30_000f64.sin() as f32);
        // Column j = 16: theta^(-1/2) = 0.001.
        assert!((f64::from(sin[30_000 * 32 + 16]) - 30f64.sin()).abs() < 1e-7);
    }
}

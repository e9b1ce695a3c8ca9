//! The table of rotary position embeddings that both devices read.

use crate::error::Result;
use crate::host_memory;
use rayon::prelude::*;

/// How the heads of Q and K are rotated by their position.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Rotation {
    /// Base of the frequencies.
    #[serde(rename = "rope_theta")]
    pub theta: f32,
    /// Values of a head that are rotated, the first ones; even. The others stay as they are: all of them where it is 0.
    #[serde(rename = "rotary_dim")]
    pub dim: usize,
    /// By what each frequency is divided, `[dim / 2]`; empty where none is.
    #[serde(rename = "rope_factors", skip_serializing_if = "Vec::is_empty")]
    pub factors: Vec<f32>,
    /// For contexts longer than the model was trained on; `None` where positions are what they are.
    #[serde(rename = "rope_scaling", skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
}

impl Rotation {
    /// The rotation of whole heads of `head_dim` values.
    pub fn new(theta: f32, head_dim: usize) -> Self {
        Self { theta, dim: head_dim, factors: Vec::new(), scaling: None }
    }

    /// Radians a position that the pair `j` of a head is turned by, `j` below `head_dim / 2`: `theta^(-2j / dim)` divided by its
    /// factor and scaled, 0 for what is not rotated.
    fn frequency(&self, j: usize) -> f64 {
        if 2 * j >= self.dim {
            return 0.0;
        }
        let frequency = f64::from(self.theta).powf(-2.0 * j as f64 / self.dim as f64);
        let frequency = frequency / self.factors.get(j).map_or(1.0, |&factor| f64::from(factor));
        self.scaling.map_or(frequency, |scaling| frequency * scaling.share(j, self.theta, self.dim))
    }

    /// What cosines and sines of the pair `j` are multiplied by.
    fn gain(&self, j: usize) -> f64 {
        self.scaling.filter(|_| 2 * j < self.dim).map_or(1.0, Scaling::gain)
    }
}

/// How positions are spread over a context longer than the model was trained on, in llama.cpp's terms: linearly, or as YaRN does, where
/// fast pairs keep their frequency and slow ones are divided by the factor.
///
/// Source: Peng et al., YaRN (2023), sections 3.2 and 3.4; ggml's `rope_yarn`.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Scaling {
    /// By what frequencies are divided; positive.
    pub factor: f32,
    /// The share of their own frequency that the fastest pairs keep: 0 is linear scaling, 1 YaRN.
    pub ext_factor: f32,
    /// What cosines and sines are multiplied by besides YaRN's own factor.
    pub attn_factor: f32,
    /// Pairs that turn more often than this over the original context keep their frequency.
    pub beta_fast: f32,
    /// Pairs that turn less often than this over the original context are divided by the factor.
    pub beta_slow: f32,
    /// Positions that the model was trained on.
    pub original_max_position_embeddings: usize,
}

impl Scaling {
    /// All frequencies divided by `factor`.
    pub fn linear(factor: f32) -> Self {
        Self {
            factor,
            ext_factor: 0.0,
            attn_factor: 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_position_embeddings: 0,
        }
    }

    /// YaRN with the paper's constants.
    pub fn yarn(factor: f32, original_max_position_embeddings: usize) -> Self {
        Self { ext_factor: 1.0, original_max_position_embeddings, ..Self::linear(factor) }
    }

    /// What the frequency of the pair `j` is multiplied by.
    fn share(self, j: usize, theta: f32, dim: usize) -> f64 {
        let divided = 1.0 / f64::from(self.factor);
        if self.ext_factor == 0.0 {
            return divided;
        }
        // The pair, a broken number, that makes so many turns over the original context.
        let pair_of = |turns: f32| {
            let positions_of_turn = self.original_max_position_embeddings as f64 / f64::from(turns);
            dim as f64 * (positions_of_turn / std::f64::consts::TAU).ln() / (2.0 * f64::from(theta).ln())
        };
        let first = pair_of(self.beta_fast).floor().max(0.0);
        let last = pair_of(self.beta_slow).ceil().min(dim as f64 - 1.0);
        let ramp = ((j as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
        let kept = (1.0 - ramp) * f64::from(self.ext_factor);
        divided * (1.0 - kept) + kept
    }

    /// What cosines and sines are multiplied by: scores grow by the square of it.
    pub fn gain(self) -> f64 {
        let factor = f64::from(self.factor);
        let of_yarn = if self.ext_factor != 0.0 && factor > 1.0 { 1.0 + 0.1 * factor.ln() } else { 1.0 };
        of_yarn * f64::from(self.attn_factor)
    }
}

/// Which values of a head are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// `j` and `j + dim / 2`, as in Hugging Face's `rotate_half`.
    Halves,
    /// `2j` and `2j + 1`, as in the paper, and in GGUF files whose converter put the rows of Q and K into that order.
    Neighbours,
}

/// The order of a head's values in which `j` is turned with `j + head_dim / 2` by the frequency `j`, as operations turn them; `None` if
/// that is the order they have. A score is the same whatever order the values of Q and K have, if it is one for both: so any pairing, and
/// a rotation of a part of a head, is a matter of the order of rows in the matrices of Q and K.
pub fn head_order(pairs: Pairs, rotary_dim: usize, head_dim: usize) -> Option<Vec<usize>> {
    let (half, rest) = (rotary_dim / 2, (head_dim - rotary_dim) / 2);
    let side = |second: bool| {
        let rotated = (0..half).map(move |j| match pairs {
            Pairs::Halves => j + usize::from(second) * half,
            Pairs::Neighbours => 2 * j + usize::from(second),
        });
        rotated.chain((0..rest).map(move |k| rotary_dim + k + usize::from(second) * rest))
    };
    let order: Vec<usize> = side(false).chain(side(true)).collect();
    (!order.iter().copied().eq(0..head_dim)).then_some(order)
}

/// Cosines and sines of `position * frequency(j)`, for as many positions as were asked for so far: a file that claims a long context
/// costs nothing until it is used.
///
/// Angles, cosines and sines are computed in f64 and rounded to f32 once, so that they are exact to half a unit in
/// the last place at every position; in f32 the angle of position 30,000 would already be off by 0.002.
/// Source: Su et al., RoFormer (2021), equation 15; `j` pairs with `j + head_dim / 2` as in Hugging Face's
/// `rotate_half`.
#[derive(Clone, Debug)]
pub struct RopeTable {
    rotation: Rotation,
    /// Columns: `head_dim / 2`.
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// A table of no position yet.
    pub fn new(rotation: &Rotation, head_dim: usize) -> Self {
        Self { rotation: rotation.clone(), half: head_dim / 2, cos: Vec::new(), sin: Vec::new() }
    }

    /// Row-major `[num_positions, head_dim / 2]`.
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// Row-major `[num_positions, head_dim / 2]`.
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }

    /// The positions that it has.
    pub fn num_positions(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(0)
    }

    /// Computes what is missing of the first `num_positions`.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if the system refuses the room.
    pub fn grow(&mut self, num_positions: usize) -> Result<()> {
        let Self { rotation, half, cos, sin } = self;
        let (half, first) = (*half, cos.len());
        let len = num_positions.saturating_mul(half);
        if len <= first {
            return Ok(());
        }
        for values in [&mut *cos, sin] {
            host_memory::reserve("the table of rotary embeddings", values, len - first)?;
        }
        cos.resize(len, 0.0);
        sin.resize(len, 0.0);
        let pairs: Vec<_> = (0..half).map(|j| (rotation.frequency(j), rotation.gain(j))).collect();
        let rows = cos[first..].par_chunks_mut(half).zip(sin[first..].par_chunks_mut(half));
        rows.enumerate().with_min_len(64).for_each(|(row, (cos, sin))| {
            let position = (first / half + row) as f64;
            for (j, (frequency, gain)) in pairs.iter().enumerate() {
                let (s, c) = (position * frequency).sin_cos();
                (cos[j], sin[j]) = ((c * gain) as f32, (s * gain) as f32);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rotation: &Rotation, head_dim: usize, num_positions: usize) -> RopeTable {
        let mut table = RopeTable::new(rotation, head_dim);
        table.grow(num_positions).unwrap();
        table
    }

    #[test]
    fn first_frequency_is_one_radian_and_late_positions_are_exact() {
        let table = table(&Rotation::new(1e6, 64), 64, 30_001);
        let (cos, sin) = (table.cos(), table.sin());
        assert_eq!((cos.len(), table.num_positions()), (30_001 * 32, 30_001));
        assert_eq!((cos[0], sin[0]), (1.0, 0.0));
        assert_eq!(cos[32], 1f64.cos() as f32);
        assert_eq!(sin[30_000 * 32], 30_000f64.sin() as f32);
        // Column j = 16: theta^(-1/2) = 0.001.
        assert!((f64::from(sin[30_000 * 32 + 16]) - 30f64.sin()).abs() < 1e-7);
    }

    #[test]
    fn a_part_of_a_head_is_rotated_and_frequencies_may_be_divided() {
        let table = table(&Rotation { factors: vec![1.0, 8.0], ..Rotation::new(1e4, 4) }, 8, 3);
        let expected = [2f64.sin() as f32, (2.0 * 1e4f64.powf(-0.5) / 8.0).sin() as f32, 0.0, 0.0];
        assert_eq!(table.sin()[8..], expected);
        assert_eq!(table.cos()[10..], [1.0, 1.0]);
    }

    #[test]
    fn scaling_divides_slow_pairs_and_leaves_what_is_not_rotated() {
        let rotation = Rotation { scaling: Some(Scaling::linear(4.0)), ..Rotation::new(1e4, 4) };
        let scaled = table(&rotation, 6, 9);
        let plain = table(&Rotation::new(1e4, 4), 6, 9);
        assert_eq!(
            (&scaled.cos()[8 * 3..], &scaled.sin()[8 * 3..]),
            (&plain.cos()[6..9], &plain.sin()[6..9])
        );

        // By the paper's formula: pairs 0 to 2 turn more than 32 times over 4,096 positions, 6 and 7 less than once.
        let rotation = Rotation { scaling: Some(Scaling::yarn(4.0, 4096)), ..Rotation::new(1e4, 16) };
        let frequencies: Vec<f64> = (0..8).map(|j| rotation.frequency(j)).collect();
        let expected =
            [1.0, 0.316_227_77, 0.1, 0.025_693_506, 0.006_25, 0.001_383_496_5, 0.000_25, 7.905_694_15e-5];
        for (found, expected) in frequencies.iter().zip(expected) {
            assert!((found / expected - 1.0).abs() < 1e-7, "{frequencies:?}");
        }
        assert_eq!((rotation.gain(7), rotation.gain(8)), (1.0 + 0.1 * 4f64.ln(), 1.0));
        assert_eq!(Scaling { attn_factor: 2.0, ..Scaling::linear(4.0) }.gain(), 2.0);
    }

    #[test]
    fn a_table_that_grows_is_the_one_that_was_made_at_once() {
        let rotation = Rotation::new(1e4, 10);
        let whole = table(&rotation, 10, 1000);
        let mut grown = RopeTable::new(&rotation, 10);
        assert_eq!(grown.num_positions(), 0);
        for num_positions in [1, 64, 64, 3, 700, 1000] {
            grown.grow(num_positions).unwrap();
            assert!(grown.num_positions() >= num_positions);
        }
        assert_eq!((grown.cos(), grown.sin()), (whole.cos(), whole.sin()));
        let refused = grown.grow(usize::MAX).unwrap_err();
        assert!(matches!(&refused, crate::Error::Memory(text) if text.contains("refused")), "{refused}");
    }

    #[test]
    fn every_pairing_is_an_order_of_values() {
        assert_eq!(head_order(Pairs::Halves, 8, 8), None);
        assert_eq!(head_order(Pairs::Neighbours, 8, 8).unwrap(), [0, 2, 4, 6, 1, 3, 5, 7]);
        assert_eq!(head_order(Pairs::Halves, 4, 8).unwrap(), [0, 1, 4, 5, 2, 3, 6, 7]);
        assert_eq!(head_order(Pairs::Neighbours, 4, 8).unwrap(), [0, 2, 4, 5, 1, 3, 6, 7]);
    }
}

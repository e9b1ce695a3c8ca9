//! Random numbers of a seed, and what became of many.

use qernel::testing::mix;
use std::collections::BTreeMap;

/// Numbers in classes a hundredth wide.
#[derive(Default)]
pub struct Histogram {
    classes: BTreeMap<i32, u64>,
    pub count: u64,
    pub sum: f64,
}

impl Histogram {
    pub fn add(&mut self, value: f64) {
        *self.classes.entry((value.max(1e-9).ln() * 100.0).round() as i32).or_default() += 1;
        self.count += 1;
        self.sum += value;
    }

    #[cfg(test)]
    pub fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// The value that this share of all stays below.
    pub fn quantile(&self, share: f64) -> f64 {
        let (mut seen, wanted) = (0, (share * self.count as f64).ceil() as u64);
        let class = self.classes.iter().find(|(_, count)| {
            seen += **count;
            seen >= wanted
        });
        class.map_or(f64::NAN, |(class, _)| (f64::from(*class) / 100.0).exp())
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }

    /// 1 at least.
    pub fn geometric(&mut self, mean: f64) -> u32 {
        if mean <= 1.0 { 1 } else { (self.unit().ln() / (1.0 - 1.0 / mean).ln()).ceil().max(1.0) as u32 }
    }
}

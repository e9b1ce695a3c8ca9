//! How far a model's probabilities are from those of another, of which it is a smaller file or which another kernel computed.

use super::base::Probabilities;
use super::{Mean, log_sum_exp};
use crate::error::{Error, Result};

/// A number with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Figure {
    pub value: f64,
    pub error: f64,
}

impl Figure {
    fn of(mean: &Mean) -> Self {
        Self { value: mean.value(), error: mean.error() }
    }
}

/// A number for each token, in order of size.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Percentiles {
    pub maximum: f32,
    pub p99_9: f32,
    pub p99: f32,
    pub p95: f32,
    pub p90: f32,
    pub p75: f32,
    pub median: f32,
    pub p25: f32,
    pub p10: f32,
    pub p5: f32,
    pub p1: f32,
    pub p0_1: f32,
    pub minimum: f32,
}

impl Percentiles {
    fn of(values: &[f32]) -> Self {
        let mut values = values.to_vec();
        values.sort_unstable_by(f32::total_cmp);
        // Between two values, as far along as the share says.
        let at = |share: f32| {
            let place = share * (values.len() - 1) as f32;
            let (below, part) = (place as usize, place.fract());
            let above = values[(below + 1).min(values.len() - 1)];
            if part > 0.0 { (1.0 - part) * values[below] + part * above } else { values[below] }
        };
        Self {
            maximum: values[values.len() - 1],
            p99_9: at(0.999),
            p99: at(0.99),
            p95: at(0.95),
            p90: at(0.9),
            p75: at(0.75),
            median: at(0.5),
            p25: at(0.25),
            p10: at(0.1),
            p5: at(0.05),
            p1: at(0.01),
            p0_1: at(0.001),
            minimum: values[0],
        }
    }
}

/// What is found; names as in llama-perplexity's report.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Figures {
    pub num_tokens: usize,
    pub ppl: Figure,
    pub ppl_base: Figure,
    /// Of the logarithms of both perplexities, from -1 to 1.
    pub correlation: f64,
    pub ln_ratio: Figure,
    pub ratio: Figure,
    pub difference: Figure,
    pub mean_kld: Figure,
    pub kld: Percentiles,
    /// The probability of the token that came, less what the base gave it.
    pub mean_delta_p: Figure,
    pub delta_p: Percentiles,
    pub rms_delta_p: Figure,
    /// Share of tokens for which both have the same likeliest word.
    pub same_top: Figure,
}

/// Sums over tokens.
#[derive(Clone, Debug, Default)]
pub struct Divergence {
    nll: Mean,
    nll_base: Mean,
    products: f64,
    kld: Mean,
    klds: Vec<f32>,
    delta_p: Mean,
    delta_p_squared: Mean,
    delta_ps: Vec<f32>,
    num_same_top: usize,
}

/// Of one token.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    nll: f64,
    nll_base: f64,
    kld: f64,
    same_top: bool,
}

/// The place of the largest value, the first of equal ones.
fn place_of_largest(values: impl Iterator<Item = f32>) -> Option<usize> {
    let larger = |best: Option<(usize, f32)>, (i, value): (usize, f32)| match best {
        Some((_, most)) if value.is_nan() || most.is_nan() || value <= most => best,
        _ => Some((i, value)),
    };
    values.enumerate().fold(None, larger).map(|(i, _)| i)
}

impl Compared {
    /// The logits for `token` with the base's probabilities for it.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a logit is NaN; [`Error::Request`] if the base's vocabulary does not have the token.
    pub fn new(token: u32, logits: &[f32], base: Probabilities) -> Result<Self> {
        let sum = log_sum_exp(logits);
        let logit = logits.get(token as usize).zip(base.logarithm(token));
        let (&logit, log_base) =
            logit.ok_or_else(|| Error::Request(format!("token {token} is beyond the vocabulary")))?;
        let nll = sum - f64::from(logit);
        if !nll.is_finite() {
            return Err(Error::NotFinite("the model's logits are NaN or infinite".to_owned()));
        }
        let of_word = |(log_base, logit): (f32, &f32)| {
            let log_base = f64::from(log_base);
            // What is as good as impossible adds nothing.
            if log_base > -16.0 { log_base.exp() * (log_base - f64::from(*logit) + sum) } else { 0.0 }
        };
        Ok(Self {
            nll,
            nll_base: -f64::from(log_base),
            kld: base.logarithms().zip(logits).map(of_word).sum(),
            same_top: place_of_largest(logits.iter().copied()) == place_of_largest(base.logarithms()),
        })
    }
}

impl Divergence {
    /// Another token.
    pub fn add(&mut self, token: Compared) {
        let Compared { nll, nll_base, kld, same_top } = token;
        self.nll.add(nll);
        self.nll_base.add(nll_base);
        self.products += nll * nll_base;
        self.kld.add(kld);
        self.klds.push(kld as f32);
        let delta_p = (-nll).exp() - (-nll_base).exp();
        self.delta_p.add(delta_p);
        self.delta_p_squared.add(delta_p * delta_p);
        self.delta_ps.push(delta_p as f32);
        self.num_same_top += usize::from(same_top);
    }

    /// Negative logarithms of the tokens' probabilities.
    pub fn nll(&self) -> &Mean {
        &self.nll
    }

    /// The figures of all tokens; `None` of fewer than two.
    pub fn figures(&self) -> Option<Figures> {
        let count = self.nll.count();
        if count < 2 {
            return None;
        }
        let (n, nll, nll_base) = (count as f64, self.nll, self.nll_base);
        let covariance = (self.products / n - nll.value() * nll_base.value()) / (n - 1.0);
        let (ppl, ppl_base) = (nll.exp(), nll_base.exp());
        // Of a difference of two that go together.
        let error = |a: f64, b: f64, covariance: f64| (a * a + b * b - 2.0 * covariance).max(0.0).sqrt();
        let ln_ratio = Figure {
            value: nll.value() - nll_base.value(),
            error: error(nll.error(), nll_base.error(), covariance),
        };
        let ratio = ln_ratio.value.exp();
        let deviations = nll.error() * nll_base.error();
        let rms = self.delta_p_squared.value().sqrt();
        let same_top = self.num_same_top as f64 / n;
        Some(Figures {
            num_tokens: count,
            ppl,
            ppl_base,
            correlation: if deviations > 0.0 { covariance / deviations } else { 0.0 },
            ln_ratio,
            ratio: Figure { value: ratio, error: ratio * ln_ratio.error },
            difference: Figure {
                value: ppl.value - ppl_base.value,
                error: error(ppl.error, ppl_base.error, ppl.value * ppl_base.value * covariance),
            },
            mean_kld: Figure::of(&self.kld),
            kld: Percentiles::of(&self.klds),
            mean_delta_p: Figure::of(&self.delta_p),
            delta_p: Percentiles::of(&self.delta_ps),
            rms_delta_p: Figure {
                value: rms,
                error: if rms > 0.0 { 0.5 / rms * self.delta_p_squared.error() } else { 0.0 },
            },
            same_top: Figure { value: same_top, error: (same_top * (1.0 - same_top) / (n - 1.0)).sqrt() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Base, BaseWriter};
    use super::*;

    /// A file of one chunk with these rows of logits of three words.
    fn base(rows: &[[f32; 3]]) -> Base {
        let len = 2 * rows.len() + 2;
        let path = std::env::temp_dir().join(format!("qernel-base-{}-{len}", std::process::id()));
        let mut bytes = Vec::new();
        let mut writer = BaseWriter::new(&mut bytes, len, 3, &vec![0; len]).unwrap();
        writer.rows(rows.as_flattened()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let base = Base::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        base
    }

    #[test]
    fn a_model_is_no_distance_from_itself() {
        let rows = [[1.0, 2.0, -3.0], [0.5, 0.0, 4.0], [-1.0, 1.0, 0.0]];
        let base = base(&rows);
        let mut divergence = Divergence::default();
        for (i, row) in rows.iter().enumerate() {
            divergence.add(Compared::new(1, row, base.row(i)).unwrap());
        }
        let figures = divergence.figures().unwrap();
        // Sixteen bits keep log-probabilities to about 1e-4, and what they miss does not sum up to nothing.
        assert!(figures.mean_kld.value.abs() < 1e-5, "{figures:?}");
        assert!(figures.ln_ratio.value.abs() < 1e-4 && figures.rms_delta_p.value < 1e-4, "{figures:?}");
        assert_eq!(figures.same_top, Figure { value: 1.0, error: 0.0 });
        assert!((figures.correlation - 1.0).abs() < 1e-4);
    }

    #[test]
    fn figures_are_those_of_two_distributions() {
        // 1/2, 1/4, 1/4 and 1/4, 1/2, 1/4.
        let half = 2.0_f32.ln();
        let base = base(&[[half, 0.0, 0.0], [half, 0.0, 0.0]]);
        let mut divergence = Divergence::default();
        for i in 0..2 {
            divergence.add(Compared::new(0, &[0.0, half, 0.0], base.row(i)).unwrap());
        }
        let figures = divergence.figures().unwrap();
        let kld = 0.25 * 2.0_f64.ln();
        assert!((figures.mean_kld.value - kld).abs() < 1e-5, "{figures:?}");
        assert!((f64::from(figures.kld.median) - kld).abs() < 1e-5);
        assert!((figures.ppl.value - 4.0).abs() < 1e-4 && (figures.ppl_base.value - 2.0).abs() < 1e-4);
        assert!(
            (figures.mean_delta_p.value + 0.25).abs() < 1e-5
                && (figures.rms_delta_p.value - 0.25).abs() < 1e-5
        );
        assert_eq!(figures.same_top.value, 0.0);
        assert!((figures.ratio.value - 2.0).abs() < 1e-4 && (figures.difference.value - 2.0).abs() < 1e-4);
    }

    #[test]
    fn percentiles_lie_between_values() {
        let found = Percentiles::of(&[4.0, 0.0, 1.0, 3.0, 2.0]);
        assert_eq!((found.minimum, found.median, found.maximum), (0.0, 2.0, 4.0));
        assert!((found.p90 - 3.6).abs() < 1e-6 && (found.p10 - 0.4).abs() < 1e-6);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let base = base(&[[0.0; 3]]);
        assert!(matches!(Compared::new(0, &[f32::NAN, 0.0, 0.0], base.row(0)), Err(Error::NotFinite(_))));
        assert!(matches!(Compared::new(3, &[0.0; 3], base.row(0)), Err(Error::Request(_))));
        assert!(Divergence::default().figures().is_none());
    }
}

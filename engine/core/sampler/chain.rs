//! Samplers beside the usual ones, in llama.cpp's names and with its meaning, and the order of all.
//!
//! The host draws for rows that have such a chain ([`host`](super::host)); a device computes their logits.

use super::SamplingParams;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// One sampler of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    Penalties,
    Dry,
    TopNSigma,
    TopK,
    TypP,
    TopP,
    MinP,
    Xtc,
    Temperature,
}

impl SamplerKind {
    /// All, in llama.cpp's default order.
    pub const ALL: [Self; 9] = [
        Self::Penalties,
        Self::Dry,
        Self::TopNSigma,
        Self::TopK,
        Self::TypP,
        Self::TopP,
        Self::MinP,
        Self::Xtc,
        Self::Temperature,
    ];

    /// llama.cpp's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Penalties => "penalties",
            Self::Dry => "dry",
            Self::TopNSigma => "top_n_sigma",
            Self::TopK => "top_k",
            Self::TypP => "typ_p",
            Self::TopP => "top_p",
            Self::MinP => "min_p",
            Self::Xtc => "xtc",
            Self::Temperature => "temperature",
        }
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = String;

    /// Its word, or one of those that llama.cpp takes for it too.
    fn from_str(text: &str) -> Result<Self, String> {
        let word = text.trim().replace('-', "_");
        let word = match word.as_str() {
            "typical_p" | "typical" => "typ_p",
            "temp" => "temperature",
            "top_n_sigma" | "top_nsigma" => "top_n_sigma",
            "nucleus" => "top_p",
            other => other,
        };
        Self::ALL.into_iter().find(|kind| kind.name() == word).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("`{}` is no sampler; those that are known are {}", text.trim(), known.join(", "))
        })
    }
}

/// Don't Repeat Yourself: tokens that would go on with a repetition lose `multiplier * base ^ (length - allowed_length)` of their logits,
/// `length` being that of what is repeated (p-e-w, text-generation-webui #5677).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dry {
    /// 0 is off.
    pub multiplier: f32,
    pub base: f32,
    /// Repetitions that are shorter cost nothing.
    pub allowed_length: i32,
    /// How many of the newest tokens are looked at: 0 none, -1 the whole context.
    pub last_n: i32,
    /// Nothing is repeated across a token that has one of them.
    pub sequence_breakers: Vec<String>,
}

impl Default for Dry {
    fn default() -> Self {
        let sequence_breakers = ["\n", ":", "\"", "*"].map(str::to_owned).to_vec();
        Self { multiplier: 0.0, base: 1.75, allowed_length: 2, last_n: -1, sequence_breakers }
    }
}

/// Mirostat 2: keeps tokens whose surprise is below a bound that follows the surprise of those drawn (Basu et al., 2021).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mirostat {
    /// The surprise that is aimed at, in bits.
    pub tau: f32,
    /// How fast the bound follows.
    pub eta: f32,
}

impl Default for Mirostat {
    fn default() -> Self {
        Self { tau: 5.0, eta: 0.1 }
    }
}

/// What the usual parameters do not say. The default changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplerChain {
    /// The samplers in their order; those that are missing are off.
    pub order: Vec<SamplerKind>,
    /// Locally typical: keeps the tokens whose surprise is nearest to what is expected, up to this sum of probabilities; 1 is off.
    pub typical_p: f32,
    /// Keeps logits at most so many standard deviations below the largest; 0 or less is off.
    pub top_n_sigma: f32,
    /// How often the likeliest tokens are left out (exclude top choices); 0 is off.
    pub xtc_probability: f32,
    /// Which: of those with at least this probability all but the least likely; above 0.5 is off.
    pub xtc_threshold: f32,
    /// The temperature moves by so much either way with the entropy of what is left; 0 is off.
    pub dynatemp_range: f32,
    pub dynatemp_exponent: f32,
    pub dry: Dry,
    /// Takes the place of all samplers but the temperature.
    pub mirostat: Option<Mirostat>,
    /// Added to the logits of tokens; -inf bans one.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplerChain {
    fn default() -> Self {
        Self {
            order: SamplerKind::ALL.to_vec(),
            typical_p: 1.0,
            top_n_sigma: -1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            dry: Dry::default(),
            mirostat: None,
            logit_bias: Vec::new(),
        }
    }
}

impl SamplerChain {
    /// The chain for [`SamplingParams::chain`]: `None` where it changes nothing, so that a device may draw.
    pub fn if_needed(self) -> Option<Arc<Self>> {
        let is_plain = |kind: &SamplerKind| match kind {
            SamplerKind::Dry => self.dry.multiplier == 0.0 || self.dry.last_n == 0,
            SamplerKind::TopNSigma => self.top_n_sigma <= 0.0,
            SamplerKind::TypP => self.typical_p >= 1.0,
            SamplerKind::Xtc => self.xtc_probability <= 0.0 || self.xtc_threshold > 0.5,
            SamplerKind::Temperature => self.dynatemp_range <= 0.0,
            _ => true,
        };
        let usual = |kind: &&SamplerKind| {
            !matches!(kind, SamplerKind::Dry | SamplerKind::TopNSigma | SamplerKind::TypP | SamplerKind::Xtc)
        };
        let changes_nothing = self.order.iter().all(is_plain)
            && self.order.iter().filter(usual).eq(SamplerKind::ALL.iter().filter(usual))
            && self.mirostat.is_none()
            && self.logit_bias.is_empty();
        (!changes_nothing).then(|| Arc::new(self))
    }

    /// The first option whose value has no meaning, by its name, and what was expected.
    pub fn fault(&self) -> Option<(&'static str, String)> {
        let share = 0.0..=1.0;
        let Dry { multiplier, base, allowed_length, last_n, .. } = self.dry;
        let Mirostat { tau, eta } = self.mirostat.unwrap_or_default();
        let is_moderate = |value: f32| (0.0..=1e6).contains(&value);
        let checks = [
            ("typical_p", share.contains(&self.typical_p), "a number from 0 to 1", self.typical_p),
            ("top_n_sigma", !self.top_n_sigma.is_nan(), "a number", self.top_n_sigma),
            (
                "xtc_probability",
                share.contains(&self.xtc_probability),
                "a number from 0 to 1",
                self.xtc_probability,
            ),
            (
                "xtc_threshold",
                share.contains(&self.xtc_threshold),
                "a number from 0 to 1",
                self.xtc_threshold,
            ),
            (
                "dynatemp_range",
                is_moderate(self.dynatemp_range),
                "a number from 0 to 1e6",
                self.dynatemp_range,
            ),
            (
                "dynatemp_exponent",
                is_moderate(self.dynatemp_exponent),
                "a number from 0 to 1e6",
                self.dynatemp_exponent,
            ),
            ("dry_multiplier", is_moderate(multiplier), "a number from 0 to 1e6", multiplier),
            ("dry_base", (1.0..=1e6).contains(&base), "a number from 1 to 1e6", base),
            ("dry_allowed_length", allowed_length >= 0, "0 or more", allowed_length as f32),
            ("dry_penalty_last_n", last_n >= -1, "-1, 0 or a count", last_n as f32),
            ("mirostat_tau", is_moderate(tau), "a number from 0 to 1e6", tau),
            ("mirostat_eta", share.contains(&eta), "a number from 0 to 1", eta),
        ];
        if let Some((option, _, expected, found)) = checks.into_iter().find(|(_, is_good, ..)| !is_good) {
            return Some((option, format!("expected {expected}, found {found}")));
        }
        let bad = self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias > 1e6)?;
        Some(("logit_bias", format!("expected numbers up to 1e6, found {} for token {}", bad.1, bad.0)))
    }
}

impl SamplerChain {
    /// A bias of a token that a model with so many does not have.
    pub fn bias_fault(&self, vocab_size: usize) -> Option<(&'static str, String)> {
        let (token, _) = self.logit_bias.iter().find(|bias| bias.0 as usize >= vocab_size)?;
        Some(("logit_bias", format!("token {token}, but the model has only tokens 0 to {}", vocab_size - 1)))
    }
}

/// What the host needs to draw for a row, beside its logits and parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct HostRow {
    pub chain: Arc<SamplerChain>,
    /// What [`Dry`] takes from the logits of tokens, each once.
    pub repetitions: Vec<(u32, f32)>,
    pub surprise: Surprise,
}

impl HostRow {
    /// Of a text without repetitions; `None` where a device may draw.
    pub fn new(params: &SamplingParams) -> Option<Self> {
        let chain = Arc::clone(params.chain.as_ref()?);
        let surprise = Surprise::of(chain.mirostat.unwrap_or_default());
        Some(Self { chain, repetitions: Vec::new(), surprise })
    }
}

/// [`Mirostat`]'s bound, which moves with every draw of a sequence and is shared by its rows.
#[derive(Clone, Debug)]
pub struct Surprise(Arc<AtomicU32>);

impl Surprise {
    fn of(mirostat: Mirostat) -> Self {
        Self(Arc::new(AtomicU32::new((2.0 * mirostat.tau).to_bits())))
    }

    /// In bits.
    pub fn bound(&self) -> f32 {
        f32::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Sets it back.
    pub fn set(&self, bound: f32) {
        self.0.store(bound.to_bits(), Ordering::Relaxed);
    }

    /// A token of so many bits was drawn.
    pub fn follow(&self, Mirostat { tau, eta }: Mirostat, bits: f32) {
        self.set(self.bound() - eta * (bits - tau));
    }
}

impl PartialEq for Surprise {
    fn eq(&self, other: &Self) -> bool {
        self.bound() == other.bound()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_llama_cpp() {
        for kind in SamplerKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert_eq!(" top-k ".parse(), Ok(SamplerKind::TopK));
        assert_eq!("temp".parse(), Ok(SamplerKind::Temperature));
        assert!("top_x".parse::<SamplerKind>().unwrap_err().contains("typ_p"));
    }

    #[test]
    fn a_chain_that_changes_nothing_is_none() {
        let plain = SamplerChain::default;
        assert_eq!(plain().if_needed(), None);
        // Where the others are off, leaving them out changes nothing.
        let usual = [
            SamplerKind::Penalties,
            SamplerKind::TopK,
            SamplerKind::TopP,
            SamplerKind::MinP,
            SamplerKind::Temperature,
        ];
        assert_eq!(SamplerChain { order: usual.to_vec(), ..plain() }.if_needed(), None);
        let mut turned = usual.to_vec();
        turned.swap(1, 2);
        for changed in [
            SamplerChain { order: turned, ..plain() },
            SamplerChain { order: usual[..4].to_vec(), ..plain() },
            SamplerChain { typical_p: 0.9, ..plain() },
            SamplerChain { top_n_sigma: 1.0, ..plain() },
            SamplerChain { xtc_probability: 0.5, ..plain() },
            SamplerChain { dynatemp_range: 0.5, ..plain() },
            SamplerChain { dry: Dry { multiplier: 0.8, ..Dry::default() }, ..plain() },
            SamplerChain { mirostat: Some(Mirostat::default()), ..plain() },
            SamplerChain { logit_bias: vec![(1, 1.0)], ..plain() },
        ] {
            assert!(changed.clone().if_needed().is_some(), "{changed:?}");
        }
    }

    #[test]
    fn values_without_meaning_are_refused_by_name() {
        let plain = SamplerChain::default;
        assert_eq!(plain().fault(), None);
        for (bad, name) in [
            (SamplerChain { typical_p: 1.5, ..plain() }, "typical_p"),
            (SamplerChain { xtc_probability: f32::NAN, ..plain() }, "xtc_probability"),
            (SamplerChain { dry: Dry { base: 0.5, ..Dry::default() }, ..plain() }, "dry_base"),
            (SamplerChain { mirostat: Some(Mirostat { tau: -1.0, eta: 0.1 }), ..plain() }, "mirostat_tau"),
            (SamplerChain { logit_bias: vec![(3, f32::NAN)], ..plain() }, "logit_bias"),
        ] {
            assert_eq!(bad.fault().map(|(option, _)| option), Some(name));
        }
    }
}

//! What a request asks of the sampler, in llama.cpp's names and with its meaning.

mod chain;
pub mod host;

pub use chain::{Dry, HostRow, Mirostat, SamplerChain, SamplerKind};

use crate::error::{Error, Result};
use std::sync::Arc;

/// How the next token is chosen from the logits, in this order: allowed tokens, penalties, top-k, top-p, min-p, temperature, draw.
/// That is llama.cpp's default chain (`--samplers penalties;top_k;top_p;min_p;temperature`).
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SamplingParams {
    /// Divides the logits before the draw; 0 or less takes the arg-max.
    pub temperature: f32,
    /// Keep the `k` largest logits; 0 or less keeps all.
    pub top_k: i32,
    /// Keep the smallest set of largest probabilities whose sum reaches it; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens with at least this share of the largest probability; 0 keeps all.
    pub min_p: f32,
    /// Logits of repeated tokens are divided by it where positive and multiplied where negative; 1 is off. From 0.001 to 1000.
    pub repeat_penalty: f32,
    /// How many of the newest tokens the penalties look at: 0 none, -1 the whole context.
    pub repeat_last_n: i32,
    /// Subtracted once from the logit of every token that has occurred; 0 is off. At most 1e6 either way.
    pub presence_penalty: f32,
    /// Subtracted once per occurrence; 0 is off. At most 1e6 either way.
    pub frequency_penalty: f32,
    /// Key of the counter-based generator.
    pub seed: u64,
    /// Other samplers, biases, or another order: the host draws then. `None` for what is said above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Arc<SamplerChain>>,
}

impl Default for SamplingParams {
    /// llama.cpp's defaults, with seed 0.
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            chain: None,
        }
    }
}

impl SamplingParams {
    /// Whether the arg-max is taken, without a draw.
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0
    }

    /// Whether any penalty changes a logit.
    pub fn has_penalties(&self) -> bool {
        self.repeat_last_n != 0
            && (self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0)
    }

    /// The first option whose value has no meaning, by its name, and what was expected.
    pub fn fault(&self) -> Option<(&'static str, String)> {
        // Beyond these bounds penalties of a long context would make logits infinite.
        let (repeat, presence, frequency) =
            (self.repeat_penalty, self.presence_penalty, self.frequency_penalty);
        let is_moderate = |penalty: f32| (-1e6..=1e6).contains(&penalty);
        let checks = [
            ("temperature", self.temperature.is_finite(), "a finite number", self.temperature),
            ("top_p", (0.0..=1.0).contains(&self.top_p), "a number from 0 to 1", self.top_p),
            ("min_p", (0.0..=1.0).contains(&self.min_p), "a number from 0 to 1", self.min_p),
            ("repeat_penalty", (1e-3..=1e3).contains(&repeat), "a number from 0.001 to 1000", repeat),
            ("repeat_last_n", self.repeat_last_n >= -1, "-1, 0 or a count", self.repeat_last_n as f32),
            ("presence_penalty", is_moderate(presence), "a number from -1e6 to 1e6", presence),
            ("frequency_penalty", is_moderate(frequency), "a number from -1e6 to 1e6", frequency),
        ];
        match checks.into_iter().find(|(_, is_good, ..)| !is_good) {
            Some((option, _, expected, found)) => {
                Some((option, format!("expected {expected}, found {found}")))
            }
            None => self.chain.as_ref()?.fault(),
        }
    }

    /// Refuses values without meaning.
    ///
    /// # Errors
    /// [`Error::Request`] that begins with the name of the option.
    pub fn validate(&self) -> Result<()> {
        match self.fault() {
            Some((option, fault)) => Err(Error::Request(format!("{option}: {fault}"))),
            None => Ok(()),
        }
    }
}

/// In the place of a token where none can be drawn: a logit is NaN or infinite, or all are -inf. Beyond every vocabulary.
pub const NO_TOKEN: u32 = u32::MAX;

/// One row of a sampling step. The draw depends on the parameters, the logits, `position` and `index` alone, so it is
/// the same alone and in a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingRow {
    pub params: SamplingParams,
    /// Position of the token to be drawn: the length of the sequence so far.
    pub position: u32,
    /// Which of several answers to one prompt this is (OpenAI's `n`); 0 otherwise.
    pub index: u32,
    /// Distinct tokens of the penalty window with their counts, ascending by token; empty where no penalty is on.
    pub counts: Vec<(u32, u32)>,
    /// The tokens that may be drawn; `None`: all.
    pub allowed: Option<Arc<TokenMask>>,
    /// The number of likeliest tokens whose log-probabilities are wanted besides the drawn one's; `None`: not even that.
    pub logprobs: Option<usize>,
    /// The token whose log-probability is wanted, in the place of the drawn one's: that of a prompt, where nothing is to be drawn.
    pub scored: Option<u32>,
    /// Where the host draws; `None`: the device does.
    pub host: Option<HostRow>,
}

impl SamplingRow {
    /// A row without penalised tokens that may draw any token.
    pub fn new(params: SamplingParams, position: u32) -> Self {
        let host = HostRow::new(&params);
        let (counts, allowed, logprobs, scored) = (Vec::new(), None, None, None);
        Self { params, position, index: 0, counts, allowed, logprobs, scored, host }
    }

    /// A row that scores a token of a prompt at its position, and shows so many likeliest ones in its place.
    pub fn of_prompt(token: u32, position: u32, count: usize) -> Self {
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        Self { logprobs: Some(count), scored: Some(token), ..Self::new(greedy, position) }
    }
}

/// A set of tokens, one bit each: token `id` is bit `id % 32` of word `id / 32`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
}

impl TokenMask {
    /// The set of these words. Tokens beyond them are not in it.
    pub fn from_words(words: Vec<u32>) -> Self {
        Self { words }
    }

    /// Its words.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Whether `token` is in it.
    pub fn contains(&self, token: u32) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }
}

/// Natural logarithms of what the model, before penalties, filters and temperature, gave for probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the drawn token, or of the scored one.
    pub sampled: f32,
    /// Its place among all tokens: 1 is the likeliest. Ties are in the order of ids.
    pub rank: usize,
    /// Of the likeliest tokens, as many as were asked for, likeliest first, ties in the order of ids.
    pub top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// Those of a row of logits and of the token drawn from it, or scored.
    pub fn of(logits: &[f32], sampled: u32, count: usize) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).filter(|e| !e.is_nan()).sum();
        let log_sum = f64::from(max) + sum.ln();
        let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
        let mut ids: Vec<u32> =
            (0..logits.len() as u32).filter(|&id| !logits[id as usize].is_nan()).collect();
        let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let rank = match logits.get(sampled as usize) {
            Some(_) => 1 + ids.iter().filter(|id| order(id, &sampled).is_lt()).count(),
            None => logits.len(),
        };
        let count = count.min(ids.len());
        if 0 < count && count < ids.len() {
            ids.select_nth_unstable_by(count - 1, order);
        }
        ids.truncate(count);
        ids.sort_unstable_by(order);
        Self {
            sampled: logits.get(sampled as usize).map_or(f32::NEG_INFINITY, |&logit| logprob(logit)),
            rank,
            top: ids.into_iter().map(|id| (id, logprob(logits[id as usize]))).collect(),
        }
    }
}

/// The counter-based generator Philox4x32-10: `counter` and `key` to four words, without any state.
///
/// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The kernel in
/// `gpu-kernels/src/sampler` computes the same words.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..10 {
        let product0 = MULTIPLIERS[0] * u64::from(counter[0]);
        let product1 = MULTIPLIERS[1] * u64::from(counter[2]);
        counter = [
            (product1 >> 32) as u32 ^ counter[1] ^ key[0],
            product1 as u32,
            (product0 >> 32) as u32 ^ counter[3] ^ key[1],
            product0 as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with Random123 (`tests/kat_vectors`, philox4x32 10).
    #[test]
    fn philox_gives_the_published_words() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let key = [0xa409_3822, 0x299f_31d0];
        assert_eq!(philox4x32_10(pi, key), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn logprobs_are_of_the_softmax_of_the_logits() {
        let logits = [1.0, 3.0, f32::NEG_INFINITY, 3.0, 0.5];
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let expected = |logit: f32| (f64::from(logit) - sum.ln()) as f32;
        let found = Logprobs::of(&logits, 4, 3);
        assert!((found.sampled - expected(0.5)).abs() < 1e-6);
        let ranks: Vec<usize> = (0..5).map(|token| Logprobs::of(&logits, token, 0).rank).collect();
        assert_eq!(ranks, [3, 1, 5, 2, 4]);
        assert_eq!(found.top.iter().map(|top| top.0).collect::<Vec<_>>(), [1, 3, 0]);
        assert!(found.top.iter().all(|&(id, p)| (p - expected(logits[id as usize])).abs() < 1e-6));
        assert_eq!(Logprobs::of(&logits, 0, 0).top, []);
        assert_eq!(Logprobs::of(&logits, 0, 99).top.len(), 5);
    }

    #[test]
    fn a_mask_holds_the_tokens_of_its_bits() {
        let mask = TokenMask::from_words(vec![1 << 31 | 1, 2]);
        let inside: Vec<u32> = (0..99).filter(|&token| mask.contains(token)).collect();
        assert_eq!(inside, [0, 31, 33]);
    }

    #[test]
    fn values_without_meaning_are_refused_by_name() {
        let good = SamplingParams::default();
        good.validate().unwrap();
        let bad = [
            (SamplingParams { temperature: f32::NAN, ..good.clone() }, "temperature"),
            (SamplingParams { top_p: 1.5, ..good.clone() }, "top_p"),
            (SamplingParams { min_p: -0.1, ..good.clone() }, "min_p"),
            (SamplingParams { repeat_penalty: 0.0, ..good.clone() }, "repeat_penalty"),
            (SamplingParams { repeat_penalty: 1e-45, ..good.clone() }, "repeat_penalty"),
            (SamplingParams { repeat_last_n: -2, ..good.clone() }, "repeat_last_n"),
            (SamplingParams { presence_penalty: f32::INFINITY, ..good.clone() }, "presence_penalty"),
            (SamplingParams { frequency_penalty: f32::NAN, ..good.clone() }, "frequency_penalty"),
            (SamplingParams { frequency_penalty: 8e15, ..good }, "frequency_penalty"),
        ];
        for (params, name) in bad {
            assert!(params.validate().unwrap_err().to_string().starts_with(name), "{name}");
        }
    }
}

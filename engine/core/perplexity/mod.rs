//! How well a model foretells a text, and how far its probabilities are from another's: `qernel perplexity`.
//!
//! The conventions are those of llama-perplexity (llama.cpp, tools/perplexity/perplexity.cpp), so that figures can be compared: a text is cut into
//! chunks of the context's length, each begins anew, and the tokens of its second half count, but for the first of them.

mod base;
mod divergence;

pub use base::{Base, BaseWriter, Probabilities};
pub use divergence::{Compared, Divergence, Figure, Figures, Percentiles};

use crate::batch::{Batch, LogitRows, SequenceRows};
use crate::error::{Error, Result};
use crate::kv_layout::pages_for;
use crate::model::Runner;

/// The mean of numbers, with its standard error.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    sum: f64,
    squares: f64,
    count: usize,
}

impl Mean {
    /// Another number.
    pub fn add(&mut self, x: f64) {
        self.sum += x;
        self.squares += x * x;
        self.count += 1;
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The mean; 0 of none.
    pub fn value(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum / self.count as f64 }
    }

    /// Its standard error; 0 of fewer than two.
    pub fn error(&self) -> f64 {
        if self.count < 2 {
            return 0.0;
        }
        let variance = self.squares / self.count as f64 - self.value().powi(2);
        (variance.max(0.0) / (self.count - 1) as f64).sqrt()
    }

    /// `e` to the mean, and the error of that: the perplexity, of negative logarithms of probabilities.
    pub fn exp(&self) -> Figure {
        let value = self.value().exp();
        Figure { value, error: value * self.error() }
    }
}

/// The logarithm of the sum of `e` to each.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
    f64::from(max) + sum.ln()
}

/// Chunks of a text's tokens.
#[derive(Clone, Debug)]
pub struct Chunks {
    tokens: Vec<u32>,
    len: usize,
    /// What each chunk begins with instead of its first token, in models that begin all texts so.
    bos: Option<u32>,
}

/// Gets tokens and the logits that the model had for them, `[tokens, vocab_size]`.
pub type Take<'a> = dyn FnMut(&[u32], &[f32]) -> Result<()> + 'a;

impl Chunks {
    /// At most `most` chunks of `len` tokens each.
    ///
    /// # Errors
    /// [`Error::Request`] if a chunk has no second half, and for a text of fewer than two chunks, which would say little.
    pub fn new(mut tokens: Vec<u32>, len: usize, bos: Option<u32>, most: Option<usize>) -> Result<Self> {
        if len < 4 {
            return Err(Error::Request(format!(
                "a context of {len} tokens has no second half to measure; take 4 or more"
            )));
        }
        if tokens.len() < 2 * len {
            return Err(Error::Request(format!(
                "the text has {} tokens; expected at least {}, two contexts: take a longer text or a smaller --ctx-size",
                tokens.len(),
                2 * len
            )));
        }
        let count = (tokens.len() / len).min(most.unwrap_or(usize::MAX));
        tokens.truncate(count * len);
        Ok(Self { tokens, len, bos })
    }

    /// Those of a file with another model's probabilities.
    pub fn of_base(base: &Base, bos: Option<u32>) -> Self {
        Self { tokens: base.tokens(), len: base.chunk_len(), bos }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.tokens.len() / self.len
    }

    /// Tokens of a chunk.
    pub fn chunk_len(&self) -> usize {
        self.len
    }

    /// All tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of a chunk that are foretold.
    pub fn num_scored(&self) -> usize {
        num_scored(self.len)
    }

    /// Runs chunk `i`. `take` gets tokens in order, some at a time, with the logits `[count, vocab_size]` that the model had for them.
    ///
    /// # Errors
    /// What the device and `take` say.
    pub fn run(&self, i: usize, runner: &mut dyn Runner, take: &mut Take) -> Result<()> {
        // The last token foretells what is not in the chunk.
        self.run_part(i, runner, [self.len / 2, self.len - 1], take)
    }

    /// As [`Chunks::run`] with all tokens of the chunk, of which `take` gets those that count.
    ///
    /// # Errors
    /// As [`Chunks::run`].
    pub fn run_all(&self, i: usize, runner: &mut dyn Runner, take: &mut Take) -> Result<()> {
        let mut position = 0;
        let scored = self.len / 2 + 1..self.len;
        let vocab_size = runner.vocab_size();
        self.run_part(i, runner, [0, self.len], &mut |tokens, logits| {
            for (&token, logits) in tokens.iter().zip(logits.chunks_exact(vocab_size)) {
                position += 1;
                if scored.contains(&position) {
                    take(&[token], logits)?;
                }
            }
            Ok(())
        })
    }

    /// Runs the tokens before `end` of chunk `i`, with logits from the one at `first`.
    fn run_part(
        &self,
        i: usize,
        runner: &mut dyn Runner,
        [first, end]: [usize; 2],
        take: &mut Take,
    ) -> Result<()> {
        let chunk = &self.tokens[i * self.len..][..self.len];
        let mut input = chunk.to_vec();
        input[0] = self.bos.unwrap_or(input[0]);
        let pages: Vec<u32> = (0..pages_for(self.len) as u32).collect();
        let limits = *runner.limits();
        let mut position = 0;
        while position < end {
            let (logits, end, most) = if position < first {
                (LogitRows::None, first, limits.max_num_tokens)
            } else {
                (LogitRows::All, end, limits.max_num_tokens.min(limits.max_num_logits))
            };
            let count = (end - position).min(most);
            let tokens = &input[position..][..count];
            let rows = SequenceRows { tokens, position, pages: &pages, logits };
            let found = runner.logits(&Batch::new(&[rows]).with_adapters([runner.all_adapters()]))?;
            if logits == LogitRows::All {
                let foretold = &chunk[position + 1..];
                take(&foretold[..count.min(foretold.len())], &found)?;
            }
            position += count;
        }
        Ok(())
    }
}

/// Tokens that are foretold of a chunk of `len`.
fn num_scored(len: usize) -> usize {
    len - 1 - len / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_has_its_error() {
        let mut mean = Mean::default();
        assert_eq!((mean.value(), mean.error()), (0.0, 0.0));
        [1.0, 2.0, 3.0, 6.0].into_iter().for_each(|x| mean.add(x));
        assert_eq!((mean.value(), mean.count()), (3.0, 4));
        // The variance is 3.5, of which a third.
        assert!((mean.error() - (3.5_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((mean.exp().value - 3.0_f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn sums_of_exponentials_do_not_overflow() {
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2.0_f64.ln())).abs() < 1e-9);
        assert!((log_sum_exp(&[0.0, f32::NEG_INFINITY]) - 0.0).abs() < 1e-12);
    }

    #[test]
    fn texts_that_say_nothing_are_refused() {
        let text = |count: u32| (0..count).collect::<Vec<_>>();
        let error = Chunks::new(text(1023), 512, None, None).unwrap_err().to_string();
        assert!(error.contains("has 1023 tokens; expected at least 1024"), "{error}");
        assert!(Chunks::new(text(100), 3, None, None).is_err());
        let chunks = Chunks::new(text(1700), 512, None, None).unwrap();
        assert_eq!((chunks.count(), chunks.tokens().len(), chunks.num_scored()), (3, 1536, 255));
        assert_eq!(Chunks::new(text(1700), 512, None, Some(2)).unwrap().count(), 2);
    }
}

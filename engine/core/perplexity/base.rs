//! Files with the probabilities that a model gave to all tokens, for another to be compared with: those of llama-perplexity.
//!
//! `_logits_`, then u32 tokens of a chunk, i32 vocabulary, i32 chunks, all tokens as i32; then for each token that was foretold f32 step, f32
//! least logarithm and a u16 for each word of the vocabulary (and one more for an odd one): its logarithm is `step * u16 + least`. What is
//! less likely than the likeliest by a factor of e^16 counts as that.

use super::{log_sum_exp, num_scored};
use crate::error::{Error, Result};
use bytes::Bytes;
use rayon::prelude::*;
use std::io::{self, Write};
use std::path::Path;

const MAGIC: &[u8; 8] = b"_logits_";

/// Bytes before the tokens.
const HEADER: usize = 20;

/// How much less likely than the likeliest a word may be, as a logarithm.
const RANGE: f32 = 16.0;

/// Bytes of the probabilities of one token.
fn row_bytes(vocab_size: usize) -> usize {
    8 + 2 * vocab_size.next_multiple_of(2)
}

/// Writes the file.
pub struct BaseWriter<'a> {
    out: &'a mut dyn Write,
    vocab_size: usize,
}

impl<'a> BaseWriter<'a> {
    /// Begins a file for chunks of `len` of `tokens`.
    ///
    /// # Errors
    /// What `out` says, and [`io::ErrorKind::InvalidInput`] for numbers that the format has no room for; likewise below.
    pub fn new(out: &'a mut dyn Write, len: usize, vocab_size: usize, tokens: &[u32]) -> io::Result<Self> {
        let number = |number: usize| {
            i32::try_from(number).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "beyond 31 bits"))
        };
        out.write_all(MAGIC)?;
        for number in [number(len)?, number(vocab_size)?, number(tokens.len() / len.max(1))?] {
            out.write_all(&number.to_le_bytes())?;
        }
        let tokens: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        out.write_all(&tokens)?;
        Ok(Self { out, vocab_size })
    }

    /// The next tokens' logits `[count, vocab_size]`.
    ///
    /// # Errors
    /// As [`BaseWriter::new`].
    pub fn rows(&mut self, logits: &[f32]) -> io::Result<()> {
        let rows: Vec<Vec<u8>> = logits.par_chunks_exact(self.vocab_size).map(row).collect();
        rows.iter().try_for_each(|row| self.out.write_all(row))
    }
}

fn row(logits: &[f32]) -> Vec<u8> {
    let of = |choose: fn(f32, f32) -> f32| logits.iter().copied().reduce(choose).unwrap_or(0.0);
    let max = of(f32::max);
    let min = of(f32::min).max(max - RANGE);
    let step = (max - min) / 65535.0;
    let least = (f64::from(min) - log_sum_exp(logits)) as f32;
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    let mut row = Vec::with_capacity(row_bytes(logits.len()));
    row.extend(step.to_le_bytes());
    row.extend(least.to_le_bytes());
    row.extend(
        logits.iter().flat_map(|logit| (((logit - min) * inverse).round_ties_even() as u16).to_le_bytes()),
    );
    row.resize(row_bytes(logits.len()), 0);
    row
}

/// An opened file.
#[derive(Clone, Debug)]
pub struct Base {
    data: Bytes,
    len: usize,
    vocab_size: usize,
    num_chunks: usize,
}

impl Base {
    /// Opens a file.
    ///
    /// # Errors
    /// As [`disk::open`](crate::disk::open); [`Error::Request`] if it is another kind of file, or not whole.
    pub fn open(path: &Path) -> Result<Self> {
        let (data, _) = crate::disk::open(path, crate::disk::Access::Map)?;
        Self::from_bytes(data).map_err(|what| {
            Error::Request(format!(
                "{}: expected probabilities as --kl-divergence-base without --kl-divergence saves them; {what}",
                path.display()
            ))
        })
    }

    fn from_bytes(data: Bytes) -> Result<Self, String> {
        let header = data.get(..HEADER).filter(|header| header.starts_with(MAGIC));
        let header = header.ok_or("the file begins otherwise")?;
        let numbers = header[MAGIC.len()..].as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes));
        let numbers: Vec<usize> =
            numbers.map(usize::try_from).collect::<Result<_, _>>().map_err(|_| "a number is negative")?;
        let [len, vocab_size, num_chunks] = numbers[..] else {
            return Err("the file is too short".to_owned());
        };
        if len < 4 || vocab_size == 0 || num_chunks == 0 {
            return Err(format!("found {num_chunks} chunks of {len} tokens, {vocab_size} words"));
        }
        // None of them is beyond 31 bits.
        let rows = num_chunks as u128 * num_scored(len) as u128;
        let expected =
            HEADER as u128 + 4 * (num_chunks as u128 * len as u128) + rows * row_bytes(vocab_size) as u128;
        if expected != data.len() as u128 {
            return Err(format!("it has {} bytes instead of {expected}", data.len()));
        }
        Ok(Self { data, len, vocab_size, num_chunks })
    }

    /// Tokens of a chunk.
    pub fn chunk_len(&self) -> usize {
        self.len
    }

    /// Words of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The tokens of all chunks.
    pub fn tokens(&self) -> Vec<u32> {
        let bytes = &self.data[HEADER..][..4 * self.len * self.num_chunks];
        bytes.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect()
    }

    /// The probabilities for the `i`th token that was foretold, of all chunks.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn row(&self, i: usize) -> Probabilities<'_> {
        let row_bytes = row_bytes(self.vocab_size);
        let rows = &self.data[HEADER + 4 * self.len * self.num_chunks..];
        let row = &rows[i * row_bytes..][..row_bytes];
        let float = |at: usize| f32::from_le_bytes(row[at..][..4].try_into().expect("four bytes"));
        Probabilities { step: float(0), least: float(4), words: &row[8..][..2 * self.vocab_size] }
    }
}

/// What a model thought of one token.
#[derive(Clone, Copy, Debug)]
pub struct Probabilities<'a> {
    step: f32,
    least: f32,
    words: &'a [u8],
}

impl Probabilities<'_> {
    /// The logarithm of each word's probability.
    pub fn logarithms(&self) -> impl Iterator<Item = f32> {
        let Self { step, least, words } = *self;
        words.as_chunks().0.iter().map(move |&bytes| step * f32::from(u16::from_le_bytes(bytes)) + least)
    }

    /// That of one word; of none beyond the vocabulary.
    pub fn logarithm(&self, word: u32) -> Option<f32> {
        self.logarithms().nth(word as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, -2.0, 3.5, 0.0, -40.0];

    fn file() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = BaseWriter::new(&mut bytes, 4, 5, &[7, 1, 2, 3]).unwrap();
        writer.rows(&LOGITS).unwrap();
        bytes
    }

    #[test]
    fn logarithms_come_back_in_sixteen_bits() {
        let base = Base::from_bytes(file().into()).unwrap();
        assert_eq!((base.chunk_len(), base.vocab_size(), base.tokens()), (4, 5, vec![7, 1, 2, 3]));
        let sum = log_sum_exp(&LOGITS) as f32;
        let row = base.row(0);
        for (found, logit) in row.logarithms().zip(LOGITS) {
            let expected = logit.max(3.5 - RANGE) - sum;
            // Half a step of 16 / 65535.
            assert!((found - expected).abs() <= 1.3e-4, "{found} {expected}");
        }
        assert_eq!(row.logarithm(5), None);
        assert!(row.logarithms().map(f32::exp).sum::<f32>() < 1.001);
    }

    #[test]
    fn broken_files_are_refused() {
        let good = file();
        for cut in [0, 8, 19, 20, good.len() - 1] {
            assert!(Base::from_bytes(good[..cut].to_vec().into()).is_err(), "{cut}");
        }
        for at in [8, 12, 16] {
            for claim in [0, -1, i32::MAX] {
                let mut bad = good.clone();
                bad[at..at + 4].copy_from_slice(&claim.to_le_bytes());
                assert!(Base::from_bytes(bad.into()).is_err(), "{claim} at {at}");
            }
        }
    }

    #[test]
    fn logits_that_are_all_the_same_have_no_step() {
        let mut bytes = Vec::new();
        BaseWriter::new(&mut bytes, 4, 3, &[0; 4]).unwrap().rows(&[2.0; 3]).unwrap();
        let base = Base::from_bytes(bytes.into()).unwrap();
        let found: Vec<f32> = base.row(0).logarithms().collect();
        assert!(found.iter().all(|log| (log + 3.0_f32.ln()).abs() < 1e-6), "{found:?}");
    }
}

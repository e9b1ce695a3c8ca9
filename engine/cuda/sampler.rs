//! The sampler: one launch per step of the chain, for all rows together.

use super::device::Device;
use super::launch::{block_per_row, dimension};
use super::memory::{DeviceBuffer, Plain};
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::sampler::SamplingRow;
use gpu_kernels::sampler::{
    SAMPLER_THREADS, SamplerRow, argmax_f32_plain, categorical_f32_plain, min_p_f32_plain,
    penalties_f32_plain, softmax_f32_plain, top_k_f32_plain, top_p_f32_plain,
};
use std::rc::Rc;

const OP: &str = "sample";

// SAFETY: thirteen numbers of four bytes, for which every bit pattern is a value, without padding.
unsafe impl Plain for SamplerRow {}

/// The parameters of a step's rows on the device. Buffers grow with the number of rows and of penalised tokens.
pub struct Sampler {
    device: Rc<Device>,
    rows: DeviceBuffer<SamplerRow>,
    tokens: DeviceBuffer<u32>,
    counts: DeviceBuffer<u32>,
    out: DeviceBuffer<u32>,
}

impl Sampler {
    pub(super) fn new(device: &Rc<Device>) -> Result<Self> {
        Ok(Self {
            device: device.clone(),
            rows: DeviceBuffer::zeroed(device, 1)?,
            tokens: DeviceBuffer::zeroed(device, 1)?,
            counts: DeviceBuffer::zeroed(device, 1)?,
            out: DeviceBuffer::zeroed(device, 1)?,
        })
    }

    /// Draws one token per row of `logits` `[rows.len(), vocab_size]`, which it overwrites, and waits for them.
    pub(super) fn sample(&mut self, logits: &mut Tensor, rows: &[SamplingRow]) -> Result<Vec<u32>> {
        let vocab_size = logits.cols();
        logits.expect(OP, "logits", rows.len(), vocab_size)?;
        let (n, vocab) = (dimension(OP, rows.len())?, dimension(OP, vocab_size)?);
        if n == 0 || vocab == 0 {
            return Ok(Vec::new());
        }
        let (parameters, tokens, counts) = pack(rows, vocab_size)?;
        replace(&self.device, &mut self.rows, &parameters)?;
        replace(&self.device, &mut self.tokens, &tokens)?;
        replace(&self.device, &mut self.counts, &counts)?;
        // A row that no kernel writes (logits that are all NaN or -inf leave no mass) is found by its poison.
        replace(&self.device, &mut self.out, &vec![u32::MAX; rows.len()])?;

        let device = &*self.device;
        let config = &block_per_row(n, SAMPLER_THREADS);
        let draws = || parameters.iter().filter(|row| row.temperature > 0.0);
        // SAFETY: one block of SAMPLER_THREADS a row; `rows` and `out` have one entry a row, `logits` at least `n` rows of
        // `vocab` values; `pack` keeps every penalised token below `vocab` and its ranges inside the two arrays.
        unsafe {
            let (rows, logits, out) = (self.rows.ptr(), logits.ptr_mut(), self.out.ptr_mut());
            if !tokens.is_empty() {
                penalties_f32_plain(
                    device,
                    config,
                    vocab,
                    rows,
                    self.tokens.ptr(),
                    self.counts.ptr(),
                    logits,
                )?;
            }
            if draws().any(|row| row.top_k > 0 && row.top_k < vocab) {
                top_k_f32_plain(device, config, vocab, rows, logits)?;
            }
            if draws().any(|row| row.top_p < 1.0) {
                top_p_f32_plain(device, config, vocab, rows, logits)?;
            }
            if draws().any(|row| row.min_p_ln > f32::NEG_INFINITY) {
                min_p_f32_plain(device, config, vocab, rows, logits)?;
            }
            if draws().next().is_some() {
                softmax_f32_plain(device, config, vocab, rows, logits)?;
                categorical_f32_plain(device, config, vocab, rows, logits.into(), out)?;
            }
            if parameters.iter().any(|row| row.temperature <= 0.0) {
                argmax_f32_plain(device, config, vocab, rows, logits.into(), out)?;
            }
        }
        let drawn = self.out.read(0, rows.len())?;
        match drawn.iter().position(|&token| token as usize >= vocab_size) {
            None => Ok(drawn),
            Some(row) => Err(Error::Device(format!(
                "the logits of row {row} leave no token to draw (not a number, or all -inf): the weights or a kernel are \
                 broken"
            ))),
        }
    }
}

/// The rows as the kernels take them, with the penalised tokens of all rows and their counts one after the other.
fn pack(rows: &[SamplingRow], vocab_size: usize) -> Result<(Vec<SamplerRow>, Vec<u32>, Vec<u32>)> {
    let (mut tokens, mut counts) = (Vec::new(), Vec::new());
    let packed = rows.iter().map(|row| {
        let start = dimension(OP, tokens.len())?;
        // As on the CPU, a token outside the vocabulary has no logit to change.
        let inside = row.counts.iter().filter(|(token, _)| (*token as usize) < vocab_size);
        for &(token, count) in inside {
            tokens.push(token);
            counts.push(count);
        }
        let params = &row.params;
        Ok(SamplerRow {
            temperature: params.temperature,
            top_k: u32::try_from(params.top_k).unwrap_or(0),
            top_p: params.top_p,
            min_p_ln: if params.min_p > 0.0 { params.min_p.ln() } else { f32::NEG_INFINITY },
            repeat_penalty: params.repeat_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            counts_start: start,
            counts_end: dimension(OP, tokens.len())?,
            seed_low: params.seed as u32,
            seed_high: (params.seed >> 32) as u32,
            position: row.position,
            index: row.index,
        })
    });
    let packed = packed.collect::<Result<_>>()?;
    Ok((packed, tokens, counts))
}

/// Writes `values` to the front of `buffer`, which is made larger where it must be.
fn replace<T: Plain>(device: &Rc<Device>, buffer: &mut DeviceBuffer<T>, values: &[T]) -> Result<()> {
    if values.len() > buffer.len() {
        *buffer = DeviceBuffer::zeroed(device, values.len().next_power_of_two())?;
    }
    if values.is_empty() { Ok(()) } else { buffer.write(0, values) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::SamplingParams;

    #[test]
    fn rows_share_the_arrays_of_penalised_tokens() {
        let row = |counts: &[(u32, u32)]| SamplingRow {
            params: SamplingParams {
                top_k: -1,
                min_p: 0.0,
                seed: 0x1_0000_0002,
                ..SamplingParams::default()
            },
            position: 7,
            index: 1,
            counts: counts.to_vec(),
        };
        let (rows, tokens, counts) =
            pack(&[row(&[(3, 1), (99, 5)]), row(&[]), row(&[(1, 2), (4, 4)])], 10).unwrap();
        assert_eq!((tokens, counts), (vec![3, 1, 4], vec![1, 2, 4]));
        let ranges: Vec<_> = rows.iter().map(|row| row.counts_start..row.counts_end).collect();
        assert_eq!(ranges, [0..1, 1..1, 1..3]);
        assert_eq!((rows[0].top_k, rows[0].min_p_ln), (0, f32::NEG_INFINITY));
        assert_eq!((rows[0].seed_low, rows[0].seed_high, rows[0].position, rows[0].index), (2, 1, 7, 1));
    }
}

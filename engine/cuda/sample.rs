//! The sampler: one launch per step of the chain, for all rows together.

use super::argmax;
use super::device::{Dependent, Device};
use super::launch::{always, block_per_row, dimension, launch};
use super::memory::{DeviceBuffer, PinnedBuffer};
use super::tensor::{self, Tensor};
use super::variant::{KernelChoice, select, variants};
use crate::error::{Error, Result};
use cuda_std::launch::{DevicePtr, DevicePtrMut, LaunchConfig};
use gpu_kernels::argmax::MAX_BLOCKS_PER_ROW;
use gpu_kernels::sample::draw::{categorical, softmax};
use gpu_kernels::sample::filters::{mask, min_p, penalties, top_k, top_p};
use gpu_kernels::sample::{
    ChainArgs, DRAW_ANY, DRAW_CANDIDATES, DRAW_FILTERED, DRAW_PLAIN, DrawArgs, NO_MASK, SAMPLER_THREADS,
    SamplerRow, split,
};
use qernel_core::batch::BatchLimits;
use qernel_core::sampler::{NO_TOKEN, SamplingRow};
use std::collections::VecDeque;
use std::rc::Rc;

pub(super) const OP: &str = "sample";

variants! {
    /// Who draws for rows that are not greedy, which each row says for itself ([`pack`]): what it draws depends on no other row.
    (), ();
    SPLIT [split::split]: always => ();
    "chain" [mask, penalties, top_k, top_p, min_p, softmax, categorical]: always => ();
}
const SPLIT: &str = "split";

/// What decides which kernels a draw takes and where they find their parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct DrawShape {
    rows: usize,
    /// Room for penalised tokens; 0 where nothing is penalised.
    penalised: usize,
    /// Room for words of masks; 0 where every token may be drawn.
    masks: usize,
    top_k: bool,
    top_p: bool,
    min_p: bool,
    /// Whether a row draws at random by the plain chain.
    plain: bool,
    /// Whether a row draws at random by several blocks.
    split: bool,
    /// Whether a row takes the arg-max.
    greedy: bool,
}

/// The parameters of a step's rows on the device: rows, penalised tokens, their counts. Buffers grow with both numbers.
pub struct Sampler {
    device: Rc<Device>,
    staging: PinnedBuffer,
    /// What `parameters` begins with.
    uploaded: Vec<u32>,
    parameters: DeviceBuffer<u32>,
    out: DeviceBuffer<u32>,
    /// For kernels with several blocks a row: u64 `[rows, MAX_BLOCKS_PER_ROW]`, or [`split::PARTIALS_PER_ROW`] once such rows came.
    partials: DeviceBuffer<u64>,
    /// For the same, which leave zeros.
    counters: DeviceBuffer<u32>,
    /// Oldest first: draws whose tokens are on their way to the host.
    fetched: VecDeque<Fetched>,
    /// Buffers whose tokens were read.
    spare: Vec<Fetched>,
    shape: DrawShape,
    /// How often a buffer was made anew: what was recorded with the old addresses is out of date.
    generation: usize,
}

/// The tokens of a draw on the host.
struct Fetched {
    tokens: PinnedBuffer,
    /// Tokens that it has room for.
    room: usize,
    rows: usize,
}

/// Draws whose tokens the host has not read: of the step that runs and of the one behind it.
const MAX_FETCHED: usize = 2;

/// Numbers of four bytes in a [`SamplerRow`].
const ROW_WORDS: usize = size_of::<SamplerRow>() / 4;

/// Bytes that draws by several blocks take for batches within `limits`, at most.
pub(super) fn workspace_bytes(limits: &BatchLimits) -> usize {
    let rows = limits.max_num_sequences.min(limits.max_num_logits);
    rows.next_power_of_two().saturating_mul(split::PARTIALS_PER_ROW as usize * size_of::<u64>())
}

impl DrawShape {
    fn of(rows: &[SamplerRow], penalised: usize, masks: usize, vocab: u32) -> Self {
        let random = || rows.iter().filter(|row| row.temperature > 0.0);
        let plain = || random().filter(|row| row.draw == DRAW_PLAIN);
        let room = |words: usize| if words == 0 { 0 } else { words.next_power_of_two() };
        Self {
            rows: rows.len(),
            penalised: room(penalised),
            masks: room(masks),
            top_k: plain().any(|row| row.top_k > 0 && row.top_k < vocab),
            top_p: plain().any(|row| row.top_p < 1.0),
            min_p: plain().any(|row| row.min_p_ln > f32::NEG_INFINITY),
            plain: plain().next().is_some(),
            split: random().any(|row| row.draw != DRAW_PLAIN),
            greedy: rows.iter().any(|row| row.temperature <= 0.0),
        }
    }

    /// Where tokens, counts and masks begin, and where the masks end, in numbers of four bytes.
    fn places(&self) -> [usize; 4] {
        let tokens = (self.rows * ROW_WORDS).next_multiple_of(4);
        let masks = tokens + 2 * self.penalised;
        [tokens, tokens + self.penalised, masks, masks + self.masks]
    }
}

impl Sampler {
    pub(super) fn new(device: &Rc<Device>) -> Result<Self> {
        Ok(Self {
            device: device.clone(),
            staging: PinnedBuffer::new(device, 4)?,
            uploaded: Vec::new(),
            parameters: DeviceBuffer::zeroed(device, 1)?,
            out: DeviceBuffer::zeroed(device, 1)?,
            partials: DeviceBuffer::zeroed(device, MAX_BLOCKS_PER_ROW as usize)?,
            counters: DeviceBuffer::zeroed(device, 1)?,
            fetched: VecDeque::new(),
            spare: Vec::new(),
            shape: DrawShape::default(),
            generation: 0,
        })
    }

    /// What was prepared.
    pub(super) fn shape(&self) -> DrawShape {
        self.shape.clone()
    }

    /// How often a buffer was made anew.
    pub(super) fn generation(&self) -> usize {
        self.generation
    }

    /// The tokens of the last draw on the device; those of a draw that found none are beyond every vocabulary.
    pub(super) fn last_tokens(&self) -> &DeviceBuffer<u32> {
        &self.out
    }

    /// Queues bringing the parameters of the next draw to the device.
    pub(super) fn prepare(
        &mut self,
        choice: &KernelChoice,
        logits: &Tensor,
        rows: &[SamplingRow],
    ) -> Result<()> {
        let vocab_size = logits.cols();
        logits.expect(OP, "logits", rows.len(), vocab_size)?;
        let may_split = select(OP, VARIANTS, &(), choice.get(OP))?.name == SPLIT;
        let Packed { rows: packed, tokens, counts, masks } = pack(rows, vocab_size, may_split)?;
        let shape = DrawShape::of(&packed, tokens.len(), masks.len(), dimension(OP, vocab_size)?);
        let [tokens_at, counts_at, masks_at, end] = shape.places();
        if end > self.parameters.len() {
            let words = end.next_power_of_two();
            self.staging = PinnedBuffer::new(&self.device, 4 * words)?;
            self.parameters = DeviceBuffer::zeroed(&self.device, words)?;
            self.uploaded.clear();
            self.generation += 1;
        }
        // Only where rows are more than ever before: what was drawn last is lost then.
        if rows.len() > self.out.len() {
            let results = rows.len().next_power_of_two();
            self.out = DeviceBuffer::zeroed(&self.device, results)?;
            self.counters = DeviceBuffer::zeroed(&self.device, results)?;
            self.generation += 1;
        }
        let per_row = if shape.split { split::PARTIALS_PER_ROW } else { MAX_BLOCKS_PER_ROW };
        let partials = tensor::elements(rows.len().next_power_of_two(), per_row as usize)?;
        if partials > self.partials.len() {
            self.partials = DeviceBuffer::zeroed(&self.device, partials)?;
            self.generation += 1;
        }
        let mut words: Vec<u32> = packed.iter().flat_map(row_words).collect();
        for (at, part) in [(tokens_at, tokens), (counts_at, counts), (masks_at, masks)] {
            words.resize(at, 0);
            words.extend(part);
        }
        words.resize(end, 0);
        // Those of greedy rows are the same step after step, and a copy would keep the device waiting.
        if words != self.uploaded {
            self.uploaded.clear();
            let staged = self.staging.wait()?.as_chunks_mut::<4>().0;
            staged.iter_mut().zip(&words).for_each(|(to, word)| *to = word.to_ne_bytes());
            let target = DevicePtrMut::from_raw(self.parameters.ptr_mut().as_raw());
            // SAFETY: both buffers have room for `end` numbers, and live in this value.
            unsafe { self.staging.copy_to(4 * end, target)? };
            self.uploaded = words;
        }
        self.shape = shape;
        Ok(())
    }

    /// Queues drawing one token per prepared row of `logits` `[rows, vocab_size]`, which it overwrites.
    pub(super) fn queue(&mut self, choice: &KernelChoice, logits: &mut Tensor) -> Result<()> {
        let shape = self.shape.clone();
        let vocab_size = logits.cols();
        logits.expect(OP, "logits", shape.rows, vocab_size)?;
        let (n, vocab) = (dimension(OP, shape.rows)?, dimension(OP, vocab_size)?);
        if n == 0 || vocab == 0 {
            return Ok(());
        }
        // What rows keep that no kernel writes, since their logits leave no token to draw: NO_TOKEN.
        self.out.fill(0xFF)?;
        let device = &*self.device;
        let config = &block_per_row(n, SAMPLER_THREADS);
        let [tokens_at, counts_at, masks_at, _] = shape.places();
        // SAFETY: one block of SAMPLER_THREADS a row; there are parameters and a place in `out` for each row, `logits` has at
        // least `n` rows of `vocab` values; `pack` keeps every penalised token below `vocab`, its ranges inside the two
        // arrays, a whole mask behind each start of one, and has rows drawn by several blocks only where these can.
        unsafe {
            let (words, logits, out) = (self.parameters.ptr(), logits.ptr_mut(), self.out.ptr_mut());
            let rows: DevicePtr<SamplerRow> = words.cast();
            let chain = ChainArgs {
                vocab_size: vocab,
                rows,
                masks: words.add(masks_at),
                tokens: words.add(tokens_at),
                counts: words.add(counts_at),
                logits,
                out,
            };
            let (partials, counters) = (self.partials.ptr_mut(), self.counters.ptr_mut());
            let draw = DrawArgs { vocab_size: vocab, rows, logits: logits.into(), partials, counters, out };
            for (is_wanted, kernel) in [
                (shape.masks > 0, mask()),
                (shape.penalised > 0, penalties()),
                (shape.top_k, top_k()),
                (shape.top_p, top_p()),
                (shape.min_p, min_p()),
            ] {
                if is_wanted {
                    launch(device, kernel, &[], config, chain)?;
                }
            }
            if shape.split {
                let grid = [split::num_slices(vocab), n, 1];
                let config = LaunchConfig { grid, block: [split::BLOCK_SIZE, 1, 1], shared_bytes: 0 };
                launch(&Dependent(device), split::split(), &[], &config, draw)?;
            }
            if shape.plain {
                launch(device, softmax(), &[], config, chain)?;
                launch(device, categorical(), &[], config, chain)?;
            }
            if shape.greedy {
                let case = argmax::Case { rows: n, arguments: draw };
                let variant = select(argmax::OP, argmax::VARIANTS, &case, choice.get(argmax::OP))?;
                (variant.launch)(device, &case)?;
            }
        }
        Ok(())
    }

    /// Queues bringing the tokens of the last draw to the host. It is no part of a draw, which may be replayed with the
    /// addresses of the first time: each goes to a buffer of its own, so that the next draw may run before it is read.
    pub(super) fn fetch(&mut self) -> Result<()> {
        if self.fetched.len() >= MAX_FETCHED {
            return Err(Error::Request(format!(
                "{MAX_FETCHED} draws are waiting already: read the first of them"
            )));
        }
        let rows = self.shape.rows;
        let mut fetched = match self.spare.pop() {
            Some(spare) if spare.room >= rows => spare,
            _ => {
                let room = rows.next_power_of_two();
                Fetched { tokens: PinnedBuffer::new(&self.device, 4 * room)?, room, rows }
            }
        };
        fetched.rows = rows;
        if rows > 0 {
            let out = DevicePtr::from_raw(self.out.ptr().as_raw());
            // SAFETY: `out` has a place for each row; where it is made anew, freeing it waits for what was queued.
            unsafe { fetched.tokens.copy_from(4 * rows, out)? };
            fetched.tokens.copied()?;
        }
        self.fetched.push_back(fetched);
        Ok(())
    }

    /// Drops draws that were fetched and not read.
    pub(super) fn discard(&mut self) {
        // Whatever is still on its way comes before what the buffers are used for next.
        self.spare.extend(self.fetched.drain(..));
    }

    /// Waits for the tokens of the oldest draw that was fetched; [`NO_TOKEN`] where the logits left none.
    pub(super) fn take(&mut self, vocab_size: usize) -> Result<Vec<u32>> {
        let Some(mut fetched) = self.fetched.pop_front() else {
            return Err(Error::Request("no draw is waiting to be read".into()));
        };
        let bytes = &fetched.tokens.wait()?[..4 * fetched.rows];
        let sampled: Vec<u32> =
            bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_ne_bytes(word)).collect();
        self.spare.push(fetched);
        let inside = |token: u32| if (token as usize) < vocab_size { token } else { NO_TOKEN };
        Ok(sampled.into_iter().map(inside).collect())
    }
}

/// A row as the device reads it: fifteen numbers of four bytes.
fn row_words(row: &SamplerRow) -> [u32; ROW_WORDS] {
    [
        row.temperature.to_bits(),
        row.top_k,
        row.top_p.to_bits(),
        row.min_p_ln.to_bits(),
        row.repeat_penalty.to_bits(),
        row.presence_penalty.to_bits(),
        row.frequency_penalty.to_bits(),
        row.counts_start,
        row.counts_end,
        row.seed_low,
        row.seed_high,
        row.position,
        row.index,
        row.mask_start,
        row.draw,
    ]
}

/// Rows as the kernels take them, with what belongs to all rows one after the other.
struct Packed {
    rows: Vec<SamplerRow>,
    /// Penalised tokens, and their counts.
    tokens: Vec<u32>,
    counts: Vec<u32>,
    /// `ceil(vocab_size / 32)` words for each row that has a mask.
    masks: Vec<u32>,
}

/// Rows are drawn by several blocks where these can and `may_split`.
fn pack(rows: &[SamplingRow], vocab_size: usize, may_split: bool) -> Result<Packed> {
    let vocab = dimension(OP, vocab_size)?;
    let may_split = may_split && split::is_eligible(vocab);
    let (mut tokens, mut counts, mut masks) = (Vec::new(), Vec::new(), Vec::new());
    let packed = rows.iter().map(|row| {
        let start = dimension(OP, tokens.len())?;
        // As on the CPU, a token outside the vocabulary has no logit to change.
        let inside = row.counts.iter().filter(|(token, _)| (*token as usize) < vocab_size);
        for &(token, count) in inside {
            tokens.push(token);
            counts.push(count);
        }
        let mask_start = match &row.allowed {
            None => NO_MASK,
            Some(allowed) => {
                let start = dimension(OP, masks.len())?;
                // Tokens beyond the words of a mask are not in it.
                let words = allowed.words().iter().copied().chain(std::iter::repeat(0));
                masks.extend(words.take(vocab_size.div_ceil(32)));
                start
            }
        };
        let params = &row.params;
        // The arg-max needs no random number.
        let (seed, position, index) =
            if params.is_greedy() { (0, 0, 0) } else { (params.seed, row.position, row.index) };
        let top_k = u32::try_from(params.top_k).unwrap_or(0).min(vocab);
        let filters = params.top_p < 1.0 || params.min_p > 0.0;
        let draw = match top_k {
            _ if !may_split || params.is_greedy() => DRAW_PLAIN,
            1.. if top_k <= split::max_top_k(vocab) => DRAW_CANDIDATES,
            1.. if top_k < vocab => DRAW_PLAIN,
            _ if filters => DRAW_FILTERED,
            _ => DRAW_ANY,
        };
        Ok(SamplerRow {
            temperature: params.temperature,
            top_k,
            top_p: params.top_p,
            min_p_ln: if params.min_p > 0.0 { params.min_p.ln() } else { f32::NEG_INFINITY },
            repeat_penalty: params.repeat_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            counts_start: start,
            counts_end: dimension(OP, tokens.len())?,
            draw,
            seed_low: seed as u32,
            seed_high: (seed >> 32) as u32,
            position,
            index,
            mask_start,
        })
    });
    let rows = packed.collect::<Result<_>>()?;
    Ok(Packed { rows, tokens, counts, masks })
}

#[cfg(test)]
mod tests {
    use super::*;
    use qernel_core::sampler::{SamplingParams, TokenMask};
    use std::sync::Arc;

    #[test]
    fn rows_share_the_arrays_of_penalised_tokens_and_masks() {
        let row = |counts: &[(u32, u32)], mask: Option<&[u32]>| {
            let params =
                SamplingParams { top_k: -1, min_p: 0.0, seed: 0x1_0000_0002, ..SamplingParams::default() };
            let allowed = mask.map(|words| Arc::new(TokenMask::from_words(words.to_vec())));
            SamplingRow { index: 1, counts: counts.to_vec(), allowed, ..SamplingRow::new(params, 7) }
        };
        let rows =
            [row(&[(3, 1), (99, 5)], Some(&[6])), row(&[], None), row(&[(1, 2), (4, 4)], Some(&[1, 2, 3]))];
        let packed = pack(&rows, 40, true).unwrap();
        assert_eq!((packed.tokens, packed.counts), (vec![3, 1, 4], vec![1, 2, 4]));
        assert_eq!(packed.masks, [6, 0, 1, 2]);
        let rows = packed.rows;
        let ranges: Vec<_> = rows.iter().map(|row| row.counts_start..row.counts_end).collect();
        assert_eq!(ranges, [0..1, 1..1, 1..3]);
        assert_eq!(rows.iter().map(|row| row.mask_start).collect::<Vec<_>>(), [0, NO_MASK, 2]);
        assert_eq!((rows[0].top_k, rows[0].min_p_ln), (0, f32::NEG_INFINITY));
        assert_eq!((rows[0].seed_low, rows[0].seed_high, rows[0].position, rows[0].index), (2, 1, 7, 1));
    }

    /// Then they need not be brought to the device again.
    #[test]
    fn greedy_rows_are_the_same_in_every_step() {
        let row = |position: u32| {
            let params =
                SamplingParams { temperature: 0.0, seed: position.into(), ..SamplingParams::default() };
            SamplingRow { index: position, ..SamplingRow::new(params, position) }
        };
        let words = |position| {
            pack(&[row(position)], 10, true).unwrap().rows.iter().flat_map(row_words).collect::<Vec<_>>()
        };
        assert_eq!(words(3), words(4));
    }
}

//! Attention of ragged batches over shuffled pages, short and as long as the context.

use crate::harness::*;
use qernel::batch::{Batch, BatchLimits, SequenceRows, WantedLogits};
use qernel::cuda::{CudaBatch, CudaOps, Device, KernelChoice, KvCache};
use qernel::dtype::Dtype;
use qernel::kv_cache::{KvLayout, PAGE_SIZE, pages_for};
use qernel::model::OpsConfig;
use qernel::ops::Ops;
use qernel::testing::Random;
use std::rc::Rc;

/// Tokens in the cache, and how many of them are rows of the batch.
type Sequence = (usize, usize);

/// Heads, key-value heads, head_dim.
type Heads = (usize, usize, usize);

/// Operations, and a cache that holds random K and V of some sequences on shuffled pages, NaN elsewhere.
struct Setup {
    ops: CudaOps,
    cache: KvCache,
    limits: BatchLimits,
    layout: KvLayout,
    heads: Heads,
    sequences: Vec<Sequence>,
    /// Pages of each sequence.
    pages: Vec<Vec<u32>>,
    /// For each sequence `[kv_len, num_key_value_heads * head_dim]`, rounded to the cache's format.
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
    /// For each sequence `[rows, num_attention_heads * head_dim]`
    q: Vec<Vec<f32>>,
}

const LAYER: usize = 1;

impl Setup {
    /// `sharpness` is the standard deviation of the scores, about.
    fn new(device: &Rc<Device>, dtype: Dtype, heads: Heads, sequences: &[Sequence], sharpness: f32) -> Self {
        let (num_attention_heads, num_key_value_heads, head_dim) = heads;
        let longest = sequences.iter().map(|s| s.0).max().unwrap();
        let total: usize = sequences.iter().map(|s| s.0).sum();
        let limits = BatchLimits {
            max_num_tokens: total,
            max_num_sequences: sequences.len(),
            max_num_logits: sequences.len(),
            max_blocks: pages_for(longest),
        };
        let config = OpsConfig {
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rope_theta: 1e6,
            max_model_len: longest,
            limits,
        };
        let mut ops = CudaOps::new(device, &config, dtype, KernelChoice::default()).unwrap();

        let mut random_pages = Random::new(7, "pages");
        let num_pages = sequences.iter().map(|s| pages_for(s.0)).sum::<usize>() + 3;
        let mut free: Vec<u32> = (0..num_pages as u32).collect();
        for i in (1..free.len()).rev() {
            free.swap(i, (random_pages.next_u64() % (i as u64 + 1)) as usize);
        }
        let pages: Vec<_> = sequences.iter().map(|s| free.split_off(free.len() - pages_for(s.0))).collect();

        let layout = KvLayout { dtype, num_layers: 2, num_pages, num_key_value_heads, head_dim };
        let mut cache = ops.new_kv_cache(&layout).unwrap();
        cache.fill(0xFF).unwrap(); // NaN in every format.
        let cols = num_key_value_heads * head_dim;
        let values = |name: &str| {
            let of = |(i, s): (usize, &Sequence)| rounded(dtype, &random(i as u64, name, s.0 * cols));
            sequences.iter().enumerate().map(of).collect::<Vec<_>>()
        };
        let (k, v) = (values("k"), values("v"));
        let q = sequences.iter().enumerate().map(|(i, s)| {
            let values = random(i as u64, "q", s.1 * num_attention_heads * head_dim);
            values.iter().map(|value| value * sharpness).collect()
        });
        let q = q.collect();
        let sequences = sequences.to_vec();
        let mut setup = Self { ops, cache, limits, layout, heads, sequences, pages, k, v, q };

        // All tokens go through write_kv, as rows of one large batch.
        let all: Vec<Sequence> = setup.sequences.iter().map(|s| (s.0, s.0)).collect();
        let everything: Vec<usize> = (0..all.len()).collect();
        let (batch, _) = setup.batch(&everything, &all);
        let k = tensor(&mut setup.ops, total, cols, &setup.k.concat());
        let v = tensor(&mut setup.ops, total, cols, &setup.v.concat());
        setup.ops.write_kv(&batch, LAYER, &k, &v, &mut setup.cache).unwrap();
        setup
    }

    /// A batch of the last rows of `chosen` sequences.
    fn batch(&mut self, chosen: &[usize], sequences: &[Sequence]) -> (CudaBatch, usize) {
        let longest = sequences.iter().map(|s| s.1).max().unwrap();
        let tokens = vec![0; longest];
        let parts: Vec<_> = chosen
            .iter()
            .map(|&s| SequenceRows {
                tokens: &tokens[..sequences[s].1],
                position: sequences[s].0 - sequences[s].1,
                pages: &self.pages[s],
                logits: WantedLogits::None,
            })
            .collect();
        let host = Batch::new(&parts);
        let mut batch = self.ops.new_batch(&self.limits).unwrap();
        self.ops.upload(&host, &mut batch).unwrap();
        (batch, host.num_tokens())
    }

    /// The attention of the last rows of `chosen` sequences, with what is behind the last row.
    fn run(&mut self, chosen: &[usize], kernel: &str) -> qernel::Result<Vec<f32>> {
        let sequences = self.sequences.clone();
        let (batch, n) = self.batch(chosen, &sequences);
        let cols = self.heads.0 * self.heads.2;
        let q: Vec<f32> = chosen.iter().flat_map(|&s| self.q[s].clone()).collect();
        let q = tensor(&mut self.ops, n, cols, &q);
        let mut out = poisoned_activation(&mut self.ops, n, cols);
        let mut choice = KernelChoice::default();
        choice.set("attention", kernel)?;
        self.ops.choose(choice)?;
        self.ops.attention(&batch, LAYER, &q, &self.cache, &mut out)?;
        out.to_host()
    }

    /// The attention of the last rows of sequence `s` in f64, from the definition.
    fn reference(&self, s: usize) -> Vec<f64> {
        let (heads, kv_heads, head_dim) = self.heads;
        let (kv_len, rows) = self.sequences[s];
        let mut out = vec![0.0; rows * heads * head_dim];
        for row in 0..rows {
            let visible = kv_len - rows + row + 1;
            for head in 0..heads {
                let kv_head = head / (heads / kv_heads);
                let at = (row * heads + head) * head_dim;
                let q = &self.q[s][at..][..head_dim];
                let key = |values: &[f32], t: usize| (t * kv_heads + kv_head) * head_dim..values.len();
                let scores: Vec<f64> = (0..visible)
                    .map(|t| {
                        let k = &self.k[s][key(&self.k[s], t)];
                        let dot: f64 = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                        dot / (head_dim as f64).sqrt()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
                for (t, score) in scores.iter().enumerate() {
                    let weight = (score - max).exp() / sum;
                    let v = &self.v[s][key(&self.v[s], t)];
                    for (out, &v) in out[at..][..head_dim].iter_mut().zip(v) {
                        *out += weight * f64::from(v);
                    }
                }
            }
        }
        out
    }

    fn describe(&self, kernel: &str) -> String {
        let (heads, kv_heads, head_dim) = self.heads;
        let dtype = self.layout.dtype;
        format!("attention={kernel} {dtype}, {heads}:{kv_heads} heads of {head_dim}, {:?}", self.sequences)
    }
}

/// Checks all variants of one setup against the reference and, for their bits, against each other and alone.
fn check(setup: &mut Setup, sharpness: f32, variants: &mut Variants) {
    let dtype = setup.layout.dtype;
    let everything: Vec<usize> = (0..setup.sequences.len()).collect();
    let expected: Vec<f64> = everything.iter().flat_map(|&s| setup.reference(s)).collect();
    // A score of magnitude up to 6 * sharpness is off by a few units of roundoff of that, and the weights by as much
    // relatively: outputs, averages of values up to 4, by 2^-18 for each unit of sharpness. Then the last rounding.
    let tolerance = |_, expected: f64| {
        expected.abs() * unit(dtype) + smallest(dtype) + 2f64.powi(-18) * 4.0 * f64::from(sharpness.max(1.0))
    };
    let mut first: Option<Vec<f32>> = None;
    let mut names = Vec::new();
    // The choice is set inside `run`: here only the names and the record of what ran are used.
    let mut ops = plain_ops(setup.ops.device(), dtype);
    variants.each(&mut ops, |_, kernel| {
        let case = setup.describe(kernel);
        let found = setup.run(&everything, kernel)?;
        assert_close(&case, &found, &expected, tolerance);
        // All kernels share one arithmetic: the same bits.
        match &first {
            Some(first) => assert_same_bits(&case, &found, &first[..expected.len()]),
            None => first = Some(found),
        }
        names.push(kernel.to_owned());
        Ok(())
    });
    let together = first.expect("a variant ran");
    let cols = setup.heads.0 * setup.heads.2;
    for kernel in names {
        let mut row = 0;
        for s in everything.iter().copied() {
            let alone = setup.run(&[s], &kernel).unwrap();
            let rows = setup.sequences[s].1;
            let case = format!("{}: sequence {s} alone", setup.describe(&kernel));
            assert_same_bits(&case, &alone, &together[row * cols..][..rows * cols]);
            row += rows;
        }
    }
}

const ALL_HEADS: [Heads; 7] =
    [(14, 2, 64), (28, 4, 128), (7, 1, 64), (1, 1, 64), (1, 1, 128), (12, 1, 64), (4, 4, 128)];

#[test]
fn ragged_batches_in_every_format_and_variant() {
    let Some(device) = device() else { return };
    let mut variants = Variants::of("attention");
    // Whole prompts, chunks behind a prefix, single rows between them; lengths around the ends of pages.
    let sequences =
        [(1, 1), (19, 19), (111, 1), (PAGE_SIZE, 1), (111, 19), (PAGE_SIZE + 1, 2), (989, 1), (64, 64)];
    let sequences = &sequences[..if left_out(1 << 20) { 6 } else { sequences.len() }];
    for dtype in Dtype::ALL {
        for heads in ALL_HEADS {
            for sharpness in [1.0, 8.0] {
                // One case of each number of rounds and head_dim is enough to see a race.
                if left_out(1 << 20) && (sharpness > 1.0 || ![(12, 1, 64), (4, 4, 128)].contains(&heads)) {
                    continue;
                }
                let mut setup = Setup::new(&device, dtype, heads, sequences, sharpness);
                check(&mut setup, sharpness, &mut variants);
            }
        }
    }
    variants.assert_all_ran();
}

#[test]
fn decode_only_batches() {
    let Some(device) = device() else { return };
    let mut variants = Variants::of("attention");
    let sequences: Vec<Sequence> = [1, 2, 31, 33, 64, 65, 127, 500, 989, 2049]
        .into_iter()
        .filter(|&kv_len| !left_out(kv_len * 14 * 64))
        .map(|kv_len| (kv_len, 1))
        .collect();
    for dtype in Dtype::ALL {
        let mut setup = Setup::new(&device, dtype, (14, 2, 64), &sequences, 2.0);
        check(&mut setup, 2.0, &mut variants);
    }
    variants.assert_all_ran();
}

#[test]
fn the_last_positions_of_a_long_context() {
    let Some(device) = device() else { return };
    if left_out(1 << 20) {
        return;
    }
    let mut variants = Variants::of("attention");
    let sequences = [(32_768, 1), (32_767, 3), (20_000, 1)];
    for dtype in Dtype::ALL {
        for heads in [(2, 1, 64), (4, 2, 128)] {
            let mut setup = Setup::new(&device, dtype, heads, &sequences, 2.0);
            check(&mut setup, 2.0, &mut variants);
        }
    }
    variants.assert_all_ran();
}

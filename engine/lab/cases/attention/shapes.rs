//! Which batches attention is checked and timed with.

use super::{BLOCKS, Sequence, case, case_of};
use crate::dtype::Dtype;
use crate::kv_format::{BLOCK_VALUES, KvFormat, KvFormats};
use crate::kv_layout::PAGE_SIZE;
use crate::lab::case::{Case, Workload};

/// Rows up to which a timing is of that many sequences with a row each; more are one sequence's prefill.
const DECODE_ROWS: usize = 64;

/// All heads, formats and lengths that there are kernels for, and that there are few for.
pub(super) fn checks() -> Vec<Case> {
    let all_heads = [(14, 2, 64), (28, 4, 128), (7, 1, 64), (12, 1, 64), (4, 4, 128)];
    // Whole prompts, chunks behind a prefix, single rows between them; lengths around the ends of pages.
    let ragged =
        [(1, 1), (19, 19), (111, 1), (PAGE_SIZE, 1), (111, 19), (PAGE_SIZE + 1, 2), (989, 1), (64, 64)];
    let decode = [1, 2, 31, 33, 64, 65, 127, 500, 989, 2049].map(|kv_len| (kv_len, 1));
    // The same, small enough for an emulator; with all heads and numbers of rounds, to see a race.
    let small = [(1, 1), (19, 19), (111, 1), (PAGE_SIZE, 1), (71, 6), (PAGE_SIZE + 1, 2), (389, 1)];
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        for heads in all_heads {
            cases.extend([1.0, 8.0].map(|sharpness| case(dtype, heads, &ragged, sharpness, "")));
        }
        cases.extend(
            [((1, 1, 64), 1.0), ((1, 1, 128), 8.0)].map(|(heads, s)| case(dtype, heads, &small, s, "")),
        );
        for heads in [(12, 1, 64), (4, 4, 128)] {
            cases.push(case(dtype, heads, &small[if dtype == Dtype::F16 { 0 } else { 3 }..6], 1.0, ""));
        }
        cases.extend([6, 10].map(|count| case(dtype, (14, 2, 64), &decode[..count], 2.0, "")));
        // Tiles of 64 keys and of 64 or 128 queries: ends on, before and behind them, a prompt of several tiles.
        let tiles = [(64, 64), (65, 65), (127, 127), (128, 64), (193, 130), (300, 300), (2, 2)];
        for heads in [(7, 1, 64), (9, 1, 64), (2, 1, 128), (14, 2, 64), (28, 4, 128)] {
            cases.push(case(dtype, heads, &tiles, 4.0, ""));
        }
        // Some that an emulator can be given, with few heads and with more than a group has anywhere.
        for (heads, rows) in [((3, 1, 64), 20), ((17, 1, 64), 5), ((2, 1, 128), 20)] {
            cases.push(case(dtype, heads, &[(70, rows), (33, 3), (9, 9), (40, 1)], 4.0, ""));
        }
        cases.push(case(dtype, (7, 1, 64), &[(160, 37)], 1.0, ""));
        cases.extend(
            [(64, 21), (128, 17)]
                .map(|(head_dim, rows)| case(dtype, (1, 1, head_dim), &[(330, rows)], 1.0, "")),
        );
        // Heads that there are fewer kernels for.
        cases.push(case(dtype, (4, 1, 256), &[(160, 37), (65, 65)], 4.0, ""));
        for heads in [(4, 2, 32), (2, 1, 256)] {
            cases.push(case(dtype, heads, &[(70, 5), (33, 3), (9, 9), (130, 1)], 4.0, ""));
        }
        cases.push(case(dtype, (16, 2, 256), &[(33, 1), (9, 2)], 4.0, ""));
        // The last positions of a long context.
        let long = [(32_768, 1), (32_767, 3), (20_000, 1)];
        cases.extend([(2, 1, 64), (4, 2, 128)].map(|heads| case(dtype, heads, &long, 2.0, "")));
        cases.extend(of_blocks(dtype, &ragged, &small, &tiles));
    }
    let eight = |heads| case_of(BLOCKS, Dtype::F16, heads, &[(32_768, 1), (32_767, 3), (20_000, 1)], 2.0, "");
    cases.extend([(2, 1, 64), (4, 2, 128)].map(eight));
    cases
}

/// Pages of eight bits, and of eight bits and floats, where the rest is `dtype`.
fn of_blocks(dtype: Dtype, ragged: &[Sequence], small: &[Sequence], tiles: &[Sequence]) -> Vec<Case> {
    let eight = |heads, sequences: &[Sequence]| case_of(BLOCKS, dtype, heads, sequences, 2.0, "");
    let mut cases = vec![eight((1, 1, 64), small), eight((1, 1, 128), &small[..6])];
    // Heads that there are fewer kernels for, and more of them than a group has anywhere.
    for heads in [(4, 2, 32), (2, 1, 256), (9, 1, 64)] {
        cases.push(eight(heads, &[(70, 5), (33, 3), (9, 9), (130, 1)]));
    }
    if dtype == Dtype::F16 {
        cases.extend([(14, 2, 64), (28, 4, 128)].map(|heads| eight(heads, ragged)));
        cases.extend([(7, 1, 64), (2, 1, 128), (16, 2, 256)].map(|heads| eight(heads, tiles)));
        cases.push(eight((3, 1, 64), &[(70, 20), (33, 3), (9, 9), (40, 1)]));
        cases.push(eight((7, 1, 64), &[(160, 37)]));
        cases.push(eight((1, 1, 128), &[(330, 17)]));
    }
    let float = KvFormat::Float(dtype);
    for formats in [KvFormats { k: float, v: KvFormat::Q8_0 }, KvFormats { k: KvFormat::Q8_0, v: float }] {
        cases.push(case_of(formats, dtype, (3, 1, 64), &[(70, 5), (33, 3), (9, 9), (130, 1)], 2.0, ""));
        cases.push(case_of(formats, dtype, (4, 2, 128), &[(70, 2), (33, 1)], 2.0, ""));
    }
    cases
}

/// Decode steps of a few sequences, prefill of many rows of one.
pub(super) fn timings(workload: &Workload) -> Vec<Case> {
    let config = &workload.config;
    let heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let mut cases = Vec::new();
    for &context in &workload.contexts {
        for &rows in workload.rows.iter().filter(|&&rows| rows <= context.max(DECODE_ROWS)) {
            let sequences =
                if rows <= DECODE_ROWS { vec![(context, 1); rows] } else { vec![(context, rows)] };
            let name = if rows <= DECODE_ROWS { "decode" } else { "prefill" };
            let blocks = heads.2.is_multiple_of(BLOCK_VALUES).then_some(BLOCKS);
            let formats = [workload.dtype.into()].into_iter().chain(blocks);
            cases.extend(
                formats.map(|formats| case_of(formats, workload.dtype, heads, &sequences, 2.0, name)),
            );
        }
    }
    cases
}

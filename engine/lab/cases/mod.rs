//! The cases of every operation, one file each.

mod add;
mod add_bias;
mod add_positions;
mod argmax;
mod attention;
mod bias_gelu;
mod bias_rope_kv;
mod blocks;
mod causal_conv;
mod convert;
mod decode;
mod delta_rule;
mod delta_step;
mod embed;
mod experts;
mod fused;
mod gate_rows;
mod gated_matmul;
mod gated_norm;
mod gather_rows;
mod layer_norm;
mod lora_add;
pub mod matmul;
mod matmul_add;
mod matmul_blocks;
mod norm_gate_up;
mod norm_matmul;
mod norm_product;
mod norm_qkv_rope;
mod quantise_kv;
mod ranks;
mod read_bandwidth;
mod repack;
mod rms_norm;
mod route;
mod row_norms;
mod sample;
mod sigmoid_mul;
mod silu_mul;
mod sort_experts;

use super::case::Cases;
use super::values::shuffled;
use crate::batch::{Batch, BatchLimits, LogitRows, SequenceRows};
use crate::cuda::{CudaBatch, CudaOps};
use crate::error::Result;
use crate::ops::Ops;
use crate::testing::Random;

// Both halves of the experts have most of a case in common, and both exchanges between ranks.
mod experts_in {
    pub use super::experts::IN as CASES;
}
mod experts_out {
    pub use super::experts::OUT as CASES;
}
mod add_ranks {
    pub use super::ranks::ADD as CASES;
}
mod gather_ranks {
    pub use super::ranks::GATHER as CASES;
}
mod norm_route {
    pub use super::route::WITH_NORM as CASES;
}

macro_rules! all {
    ($($op:ident)*) => {
        /// The cases of all operations, in the order of their names.
        pub const ALL: &[Cases] = &[$($op::CASES),*];
    };
}
crate::cuda::for_each_operation!(all);

/// The cases of one operation.
///
/// # Errors
/// [`crate::Error::Request`] that lists what exists.
pub fn of(op: &str) -> Result<&'static Cases> {
    ALL.iter().find(|cases| cases.op == op).ok_or_else(|| {
        let names: Vec<_> = ALL.iter().map(|cases| cases.op).collect();
        crate::Error::Request(format!(
            "there are no cases of an operation {op:?}; the operations are {}",
            names.join(", ")
        ))
    })
}

/// The limits of [`ragged`] batches.
const LIMITS: BatchLimits =
    BatchLimits { max_num_tokens: 256, max_num_sequences: 4, max_num_logits: 256, max_blocks: 8 };

/// Sequences of 1, 111 and 19 rows with random tokens on shuffled pages, at least eight; every logit row is wanted.
fn ragged(seed: u64, vocab_size: usize, num_pages: usize) -> Batch {
    let mut random = Random::new(seed, "ragged batch");
    let pages = shuffled(seed, "pages of the ragged batch", num_pages);
    let tokens: Vec<u32> = (0..111).map(|_| (random.next_u64() % vocab_size as u64) as u32).collect();
    let part = |rows: usize, position, pages| SequenceRows {
        tokens: &tokens[..rows],
        position,
        pages,
        logits: LogitRows::All,
    };
    Batch::new(&[part(1, 70, &pages[..3]), part(111, 5, &pages[3..7]), part(19, 0, &pages[7..8])])
}

/// A batch of sequences given by their rows, the position of the first row and their pages; here and on the device.
fn batch_of(
    ops: &mut CudaOps,
    limits: &BatchLimits,
    sequences: &[(usize, usize, &[u32])],
) -> Result<(Batch, CudaBatch)> {
    let longest = sequences.iter().map(|s| s.0).max().unwrap_or(0);
    let tokens = vec![0; longest];
    let parts: Vec<_> = sequences
        .iter()
        .map(|&(rows, position, pages)| SequenceRows {
            tokens: &tokens[..rows],
            position,
            pages,
            logits: LogitRows::None,
        })
        .collect();
    let host = Batch::new(&parts);
    let mut batch = ops.new_batch(limits)?;
    ops.upload(&host, &mut batch)?;
    Ok((host, batch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::case::SMALL_WORK;
    use std::collections::HashSet;

    #[test]
    fn every_operation_has_cases_and_some_of_them_are_small() {
        for op in crate::cuda::operations().iter().filter(|op| op.has_kernels()) {
            let cases = (of(op.name).unwrap().checks)();
            assert!(cases.iter().any(|case| case.work <= SMALL_WORK), "{}", op.name);
            let mut names = HashSet::new();
            for case in &cases {
                assert!(names.insert((case.dtype, &case.shape)), "{}: {} twice", op.name, case.shape);
            }
        }
        assert!(of("norm").is_err());
    }
}

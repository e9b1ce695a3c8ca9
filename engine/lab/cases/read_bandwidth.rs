//! The kernel that measures the ceiling of decoding: it must read every word, once.

use crate::cuda::{CudaOps, Memory};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, plain_config};
use crate::lab::findings::Findings;
use crate::testing::Random;

pub const CASES: Cases = Cases {
    op: "read_bandwidth",
    checks: || [4, 76, 4 * 989, 4 * 30_011, 4 * 3_000_017].map(case).into(),
    timings: |_| vec![case(1 << 28)],
};

fn case(words: usize) -> Case {
    Case {
        // The unit of its buffer; it reads whatever there is.
        dtype: Dtype::F32,
        shape: format!("{words} words"),
        work: words,
        cost: Cost { bytes: 4.0 * words as f64, flops: 0.0 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            let mut random = Random::new(seed, "words");
            let words: Vec<u32> = (0..words).map(|_| random.next_u64() as u32).collect();
            let expected = words.iter().fold(0, |seen, word| seen ^ word);
            Ok(Box::new(ReadBandwidth { expected, memory: Memory::of_words(ops.device(), &words)? }))
        }),
    }
}

struct ReadBandwidth {
    expected: u32,
    memory: Memory,
}

impl Instance for ReadBandwidth {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        Ok(())
    }

    fn launch(&mut self, _: &mut CudaOps) -> Result<()> {
        self.memory.read()
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        // Of random words, one left out or read twice shows.
        let (found, expected) = (self.memory.seen()?, self.expected);
        findings.compared += 1;
        findings.expect(found == expected, || {
            format!("exclusive or of all: found {found:#x}, expected {expected:#x}")
        });
        Ok(())
    }
}

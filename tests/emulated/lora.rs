//! A forward pass whose rows have different adapters, on an emulated device, against the CPU.

use crate::{LIMITS, MAX_MODEL_LEN, device_of_models, loaded, nmse, parts, small};
use qernel::batch::{AdapterScale, AdapterSet, Batch, LogitRows, SequenceRows};
use qernel::config::Config;
use qernel::cpu::CpuOps;
use qernel::cuda::{CudaOps, KernelChoice};
use qernel::dtype::Dtype;
use qernel::gguf::Gguf;
use qernel::lora;
use qernel::model::{Runner, build};
use qernel::ops::OpsConfig;
use qernel::sampler::{SamplingParams, SamplingRow};
use qernel::testing::{TinyModel, adapter};
use qernel::weights::Weights;

fn set(adapters: &[(u32, f32)]) -> AdapterSet {
    let of = |&(adapter, scale): &(u32, f32)| AdapterScale { adapter, scale };
    AdapterSet::new(&adapters.iter().map(of).collect::<Vec<_>>())
}

/// The weights with two adapters beside them.
pub fn adapted(config: &Config, weights: Weights) -> Weights {
    let adaptable = build::plan(config).unwrap().adaptable;
    let adapters = [(1, 4), (2, 7)].map(|(seed, rank)| {
        let bytes = adapter(config, seed, rank, 0.5).to_bytes();
        let gguf = Gguf::from_bytes(bytes.into()).unwrap();
        lora::of_gguf(&gguf, &seed.to_string(), config, &adaptable).unwrap()
    });
    weights.with_adapters(adapters.to_vec())
}

/// Prompts, a step of one row each, and one whose last rows alone need logits.
pub fn logits(runner: &mut dyn Runner) -> Vec<f32> {
    const { assert!(MAX_MODEL_LEN >= 32 && LIMITS.max_num_sequences >= 3) }
    let sets = [set(&[(1, 1.0)]), AdapterSet::default(), set(&[(0, -0.5), (1, 0.75)])];
    let tokens: [u32; 9] = [5, 99, 200, 3, 71, 18, 250, 44, 9];
    let pages = [[4], [1], [6]];
    let part = |s: usize, range: std::ops::Range<usize>, logits| SequenceRows {
        tokens: &tokens[range.clone()],
        position: range.start,
        pages: &pages[s],
        logits,
    };
    let batches = [
        [part(0, 0..5, LogitRows::All), part(1, 0..3, LogitRows::All), part(2, 0..4, LogitRows::All)],
        [part(0, 5..6, LogitRows::Last), part(1, 3..4, LogitRows::Last), part(2, 4..5, LogitRows::Last)],
        [part(0, 6..9, LogitRows::Last), part(1, 4..5, LogitRows::None), part(2, 5..8, LogitRows::Last)],
    ];
    let run =
        |parts: &[SequenceRows; 3]| runner.logits(&Batch::new(parts).with_adapters(sets.clone())).unwrap();
    batches.iter().flat_map(run).collect()
}

#[test]
fn rows_of_different_adapters_agree_with_the_cpu() {
    let cases = [
        ("qwen2", Dtype::F16, 1e-5),
        ("qwen2", Dtype::Bf16, 4e-4),
        ("qwen3", Dtype::F32, 1e-10),
        ("llama", Dtype::F16, 1e-5),
        ("gpt2", Dtype::F16, 1e-5),
        ("qwen35", Dtype::F16, 1e-5),
    ];
    for (architecture, dtype, allowed) in cases {
        let (config, weights) = parts(&TinyModel { architecture, format: dtype.into(), ..small() });
        let weights = adapted(&config, weights);
        let cpu = |config: &OpsConfig| CpuOps::new(config).unwrap();
        let expected = logits(&mut *loaded(&config, &weights, Dtype::F32, cpu));
        let gpu = |config: &OpsConfig| {
            CudaOps::new(&device_of_models(3), config, dtype, KernelChoice::default()).unwrap()
        };
        let mut runner = loaded(&config, &weights, dtype, gpu);
        let error = nmse(&logits(&mut *runner), &expected);
        assert!(error <= allowed, "{architecture} in {dtype}: {error:e}");

        // A step that draws, where rows without adapters take the kernels of whole parts again behind it.
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let row = [SamplingRow::new(greedy, 2)];
        let rows = [SequenceRows { tokens: &[1, 2], position: 0, pages: &[6], logits: LogitRows::Last }];
        for adapters in [set(&[(0, 2.0)]), AdapterSet::default()] {
            let sampled = runner.step(&Batch::new(&rows).with_adapters([adapters]), &row).unwrap();
            assert!(sampled.len() == 1 && (sampled[0] as usize) < TinyModel::VOCAB_SIZE);
        }
    }
}

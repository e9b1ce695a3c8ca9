//! Experts that stay in host memory while an emulated GPU computes everything else: the logits of the CPU whichever layers those are, in
//! chunks, token by token and in batches; what the device is planned to hold; and steps without a recording.

use crate::compare::nmse;
use qernel::batch::{Batch, BatchLimits, LogitRows, SequenceRows};
use qernel::config::{Config, ExpertSizes};
use qernel::cpu::CpuOps;
use qernel::cpu::host_experts::CpuExperts;
use qernel::cpu::kernels::MatmulBlocks;
use qernel::cuda::{CudaOps, Device, KernelChoice, weight_bytes};
use qernel::dtype::Dtype;
use qernel::formats::MatrixFormat;
use qernel::kv_layout::pages_for;
use qernel::load::{DeviceChoice, RunnerOptions, fit_cuda, kv_layout, open_device, open_runner};
use qernel::model::{ModelRunner, Runner};
use qernel::ops::experts::Offload;
use qernel::ops::{Ops, OpsConfig};
use qernel::testing::TinyModel;
use qernel::weights::Weights;
use std::collections::HashSet;
use std::rc::Rc;

const ALL: usize = usize::MAX;
const MAX_MODEL_LEN: usize = 64;
const LIMITS: BatchLimits = BatchLimits {
    max_num_tokens: 16,
    max_num_sequences: 2,
    max_num_logits: 16,
    max_blocks: pages_for(MAX_MODEL_LEN),
};

/// A small mixture of experts, whose matrices are small: emulation takes its time.
fn mixture(architecture: &'static str) -> TinyModel {
    TinyModel {
        architecture,
        hidden_size: 128,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        ..TinyModel::default()
    }
}

fn parts(model: &TinyModel) -> (Config, Weights) {
    let gguf = model.gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    (config, weights)
}

fn runner<O: Ops + 'static>(
    (config, weights): &(Config, Weights),
    dtype: Dtype,
    ops: impl Fn(&OpsConfig) -> O,
) -> Box<dyn Runner> {
    let ops_config = OpsConfig::new(config, MAX_MODEL_LEN, LIMITS);
    let layout = kv_layout(config, dtype, 2 * LIMITS.max_blocks).unwrap();
    let runner = ModelRunner::new(ops(&ops_config), weights, config, &ops_config, layout, &mut |_, _| ());
    Box::new(runner.unwrap())
}

fn names(weights: &Weights, layers: usize) -> HashSet<String> {
    weights.experts_of_first(layers).map(|matrix| matrix.name.clone()).collect()
}

/// On an emulated GPU, with the experts of the first `layers` layers in host memory, to which `rows_at_once` rows go at once.
fn offloaded(model: &(Config, Weights), layers: usize, rows_at_once: usize) -> Box<dyn Runner> {
    let options = cuda_std::emulation::Options { seed: 1, range: true, ..Default::default() };
    let device = Rc::new(Device::emulated(options));
    runner(model, Dtype::F16, |config| {
        let ops = CudaOps::new(&device, config, Dtype::F16, KernelChoice::default()).unwrap();
        let offload = Offload {
            names: names(&model.1, layers),
            config: config.experts.unwrap(),
            experts: Box::new(CpuExperts::new(MatmulBlocks::Exact)),
        };
        if layers == 0 { ops } else { ops.with_host_experts(offload, rows_at_once).unwrap() }
    })
}

fn on_cpu(model: &(Config, Weights)) -> Box<dyn Runner> {
    runner(model, Dtype::F32, |config| CpuOps::new(config).unwrap())
}

/// Some tokens of a sequence in slot and pages of its own.
fn rows<'a>(tokens: &'a [u32], position: usize, pages: &'a [u32]) -> SequenceRows<'a> {
    SequenceRows { tokens, position, pages, logits: LogitRows::All }
}

/// The logits of a prompt in two chunks and of two more tokens one by one, the last one beside another sequence.
fn logits(runner: &mut dyn Runner) -> Vec<f32> {
    let tokens: Vec<u32> = (0..13).map(|i| i * 29 % TinyModel::VOCAB_SIZE as u32).collect();
    let (first, second) = (&[1, 0][..], &[2, 3][..]);
    let batches = [
        vec![rows(&tokens[..9], 0, first)],
        vec![rows(&tokens[9..11], 9, first)],
        vec![rows(&tokens[11..12], 11, first)],
        vec![rows(&tokens[12..], 12, first), rows(&tokens[3..6], 0, second)],
    ];
    batches.iter().flat_map(|parts| runner.logits(&Batch::new(parts)).unwrap()).collect()
}

/// Whichever layers are in host memory: docs/precision.md's bound of an f16 file. Hybrids and the shared expert, which stays on the device,
/// are among the architectures.
#[test]
fn the_logits_are_those_of_the_cpu_whichever_layers_are_in_host_memory() {
    for architecture in ["qwen2moe", "qwen3moe", "qwen35moe", "qwen3next"] {
        let model = parts(&mixture(architecture));
        let expected = logits(&mut *on_cpu(&model));
        for layers in [0, 1, ALL] {
            let found = logits(&mut *offloaded(&model, layers, LIMITS.max_num_tokens));
            let error = nmse(&found, &expected);
            assert!(error <= 1e-5, "{architecture}, {layers} layers in host memory: NMSE {error:e}");
        }
    }
}

/// Files in blocks, of which experts have another format in each matrix, and of bf16: experts in host memory are as in the file.
#[test]
fn experts_of_any_format_may_be_in_host_memory() {
    let experts = ExpertSizes { moe_intermediate_size: 256, num_experts: 4, ..TinyModel::default().experts };
    let mixed = TinyModel {
        architecture: "qwen3moe",
        mix: MatrixFormat::ALL,
        experts,
        num_hidden_layers: 4,
        ..TinyModel::default()
    };
    for model in [mixed, TinyModel { format: MatrixFormat::Bf16, ..mixture("qwen2moe") }] {
        let model = parts(&model);
        let formats: HashSet<_> = model.1.experts().map(|matrix| matrix.format).collect();
        let expected = logits(&mut *on_cpu(&model));
        let error = nmse(&logits(&mut *offloaded(&model, ALL, LIMITS.max_num_tokens)), &expected);
        assert!(error <= 1e-5, "experts in {formats:?}: NMSE {error:e}");
    }
}

/// Rows that go to the host in parts are as if they went at once, and a row beside another sequence's is as it is alone.
#[test]
fn rows_are_the_same_in_parts_and_in_batches() {
    let model = parts(&mixture("qwen3moe"));
    let whole = logits(&mut *offloaded(&model, ALL, LIMITS.max_num_tokens));
    assert_eq!(logits(&mut *offloaded(&model, ALL, 4)), whole);

    let mut runner = offloaded(&model, 1, 5);
    let (a, b) = ([5, 6, 7, 8, 9, 10, 11], [40, 41, 42]);
    let mut step = |parts: &[SequenceRows]| runner.logits(&Batch::new(parts)).unwrap();
    let alone = [step(&[rows(&a, 0, &[0])]), step(&[rows(&b, 0, &[1])])].concat();
    assert_eq!(step(&[rows(&a, 0, &[2]), rows(&b, 0, &[3])]), alone);
}

/// A row whose values are no numbers goes to no expert: it has no logits, the rows beside it have theirs.
#[test]
fn a_row_without_numbers_leaves_the_others_alone() {
    const BROKEN: u32 = 77;
    let mut model =
        parts(&TinyModel { format: MatrixFormat::F16, tie_word_embeddings: false, ..mixture("qwen3moe") });
    let mut embedding = model.1.matrix("token_embd.weight").unwrap().clone();
    let mut data = embedding.data.to_vec();
    let value = BROKEN as usize * 2 * embedding.cols;
    data[value..value + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    embedding.data = data.into();
    model.1.replace(embedding).unwrap();

    let mut runner = offloaded(&model, ALL, LIMITS.max_num_tokens);
    let alone = runner.logits(&Batch::new(&[rows(&[1, 2, 3], 0, &[0])])).unwrap();
    let both = [rows(&[BROKEN], 0, &[1]), rows(&[1, 2, 3], 0, &[2])];
    let found = runner.logits(&Batch::new(&both)).unwrap();
    let (broken, others) = found.split_at(TinyModel::VOCAB_SIZE);
    assert!(broken.iter().all(|logit| logit.is_nan()));
    assert_eq!(others, alone);
}

/// A device holds the weights without the experts of those layers, no more and no less; with all of them in host memory it plans nothing for
/// experts of its own.
#[test]
fn the_device_is_planned_without_the_experts_in_host_memory() {
    let experts = ExpertSizes { moe_intermediate_size: 256, ..TinyModel::default().experts };
    let model =
        TinyModel { architecture: "qwen3moe", format: MatrixFormat::Q4_K, experts, ..TinyModel::default() };
    let (config, weights) = parts(&model);
    let bytes =
        |layers| weight_bytes(&weights, Dtype::F16, &KernelChoice::default(), &names(&weights, layers));
    let of = |layers: usize| weights.experts_of_first(layers).map(|matrix| matrix.data.len()).sum::<usize>();
    assert_eq!(of(2), 2 * of(1));
    assert_eq!((of(0), of(2), names(&weights, 1).len()), (0, of(ALL), 3));
    // Besides, room to decode the largest matrix of the device, which are experts until none is left.
    assert_eq!(bytes(0) - bytes(1), of(1));
    assert!(bytes(0) - bytes(2) > of(2) && bytes(2) == bytes(ALL));

    let device = open_device(DeviceChoice::Emulated).unwrap().unwrap();
    let experts = |cpu_moe| {
        let options = RunnerOptions {
            cpu_moe,
            max_model_len: Some(32),
            max_num_tokens: Some(8),
            ..RunnerOptions::default()
        };
        fit_cuda(&device, &weights, &config, &options).unwrap().0.experts
    };
    assert!(experts(0).is_some() && experts(0) == experts(1));
    assert_eq!((experts(2), experts(ALL)), (None, None));
}

/// What `--n-cpu-moe` opens: the device says where the experts are, and queues no step ahead of the tokens of the last one.
#[test]
fn a_model_that_is_opened_so_says_so_and_runs_no_step_ahead() {
    let (config, weights) = parts(&mixture("qwen3moe"));
    let open = |device, cpu_moe| {
        let options = RunnerOptions {
            device,
            cpu_moe,
            max_model_len: Some(32),
            max_num_tokens: Some(8),
            ..RunnerOptions::default()
        };
        let runner = open_runner(&weights, &config, &options, &mut |_, _| ()).unwrap();
        (runner.runs_ahead(), runner.device_name())
    };
    let (ahead, name) = open(DeviceChoice::Emulated, 1);
    assert!(!ahead && name.contains("emulated device, experts of 1 layer on the CPU ("), "{name}");
    let (ahead, name) = open(DeviceChoice::Emulated, 7);
    assert!(!ahead && name.contains("experts of 2 layers on the CPU ("), "{name}");
    assert_eq!(open(DeviceChoice::Emulated, 0), (true, "emulated device".to_owned()));
    assert!(open(DeviceChoice::Cpu, 1).1.starts_with("CPU ("));
}

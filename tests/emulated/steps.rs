//! The engine's steps on an emulated device: queued ahead, refused, and with rows that draw nothing.

use crate::{device, device_of_models, life, loaded, parts, runner, small};
use qernel::batch::{Batch, LogitRows, SequenceRows};
use qernel::config::LinearSizes;
use qernel::cuda::{CudaOps, KernelChoice};
use qernel::dtype::Dtype;
use qernel::error::Error;
use qernel::formats::MatrixFormat;
use qernel::kv_format::{KvFormat, KvFormats};
use qernel::ops::OpsConfig;
use qernel::sampler::{NO_TOKEN, SamplingParams, SamplingRow};
use qernel::testing::TinyModel;

/// Steps that take their tokens from the device give what steps do that wait for them.
#[test]
fn running_ahead_changes_no_token() {
    let model = TinyModel { format: MatrixFormat::F16, num_hidden_layers: 1, ..small() };
    same_tokens_ahead(&model, Dtype::F16.into());
    same_tokens_ahead(&model, KvFormats::both(KvFormat::Q8_0));
}

/// States move on once for each token, whoever joins, leaves or is crowded out.
#[test]
fn running_ahead_changes_no_token_of_a_hybrid() {
    same_tokens_ahead(&hybrid(), Dtype::F16.into());
}

pub fn hybrid() -> TinyModel {
    let linear = LinearSizes {
        linear_num_key_heads: 1,
        linear_num_value_heads: 2,
        linear_key_head_dim: 32,
        linear_value_head_dim: 32,
        linear_conv_kernel_dim: 4,
    };
    TinyModel {
        architecture: "qwen35",
        format: MatrixFormat::F16,
        hidden_size: 64,
        intermediate_size: 64,
        num_attention_heads: 1,
        num_key_value_heads: 1,
        linear,
        ..TinyModel::default()
    }
}

fn same_tokens_ahead(model: &TinyModel, formats: KvFormats) {
    let lives = [("", true), ("step=graph", false)].map(|(kernels, ahead)| {
        let choice = KernelChoice::parse(kernels).unwrap();
        let ops = |config: &OpsConfig| {
            CudaOps::new(&device_of_models(5), config, Dtype::F16, choice.clone()).unwrap()
        };
        let mut engine = life::engine(model, formats, life::CROWDED, ops);
        assert_eq!(engine.runner().runs_ahead(), ahead);
        let life = life::crowd(&mut engine);
        life::assert_crowded(&life);
        assert_eq!(engine.runner().num_replays(), 0, "nothing is recorded in emulation");
        life
    });
    assert_eq!(lives[0].answers, lives[1].answers);
}

/// Rows that nobody drew, more rows than were drawn, and a third step before the first was taken.
#[test]
fn what_is_not_on_the_device_is_refused() {
    let ops = |config: &OpsConfig| {
        CudaOps::new(&device_of_models(3), config, Dtype::F16, KernelChoice::default()).unwrap()
    };
    let mut runner =
        runner(&TinyModel { format: MatrixFormat::F16, ..TinyModel::default() }, Dtype::F16, ops);
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let row = SamplingRow::new(greedy, 2);
    let at = |position, pages| SequenceRows { tokens: &[3], position, pages, logits: LogitRows::Last };
    let behind = |position| Batch { sampled_rows: vec![0], ..Batch::new(&[at(position, &[6])]) };
    let row = std::slice::from_ref(&row);
    assert!(matches!(runner.queue(&behind(0), row), Err(Error::Request(_))), "nothing was drawn");
    assert!(matches!(runner.take(), Err(Error::Request(_))), "nothing is queued");

    runner.queue(&Batch::new(&[at(0, &[6])]), row).unwrap();
    let wide = Batch { sampled_rows: vec![0, 0], ..Batch::new(&[at(1, &[6]), at(0, &[5])]) };
    let error = runner.queue(&wide, &[row[0].clone(), row[0].clone()]).unwrap_err();
    assert!(error.to_string().contains("the last draw had 1 rows"), "{error}");
    runner.discard();

    let first = runner.step(&Batch::new(&[at(0, &[6])]), row).unwrap();
    runner.queue(&behind(1), row).unwrap();
    runner.queue(&behind(2), row).unwrap();
    assert!(matches!(runner.queue(&behind(3), row), Err(Error::Request(_))), "two steps are queued");
    let second = runner.take().unwrap();
    let third = runner.take().unwrap();
    for (token, position, expected) in [(first[0], 1, &second), (second[0], 2, &third)] {
        let rows = SequenceRows { tokens: &[token], ..at(position, &[6]) };
        assert_eq!(&runner.step(&Batch::new(&[rows]), row).unwrap(), expected);
    }
}

/// A row whose logits are no numbers draws nothing; the rows beside it, the step behind it and whoever gets its pages are as ever.
#[test]
fn a_row_without_numbers_draws_nothing_and_leaves_the_others_alone() {
    const BROKEN: u32 = 77;
    fn sequence<'a>(tokens: &'a [u32], pages: &'a [u32]) -> SequenceRows<'a> {
        SequenceRows { tokens, position: 0, pages, logits: LogitRows::Last }
    }
    let model = TinyModel { format: MatrixFormat::F16, tie_word_embeddings: false, ..TinyModel::default() };
    let (config, mut weights) = parts(&model);
    let mut embedding = weights.matrix("token_embd.weight").unwrap().clone();
    let mut data = embedding.data.to_vec();
    let row = BROKEN as usize * 2 * embedding.cols;
    data[row..row + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    embedding.data = data.into();
    weights.replace(embedding).unwrap();

    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let drawing = |temperature| SamplingRow::new(SamplingParams { temperature, ..params.clone() }, 3);
    for (kernels, temperature) in
        [("", 0.0), ("argmax=plain,layer=separate", 0.0), ("", 0.9), ("sample=chain", 0.9)]
    {
        let choice = KernelChoice::parse(kernels).unwrap();
        let ops = |config: &OpsConfig| CudaOps::new(&device(3), config, Dtype::F16, choice.clone()).unwrap();
        let runner = &mut *loaded(&config, &weights, Dtype::F16, ops);
        let row = [drawing(temperature)];
        let expected = runner.step(&Batch::new(&[sequence(&[1, 2, 3], &[4])]), &row).unwrap();
        let both = [sequence(&[1, BROKEN, 3], &[5]), sequence(&[1, 2, 3], &[6])];
        let rows = [row[0].clone(), row[0].clone()];
        runner.queue(&Batch::new(&both), &rows).unwrap();
        // The step behind it takes what was drawn from the device.
        let next = [5, 6].map(|page| [page]);
        let next = next.each_ref().map(|pages| SequenceRows { position: 3, ..sequence(&[0], pages) });
        let next = Batch { sampled_rows: vec![0, 1], ..Batch::new(&next) };
        runner.queue(&next, &rows).unwrap();
        assert_eq!(runner.take().unwrap(), [NO_TOKEN, expected[0]], "{kernels:?}, {temperature}");
        assert_eq!(runner.take().unwrap().len(), 2);
        // On the pages of the broken one.
        let again = runner.step(&Batch::new(&[sequence(&[1, 2, 3], &[5])]), &row).unwrap();
        assert_eq!(again, expected, "{kernels:?}, {temperature}: what was left in the pages is read");
    }
}

//! What f16 has no room for: scaled where that can be, refused and named where not.

use crate::compare::nmse;
use crate::{device_of_models, logits, parts, runner, small};
use qernel::config::Config;
use qernel::cpu::CpuOps;
use qernel::cuda::{CudaOps, KernelChoice};
use qernel::dtype::Dtype;
use qernel::error::Error;
use qernel::formats::MatrixFormat;
use qernel::load::{DeviceChoice, DtypeChoice, RunnerOptions, open_runner};
use qernel::ops::OpsConfig;
use qernel::testing::TinyModel;
use qernel::weights::Weights;

/// The logits of a small model whose MLP has values `scale` times as large in between, on the CPU.
fn rescaled(format: Dtype, scale: f32) -> (TinyModel, Vec<f32>) {
    let model = TinyModel { format: format.into(), mlp_scale: scale, num_hidden_layers: 1, ..small() };
    let expected = logits(&mut *runner(&model, Dtype::F32, |config| CpuOps::new(config).unwrap()));
    (model, expected)
}

/// Weights and values that f16 does not have are scaled so that it does: fused and separate, one row and many.
#[test]
fn values_of_any_size_are_kept_in_the_range_of_f16() {
    let (_, ordinary) = rescaled(Dtype::Bf16, 1.0);
    let formats = [Dtype::Bf16, Dtype::F32];
    let scales = [4096.0, 65_536.0, 16_777_216.0, 1.0 / 16_777_216.0];
    // Every scale in one format, the largest in both.
    for (format, scale) in
        scales.map(|scale| (formats[0], scale)).into_iter().chain([(formats[1], scales[2])])
    {
        let (model, expected) = rescaled(format, scale);
        if format == Dtype::Bf16 {
            let error = nmse(&expected, &ordinary);
            assert!(error <= 1e-10, "times {scale}: the CPU computes another function: {error:e}");
        }
        for kernels in ["", "layer=separate"] {
            let choice = KernelChoice::parse(kernels).unwrap();
            let ops = |config: &OpsConfig| {
                CudaOps::new(&device_of_models(3), config, Dtype::F16, choice.clone()).unwrap()
            };
            let error = nmse(&logits(&mut *runner(&model, Dtype::F16, ops)), &expected);
            assert!(error <= 1e-5, "{format}, times {scale} {kernels:?}: {error:e}");
        }
    }
}

/// The bf16 model, one value of a matrix changed.
fn changed(name: &str, value: f32) -> (Config, Weights) {
    let (config, mut weights) = parts(&TinyModel { format: MatrixFormat::Bf16, ..TinyModel::default() });
    let mut matrix = weights.matrix(name).unwrap().clone();
    let mut data = matrix.data.to_vec();
    data[10..12].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
    matrix.data = data.into();
    weights.replace(matrix).unwrap();
    (config, weights)
}

fn held_as((config, weights): &(Config, Weights), dtype: DtypeChoice) -> Result<Dtype, Error> {
    let options = RunnerOptions {
        device: DeviceChoice::Emulated,
        dtype,
        max_model_len: Some(32),
        max_num_tokens: Some(8),
        ..RunnerOptions::default()
    };
    open_runner(weights, config, &options, &mut |_, _| ())
        .map(|runner| runner.kv_layout().formats.float().unwrap())
}

/// What cannot be scaled: K and V go to the pages as they are. `auto` holds all as bf16 then, `f16` is refused.
#[test]
fn what_may_leave_the_range_of_f16_is_found_and_named() {
    let ordinary = changed("blk.1.attn_v.weight", 0.5);
    assert_eq!(held_as(&ordinary, DtypeChoice::Auto).unwrap(), Dtype::F16);
    assert_eq!(held_as(&ordinary, DtypeChoice::Bf16).unwrap(), Dtype::Bf16);
    // A weight that f16 does not have, in a matrix that is scaled.
    assert_eq!(held_as(&changed("blk.1.ffn_up.weight", -131_072.0), DtypeChoice::F16).unwrap(), Dtype::F16);
    for (name, what) in [("blk.1.attn_k.weight", "blk.1: K"), ("blk.0.attn_v.weight", "blk.0: V")] {
        let beyond = changed(name, 65_536.0);
        assert_eq!(held_as(&beyond, DtypeChoice::Auto).unwrap(), Dtype::Bf16);
        let error = held_as(&beyond, DtypeChoice::F16).unwrap_err();
        assert!(matches!(&error, Error::Range(text) if text.contains(what)), "{error}");
    }
}

/// A weight that is no number, or infinite, is named while the matrix is converted.
#[test]
fn weights_that_are_not_finite_are_named() {
    for value in [f32::NAN, f32::NEG_INFINITY] {
        let error = held_as(&changed("blk.0.ffn_down.weight", value), DtypeChoice::Auto).unwrap_err();
        assert!(matches!(&error, Error::Model(text) if text.contains("blk.0.ffn_down.weight")), "{error}");
    }
}

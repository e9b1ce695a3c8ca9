//! GGUF metadata and tensors -> `Config` and `Weights`.

use half::{bf16, f16};
use qernel::config::{Config, RopeOverrides, ScalingType};
use qernel::formats::MatrixFormat;
use qernel::gguf::write::Writer;
use qernel::gguf::{GgmlType, Gguf};
use qernel::rope::{Rotation, Scaling};
use qernel::testing::TinyModel;
use qernel::weights::{HEAD, Matrix, SizeOfFormat, Weights};
use std::io::Write;

fn load(writer: &Writer) -> qernel::Result<Weights> {
    let gguf = Gguf::from_bytes(writer.to_bytes().into())?;
    Weights::from_gguf(&gguf, &Config::from_gguf(&gguf)?)
}

fn config(writer: &Writer) -> qernel::Result<Config> {
    Config::from_gguf(&Gguf::from_bytes(writer.to_bytes().into())?)
}

#[track_caller]
fn assert_message<T: std::fmt::Debug>(result: qernel::Result<T>, expected: &str) {
    let message = result.expect_err(expected).to_string();
    assert!(message.contains(expected), "expected an error with {expected:?}, found {message:?}");
}

/// Small, with heads that do not make up the hidden size.
fn model() -> TinyModel {
    TinyModel { hidden_size: 48, intermediate_size: 40, head_dim: 8, ..TinyModel::default() }
}

#[test]
fn the_config_is_what_was_written() {
    for (tie_word_embeddings, attention_bias) in [(true, true), (true, false), (false, true), (false, false)]
    {
        let model = TinyModel { tie_word_embeddings, attention_bias, ..model() };
        let expected = Config {
            architecture: "qwen2".to_owned(),
            name: "tiny random model".to_owned(),
            vocab_size: TinyModel::VOCAB_SIZE,
            hidden_size: 48,
            intermediate_size: 40,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            rotation: Rotation::new(1e6, 8),
            rms_norm_eps: 1e-6,
            max_position_embeddings: 2048,
            tie_word_embeddings,
            attention_bias,
            fused_qkv: false,
            draft: None,
            tensor_parallel_size: 1,
            stage: None,
            experts: None,
            linear: None,
            linear_layers: Vec::new(),
            num_nextn_predict_layers: 0,
        };
        assert_eq!(config(&model.writer()).unwrap(), expected);
        assert_eq!((expected.q_size(), expected.kv_size()), (32, 16));
    }
}

#[test]
fn defaults_are_those_of_llama_cpp() {
    let mut writer = TinyModel::default().writer();
    writer.remove_metadata("general.name").remove_metadata("qwen2.rope.freq_base");
    writer.remove_metadata("qwen2.attention.head_count_kv");
    let config = config(&writer).unwrap();
    assert_eq!(config.name, "qwen2");
    assert_eq!(config.rotation.theta, 10_000.0);
    assert_eq!(config.num_key_value_heads, config.num_attention_heads);
    assert_eq!(config.head_dim, 64);
}

#[test]
fn a_vocabulary_has_a_config_too() {
    let vocabulary = model().vocabulary_only();
    assert_eq!(config(&vocabulary).unwrap().vocab_size, TinyModel::VOCAB_SIZE);
    assert_message(load(&vocabulary), "a vocabulary and no weights");
}

#[test]
fn values_that_no_decoder_has_are_refused() {
    for key in [
        "general.architecture",
        "qwen2.block_count",
        "qwen2.context_length",
        "qwen2.embedding_length",
        "qwen2.feed_forward_length",
        "qwen2.attention.head_count",
        "qwen2.attention.layer_norm_rms_epsilon",
    ] {
        assert_message(config(model().writer().remove_metadata(key)), &format!("metadata `{key}`: expected"));
        assert_message(config(model().writer().set_metadata(key, true)), "found bool true");
    }
    for key in
        ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"]
    {
        let key = format!("qwen2.{key}");
        for hostile in [0, u64::from(u32::MAX), u64::MAX] {
            let expected = format!("metadata `{key}` is {hostile}; expected 1 to");
            assert_message(config(model().writer().set_metadata(&key, hostile)), &expected);
        }
    }
    let with = |key: &str, value: u32| config(model().writer().set_metadata(key, value));
    assert_message(with("qwen2.attention.head_count_kv", 0), "expected 1 to");
    assert_message(with("qwen2.attention.head_count_kv", 3), "must divide the first");
    assert_message(with("qwen2.attention.head_count_kv", 8), "must divide the first");
    assert_message(with("qwen2.attention.key_length", 7), "even number");
    assert_message(with("qwen2.attention.key_length", 1 << 20), "too many");
    assert_message(with("qwen2.attention.value_length", 16), "is 16; expected 8");
    assert_message(with("qwen2.rope.dimension_count", 10), "is 10; expected an even number");
    let mut uneven = model().writer();
    uneven.remove_metadata("qwen2.attention.key_length").set_metadata("qwen2.embedding_length", 49_u32);
    assert_message(config(&uneven), "cannot be shared out over 4 attention heads");
    for float in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
        for key in ["qwen2.rope.freq_base", "qwen2.attention.layer_norm_rms_epsilon"] {
            assert_message(config(model().writer().set_metadata(key, float)), "a ");
        }
    }
    let tokens = vec!["x".to_owned(); TinyModel::VOCAB_SIZE + 1];
    let too_many = config(model().writer().set_metadata("tokenizer.ggml.tokens", tokens.as_slice()));
    assert_message(too_many, "288 tokens, but the embedding `token_embd.weight` only 287 rows");
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let with = |writer: &mut Writer| config(writer);
    assert_message(
        with(model().writer().set_metadata("general.architecture", "qwen4exp")),
        "nearest by name is `qwen3next`",
    );
    for scaling in ["longrope", "something"] {
        let result = with(model().writer().metadata("qwen2.rope.scaling.type", scaling));
        assert_message(result, &format!("RoPE scaling `{scaling}`"));
    }
    assert_message(with(model().writer().metadata("qwen2.attention.causal", false)), "embedding model");
    assert_message(
        with(model().writer().metadata("qwen2.attention.sliding_window", 512_u32)),
        "window of 512 tokens",
    );
    assert_message(load(model().writer().metadata("split.count", 4_u16)), "one of 4 parts");

    let mut neutral = model().writer();
    neutral.metadata("qwen2.rope.scaling.type", "linear").metadata("qwen2.rope.scaling.factor", 1.0_f32);
    neutral.metadata("qwen2.attention.causal", true).metadata("qwen2.attention.sliding_window", 4096_u32);
    neutral.metadata("qwen2.rope.dimension_count", 8_u32).metadata("split.count", 1_u16);
    load(&neutral).unwrap();
    load(model().writer().metadata("qwen2.rope.scaling.type", "none")).unwrap();
}

#[test]
fn frequencies_are_scaled_as_the_file_or_the_command_line_says() {
    let context = model().max_position_embeddings;
    let of = |writer: &Writer| config(writer).unwrap();
    let linear =
        |factor: f32| Some(Scaling { original_max_position_embeddings: context, ..Scaling::linear(factor) });
    for (key, factor) in [("qwen2.rope.scaling.factor", 4.0), ("qwen2.rope.scale_linear", 2.0)] {
        let found = of(model().writer().metadata(key, factor));
        assert_eq!(
            (found.rotation.scaling, found.max_position_embeddings),
            (linear(factor), context),
            "{key}"
        );
    }
    let mut yarn = model().writer();
    yarn.metadata("qwen2.rope.scaling.type", "yarn").metadata("qwen2.rope.scaling.factor", 4.0_f32);
    let found = of(&yarn);
    assert_eq!(found.rotation.scaling, Some(Scaling::yarn(4.0, context)));
    assert_eq!(found.max_position_embeddings, 4 * context, "a file may leave it at the original context");
    yarn.metadata("qwen2.rope.scaling.original_context_length", 512_u32)
        .metadata("qwen2.rope.scaling.yarn_beta_fast", 16.0_f32)
        .metadata("qwen2.rope.scaling.yarn_ext_factor", -1.0_f32);
    let expected = Scaling { beta_fast: 16.0, ..Scaling::yarn(4.0, 512) };
    assert_eq!(of(&yarn).rotation.scaling, Some(expected));
    for (key, hostile) in
        [("factor", f32::NAN), ("factor", -2.0), ("yarn_beta_slow", 0.0), ("yarn_attn_factor", -3.0)]
    {
        let result = config(yarn.clone().set_metadata(&format!("qwen2.rope.scaling.{key}"), hostile));
        assert_message(result, "expected a ");
    }

    let with = |writer: &Writer, overrides: RopeOverrides| {
        let mut gguf = Gguf::from_bytes(writer.to_bytes().into()).unwrap();
        overrides.apply(&mut gguf).unwrap();
        let config = Config::from_gguf(&gguf).unwrap();
        (config.rotation.scaling, config.max_position_embeddings)
    };
    let none = RopeOverrides::default();
    let plain = model().writer();
    assert_eq!(with(&plain, none), (None, context));
    let factor = RopeOverrides { factor: Some(2.0), ..none };
    assert_eq!(with(&plain, factor), (linear(2.0), 2 * context));
    let original = RopeOverrides { scaling: Some(ScalingType::Yarn), original_context: Some(64), ..factor };
    assert_eq!(with(&plain, original), (Some(Scaling::yarn(2.0, 64)), 128));
    let off = RopeOverrides { scaling: Some(ScalingType::None), ..none };
    assert_eq!(with(&yarn, off), (None, 512));
    let mut gguf = Gguf::from_bytes(plain.to_bytes().into()).unwrap();
    let refused = RopeOverrides { factor: Some(0.0), ..none }.apply(&mut gguf).unwrap_err();
    assert!(refused.to_string().contains("factor of 0"), "{refused}");
}

/// All formats and layouts give the same values, each rounded to its format, in the places of the file.
#[test]
fn weights_are_typed_layers() {
    let exact =
        load(&TinyModel { format: MatrixFormat::F32, tie_word_embeddings: false, ..model() }.writer())
            .unwrap();
    let values = |data: &[u8]| data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect::<Vec<_>>();
    for &format in MatrixFormat::ALL.iter().filter(|format| format.float().is_some()) {
        for (tie_word_embeddings, attention_bias) in [(true, true), (false, false)] {
            let model = TinyModel { format, tie_word_embeddings, attention_bias, ..model() };
            let weights = load(&model.writer()).unwrap();
            assert_eq!(weights.unused, [""; 0]);
            assert_eq!(weights.matrix(HEAD).is_ok(), !tie_word_embeddings);
            assert_eq!(weights.num_tensors(), model.gguf().tensors().len());
            assert_eq!(weights.matrices().count(), 15 + usize::from(!tie_word_embeddings));

            for (found, exact) in weights.matrices().zip(exact.matrices()) {
                assert_eq!((&found.name, found.rows, found.cols), (&exact.name, exact.rows, exact.cols));
                assert_eq!(found.format, format);
                let expected = format.encode(&values(&exact.data)).unwrap();
                assert_eq!(found.data, expected, "{}", found.name);
            }
            for norm in ["blk.1.attn_norm.weight", "blk.1.ffn_norm.weight", "output_norm.weight"] {
                assert!(
                    weights.vector(norm).is_some() && weights.vector(norm) == exact.vector(norm),
                    "{norm}"
                );
            }
            for bias in ["blk.0.attn_q.bias", "blk.1.attn_k.bias", "blk.1.attn_v.bias"] {
                assert_eq!(weights.vector(bias), exact.vector(bias).filter(|_| attention_bias), "{bias}");
            }
        }
    }
    let shape = |name| {
        let Matrix { rows, cols, .. } = exact.matrix(name).unwrap();
        (*rows, *cols)
    };
    assert_eq!(shape("blk.1.attn_q.weight"), (32, 48));
    assert_eq!(shape("blk.1.attn_v.weight"), (16, 48));
    assert_eq!(shape("blk.1.attn_output.weight"), (48, 32));
    assert_eq!(shape("blk.1.ffn_down.weight"), (48, 40));
}

/// Norms and biases in half formats become f32.
#[test]
fn vectors_of_any_format_are_converted() {
    let values = [1.5_f32, -0.25, 3.0, 0.0];
    let vector = |ggml_type, bytes: Vec<u8>| {
        let mut writer = TinyModel { hidden_size: 4, ..model() }.writer();
        writer.remove_tensor("output_norm.weight").tensor("output_norm.weight", &[4], ggml_type, bytes);
        load(&writer).unwrap().vector("output_norm.weight").unwrap().to_vec()
    };
    assert_eq!(vector(GgmlType::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()), values);
    assert_eq!(
        vector(GgmlType::F16, values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()),
        values
    );
    assert_eq!(
        vector(GgmlType::BF16, values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()),
        values
    );
}

#[test]
fn missing_and_unused_tensors_are_listed() {
    let mut writer = model().writer();
    writer
        .remove_tensor("blk.0.ffn_up.weight")
        .remove_tensor("output_norm.weight")
        .remove_tensor("blk.1.attn_k.bias");
    assert_message(
        load(&writer),
        "missing tensors: 3 (blk.0.ffn_up.weight, blk.1.attn_k.bias, output_norm.weight)",
    );

    let mut writer = model().writer();
    let zeros = |count: usize| vec![0; count * 4];
    writer.tensor("blk.2.attn_norm.weight", &[48], GgmlType::F32, zeros(48));
    writer.tensor("blk.2.attn_q.bias", &[48], GgmlType::F32, zeros(48));
    writer.tensor("mtp.weight", &[4], GgmlType::F32, zeros(4));
    writer.tensor("rope_freqs.weight", &[4], GgmlType::F32, zeros(4));
    writer.tensor("blk.1.attn_rot_embd.weight", &[4], GgmlType::F32, zeros(4));
    assert_eq!(load(&writer).unwrap().unused, ["blk.2.attn_norm.weight", "blk.2.attn_q.bias", "mtp.weight"]);
}

#[test]
fn a_tensor_that_changes_the_answers_and_is_not_computed_with_refuses_the_file() {
    for name in [
        "output.bias",
        "output_norm.bias",
        "token_embd_norm.weight",
        "position_embd.weight",
        "blk.0.attn_output.bias",
        "blk.1.attn_q_norm.weight",
        "blk.1.ffn_norm_2.weight",
        "blk.0.attn_q.scale",
        "other.scale",
    ] {
        let mut writer = model().writer();
        writer.tensor(name, &[4], GgmlType::F32, vec![0; 16]);
        assert_message(load(&writer), &format!("not computed with: 1 ({name})"));
    }
}

#[test]
fn a_number_that_changes_the_answers_and_is_not_computed_with_refuses_the_file() {
    for (key, neutral) in [
        ("attn_logit_softcapping", 0.0),
        ("final_logit_softcapping", 0.0),
        ("logit_scale", 1.0),
        ("embedding_scale", 1.0),
        ("residual_scale", 1.0),
        ("attention.clamp_kqv", 0.0),
        ("attention.max_alibi_bias", 0.0),
    ] {
        let with = |value: f32| {
            let mut writer = model().writer();
            writer.metadata(&format!("qwen2.{key}"), value);
            load(&writer)
        };
        with(neutral).unwrap();
        assert_message(with(30.0), &format!("metadata `qwen2.{key}` is 30; expected {neutral}"));
        assert_message(with(f32::NAN), "is NaN");
    }
}

#[test]
fn a_bias_in_one_layer_is_a_bias_of_all_three_projections_there() {
    let mut writer = model().writer();
    for projection in ["q", "k", "v"] {
        writer.remove_tensor(&format!("blk.1.attn_{projection}.bias"));
    }
    let weights = load(&writer).unwrap();
    assert!(weights.vector("blk.0.attn_k.bias").is_some() && weights.vector("blk.1.attn_k.bias").is_none());
}

#[test]
fn formats_and_shapes_are_checked() {
    let mut writer = model().writer();
    for name in ["blk.0.ffn_up.weight", "blk.1.ffn_up.weight", "token_embd.weight"] {
        let shape = if name == "token_embd.weight" { [287, 256] } else { [40, 256] };
        writer.remove_tensor(name).tensor(name, &shape, GgmlType(15), vec![0; (shape[0] * 292) as usize]);
    }
    let expected =
        "3 (token_embd.weight Q8_K, blk.0.ffn_up.weight Q8_K, blk.1.ffn_up.weight Q8_K); use a conversion";
    assert_message(load(&writer), expected);

    let mut unknown = model().writer();
    unknown.remove_tensor("output_norm.weight").tensor(
        "output_norm.weight",
        &[48],
        GgmlType(777),
        vec![0; 64],
    );
    assert_message(load(&unknown), "1 (output_norm.weight unknown type 777)");
    let mut of_a_fork = model().writer();
    of_a_fork.remove_tensor("blk.0.ffn_up.weight").tensor(
        "blk.0.ffn_up.weight",
        &[40, 256],
        GgmlType(139),
        vec![],
    );
    assert_message(load(&of_a_fork), "1 (blk.0.ffn_up.weight unknown type 139 (IQ4_K of ik_llama.cpp))");

    let mut transposed = model().writer();
    transposed.remove_tensor("blk.0.attn_q.weight").tensor(
        "blk.0.attn_q.weight",
        &[48, 32],
        GgmlType::F16,
        vec![0; 48 * 32 * 2],
    );
    assert_message(load(&transposed), "1 (blk.0.attn_q.weight [48, 32] instead of [32, 48])");

    let many = load(model().writer().set_metadata("qwen2.block_count", 4096_u32)).unwrap_err().to_string();
    assert!(many.contains("and 36834 more") && many.len() < 1000, "{many}");
}

/// The published Qwen2.5-0.5B-Instruct fp16 file: 291 tensors, 1202.09 MiB. Its data is a hole in a sparse file.
#[test]
fn the_published_half_billion_layout_adds_up() {
    let shape = TinyModel {
        hidden_size: 896,
        intermediate_size: 4864,
        num_hidden_layers: 24,
        num_attention_heads: 14,
        num_key_value_heads: 2,
        tie_word_embeddings: false,
        ..TinyModel::default()
    };
    let mut table = Vec::new();
    let mut offset = 0_u64;
    let mut add = |name: &str, dims: &[u64], ggml_type: GgmlType| {
        table.extend((name.len() as u64).to_le_bytes());
        table.extend(name.as_bytes());
        table.extend((dims.len() as u32).to_le_bytes());
        dims.iter().rev().for_each(|n| table.extend(n.to_le_bytes()));
        table.extend(ggml_type.0.to_le_bytes());
        table.extend(offset.to_le_bytes());
        let bytes = dims.iter().product::<u64>() * ggml_type.block().unwrap().bytes;
        offset = (offset + bytes).next_multiple_of(32);
    };
    let (f16, f32) = (GgmlType::F16, GgmlType::F32);
    add("token_embd.weight", &[151_936, 896], f16);
    add("output.weight", &[151_936, 896], f16);
    add("output_norm.weight", &[896], f32);
    for i in 0..24 {
        for (name, rows) in [("attn_q", 896), ("attn_k", 128), ("attn_v", 128)] {
            add(&format!("blk.{i}.{name}.weight"), &[rows, 896], f16);
            add(&format!("blk.{i}.{name}.bias"), &[rows], f32);
        }
        add(&format!("blk.{i}.attn_output.weight"), &[896, 896], f16);
        add(&format!("blk.{i}.attn_norm.weight"), &[896], f32);
        add(&format!("blk.{i}.ffn_norm.weight"), &[896], f32);
        add(&format!("blk.{i}.ffn_gate.weight"), &[4864, 896], f16);
        add(&format!("blk.{i}.ffn_up.weight"), &[4864, 896], f16);
        add(&format!("blk.{i}.ffn_down.weight"), &[896, 4864], f16);
    }
    // A file without tensors ends where its tensor table would begin, padded; the padding would be read as tensors.
    let mut head = shape.vocabulary_only().to_bytes();
    let padding = head.len() - unpadded_length(&head);
    head.truncate(head.len() - padding);
    head[8..16].copy_from_slice(&291_u64.to_le_bytes());

    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&head).unwrap();
    file.write_all(&table).unwrap();
    let data_start = (head.len() + table.len()).next_multiple_of(32) as u64;
    file.as_file().set_len(data_start + offset).unwrap();

    let gguf = Gguf::open(file.path()).unwrap();
    let weights = Weights::from_gguf(&gguf, &Config::from_gguf(&gguf).unwrap()).unwrap();
    assert_eq!(weights.num_tensors(), 291);
    assert_eq!(weights.unused, [""; 0]);
    assert_eq!(format!("{:.2} MiB", weights.num_bytes() as f64 / f64::from(1 << 20)), "1202.09 MiB");
    let sizes = weights.sizes();
    assert_eq!(sizes.iter().map(|size| size.num_bytes).sum::<u64>(), weights.num_bytes());
    let matrices = SizeOfFormat { format: MatrixFormat::F16, num_tensors: 170, num_bytes: 1_260_191_744 };
    assert!(sizes.contains(&matrices), "{sizes:?}");
}

/// Sizes of experts that do not fit each other or the tensors, and the layout of old converters.
#[test]
fn experts_are_checked() {
    let model = TinyModel { architecture: "qwen3moe", ..model() };
    let with = |key: &str, value: u32| load(model.writer().set_metadata(&format!("qwen3moe.{key}"), value));
    assert!(load(&model.writer()).unwrap().unused.is_empty());
    assert_message(with("expert_count", 0), "`qwen3moe.expert_count` is 0; expected 1 to 1024");
    assert_message(with("expert_used_count", 9), "`qwen3moe.expert_used_count` is 9; expected 1 to 8");
    assert_message(with("expert_count", 4), "blk.0.ffn_gate_inp.weight [8, 48] instead of [4, 48]");
    assert_message(with("expert_count", 4), "blk.0.ffn_up_exps.weight [8, 64, 48] instead of [4, 64, 48]");
    assert_message(
        with("expert_feed_forward_length", 65),
        "blk.0.ffn_down_exps.weight [8, 48, 64] instead of [8, 48, 65]",
    );
    assert_message(load(model.writer().remove_tensor("blk.1.ffn_gate_exps.weight")), "missing tensors: 1");

    let mut old = model.writer();
    old.remove_tensor("blk.0.ffn_gate_exps.weight");
    old.tensor("blk.0.ffn_gate.0.weight", &[64, 48], GgmlType::F16, vec![0; 2 * 64 * 48]);
    assert_message(load(&old), "a tensor for each expert (blk.0.ffn_gate.0.weight)");

    // What llama.cpp takes where a file of an early converter has no sizes of its own.
    let mut without = model.writer();
    without.remove_metadata("qwen3moe.expert_feed_forward_length");
    let sizes = config(&without).unwrap().experts.unwrap();
    assert_eq!((sizes.moe_intermediate_size, sizes.shared_expert_intermediate_size), (40 / 2, 0));
    let shared = TinyModel { architecture: "qwen2moe", ..model };
    assert_eq!(config(&shared.writer()).unwrap().experts.unwrap().shared_expert_intermediate_size, 96);
}

/// A step reads the experts that its token goes to, not the others.
#[test]
fn idle_experts_are_not_read() {
    let model = TinyModel { architecture: "qwen3moe", ..TinyModel::default() };
    let weights = load(&model.writer()).unwrap();
    let experts = weights.matrices().filter(|matrix| matrix.name.contains("_exps."));
    let bytes: u64 = experts.map(|matrix| matrix.data.len() as u64).sum();
    // The head is the embedding.
    let decode = weights.decode_bytes();
    assert_eq!(decode.of(1), weights.num_bytes() - bytes / 8 * 6);
    // Two tokens go to 2 and 2 of 8, of which on average half a one is both's.
    assert_eq!(decode.of(2), weights.num_bytes() - bytes / 16 * 9);
    assert_eq!(decode.of(10_000), weights.num_bytes());
}

/// Where the metadata of a file without tensors ends: the chat template is its last value, and text.
fn unpadded_length(file: &[u8]) -> usize {
    file.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

//! Small models with random weights, for tests, examples and benchmarks: no file is needed to run the engine.

use crate::config::{Config, DraftTensors, ExpertSizes, LinearSizes};
use crate::formats::MatrixFormat;
use crate::gguf::write::{Value, Writer};
use crate::gguf::{GgmlType, Gguf};
use crate::model;
use crate::weights::{Group, TensorShape, TensorSpec};
use bytes::Bytes;

/// A model of any architecture with seeded random weights and a vocabulary of bytes, a few merges and the ChatML specials.
///
/// A tensor's values depend on `seed` and its name alone, so the same model can be had in several formats, tied and
/// untied. Matrices have mean 0 and a variance of 1 / columns, norms lie near 1: activations keep their size through
/// the layers and logits have a standard deviation of about 1, so that greedy choices have a margin.
#[derive(Clone, Debug, PartialEq)]
pub struct TinyModel {
    pub seed: u64,
    /// `general.architecture`
    pub architecture: &'static str,
    /// Format of the matrices; norms and biases are f32, as llama.cpp's converter writes them.
    /// Of all matrices, where [`TinyModel::mix`] names none.
    pub format: MatrixFormat,
    /// The formats that matrices have in turn.
    pub mix: &'static [MatrixFormat],
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rope_theta: f32,
    pub rms_norm_eps: f32,
    pub tie_word_embeddings: bool,
    pub attention_bias: bool,
    /// Q, K and V are one tensor.
    pub fused_qkv: bool,
    /// Of an architecture that has experts; not all have a shared one.
    pub experts: ExpertSizes,
    /// Of an architecture that has layers of linear attention, which are all but every second.
    pub linear: LinearSizes,
    /// Of a hybrid: a block behind the last layer that drafts.
    pub draft: Option<TinyDraft>,
    /// Layers from this one on add nothing: the model computes what one without them does, which may draft for it.
    pub silent_from: Option<usize>,
    /// What `silu(gate) * up` is multiplied with, a power of two: the rows of up are, and the columns of down divided by it, so that the
    /// model computes the same function with values of another size in between. bf16 and f32 lose nothing.
    pub mlp_scale: f32,
}

impl Default for TinyModel {
    /// Two layers, four heads of 64 values on two KV heads, f16, tied, with bias: about 2 MB.
    fn default() -> Self {
        Self {
            seed: 0,
            architecture: "qwen2",
            format: MatrixFormat::F16,
            mix: &[],
            hidden_size: 256,
            intermediate_size: 384,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 64,
            max_position_embeddings: 2048,
            rope_theta: 1_000_000.0,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            attention_bias: true,
            fused_qkv: false,
            experts: ExpertSizes {
                num_experts: 8,
                num_experts_per_tok: 2,
                moe_intermediate_size: 64,
                shared_expert_intermediate_size: 96,
            },
            linear: LinearSizes {
                linear_num_key_heads: 2,
                linear_num_value_heads: 6,
                linear_key_head_dim: 32,
                linear_value_head_dim: 32,
                linear_conv_kernel_dim: 4,
            },
            draft: None,
            silent_from: None,
            mlp_scale: 1.0,
        }
    }
}

/// A block that drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TinyDraft {
    /// The tensors that it does not share with the model.
    pub tensors: DraftTensors,
    /// It drafts what the model says: no layer adds anything, so that a token alone says what follows it, and the block passes its token's
    /// embedding on.
    pub agrees: bool,
}

/// Pairs that the vocabulary merges, in order of priority; `Ġ` stands for a space.
const MERGES: [(&str, &str); 28] = [
    ("Ġ", "t"),
    ("h", "e"),
    ("i", "n"),
    ("Ġ", "a"),
    ("r", "e"),
    ("o", "n"),
    ("Ġt", "he"),
    ("e", "r"),
    ("Ġ", "s"),
    ("Ġ", "w"),
    ("a", "t"),
    ("o", "u"),
    ("l", "l"),
    ("o", "r"),
    ("e", "n"),
    ("in", "g"),
    ("Ġ", "o"),
    ("a", "n"),
    ("e", "s"),
    ("Ġa", "n"),
    ("Ġan", "d"),
    ("H", "e"),
    ("He", "ll"),
    ("Hell", "o"),
    ("Ġw", "or"),
    ("l", "d"),
    ("Ġwor", "ld"),
    ("Ċ", "Ċ"),
];

/// Control tokens, after all others.
const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const CHAT_TEMPLATE: &str = "\
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}\
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}";

/// `gguf.TokenType`: ordinary text, and control tokens that are never text.
const TOKEN_NORMAL: i32 = 1;
const TOKEN_CONTROL: i32 = 3;

impl TinyModel {
    /// Tokens of the vocabulary: 256 bytes, the merges' results, the specials.
    pub const VOCAB_SIZE: usize = 256 + MERGES.len() + SPECIALS.len();

    /// The token that ends a document, and the padding.
    pub const ENDOFTEXT: u32 = (256 + MERGES.len()) as u32;

    /// The token that begins a turn of ChatML.
    pub const IM_START: u32 = Self::ENDOFTEXT + 1;

    /// The token that ends a turn of ChatML; the model's end of sequence.
    pub const IM_END: u32 = Self::ENDOFTEXT + 2;

    /// The model, opened.
    pub fn gguf(&self) -> Gguf {
        Gguf::from_bytes(self.to_bytes()).expect("the writer's files are well-formed")
    }

    /// The model as a GGUF file.
    pub fn to_bytes(&self) -> Bytes {
        self.writer().to_bytes().into()
    }

    /// The model as a file that can still be changed.
    pub fn writer(&self) -> Writer {
        let mut writer = Writer::new();
        self.write_metadata(&mut writer);
        write_vocabulary(&mut writer);
        self.write_tensors(&mut writer);
        writer
    }

    /// A reranker: a small `qwen3` with a classifier of the labels `yes` and `no`, and `template` for queries and documents.
    pub fn reranker(template: &str) -> Writer {
        let model = Self { architecture: "qwen3", ..Self::default() };
        let size = model.hidden_size as u64;
        let mut writer = model.writer();
        let weight: Vec<u8> = (0..2 * size).flat_map(|i| ((i % 5) as f32 - 2.0).to_le_bytes()).collect();
        writer
            .metadata("qwen3.pooling_type", 4_u32)
            .metadata("qwen3.classifier.output_labels", Value::from(&["yes".to_owned(), "no".to_owned()][..]))
            .metadata("tokenizer.chat_template.rerank", template)
            .tensor("cls.output.weight", &[2, size], GgmlType::F32, weight);
        writer
    }

    /// Metadata and vocabulary without tensors.
    pub fn vocabulary_only(&self) -> Writer {
        let mut writer = Writer::new();
        self.write_metadata(&mut writer);
        write_vocabulary(&mut writer);
        writer
    }

    fn write_metadata(&self, writer: &mut Writer) {
        // `general.file_type`: llama.cpp's `llama_ftype`.
        let file_type = match self.format {
            MatrixFormat::F32 => 0_u32,
            MatrixFormat::F16 => 1,
            MatrixFormat::Bf16 => 32,
            _ => 1024, // LLAMA_FTYPE_GUESSED
        };
        let key = |key: &str| format!("{}.{key}", self.architecture);
        writer
            .metadata("general.architecture", self.architecture)
            .metadata("general.type", "model")
            .metadata("general.name", "tiny random model")
            .metadata("general.size_label", "tiny")
            .metadata("general.file_type", file_type)
            .metadata("general.quantization_version", 2_u32)
            .metadata(
                &key("block_count"),
                (self.num_hidden_layers + usize::from(self.draft.is_some())) as u32,
            )
            .metadata(&key("context_length"), self.max_position_embeddings as u32)
            .metadata(&key("embedding_length"), self.hidden_size as u32)
            .metadata(&key("feed_forward_length"), self.intermediate_size as u32)
            .metadata(&key("attention.head_count"), self.num_attention_heads as u32)
            .metadata(&key("attention.head_count_kv"), self.num_key_value_heads as u32)
            .metadata(&key("rope.freq_base"), self.rope_theta)
            .metadata(&key(norm_eps_key(self.architecture)), self.rms_norm_eps);
        if self.draft.is_some() {
            writer.metadata(&key("nextn_predict_layers"), 1_u32);
        }
        let is_hybrid = ["qwen35", "qwen35moe", "qwen3next"].contains(&self.architecture);
        if is_hybrid {
            let sizes = &self.linear;
            writer
                .metadata(&key("full_attention_interval"), 2_u32)
                .metadata(&key("rope.dimension_count"), (self.head_dim / 4) as u32)
                .metadata(&key("ssm.conv_kernel"), sizes.linear_conv_kernel_dim as u32)
                .metadata(&key("ssm.state_size"), sizes.linear_key_head_dim as u32)
                .metadata(&key("ssm.group_count"), sizes.linear_num_key_heads as u32)
                .metadata(&key("ssm.time_step_rank"), sizes.linear_num_value_heads as u32)
                .metadata(&key("ssm.inner_size"), sizes.value_size() as u32);
        }
        if self.architecture.ends_with("moe") || self.architecture == "qwen3next" {
            let sizes = &self.experts;
            writer
                .metadata(&key("expert_count"), sizes.num_experts as u32)
                .metadata(&key("expert_used_count"), sizes.num_experts_per_tok as u32)
                .metadata(&key("expert_feed_forward_length"), sizes.moe_intermediate_size as u32);
        }
        if ["qwen2moe", "qwen35moe", "qwen3next"].contains(&self.architecture) {
            let size = self.experts.shared_expert_intermediate_size as u32;
            writer.metadata(&key("expert_shared_feed_forward_length"), size);
        }
        // Published files leave these out where the heads make up the hidden size.
        if self.num_attention_heads * self.head_dim != self.hidden_size {
            writer
                .metadata(&key("attention.key_length"), self.head_dim as u32)
                .metadata(&key("attention.value_length"), self.head_dim as u32);
        }
    }

    /// Every tensor that the architecture asks for.
    fn write_tensors(&self, writer: &mut Writer) {
        let vocabulary = Gguf::from_bytes(self.vocabulary_only().to_bytes().into());
        let config = vocabulary.and_then(|vocabulary| Config::from_gguf(&vocabulary));
        let config = config.expect("the model's own metadata is that of a decoder");
        let config = Config {
            tie_word_embeddings: self.tie_word_embeddings,
            fused_qkv: self.fused_qkv || config.fused_qkv,
            draft: self.draft.map(|draft| draft.tensors),
            ..config
        };
        let plan = model::build::plan(&config).expect("the architecture is known");
        let mut formats = self.mix.iter().copied().cycle();
        for TensorSpec { name, shape, group, .. } in &plan.tensors {
            if !self.attention_bias && *group != Group::Always {
                continue;
            }
            let values = Random::new(self.seed, name);
            let mut matrix = |dimensions: &[usize], cols: usize| {
                let scale = (cols as f32).powf(-0.5)
                    * match name {
                        name if name.ends_with("ffn_up.weight") => self.mlp_scale,
                        name if name.ends_with("ffn_down.weight") => self.mlp_scale.recip(),
                        _ => 1.0,
                    };
                let count = dimensions.iter().product();
                let mut values: Vec<f32> = values.clone().take(count).map(|value| value * scale).collect();
                if self.draft.is_some_and(|draft| draft.agrees) {
                    agree(name, cols, &mut values);
                }
                let layer = name.strip_prefix("blk.").and_then(|name| name.split('.').next()?.parse().ok());
                if layer.zip(self.silent_from).is_some_and(|(layer, first): (usize, _)| layer >= first) {
                    silence(name, &mut values);
                }
                let dimensions: Vec<u64> = dimensions.iter().map(|&size| size as u64).collect();
                let format = formats.next().unwrap_or(self.format);
                let data = blocks(format, self.seed, name, &values);
                writer.tensor(name, &dimensions, format.ggml_type(), data);
                if format == MatrixFormat::NVFP4 {
                    let name = name.replace(".weight", ".scale");
                    writer.tensor(&name, &[1], GgmlType::F32, 0.8_f32.to_le_bytes().to_vec());
                }
            };
            match *shape {
                TensorShape::Matrix { rows, cols } => matrix(&[rows, cols], cols),
                TensorShape::Experts { count, rows, cols, .. } => matrix(&[count, rows, cols], cols),
                TensorShape::Table { rows, cols } => {
                    let scale = (cols as f32).powf(-0.5);
                    let values = values.take(rows * cols);
                    let data = values.flat_map(|value| (scale * value).to_le_bytes()).collect();
                    writer.tensor(name, &[rows as u64, cols as u64], GgmlType::F32, data);
                }
                TensorShape::Vector { len } => {
                    let mean = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
                    let passes =
                        name.ends_with("enorm.weight") && self.draft.is_some_and(|draft| draft.agrees);
                    let of = |value: f32| match name.ends_with(".ssm_a") {
                        // Memories from under one token to some hundred.
                        true => -(2.0 * value - 1.0).exp(),
                        false if passes => 1.0,
                        false => mean + 0.1 * value,
                    };
                    let data = values.take(len).flat_map(|value| of(value).to_le_bytes()).collect();
                    writer.tensor(name, &[len as u64], GgmlType::F32, data);
                }
            }
        }
    }
}

/// Changes a matrix of `cols` columns as [`TinyDraft::agrees`] says: what layers add is nothing, and of `[embedding; hidden]` the first passes.
fn agree(name: &str, cols: usize, values: &mut [f32]) {
    silence(name, values);
    if name.ends_with("eh_proj.weight") {
        values.fill(0.0);
        values.iter_mut().step_by(cols + 1).for_each(|value| *value = 1.0);
    }
}

/// Makes a matrix whose results a layer adds one of zeros.
fn silence(name: &str, values: &mut [f32]) {
    let ends = [
        "attn_output.weight",
        "ssm_out.weight",
        "ffn_down.weight",
        "ffn_down_exps.weight",
        "ffn_down_shexp.weight",
    ];
    if ends.iter().any(|end| name.ends_with(end)) {
        values.fill(0.0);
    }
}

/// The key of what norms add under the root.
fn norm_eps_key(architecture: &str) -> &'static str {
    if architecture == "gpt2" { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" }
}

/// The blocks of `values`. Where the format has no encoder, or one that takes long, random blocks whose values have the deviation of those.
pub fn blocks(format: MatrixFormat, seed: u64, name: &str, values: &[f32]) -> Vec<u8> {
    use MatrixFormat::{IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
    let takes_long = matches!(format, IQ2_S | IQ2_XS | IQ2_XXS | IQ3_S | IQ3_XXS);
    let encoded = if takes_long { None } else { format.encode(values) };
    encoded.unwrap_or_else(|| {
        let square = values.iter().map(|value| value * value).sum::<f32>() / values.len().max(1) as f32;
        random_blocks(format, seed, name, values.len(), square.sqrt())
    })
}

/// Blocks of random bytes with scales that give their values this deviation, for formats that are not encoded. Their blocks begin with
/// an f16 scale, but IQ1_M has its bits in the top halves of bytes 49, 51, 53 and 55, the lowest first.
fn random_blocks(format: MatrixFormat, seed: u64, name: &str, count: usize, deviation: f32) -> Vec<u8> {
    let mut random = Random::new(seed, name);
    let mut blocks = vec![0; count / format.block_values() * format.block_bytes()];
    let mut values = vec![0.0; format.block_values()];
    for block in blocks.chunks_exact_mut(format.block_bytes()) {
        block.fill_with(|| random.next_u64() as u8);
        let mut set_scale = |block: &mut [u8], scale: f32| {
            let scale = half::f16::from_f32(scale);
            if format == MatrixFormat::IQ1_M {
                for (i, byte) in block[49..].iter_mut().step_by(2).enumerate() {
                    *byte = *byte & 15 | ((scale.to_bits() >> (4 * i) & 15) << 4) as u8;
                }
            } else {
                block[..2].copy_from_slice(&scale.to_le_bytes());
            }
            format.decode(block, &mut values);
            (values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32).sqrt()
        };
        let unscaled = set_scale(block, 1.0);
        set_scale(block, deviation / unscaled.max(f32::MIN_POSITIVE));
    }
    blocks
}

/// An adapter of this rank with random updates of every matrix of the model of `config` that may have one, as llama.cpp's converter writes
/// it. With a `size` of 1 an update is about as large as what random matrices make.
pub fn adapter(config: &Config, seed: u64, rank: usize, size: f32) -> Writer {
    let mut writer = Writer::new();
    writer
        .metadata("general.type", "adapter")
        .metadata("general.architecture", config.architecture.as_str())
        .metadata("adapter.type", "lora")
        .metadata("adapter.lora.alpha", size * rank as f32);
    for TensorSpec { name, shape, .. } in model::build::plan(config).expect("a known architecture").adaptable
    {
        let TensorShape::Matrix { rows, cols } = shape else { continue };
        for (half, shape) in [("lora_a", [rank, cols]), ("lora_b", [rows, rank])] {
            let name = format!("{name}.{half}");
            let deviation = (shape[1] as f32).sqrt().recip();
            let values = Random::new(seed, &name).take(shape[0] * shape[1]).map(|value| value * deviation);
            let bytes = values.flat_map(f32::to_le_bytes).collect();
            writer.tensor(&name, &shape.map(|size| size as u64), GgmlType::F32, bytes);
        }
    }
    writer
}

fn write_vocabulary(writer: &mut Writer) {
    let mut tokens: Vec<String> = byte_characters().iter().map(char::to_string).collect();
    tokens.extend(MERGES.iter().map(|(left, right)| format!("{left}{right}")));
    let mut types = vec![TOKEN_NORMAL; tokens.len()];
    tokens.extend(SPECIALS.map(str::to_owned));
    types.resize(tokens.len(), TOKEN_CONTROL);
    let merges: Vec<String> = MERGES.iter().map(|(left, right)| format!("{left} {right}")).collect();
    writer
        .metadata("tokenizer.ggml.model", "gpt2")
        .metadata("tokenizer.ggml.pre", "qwen2")
        .metadata("tokenizer.ggml.tokens", tokens.as_slice())
        .metadata("tokenizer.ggml.token_type", types)
        .metadata("tokenizer.ggml.merges", merges.as_slice())
        .metadata("tokenizer.ggml.eos_token_id", TinyModel::IM_END)
        .metadata("tokenizer.ggml.padding_token_id", TinyModel::ENDOFTEXT)
        .metadata("tokenizer.ggml.bos_token_id", TinyModel::ENDOFTEXT)
        .metadata("tokenizer.ggml.add_bos_token", false)
        .metadata("tokenizer.chat_template", CHAT_TEMPLATE);
}

/// The printable character that stands for each byte in a byte-level vocabulary, in GPT-2's order: first the bytes
/// that are printable in Latin-1 and stand for themselves, then the others as U+0100 and up.
fn byte_characters() -> Vec<char> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let own = (0..=u8::MAX).filter(printable).map(char::from);
    own.chain((0x100..).map_while(char::from_u32)).take(256).collect()
}

/// SplitMix64's output function: numbers that are near become numbers that are not.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of values with mean 0 and variance 1, the same on every machine: SplitMix64 (Steele, Lea and Flood 2014),
/// four 16-bit uniforms of each output added up.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of this seed and this name.
    pub fn new(seed: u64, name: &str) -> Self {
        // FNV-1a, so that the names' streams have nothing in common.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        Self(hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Uniform over all 64-bit integers.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

impl Iterator for Random {
    type Item = f32;

    fn next(&mut self) -> Option<f32> {
        let bits = self.next_u64();
        let sum: u32 = (0..4).map(|i| (bits >> (16 * i)) as u32 & 0xffff).sum();
        // The sum has the mean 4 · 65535 / 2 and the variance 4 · (65536² - 1) / 12.
        const DEVIATION: f32 = 37_837.23;
        Some((sum as f32 - 131_070.0) / DEVIATION)
    }
}

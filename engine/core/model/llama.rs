//! Llama 2 and 3, and what has their shape (SmolLM, Mistral without a window): neighbouring values of a head are rotated together, as
//! GGUF's converter puts the rows of Q and K into that order; Llama 3.1 and later divide the frequencies.
//!
//! Touvron et al., Llama 2 (2023); `LlamaForCausalLM` in transformers; `llama.cpp`'s `LLM_ARCH_LLAMA`.

use super::Published;
use super::build::Build;
use super::decoder::{Decoder, Features};
use crate::config::{Config, Keys};
use crate::error::{Error, Result};
use crate::ops::Types;
use crate::rope::Pairs;

pub type Model<T> = Decoder<T>;

/// Published models, by what `--like` calls them: from their `config.json`.
pub const PUBLISHED: &[Published] = &[
    Published::new("llama3.2-1b", [2048, 8192, 16, 32, 8, 64, 128_256], true),
    Published::new("llama3.1-8b", [4096, 14_336, 32, 32, 8, 128, 128_256], false),
    Published::new("smollm2-135m", [576, 1536, 30, 9, 3, 64, 49_152], true),
];

/// By what each frequency is divided, where a file has it: f32 `[rotary_dim / 2]`.
const FACTORS: &str = "rope_freqs.weight";

/// # Errors
/// As [`Config::of_decoder`]; [`Error::Model`] for factors that are no divisors of the frequencies, and for experts.
pub fn config(keys: &Keys) -> Result<Config> {
    let mut config = Config::of_decoder(keys)?;
    if let Some(count) = keys.get::<u64>("expert_count")?.filter(|&count| count > 0) {
        return Err(keys.invalid(
            "expert_count",
            count,
            "none: experts of this architecture are not implemented",
        ));
    }
    if let Some(factors) = keys.floats(FACTORS, config.rotation.dim / 2)? {
        if let Some(factor) = factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
            return Err(Error::Model(format!(
                "{FACTORS} has a factor of {factor}; expected positive numbers"
            )));
        }
        config.rotation.factors = factors;
    }
    Ok(config)
}

/// # Errors
/// As [`Decoder::build`].
pub fn build<T: Types, B: Build<T>>(b: &mut B, config: &Config) -> Result<Model<T>> {
    Decoder::build(b, config, &Features { pairs: Pairs::Neighbours, ..Features::USUAL })
}

//! RoPE scaling: metadata -> [`Scaling`], and llama.cpp's flags -> metadata.

use super::Keys;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::gguf::write::Value;
use crate::rope::Scaling;
use std::fmt;
use std::str::FromStr;

/// How frequencies are scaled; [`Scaling`] says what that means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalingType {
    None,
    Linear,
    Yarn,
}

impl FromStr for ScalingType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "linear" => Ok(Self::Linear),
            "yarn" => Ok(Self::Yarn),
            _ => Err(format!("expected none, linear or yarn, found {text:?}")),
        }
    }
}

impl fmt::Display for ScalingType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Linear => "linear",
            Self::Yarn => "yarn",
        })
    }
}

/// `{architecture}.` + name, of what files say and flags replace.
const TYPE: &str = "rope.scaling.type";
const FACTOR: &str = "rope.scaling.factor";
/// Its older name, for linear scaling.
const OLD_FACTOR: &str = "rope.scale_linear";
const ORIGINAL_CONTEXT: &str = "rope.scaling.original_context_length";
const EXT_FACTOR: &str = "rope.scaling.yarn_ext_factor";
const ATTN_FACTOR: &str = "rope.scaling.yarn_attn_factor";
const BETA_FAST: &str = "rope.scaling.yarn_beta_fast";
const BETA_SLOW: &str = "rope.scaling.yarn_beta_slow";
/// Multiplied with the other one.
const OTHER_ATTN_FACTOR: &str = "rope.scaling.attn_factor";
const CONTEXT: &str = "context_length";
const FREQ_BASE: &str = "rope.freq_base";

/// What a file says; llama.cpp's defaults are linear scaling, and a factor of 0 for none.
///
/// # Errors
/// [`Error::Model`] for a type that is not implemented and for numbers that scale nothing.
pub(super) fn of(keys: &Keys, context: usize) -> Result<Option<Scaling>> {
    let name = keys.get::<&str>(TYPE)?.unwrap_or("linear");
    let factor = given_factor(keys)?.unwrap_or(0.0);
    let Ok(kind) = name.parse::<ScalingType>() else {
        return Err(Error::Model(format!(
            "the file asks for RoPE scaling `{name}` with factor {factor}, which is not implemented (none, linear and yarn are); \
             --rope-scaling none runs it with the context that it was trained on"
        )));
    };
    let factor = if kind == ScalingType::None || factor == 0.0 { 1.0 } else { factor };
    if !(factor.is_finite() && factor > 0.0) {
        return Err(keys.invalid(FACTOR, factor, "a positive number"));
    }
    let number = |key: &str, default: f32, least: f32| match keys.get::<f32>(key)? {
        // llama.cpp's "not set".
        Some(-1.0) | None => Ok(default),
        Some(value) if value.is_finite() && value >= least => Ok(value),
        Some(value) => Err(keys.invalid(key, value, &format!("a finite number of at least {least}"))),
    };
    let smallest = f32::MIN_POSITIVE;
    let usual = Scaling::linear(factor);
    let ext_factor = if kind == ScalingType::Yarn { 1.0 } else { 0.0 };
    let scaling = Scaling {
        factor,
        ext_factor: number(EXT_FACTOR, ext_factor, 0.0)?,
        attn_factor: number(ATTN_FACTOR, 1.0, 0.0)? * number(OTHER_ATTN_FACTOR, 1.0, 0.0)?,
        beta_fast: number(BETA_FAST, usual.beta_fast, smallest)?,
        beta_slow: number(BETA_SLOW, usual.beta_slow, smallest)?,
        original_max_position_embeddings: keys
            .optional_size(ORIGINAL_CONTEXT, super::MAX_CONTEXT)?
            .unwrap_or(context),
    };
    Ok((factor != 1.0 || scaling.gain() != 1.0).then_some(scaling))
}

/// The factor that the file gives.
fn given_factor(keys: &Keys) -> Result<Option<f32>> {
    match keys.get::<f32>(FACTOR)? {
        None => keys.get::<f32>(OLD_FACTOR),
        given => Ok(given),
    }
}

/// The longest context: of YaRN the original one times the factor, where the file does not say more. (What is trained with linear scaling
/// says it.)
pub(super) fn context(scaling: Option<Scaling>, context: usize) -> usize {
    match scaling {
        Some(scaling) if scaling.ext_factor != 0.0 => {
            // At most 2^24 times a float; the cast saturates.
            let stretched = scaling.original_max_position_embeddings as f64 * f64::from(scaling.factor);
            context.max(stretched as usize)
        }
        _ => context,
    }
}

/// Replaces what a file says of its rotation, by llama.cpp's names.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RopeOverrides {
    pub scaling: Option<ScalingType>,
    /// By what the context is extended.
    pub factor: Option<f32>,
    pub freq_base: Option<f32>,
    /// The context that the model was trained on.
    pub original_context: Option<u32>,
    pub ext_factor: Option<f32>,
    pub attn_factor: Option<f32>,
    pub beta_fast: Option<f32>,
    pub beta_slow: Option<f32>,
}

impl RopeOverrides {
    /// Changes the metadata of an open file. A factor extends the context of the file's original one.
    ///
    /// # Errors
    /// [`Error::Request`] for a factor that extends nothing, [`Error::Gguf`] as [`Gguf::require`].
    pub fn apply(&self, gguf: &mut Gguf) -> Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        let architecture = gguf.require::<&str>("general.architecture")?.to_owned();
        let full = |key: &str| format!("{architecture}.{key}");
        let mut values: Vec<(&str, Value)> = Vec::new();
        let keys = Keys::new(gguf)?;
        let original = match self.original_context {
            Some(context) => Some(u64::from(context)),
            None => keys.get::<u64>(ORIGINAL_CONTEXT)?.or(keys.get::<u64>(CONTEXT)?),
        };
        let factor = match self.scaling {
            Some(ScalingType::None) => Some(1.0),
            _ if self.factor.is_some() || self.original_context.is_some() => {
                self.factor.or(given_factor(&keys)?)
            }
            _ => None,
        };
        if let Some((factor, original)) = factor.zip(original) {
            if !(factor.is_finite() && factor > 0.0) {
                let text = format!(
                    "a context cannot be extended by a factor of {factor}; expected a positive number"
                );
                return Err(Error::Request(text));
            }
            values.push((CONTEXT, ((original as f64 * f64::from(factor)) as u64).into()));
            values.push((ORIGINAL_CONTEXT, original.into()));
        }
        values.extend(self.scaling.map(|kind| (TYPE, Value::from(kind.to_string()))));
        let floats = [
            (FACTOR, self.factor),
            (FREQ_BASE, self.freq_base),
            (EXT_FACTOR, self.ext_factor),
            (ATTN_FACTOR, self.attn_factor),
            (BETA_FAST, self.beta_fast),
            (BETA_SLOW, self.beta_slow),
        ];
        values.extend(floats.into_iter().filter_map(|(key, value)| Some((key, Value::from(value?)))));
        for (key, value) in values {
            gguf.set_metadata(&full(key), &value)?;
        }
        Ok(())
    }
}

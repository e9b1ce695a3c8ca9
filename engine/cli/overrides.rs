//! Options that replace what a model file says of itself, by llama.cpp's names.

use crate::config::{RopeOverrides, ScalingType};
use crate::error::Result;
use crate::gguf::Gguf;
use crate::gguf::write::Value;
use clap::Args;
use std::str::FromStr;

/// What of the file's metadata is replaced.
#[derive(Clone, Debug, Default, Args)]
pub struct OverrideArgs {
    /// Replace or add metadata of the file, such as tokenizer.ggml.add_bos_token=bool:false; the types are int, float, bool and str; a comma
    /// in a text is \,
    #[arg(long, help_heading = "Metadata", value_name = "KEY=TYPE:VALUE,…")]
    pub override_kv: Vec<KeyValues>,
    /// How RoPE frequencies are scaled: none, linear or yarn [default: what the file says, or linear]
    #[arg(long, help_heading = "Metadata", value_name = "TYPE")]
    pub rope_scaling: Option<ScalingType>,
    /// Extend the context by this factor
    #[arg(long, help_heading = "Metadata", value_name = "N", conflicts_with = "rope_freq_scale")]
    pub rope_scale: Option<f32>,
    /// Base of the RoPE frequencies [default: what the file says]
    #[arg(long, help_heading = "Metadata", value_name = "N")]
    pub rope_freq_base: Option<f32>,
    /// Multiply the RoPE frequencies by this: 1/N of --rope-scale
    #[arg(long, help_heading = "Metadata", value_name = "N")]
    pub rope_freq_scale: Option<f32>,
    /// YaRN: context that the model was trained on [default: what the file says]
    #[arg(long, help_heading = "Metadata", value_name = "N")]
    pub yarn_orig_ctx: Option<u32>,
    /// YaRN: share of their own frequency that the fastest pairs keep; 0 is linear scaling [default: 1 with yarn]
    #[arg(long, help_heading = "Metadata", value_name = "N", allow_negative_numbers = true)]
    pub yarn_ext_factor: Option<f32>,
    /// YaRN: what queries and keys are multiplied by besides YaRN's own factor [default: 1]
    #[arg(long, help_heading = "Metadata", value_name = "N", allow_negative_numbers = true)]
    pub yarn_attn_factor: Option<f32>,
    /// YaRN: pairs that turn more often than this over the original context keep their frequency [default: 32]
    #[arg(long, help_heading = "Metadata", value_name = "N", allow_negative_numbers = true)]
    pub yarn_beta_fast: Option<f32>,
    /// YaRN: pairs that turn less often than this over the original context are scaled [default: 1]
    #[arg(long, help_heading = "Metadata", value_name = "N", allow_negative_numbers = true)]
    pub yarn_beta_slow: Option<f32>,
}

impl OverrideArgs {
    /// Changes the metadata of an open file.
    ///
    /// # Errors
    /// As [`RopeOverrides::apply`] and [`Gguf::set_metadata`].
    pub fn apply(&self, gguf: &mut Gguf) -> Result<()> {
        for KeyValue { key, value } in self.override_kv.iter().flat_map(|KeyValues(pairs)| pairs) {
            gguf.set_metadata(key, value)?;
        }
        let rope = RopeOverrides {
            scaling: self.rope_scaling,
            factor: self.rope_scale.or(self.rope_freq_scale.map(|scale| 1.0 / scale)),
            freq_base: self.rope_freq_base,
            // llama.cpp's 0 is "what the file says".
            original_context: self.yarn_orig_ctx.filter(|&tokens| tokens > 0),
            ext_factor: self.yarn_ext_factor,
            attn_factor: self.yarn_attn_factor,
            beta_fast: self.yarn_beta_fast,
            beta_slow: self.yarn_beta_slow,
        };
        rope.apply(gguf)
    }
}

/// Keys with their new values, as one argument has them.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyValues(pub Vec<KeyValue>);

impl FromStr for KeyValues {
    type Err = String;

    /// Between commas. A backslash takes what follows it as it is, a comma or another backslash, as in llama.cpp.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut pairs = vec![String::new()];
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            let last = pairs.len() - 1;
            match character {
                ',' => pairs.push(String::new()),
                '\\' => pairs[last].push(characters.next().unwrap_or('\\')),
                _ => pairs[last].push(character),
            }
        }
        pairs.iter().map(|pair| pair.parse()).collect::<Result<_, _>>().map(Self)
    }
}

/// A key and its new value.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyValue {
    pub key: String,
    pub value: Value,
}

impl FromStr for KeyValue {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || format!("expected KEY=TYPE:VALUE with a type of int, float, bool or str, found {text:?}");
        let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(expected)?;
        let (kind, value) = value.split_once(':').ok_or_else(expected)?;
        let value = match kind {
            "int" => value.parse::<i64>().ok().map(Value::from),
            "float" => value.parse::<f64>().ok().map(Value::from),
            "bool" => value.parse::<bool>().ok().map(Value::from),
            "str" => Some(Value::from(value)),
            _ => None,
        };
        Ok(Self { key: key.to_owned(), value: value.ok_or_else(expected)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_a_type() {
        let parse = |text: &str| text.parse::<KeyValue>().map(|found| (found.key, found.value));
        let of = |key: &str, value: Value| Ok((key.to_owned(), value));
        assert_eq!(parse("a.b=int:-3"), of("a.b", Value::I64(-3)));
        assert_eq!(parse("a=float:1e6"), of("a", Value::F64(1e6)));
        assert_eq!(parse("a=bool:false"), of("a", Value::Bool(false)));
        assert_eq!(parse("a=str:x=y:z"), of("a", Value::from("x=y:z")));
        let pairs = |text: &str| text.parse::<KeyValues>().map(|KeyValues(pairs)| pairs);
        let pair = |key: &str, value: &str| KeyValue { key: key.into(), value: Value::from(value) };
        assert_eq!(pairs(r"a=str:x\,y,b=str:\\z\"), Ok(vec![pair("a", "x,y"), pair("b", r"\z\")]));
        assert!(pairs("a=str:x,y").unwrap_err().contains("found \"y\""));
        for bad in ["a", "a=3", "=int:3", "a=int:x", "a=bool:1", "a=u32:1"] {
            assert!(parse(bad).unwrap_err().contains("KEY=TYPE:VALUE"), "{bad}");
        }
    }
}

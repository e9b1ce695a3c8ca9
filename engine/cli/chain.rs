//! The flags of samplers beside the usual ones.

use crate::sampler::{Dry, Mirostat, SamplerChain, SamplerKind};
use clap::Args;
use std::str::FromStr;
use std::sync::Arc;

/// llama.cpp's flags of further samplers, with its meaning and defaults. The host draws where one of them is on.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Further samplers")]
pub struct ChainArgs {
    /// The samplers in their order, separated by semicolons; those that are left out are off
    #[arg(
        long,
        value_name = "NAMES",
        default_value = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"
    )]
    samplers: Order,
    /// Keep the tokens whose surprise is nearest to what is expected, up to this sum of probabilities; 1 is off
    #[arg(
        long = "typical-p",
        alias = "typical",
        default_value_t = 1.0,
        value_name = "P",
        allow_negative_numbers = true
    )]
    typical_p: f32,
    /// Keep logits at most N standard deviations below the largest; 0 and less is off
    #[arg(long = "top-nsigma", alias = "top-n-sigma", default_value_t = -1.0, value_name = "N", allow_negative_numbers = true)]
    top_n_sigma: f32,
    /// How often the likeliest tokens are left out; 0 is off
    #[arg(long, default_value_t = 0.0, value_name = "P", allow_negative_numbers = true)]
    xtc_probability: f32,
    /// Which of them: all but the least likely with at least this probability; above 0.5 is off
    #[arg(long, default_value_t = 0.1, value_name = "P", allow_negative_numbers = true)]
    xtc_threshold: f32,
    /// Move the temperature by so much either way with the entropy; 0 is off
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    dynatemp_range: f32,
    /// How the temperature follows the entropy
    #[arg(long = "dynatemp-exp", default_value_t = 1.0, value_name = "X", allow_negative_numbers = true)]
    dynatemp_exponent: f32,
    /// Make tokens less likely that go on with a repetition (DRY): MULTIPLIER * base ^ (length - allowed length); 0 is off
    #[arg(long, default_value_t = 0.0, value_name = "MULTIPLIER", allow_negative_numbers = true)]
    dry_multiplier: f32,
    #[arg(long, default_value_t = 1.75, value_name = "BASE", allow_negative_numbers = true)]
    dry_base: f32,
    /// Repetitions up to this length cost nothing
    #[arg(long, default_value_t = 2, value_name = "TOKENS", allow_negative_numbers = true)]
    dry_allowed_length: i32,
    /// How many of the last tokens DRY looks at; 0 none, -1 the whole context
    #[arg(long, default_value_t = -1, value_name = "N", allow_negative_numbers = true)]
    dry_penalty_last_n: i32,
    /// Nothing is repeated across a token that has this text; takes the place of line break, colon, quotation mark and asterisk; `none`
    /// for no text
    #[arg(long = "dry-sequence-breaker", value_name = "TEXT")]
    dry_sequence_breakers: Vec<String>,
    /// 2 keeps the surprise of tokens near --mirostat-ent, in the place of all samplers but the temperature; 0 is off
    #[arg(long, default_value_t = 0, value_name = "0|2", value_parser = mirostat)]
    mirostat: u8,
    /// The surprise that is aimed at, in bits
    #[arg(long = "mirostat-ent", default_value_t = 5.0, value_name = "BITS", allow_negative_numbers = true)]
    mirostat_tau: f32,
    /// How fast its bound follows
    #[arg(long = "mirostat-lr", default_value_t = 0.1, value_name = "X", allow_negative_numbers = true)]
    mirostat_eta: f32,
    /// Add to a token's logit: 15043+1 or 15043-1.5; 15043-inf bans it. May be given several times
    #[arg(short = 'l', long = "logit-bias", value_name = "ID+BIAS")]
    logit_bias: Vec<Bias>,
}

impl ChainArgs {
    /// What they ask for; `None` where a device may draw.
    pub fn chain(&self) -> Option<Arc<SamplerChain>> {
        let sequence_breakers = match self.dry_sequence_breakers.as_slice() {
            [] => Dry::default().sequence_breakers,
            [none] if none == "none" => Vec::new(),
            texts => texts.iter().map(|text| text.replace("\\n", "\n")).collect(),
        };
        let chain = SamplerChain {
            order: self.samplers.0.clone(),
            typical_p: self.typical_p,
            top_n_sigma: self.top_n_sigma,
            xtc_probability: self.xtc_probability,
            xtc_threshold: self.xtc_threshold,
            dynatemp_range: self.dynatemp_range,
            dynatemp_exponent: self.dynatemp_exponent,
            dry: Dry {
                multiplier: self.dry_multiplier,
                base: self.dry_base,
                allowed_length: self.dry_allowed_length,
                last_n: self.dry_penalty_last_n,
                sequence_breakers,
            },
            mirostat: (self.mirostat == 2)
                .then_some(Mirostat { tau: self.mirostat_tau, eta: self.mirostat_eta }),
            logit_bias: self.logit_bias.iter().map(|bias| (bias.token, bias.bias)).collect(),
        };
        // Values without meaning are kept, so that they are refused.
        if chain.fault().is_some() { Some(Arc::new(chain)) } else { chain.if_needed() }
    }
}

fn mirostat(text: &str) -> Result<u8, String> {
    match text {
        "0" => Ok(0),
        "2" => Ok(2),
        "1" => Err("expected 0 or 2: the first version of Mirostat is not there".to_owned()),
        _ => Err("expected 0 or 2".to_owned()),
    }
}

/// Samplers in their order.
#[derive(Clone, Debug)]
struct Order(Vec<SamplerKind>);

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = text.split(';').filter(|name| !name.trim().is_empty());
        names.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// What is added to a token's logit.
#[derive(Clone, Copy, Debug)]
struct Bias {
    token: u32,
    bias: f32,
}

impl FromStr for Bias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || format!("expected a token's id, + or -, and a number, such as 15043-1.5; found `{text}`");
        let sign = text.find(['+', '-']).ok_or_else(expected)?;
        let token = text[..sign].trim().parse().map_err(|_| expected())?;
        let bias = text[sign..].trim().parse().map_err(|_| expected())?;
        Ok(Self { token, bias })
    }
}

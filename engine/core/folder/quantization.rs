//! How `config.json` says that weights are quantised.

use super::grouped::Layout;
use super::json::Fields;
use crate::error::Result;

/// Side of the blocks of FP8 that have a scale, where a file does not say.
const FP8_BLOCK: usize = 128;

/// What is known of quantised weights before they are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quantization {
    /// Rows and columns of a block of FP8.
    pub fp8_block: [usize; 2],
    /// How integers are laid out, where there are any.
    pub layout: Option<Layout>,
}

impl Quantization {
    /// What the configuration of a model says; ways that are not read are refused by their names.
    pub(super) fn new(config: &Fields) -> Result<Self> {
        let plain = Self { fp8_block: [FP8_BLOCK; 2], layout: None };
        let Some(fields) = config.object("quantization_config")? else { return Ok(plain) };
        let method = fields.string("quant_method")?.unwrap_or("nothing");
        let format = fields.string("format")?;
        let layout = match (method, format) {
            ("fp8", _) | ("compressed-tensors", Some("float-quantized")) => {
                return Ok(Self { fp8_block: fp8_block(&fields)?, ..plain });
            }
            ("gptq", _) => gptq(&fields)?,
            ("awq", _) => awq(&fields)?,
            ("compressed-tensors", Some("pack-quantized")) => packed(&fields)?,
            ("compressed-tensors", Some("int-quantized")) => Layout::Bytes,
            ("compressed-tensors", other) => {
                return Err(fields.invalid(
                    "format",
                    format!("{:?}", other.unwrap_or("nothing")),
                    "\"pack-quantized\", \"int-quantized\" or \"float-quantized\"",
                ));
            }
            _ => {
                return Err(fields.invalid(
                    "quant_method",
                    format!("{method:?}"),
                    "\"gptq\", \"awq\", \"compressed-tensors\" or \"fp8\": take the model in one of those, in 16 bits, or as a GGUF file",
                ));
            }
        };
        Ok(Self { layout: Some(layout), ..plain })
    }
}

fn gptq(fields: &Fields) -> Result<Layout> {
    let bits = bits(fields, &["bits"], &[4, 8])?;
    match fields.string("checkpoint_format")? {
        None | Some("gptq") => Ok(Layout::Gptq { bits, is_one_less: true }),
        Some("gptq_v2") => Ok(Layout::Gptq { bits, is_one_less: false }),
        Some(other) => {
            Err(fields.invalid("checkpoint_format", format!("{other:?}"), "\"gptq\" or \"gptq_v2\""))
        }
    }
}

fn awq(fields: &Fields) -> Result<Layout> {
    bits(fields, &["bits", "w_bit"], &[4])?;
    match fields.string("version")? {
        None => Ok(Layout::Awq),
        Some(version) if version.eq_ignore_ascii_case("gemm") => Ok(Layout::Awq),
        Some(version) => Err(fields.invalid("version", format!("{version:?}"), "\"gemm\"")),
    }
}

/// Bits of an integer, by the first name that is there.
fn bits(fields: &Fields, names: &[&str], known: &[u64]) -> Result<u32> {
    let name = names.iter().find(|name| fields.get(name).is_some()).unwrap_or(&names[0]);
    let found = fields.require(name, Fields::integer)?;
    if !known.contains(&found) {
        let known = known.iter().map(u64::to_string).collect::<Vec<_>>().join(" or ");
        return Err(fields.invalid(name, found, &known));
    }
    // Fits: it is one of those.
    Ok(found as u32)
}

/// All groups of layers have one size of integers.
fn packed(fields: &Fields) -> Result<Layout> {
    let groups = fields.require("config_groups", Fields::object)?;
    let mut found = None;
    for name in groups.values.keys() {
        let weights = groups.require(name, Fields::object)?.require("weights", Fields::object)?;
        let bits = bits(&weights, &["num_bits"], &[4, 8])?;
        if found.is_some_and(|other| other != bits) {
            return Err(fields.invalid("config_groups", "of several `num_bits`", "one for all groups"));
        }
        found = Some(bits);
    }
    let none = || fields.invalid("config_groups", "empty", "a group with `weights`");
    Ok(Layout::Packed { bits: found.ok_or_else(none)? })
}

fn fp8_block(fields: &Fields) -> Result<[usize; 2]> {
    let Some(block) = fields.list("weight_block_size")? else { return Ok([FP8_BLOCK; 2]) };
    let sizes: Vec<_> =
        block.iter().filter_map(|size| size.as_u64().filter(|size| (1..=1 << 20).contains(size))).collect();
    match sizes[..] {
        [rows, cols] if block.len() == 2 => Ok([rows as usize, cols as usize]),
        _ => Err(fields.invalid("weight_block_size", format!("{block:?}"), "two sizes such as [128, 128]")),
    }
}

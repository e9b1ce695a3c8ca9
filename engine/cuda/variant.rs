//! Choosing one of the kernels that compute an operation: plain code on the CPU, without a device.

use crate::error::{Error, Result};
use cuda_std::launch::{Instance, Value};
use std::collections::BTreeMap;

/// One way to compute an operation whose case (shapes, dtypes) is a `C`.
pub struct Variant<C, F> {
    /// The last part of the kernels' names, and what `--kernel op=name` takes.
    pub name: &'static str,
    /// The entries that it launches, of each of its kernels.
    pub kernels: &'static [&'static [Instance]],
    /// `Err` says why this variant cannot compute the case.
    pub eligible: fn(&C) -> Result<(), &'static str>,
    /// Launches it.
    pub launch: F,
}

/// A table of variants `VARIANTS`, a line each: its name, its kernels, for which cases it is eligible, how it is launched. Fastest
/// first, one that computes every case last.
macro_rules! variants {
    ($(#[$doc:meta])* $case:ty, $launch:ty; $($name:tt [$($kernel:path),*]: $eligible:expr => $how:expr;)*) => {
        $(#[$doc])*
        #[allow(
            clippy::undocumented_unsafe_blocks,
            reason = "a launch is an unsafe function: its caller vouches for the case, and the table's closures pass that on"
        )]
        pub(super) const VARIANTS: &[$crate::variant::Variant<$case, $launch>] = &[$(
            $crate::variant::Variant {
                name: $name,
                kernels: &[$($kernel().instances()),*],
                eligible: $eligible,
                launch: $how,
            }
        ),*];

        /// What there is to know of the operation.
        pub(crate) fn operation() -> $crate::variant::Operation {
            $crate::variant::Operation::of(OP, VARIANTS)
        }
    };
}
pub(super) use variants;

/// The variant asked for, else the first that is eligible; tables list the fastest first and end with one that
/// computes every case.
///
/// # Errors
/// [`Error::Request`] if the one asked for does not exist or cannot compute the case, or none can.
pub fn select<'a, C, F>(
    op: &str,
    variants: &'a [Variant<C, F>],
    case: &C,
    asked: Option<&str>,
) -> Result<&'a Variant<C, F>> {
    if let Some(name) = asked {
        let variant = variants.iter().find(|variant| variant.name == name);
        let Some(variant) = variant else {
            return Err(Error::Request(format!("--kernel {op}={name}: there is no such variant")));
        };
        return match (variant.eligible)(case) {
            Ok(()) => Ok(variant),
            Err(why) => Err(Error::Request(format!("--kernel {op}={name} {CANNOT_RUN}: {why}"))),
        };
    }
    let mut reasons = Vec::new();
    for variant in variants {
        match (variant.eligible)(case) {
            Ok(()) => return Ok(variant),
            Err(why) => reasons.push(format!("{}: {why}", variant.name)),
        }
    }
    Err(Error::Request(format!("no kernel for {op} {CANNOT_RUN}: {}", reasons.join("; "))))
}

/// Marks the error of a variant that exists but is not eligible.
const CANNOT_RUN: &str = "cannot run here";

/// The error of a case that no variant of `op` can compute on this device.
pub fn ineligible(op: &str, why: &str) -> Error {
    Error::Request(format!("no kernel for {op} {CANNOT_RUN}: {why}"))
}

/// Whether `error` says that a variant exists but cannot compute the case. Tests that go through all variants skip
/// such cases.
pub fn is_ineligible(error: &Error) -> bool {
    matches!(error, Error::Request(text) if text.contains(CANNOT_RUN))
}

/// Names that operations have elsewhere, and where those lead: for `lab` and `--kernel`.
pub const ALIASES: [(&str, &str); 6] = [
    ("gqa_attention", "attention"),
    ("rmsnorm", "rms_norm"),
    ("qk_norm", "bias_rope_kv"),
    ("rope", "bias_rope_kv"),
    ("sampling", "sample"),
    ("swiglu", "silu_mul"),
];

/// The name of the operation that `name` means: of one of that name, else what an alias leads to, else `name` itself.
pub fn operation_name(name: &str) -> &str {
    if super::operations().iter().any(|op| op.name == name) {
        return name;
    }
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, op)| op)
}

/// The variants asked for by name: `--kernel rms_norm=plain,matmul=plain`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelChoice(BTreeMap<&'static str, &'static str>);

impl KernelChoice {
    /// Reads `op=variant` pairs separated by commas; later ones win.
    ///
    /// # Errors
    /// [`Error::Request`] that lists what exists.
    pub fn parse(text: &str) -> Result<Self> {
        let mut choice = Self::default();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let Some((op, variant)) = pair.split_once('=') else {
                return Err(Error::Request(format!("--kernel takes op=variant, not {pair:?}")));
            };
            choice.set(op.trim(), variant.trim())?;
        }
        Ok(choice)
    }

    /// Asks for `variant` of `op`.
    ///
    /// # Errors
    /// [`Error::Request`] that lists what exists.
    pub fn set(&mut self, op: &str, variant: &str) -> Result<()> {
        let all = super::kernels();
        let named = operation_name(op);
        let Some((op, variants)) = all.iter().find(|(name, _)| *name == named) else {
            let ops: Vec<_> = all.iter().map(|(name, _)| *name).collect();
            return Err(Error::Request(format!("--kernel {op}: the operations are {}", ops.join(", "))));
        };
        let Some(variant) = variants.iter().find(|name| **name == variant) else {
            return Err(Error::Request(format!(
                "--kernel {op}={variant}: the variants are {}",
                variants.join(", ")
            )));
        };
        self.0.insert(op, variant);
        Ok(())
    }

    /// The variant of `op` that was asked for.
    pub fn get(&self, op: &str) -> Option<&'static str> {
        self.0.get(op).copied()
    }
}

/// An operation and the ways to compute it, for people and for the laboratory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub name: &'static str,
    /// In order of preference; never empty.
    pub variants: Vec<VariantInfo>,
    /// Whether `--kernel` takes its name: it has a table of variants.
    pub selectable: bool,
}

/// What is known of a variant without a case for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VariantInfo {
    pub name: &'static str,
    /// The kernels that it launches; empty where the operation puts others together.
    pub kernels: Vec<KernelInfo>,
}

/// A kernel of a variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    pub name: &'static str,
    /// The types that it was made for: its dtype, and that of its inputs where they are another (`bf16_f32`).
    pub dtype: String,
}

impl Operation {
    /// An operation with a table.
    pub(super) fn of<C, F>(name: &'static str, variants: &[Variant<C, F>]) -> Self {
        let info = |variant: &Variant<C, F>| VariantInfo::new(variant.name, variant.kernels);
        Self { name, variants: variants.iter().map(info).collect(), selectable: true }
    }

    /// An operation that there is one way to compute, called `plain`.
    pub(super) fn single(name: &'static str, kernels: &[&'static [Instance]]) -> Self {
        Self { name, variants: vec![VariantInfo::new("plain", kernels)], selectable: false }
    }

    /// A choice between ways to put operations together, which has no kernels of its own.
    pub(super) fn choice(name: &'static str, variants: &[&'static str]) -> Self {
        let info = |&name: &&'static str| VariantInfo { name, kernels: Vec::new() };
        Self { name, variants: variants.iter().map(info).collect(), selectable: true }
    }

    /// Whether it has kernels, or is a choice between ways to put operations together.
    pub fn has_kernels(&self) -> bool {
        self.variants.iter().any(|variant| !variant.kernels.is_empty())
    }

    /// The variant of that name.
    ///
    /// # Errors
    /// [`Error::Request`] that lists what exists.
    pub fn variant(&self, name: &str) -> Result<&VariantInfo> {
        self.variants.iter().find(|variant| variant.name == name).ok_or_else(|| {
            let names: Vec<_> = self.variants.iter().map(|variant| variant.name).collect();
            let op = self.name;
            Error::Request(format!("{op} has no variant {name:?}; the variants are {}", names.join(", ")))
        })
    }
}

impl VariantInfo {
    fn new(name: &'static str, kernels: &[&'static [Instance]]) -> Self {
        Self { name, kernels: kernels.iter().copied().flatten().map(KernelInfo::new).collect() }
    }

    /// Whether the kernel of that name is one of this variant's.
    pub fn launches(&self, kernel: &str) -> bool {
        self.kernels.iter().any(|own| own.name == kernel)
    }
}

impl KernelInfo {
    fn new(instance: &'static Instance) -> Self {
        let mut types: Vec<&str> = Vec::new();
        for value in instance.values {
            if let Value::Type(name) = value
                && !types.contains(name)
            {
                types.push(name);
            }
        }
        Self { name: instance.kernel.name, dtype: types.join("_") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpu_kernels::{convert, matmul};

    const TABLE: [Variant<usize, ()>; 2] = [
        Variant {
            name: "vec4",
            kernels: &[],
            eligible: |cols| if cols % 4 == 0 { Ok(()) } else { Err("cols is not a multiple of 4") },
            launch: (),
        },
        Variant { name: "plain", kernels: &[], eligible: |_| Ok(()), launch: () },
    ];

    #[test]
    fn the_first_eligible_variant_is_taken() {
        assert_eq!(select("op", &TABLE, &8, None).unwrap().name, "vec4");
        assert_eq!(select("op", &TABLE, &7, None).unwrap().name, "plain");
    }

    #[test]
    fn a_variant_asked_for_is_taken_or_refused_with_the_reason() {
        assert_eq!(select("op", &TABLE, &8, Some("plain")).unwrap().name, "plain");
        let error = select("op", &TABLE, &7, Some("vec4")).err().unwrap();
        assert!(is_ineligible(&error) && error.to_string().contains("multiple of 4"), "{error}");
        let error = select("op", &TABLE, &7, Some("vec8")).err().unwrap();
        assert!(!is_ineligible(&error), "{error}");
    }

    #[test]
    fn where_nothing_is_eligible_every_reason_is_given() {
        let error = select("op", &TABLE[..1], &7, None).err().unwrap();
        assert!(error.to_string().contains("vec4: cols is not a multiple of 4"), "{error}");
    }

    #[test]
    fn kernels_are_known_by_their_names_and_types() {
        let op = Operation::single("op", &[matmul::gemv().instances(), convert::split().instances()]);
        let plain = op.variant("plain").unwrap();
        let dtypes: Vec<_> = plain.kernels.iter().map(|kernel| kernel.dtype.as_str()).collect();
        assert_eq!(dtypes, ["f32", "f16", "bf16", "bf16_f32", "f32"]);
        assert!(plain.launches("matmul_bf16_f32_gemv") && plain.launches("split_f32_bf16_plain"));
        assert!(!plain.launches("matmul_bf16_f32_plain"));
        assert!(op.variant("vec8").unwrap_err().to_string().contains("plain"));
    }

    #[test]
    fn an_alias_leads_to_an_operation_that_can_be_chosen() {
        for (alias, op) in ALIASES {
            assert!(crate::kernels().iter().any(|(name, _)| *name == op), "{alias} leads to {op}");
            assert_eq!(operation_name(op), op);
        }
        assert_eq!(operation_name("swiglu"), "silu_mul");
        assert_eq!(operation_name("norm"), "norm");
        assert_eq!(
            KernelChoice::parse("rmsnorm=plain").unwrap(),
            KernelChoice::parse("rms_norm=plain").unwrap()
        );
    }

    #[test]
    fn choices_are_checked_against_the_tables() {
        let choice = KernelChoice::parse("rms_norm=plain, matmul=plain,").unwrap();
        assert_eq!(choice.get("rms_norm"), Some("plain"));
        assert_eq!(choice.get("matmul"), Some("plain"));
        assert_eq!(choice.get("add"), None);
        for (text, expected) in
            [("norm=plain", "rms_norm"), ("rms_norm=fast", "plain"), ("rms_norm", "op=variant")]
        {
            let error = KernelChoice::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}

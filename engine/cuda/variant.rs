//! Choosing one of the kernels that compute an operation: plain code on the CPU, without a device.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// One way to compute an operation whose case (shapes, dtypes) is a `C`.
pub struct Variant<C, F> {
    /// The last part of the kernels' names, and what `--kernel op=name` takes.
    pub name: &'static str,
    /// `Err` says why this variant cannot compute the case.
    pub eligible: fn(&C) -> Result<(), &'static str>,
    /// Launches it.
    pub launch: F,
}

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

/// Whether `error` says that a variant exists but cannot compute the case. Tests that go through all variants skip
/// such cases.
pub fn is_ineligible(error: &Error) -> bool {
    matches!(error, Error::Request(text) if text.contains(CANNOT_RUN))
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
        let Some((op, variants)) = all.iter().find(|(name, _)| *name == op) else {
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

/// Names of a table's variants, in order of preference.
pub(super) fn names<C, F>(variants: &[Variant<C, F>]) -> Vec<&'static str> {
    variants.iter().map(|variant| variant.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [Variant<usize, ()>; 2] = [
        Variant {
            name: "vec4",
            eligible: |cols| if cols % 4 == 0 { Ok(()) } else { Err("cols is not a multiple of 4") },
            launch: (),
        },
        Variant { name: "plain", eligible: |_| Ok(()), launch: () },
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

//! The kernels of this build: which there are on each architecture, and to which variant they belong.

use crate::cuda::{self, Operation, VariantInfo};

/// A kernel of one of the embedded PTX modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub name: String,
    /// The PTX targets whose module has it.
    pub targets: Vec<&'static str>,
}

/// Names of the entry points of a PTX module, in its order.
pub fn entries(ptx: &str) -> impl Iterator<Item = &str> {
    ptx.split(".entry ").skip(1).filter_map(entry_name)
}

/// The name at the beginning of what follows `.entry`.
pub fn entry_name(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '.')))?;
    Some(&text[..end])
}

/// Every kernel of the embedded modules, in the order of their names.
pub fn all() -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    for target in qernel_ptx::TARGETS {
        for name in entries(qernel_ptx::ptx(target).unwrap_or_default()) {
            match kernels.iter_mut().find(|kernel| kernel.name == name) {
                Some(kernel) => kernel.targets.push(target),
                None => kernels.push(Kernel { name: name.to_owned(), targets: vec![target] }),
            }
        }
    }
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    kernels
}

/// The kernels among `all` that a variant launches.
pub fn of_variant<'a>(all: &'a [Kernel], variant: &VariantInfo) -> Vec<&'a Kernel> {
    all.iter().filter(|kernel| variant.launches(&kernel.name)).collect()
}

/// The operation of that name.
///
/// # Errors
/// [`crate::Error::Request`] that lists what exists.
pub fn operation(name: &str) -> crate::Result<Operation> {
    let all = cuda::operations();
    let names: Vec<_> = all.iter().map(|op| op.name).collect();
    let missing = || {
        crate::Error::Request(format!(
            "there is no operation {name:?}; the operations are {}",
            names.join(", ")
        ))
    };
    all.iter().find(|op| op.name == name).cloned().ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_belongs_to_a_variant_and_every_variant_has_kernels() {
        let all = all();
        let operations = cuda::operations();
        let variants = || {
            operations
                .iter()
                .filter(|op| op.has_kernels())
                .flat_map(|op| op.variants.iter().map(move |v| (op.name, v)))
        };
        for kernel in &all {
            assert!(variants().any(|(_, v)| v.launches(&kernel.name)), "{} has no variant", kernel.name);
        }
        for (op, variant) in variants() {
            assert!(!of_variant(&all, variant).is_empty(), "{op}={} has no kernel", variant.name);
            for own in &variant.kernels {
                let found = all.iter().any(|kernel| kernel.name == own.name);
                assert!(found, "{op}={}: the PTX has no {}", variant.name, own.name);
            }
        }
    }

    #[test]
    fn an_unknown_operation_lists_the_known_ones() {
        let error = operation("norm").unwrap_err().to_string();
        assert!(error.contains("rms_norm") && error.contains("silu_mul"), "{error}");
    }
}

//! `lab list`: operations, variants, the kernels behind them and what the compiler made of each.

use super::table::Table;
use crate::cli::output::Output;
use crate::cuda;
use crate::error::Result;
use crate::lab::kernels::{self, Kernel};
use crate::lab::resources::{Facts, Source};
use serde::Serialize;
use std::process::ExitCode;

/// List operations, their variants in order of preference, and the kernels behind each with registers, shared memory,
/// spills and occupancy
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// The operation, or all
    #[arg(default_value = "all", value_parser = super::op_name)]
    op: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct List {
    /// Why facts are missing, null where none is.
    missing: Option<&'static str>,
    operations: Vec<Operation>,
}

#[derive(Serialize)]
struct Operation {
    name: &'static str,
    /// Other names that it may be asked for by.
    aliases: Vec<&'static str>,
    /// Whether `--kernel` takes it.
    selectable: bool,
    /// In order of preference.
    variants: Vec<Variant>,
}

#[derive(Serialize)]
struct Variant {
    name: &'static str,
    kernels: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    name: String,
    /// `bf16`, or `bf16_f32` where inputs have another format than weights.
    dtype: String,
    /// The architectures that it is compiled for: it runs on those and, but for `sm_90a`, on later ones.
    targets: Vec<&'static str>,
    /// Threads of a block that it is compiled for, null where it does not say.
    max_threads: Option<u32>,
    facts: Vec<Facts>,
}

pub(super) fn run(args: ListArgs) -> Result<ExitCode> {
    let operations = match args.op.as_str() {
        "all" => cuda::operations(),
        name => vec![kernels::operation(name)?],
    };
    let (all, source) = (kernels::all(), Source::find());
    let entry = |variant: &cuda::VariantInfo, kernel: &Kernel| Entry {
        name: kernel.name.clone(),
        dtype: variant
            .kernels
            .iter()
            .find(|own| own.name == kernel.name)
            .map(|own| own.dtype.clone())
            .unwrap_or_default(),
        targets: kernel.targets.clone(),
        max_threads: kernel.targets.first().and_then(|target| source.max_threads(&kernel.name, target)),
        facts: source.facts(kernel),
    };
    let operations = operations
        .iter()
        .map(|op| Operation {
            name: op.name,
            aliases: aliases(op.name),
            selectable: op.selectable,
            variants: op
                .variants
                .iter()
                .map(|variant| Variant {
                    name: variant.name,
                    kernels: kernels::of_variant(&all, variant)
                        .into_iter()
                        .map(|kernel| entry(variant, kernel))
                        .collect(),
                })
                .collect(),
        })
        .collect();
    let list = List { missing: source.missing(), operations };
    let mut out = Output::stdout();
    if args.json {
        out.json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    out.text(&table(&list).to_string())?;
    out.line("\nVariants are in order of preference: the first that can compute a case does.")?;
    let aliases: Vec<String> = list
        .operations
        .iter()
        .flat_map(|op| op.aliases.iter().map(|alias| format!("{alias} for {}", op.name)))
        .collect();
    if !aliases.is_empty() {
        out.line(&format!("Other names: {}.", aliases.join(", ")))?;
    }
    if let Some(missing) = list.missing {
        out.line(&format!("Registers, memory and occupancy are {missing}."))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What else leads to the operation.
fn aliases(op: &str) -> Vec<&'static str> {
    let leads_there = |alias: &&str| cuda::operation_name(alias) == op;
    cuda::ALIASES.iter().map(|(alias, _)| *alias).filter(leads_there).filter(|alias| *alias != op).collect()
}

fn table(list: &List) -> Table {
    let mut table = Table::new(&[
        "operation",
        "variant",
        "dtype",
        "<kernel",
        "<target",
        "registers",
        "shared B",
        "local B",
        "spilled B",
        "threads",
        "blocks/SM",
        "occupancy",
    ]);
    for op in &list.operations {
        for variant in &op.variants {
            for kernel in &variant.kernels {
                for &target in &kernel.targets {
                    let facts = kernel.facts.iter().find(|facts| facts.target == target);
                    let number = |get: fn(&Facts) -> String| facts.map_or("?".to_owned(), get);
                    table.row([
                        op.name.to_owned(),
                        variant.name.to_owned(),
                        kernel.dtype.clone(),
                        kernel.name.clone(),
                        target.to_owned(),
                        number(|facts| facts.resources.registers.to_string()),
                        number(|facts| facts.resources.shared_bytes.to_string()),
                        number(|facts| facts.resources.local_bytes.to_string()),
                        number(|facts| {
                            facts.resources.spill_bytes.map_or("?".to_owned(), |bytes| bytes.to_string())
                        }),
                        kernel.max_threads.map_or("any".to_owned(), |threads| threads.to_string()),
                        number(|facts| facts.resources.blocks_per_multiprocessor.to_string()),
                        number(|facts| format!("{:.0} %", facts.occupancy * 100.0)),
                    ]);
                }
            }
        }
    }
    table
}

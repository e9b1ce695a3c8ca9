//! `lab new`: the beginning of a variant.

use crate::cli::output::Output;
use crate::error::Result;
use crate::lab::new_variant;
use crate::lab::source::Checkout;
use std::process::ExitCode;

/// Write a new variant of an operation, a copy of another one, registered and ready to be changed
#[derive(Debug, clap::Args)]
pub struct NewArgs {
    /// The operation (`lab list` has the names)
    #[arg(value_parser = super::op_name)]
    op: String,
    /// Name of the new variant, of its function and a part of its kernels' names
    variant: String,
    /// The variant to copy
    #[arg(long, default_value = "plain", value_name = "VARIANT")]
    from: String,
}

pub(super) fn run(args: NewArgs) -> Result<ExitCode> {
    let checkout = Checkout::find()?;
    let new = new_variant::plan(&checkout, &args.op, &args.variant, &args.from)?;
    new.write()?;
    let NewArgs { op, variant, from } = args;
    let [kernels, wrapper] = [&new.kernels, &new.wrapper].map(|(path, _)| checkout.short(path));
    let mut out = Output::stdout();
    out.text(&format!(
        "\
{kernels}  has a function {variant}, a copy of {from}: change it
{wrapper}  has a line for {variant}: where it is eligible, how it is launched; moved up in the table it becomes the default

Next:
    cargo build --release
    target/release/qernel lab check {op} --variant {variant}
    target/release/qernel lab bench {op}
    target/release/qernel lab watch {op} --variant {variant}
"
    ))?;
    Ok(ExitCode::SUCCESS)
}

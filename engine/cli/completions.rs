//! `qernel completions`: a completion script for a shell.

use super::{Cli, output::Output};
use crate::error::Result;
use clap::CommandFactory;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell to complete in
    shell: clap_complete::Shell,
}

/// Writes the script to standard output.
pub fn run(args: CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "qernel", &mut script);
    Output::stdout().bytes(&script)
}

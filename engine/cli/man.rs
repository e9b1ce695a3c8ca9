//! `qernel man`: manual pages, for whoever makes a package.

use super::Cli;
use crate::disk;
use crate::error::{Error, Result};
use clap::{Command, CommandFactory};
use std::path::{Path, PathBuf};

/// Write a manual page for the program and for each command
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct ManArgs {
    /// The folder for the pages
    folder: PathBuf,
}

/// Writes the pages: `qernel.1`, `qernel-serve.1`, `qernel-lab-bench.1`, …
///
/// # Errors
/// [`Error::Io`] if one cannot be written.
pub fn run(args: ManArgs) -> Result<()> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    write(&command, &args.folder)
}

fn write(command: &Command, folder: &Path) -> Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let path = folder.join(format!("{name}.1"));
    disk::save(&path, None, |out| {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(command.clone()).render(&mut page);
        rendered.and_then(|()| out.write_all(&page)).map_err(|error| Error::io(&path, error))
    })?;
    let mut shown = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    shown.try_for_each(|subcommand| write(subcommand, folder))
}

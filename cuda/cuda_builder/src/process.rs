//! Running other programs.

use std::process::{Command, Output};

use crate::Error;

/// Runs `command` to its end and captures what it printed.
pub(crate) fn output(command: &mut Command) -> Result<Output, Error> {
    command.output().map_err(|source| Error::Command {
        command: command.get_program().to_string_lossy().into_owned(),
        source,
    })
}

/// Standard output of `command` if it succeeded, else the last line of what it said.
pub(crate) fn stdout(command: &mut Command) -> Result<String, String> {
    let output = output(command).map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let program = command.get_program().to_string_lossy();
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(format!("`{program}` failed ({}): {}", output.status, last.trim()))
}

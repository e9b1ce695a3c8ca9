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

/// Standard output of `command` if it succeeded, else the line of what it said that names the error.
pub(crate) fn stdout(command: &mut Command) -> Result<String, String> {
    let output = output(command).map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let program = command.get_program().to_string_lossy();
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{program}` failed ({}): {}", output.status, error_line(&said)))
}

/// The last line that is marked as an error, as rustup and apt do, or else the last line.
fn error_line(said: &str) -> &str {
    let marked = |line: &&str| line.starts_with("error") || line.starts_with("E:");
    let line = said.lines().rev().find(marked);
    line.or_else(|| said.lines().rev().find(|line| !line.trim().is_empty()))
        .unwrap_or("it said nothing")
        .trim()
}

#[cfg(test)]
mod tests {
    use super::error_line;

    #[test]
    fn the_line_that_names_the_error_is_picked() {
        assert_eq!(
            error_line("info: x\nerror: download failed\nCaused by:\n  0: dns\n"),
            "error: download failed"
        );
        assert_eq!(error_line("Reading lists\nE: No packages found\n"), "E: No packages found");
        assert_eq!(error_line("one\n two \n\n"), "two");
        assert_eq!(error_line(""), "it said nothing");
    }
}

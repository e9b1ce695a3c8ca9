//! The program: runs the command line and turns its result into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    match qernel::cli::run() {
        Ok(code) => code,
        Err(qernel::Error::ClosedPipe) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qernel: {error}");
            error.exit_code()
        }
    }
}

//! The program: runs the command line and turns its result into an exit code.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use qernel::cli::{out_of_memory, output};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: out_of_memory::Allocator = out_of_memory::Allocator;

fn main() -> ExitCode {
    out_of_memory::install();
    match qernel::cli::run() {
        Ok(code) => code,
        Err(qernel::Error::ClosedPipe) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(output::message(&error).trim_end());
            error.exit_code()
        }
    }
}

/// Runs before the standard library opens something else in the place of a closed standard output.
#[cfg(target_os = "linux")]
#[used]
// SAFETY: the section holds pointers to functions of this type, which the C library calls once before `main`.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn look_at_stdout() {
        // SAFETY: asking for a descriptor's flags changes nothing; one that is not open is an error.
        let is_closed = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1;
        output::STDOUT_IS_CLOSED.store(is_closed, std::sync::atomic::Ordering::Relaxed);
    }
    look_at_stdout
};

//! Runs steps of docs/kernels.md under emulation: `cargo run --release -p example_kernels_steps -- reverse`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    if names.is_empty() {
        println!("Give one or several of these names: {}", example_kernels_steps::names().join(" "));
    }
    for name in names {
        let Some(text) = example_kernels_steps::run(&name) else {
            let names = example_kernels_steps::names().join(" ");
            eprintln!("error: expected a step, one of {names}; found {name:?}");
            return ExitCode::from(2);
        };
        println!("{text}");
    }
    ExitCode::SUCCESS
}

//! Checks the kernels of `example_kernels` and the steps towards them (docs/kernels.md) against their references: on a GPU if there
//! is one, where the kernels are then timed beside cuBLAS, or else under emulation. A kernel that lacks a barrier shows what the
//! emulator finds.
//!
//! `cargo run --release -p example_kernels_host [-- --emulated]`

mod cases;
mod cublas;
mod gpu;

use cases::Case;
use cublas::Cublas;
use cuda_std::emulation::{Emulator, Options};
use example_kernels_steps::machine::Machine;
use gpu::{Gpu, Peaks};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(std::env::args().any(|argument| argument == "--emulated")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(emulated: bool) -> Result<(), String> {
    let emulator = Emulator::new(Options::default());
    if emulated {
        println!("Under emulation:");
        check(&emulator)?;
    } else {
        match Gpu::open() {
            Ok(gpu) => {
                let peaks = gpu.peaks().map_err(|error| error.to_string())?;
                println!("On {}:", peaks.name);
                check(&gpu)?;
                time(&gpu, &peaks)?;
            }
            Err(error) => {
                println!("No GPU ({error}), so under emulation:");
                check(&emulator)?;
            }
        }
    }
    match cases::race(&emulator) {
        Ok(()) => Err("the emulator did not notice that a barrier is missing".into()),
        Err(report) => {
            println!("\nsum_without_barrier, under emulation:\n  {report}");
            Ok(())
        }
    }
}

fn check<M: Machine>(machine: &M) -> Result<(), String> {
    for case in cases::small(machine).map_err(|error| error.to_string())? {
        let worst = case.check(machine)?;
        println!("  {:20} {:16} within {worst:.2} of what roundings explain", case.name, sizes(&case));
    }
    for step in example_kernels_steps::right::<M>() {
        let outcome = (step.run)(machine).map_err(|error| error.to_string())?;
        if !outcome.is_right {
            return Err(format!("{}: {}", step.name, outcome.text));
        }
        println!("  {:20} {}", step.name, outcome.text);
    }
    Ok(())
}

fn sizes<M: Machine>(case: &Case<M>) -> String {
    case.size.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ")
}

/// What stops each kernel at best, memory or arithmetic, and how near it comes.
fn time(gpu: &Gpu, peaks: &Peaks) -> Result<(), String> {
    let fault = |error: cust::error::CudaError| error.to_string();
    let library = Cublas::open(gpu);
    println!("\n  {:20} {:20} {:>9} {:>14} {:>9} {:>9}", "", "", "µs", "", "roofline", "cuBLAS µs");
    for case in cases::large(gpu).map_err(fault)? {
        let seconds = gpu.seconds(|| (case.launch)(gpu)).map_err(fault)?;
        let (bytes, operations) = (case.cost.bytes as f64, case.cost.operations as f64);
        let peak = if case.cost.on_tensor_cores { peaks.tensor_cores } else { peaks.f32 };
        let arithmetic = peak.map(|peak| operations / peak);
        let floor = arithmetic.map(|arithmetic| arithmetic.max(bytes / peaks.bandwidth));
        let rate = if arithmetic.is_some_and(|arithmetic| arithmetic > bytes / peaks.bandwidth) {
            format!("{:.1} TFLOP/s", operations / seconds / 1e12)
        } else {
            format!("{:.0} GB/s", bytes / seconds / 1e9)
        };
        let share = floor.map_or("-".into(), |floor| format!("{:.0} %", 100.0 * floor / seconds));
        let other = match (&library, &case.library) {
            (Some(library), Some(call)) => {
                let run = || library.run(call).map_err(Fault);
                format!("{:.1}", 1e6 * gpu.seconds(run).map_err(|Fault(error)| error)?)
            }
            _ => "-".into(),
        };
        println!(
            "  {:20} {:20} {:9.1} {rate:>14} {share:>9} {other:>9}",
            case.name,
            sizes(&case),
            1e6 * seconds
        );
    }
    if library.is_none() {
        println!("  (cuBLAS is not installed)");
    }
    Ok(())
}

/// Why something could not be timed.
struct Fault(String);

impl From<cust::error::CudaError> for Fault {
    fn from(error: cust::error::CudaError) -> Self {
        Self(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_std::emulation::Defect;

    #[test]
    fn kernels_agree_with_their_references_under_emulation() {
        let emulator = Emulator::new(Options::default());
        for case in cases::small(&emulator).unwrap() {
            let worst = case.check(&emulator).unwrap();
            assert!(worst <= 1.0, "{}: {worst}", case.name);
        }
    }

    #[test]
    fn the_emulator_names_the_race_its_file_and_its_kernel() {
        for seed in 0..4 {
            let report = cases::race(&Emulator::new(Options { seed, ..Options::default() })).unwrap_err();
            assert_eq!(report.defect, Defect::Race, "{report}");
            assert_eq!(report.kernel, "sum_without_barrier");
            assert!(report.file.ends_with("sum.rs"), "{report}");
        }
    }
}

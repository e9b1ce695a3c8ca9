//! The steps of docs/kernels.md: small inputs for each kernel of `example_kernels::steps`, its launch, and what must come out. The
//! inputs are whole numbers, so small that every sum is exact in any order: results are compared by `==`.

pub mod machine;
mod products;
mod right;
mod wrong;

use cuda_std::emulation::{Emulator, Options};
use cuda_std::launch::{LaunchConfig, Launcher};
use machine::Machine;
use std::fmt::Display;

/// What came of a launch.
pub struct Outcome {
    /// Whether it is what must come out.
    pub is_right: bool,
    /// It, or the first value that is wrong, in words.
    pub text: String,
}

/// A kernel with its inputs, run on a machine.
pub struct Step<M: Machine> {
    /// That of the kernel, or of a mistake in its launch.
    pub name: &'static str,
    /// Runs it.
    pub run: fn(&M) -> Result<Outcome, <M as Launcher>::Error>,
}

/// The names of all steps, those first that are right.
#[must_use]
pub fn names() -> Vec<&'static str> {
    right::steps::<Emulator>().iter().chain(&wrong::steps()).map(|step| step.name).collect()
}

/// The steps that are right on every machine.
#[must_use]
pub fn right<M: Machine>() -> Vec<Step<M>> {
    right::steps()
}

/// Runs a step under emulation and says what came of it, the same each time: on one core blocks come in a fixed order. `None` where
/// there is no step of that name.
#[must_use]
pub fn run(name: &str) -> Option<String> {
    let step = right::steps().into_iter().chain(wrong::steps()).find(|step| step.name == name)?;
    let said = || match (step.run)(&Emulator::new(Options::default())) {
        Ok(Outcome { text, .. }) => format!("{name}: {text}"),
        Err(report) => report.to_string(),
    };
    Some(match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
        Ok(pool) => pool.install(said),
        Err(error) => format!("{name}: expected a thread to run on, found: {error}"),
    })
}

/// A 1-d grid of `blocks` blocks of `threads` threads.
const fn grid(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0 }
}

/// `count` whole numbers from -8 to 8.
fn whole(count: usize) -> Vec<f32> {
    (0..count).map(|i| (5 * i % 17) as f32 - 8.0).collect()
}

/// Compares a result with what must come out.
fn compare<T: PartialEq + Display>(found: &[T], expected: &[T]) -> Outcome {
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        Some(i) => Outcome {
            is_right: false,
            text: format!("value {i} is {}, and {} was expected", found[i], expected[i]),
        },
        None => Outcome { is_right: true, text: format!("{} values, all right", expected.len()) },
    }
}

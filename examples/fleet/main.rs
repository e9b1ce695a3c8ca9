//! What fleets of GPUs do under load, simulated from step times that were measured: where turns of conversations go, what prefixes are
//! worth, and prompts computed apart from answers. docs/scale-out.md has what comes of it.
//!
//! ```text
//! cargo run --release --example fleet -- --svg docs/images/fleet.svg
//! ```
//!
//! The same numbers come out whenever it runs. `cargo test --release --example fleet` holds it against queueing theory.

mod numbers;
mod plot;
mod scenario;
mod simulation;
#[cfg(test)]
mod tests;

use plot::{Line, plot};
use scenario::{Gpu, Routing, Scenario, Workload};
use simulation::{Outcome, simulate};
use std::process::ExitCode;

/// Qwen2.5 7B in bf16 on an H200.
const SEVEN_B: Gpu = Gpu {
    // docs/performance.md, "Two to eight sequences".
    decode: &[(1.0, 3.738e-3), (2.0, 3.901e-3), (4.0, 4.0e-3), (8.0, 4.33e-3)],
    // Assumed: what 0.5B's steps grow by from 8 to 64 sequences (567 to 960 µs), whose products hide behind the weights likewise.
    sequence: 7.0e-6,
    // K and V of 28 layers, 4 heads of 128 values in 16 bits, at the 4.35 TB/s that were measured.
    context_token: KV_BYTES / 4.35e12,
    // docs/performance.md: 45.5 ms for 2,048.
    prompt_token: 45.5e-3 / 2048.0,
    chunk: 8192,
    max_sequences: 64,
    // 90 % of 139 GiB without weights and workspace.
    kv_tokens: 2_000_000,
};
const KV_BYTES: f64 = 2.0 * 28.0 * 4.0 * 128.0 * 2.0;
/// 400 Gbit/s a GPU, of which four fifths are had.
const NETWORK: f64 = 40e9;

/// Assistants: conversations of five turns behind a system message.
fn conversations(turns_per_second: f64) -> Workload {
    Workload {
        turns_per_second,
        turns: 5.0,
        think: 20.0,
        systems: 50,
        system_tokens: 1000,
        user_tokens: 150.0,
        answer_tokens: 250.0,
    }
}

/// A fleet whose GPUs get so many turns a second each.
fn fleet(gpus: usize, load: f64) -> Scenario {
    Scenario {
        gpu: SEVEN_B,
        gpus,
        prefill_gpus: 0,
        routing: Routing::Prefix(f64::INFINITY),
        network_token: None,
        workload: conversations(load * gpus as f64),
        cold: false,
        warm_up: 150.0,
        end: 240.0,
        seed: 1,
    }
}

/// The ways that are compared.
fn ways(gpus: usize, load: f64) -> Vec<(&'static str, Scenario)> {
    let base = fleet(gpus, load);
    let network_token = Some(KV_BYTES / NETWORK);
    vec![
        ("any GPU", Scenario { routing: Routing::Random, ..base.clone() }),
        ("the less busy of two", Scenario { routing: Routing::TwoChoices, ..base.clone() }),
        ("by prefix, unless busier than most", Scenario { routing: Routing::Prefix(1.25), ..base.clone() }),
        ("by prefix, unless full", base.clone()),
        ("the same, pages by network", Scenario { network_token, ..base.clone() }),
        ("and prompts apart", Scenario { prefill_gpus: (gpus / 5).max(1), network_token, ..base }),
    ]
}

const HEAD: &str = "| | turns/s a GPU | first token, ms: p50 | p99 | next token, ms: p50 | p99.9 | prefix hits | turns at once |\n\
                    | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |";

fn row(name: &str, scenario: &Scenario, outcome: &Outcome) -> String {
    let gpu_seconds = (scenario.end - scenario.warm_up) * scenario.gpus as f64;
    let ms = |seconds: f64| format!("{:.*}", if seconds < 0.1 { 1 } else { 0 }, 1000.0 * seconds);
    format!(
        "| {name} | {:.1} | {} | {} | {} | {} | {:.0} % | {:.1} |",
        outcome.turn.count as f64 / gpu_seconds,
        ms(outcome.first_token.quantile(0.5)),
        ms(outcome.first_token.quantile(0.99)),
        ms(outcome.next_token.quantile(0.5)),
        ms(outcome.next_token.quantile(0.999)),
        100.0 * outcome.hit_tokens as f64 / outcome.prompt_tokens as f64,
        outcome.turn_seconds / gpu_seconds,
    )
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let svg = match (args.next().as_deref(), args.next()) {
        (None, None) => None,
        (Some("--svg"), Some(path)) => Some(path),
        _ => {
            eprintln!("expected nothing, or --svg FILE");
            return ExitCode::from(2);
        }
    };
    println!("Ten GPUs, each with the same load:\n\n{HEAD}");
    let loads: Vec<f64> = (1..=9).map(|step| 4.0 * f64::from(step)).collect();
    let mut lines: Vec<Line> = Vec::new();
    for load in &loads {
        for (place, (name, scenario)) in ways(10, *load).iter().enumerate() {
            let outcome = simulate(scenario);
            if lines.len() <= place {
                lines.push(Line { name, points: Vec::new() });
            }
            lines[place].points.push((*load, outcome.first_token.quantile(0.99)));
            if [8.0, 16.0, 24.0, 32.0].contains(load) {
                println!("{}", row(name, scenario, &outcome));
            }
        }
    }
    println!("\nFleets by size at 16 turns/s a GPU, and one that lost its caches:\n\n{HEAD}");
    for (name, scenario) in sizes() {
        println!("{}", row(name, &scenario, &simulate(&scenario)));
    }
    if let Some(path) = svg
        && let Err(error) = std::fs::write(&path, plot(&lines))
    {
        eprintln!("{path}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Larger ones are made of cells: what one of them does, all do.
fn sizes() -> Vec<(&'static str, Scenario)> {
    let load = 16.0;
    let any = |gpus| Scenario { routing: Routing::TwoChoices, ..fleet(gpus, load) };
    let cold = Scenario { cold: true, ..fleet(10, 20.0) };
    let network_token = Some(KV_BYTES / NETWORK);
    vec![
        ("10, less busy of two", any(10)),
        ("10, by prefix", fleet(10, load)),
        ("100, less busy of two", any(100)),
        ("100, by prefix", fleet(100, load)),
        ("10 at 20 turns/s", fleet(10, 20.0)),
        ("the same, caches lost", cold.clone()),
        ("the same, pages by network", Scenario { network_token, ..cold }),
    ]
}

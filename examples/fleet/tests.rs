//! The simulation against what queueing theory says.

use crate::scenario::{Gpu, Routing, Scenario, Workload};
use crate::simulation::simulate;

/// A sequence at a time, 100 ms a token, and a prompt that takes nothing.
const ONE: Gpu = Gpu {
    decode: &[(1.0, 0.1)],
    sequence: 0.0,
    context_token: 0.0,
    prompt_token: 0.0,
    chunk: u32::MAX,
    max_sequences: 1,
    kv_tokens: 1 << 40,
};
const SINGLE_TURNS: Workload = Workload {
    turns_per_second: 8.0,
    turns: 1.0,
    think: 1.0,
    systems: 1,
    system_tokens: 1,
    user_tokens: 1.0,
    answer_tokens: 10.0,
};

fn scenario(gpu: Gpu, gpus: usize, workload: Workload) -> Scenario {
    Scenario {
        gpu,
        gpus,
        prefill_gpus: 0,
        routing: Routing::Prefix(1.25),
        network_token: None,
        workload,
        cold: false,
        warm_up: 100.0,
        end: 4000.0,
        seed: 1,
    }
}

fn is_near(found: f64, expected: f64, tolerance: f64) -> bool {
    (found / expected - 1.0).abs() <= tolerance
}

/// Poisson arrivals, exponential times of a second, ten servers, one queue: M/M/10, of which Erlang's C formula tells the wait.
#[test]
fn a_single_queue_waits_as_erlang_says() {
    let (servers, load): (usize, f64) = (10, 8.0);
    let mut blocking = 1.0;
    for n in 1..=servers {
        blocking = load * blocking / (n as f64 + load * blocking);
    }
    let share = load / servers as f64;
    let waits = blocking / (1.0 - share * (1.0 - blocking));
    let expected = waits / (servers as f64 - load);
    assert!(
        is_near(expected, 0.2046, 0.001),
        "Erlang's C of ten servers and eight Erlangs is 0.409: {expected}"
    );
    // Times are whole tokens, 10 on the average: a little less random than exponential ones (Lee and Longton's correction).
    let expected = expected * (1.0 + 0.9) / 2.0;
    let outcome = simulate(&Scenario { end: 20_000.0, ..scenario(ONE, servers, SINGLE_TURNS) });
    // Of eight seeds the means were 0.183 to 0.219, 0.196 on the average: 6 % around it.
    assert!(is_near(outcome.wait.mean(), expected, 0.18), "{} and {expected}", outcome.wait.mean());
    assert!(is_near(outcome.busy / (20_000.0 - 100.0), load, 0.02), "{}", outcome.busy);
}

/// What is in the system, is what comes a second times how long it stays (Little's law); what is computed, is what was asked for.
#[test]
fn turns_and_tokens_are_all_accounted_for() {
    let gpu = Gpu {
        decode: &[(1.0, 0.05)],
        max_sequences: 16,
        prompt_token: 2e-5,
        context_token: 1e-8,
        sequence: 1e-4,
        chunk: 512,
        ..ONE
    };
    let workload = Workload {
        turns_per_second: 6.0,
        turns: 4.0,
        system_tokens: 300,
        user_tokens: 80.0,
        answer_tokens: 90.0,
        ..SINGLE_TURNS
    };
    for (prefill_gpus, network_token) in [(0, None), (0, Some(2e-6)), (1, Some(2e-6))] {
        let scenario = Scenario { prefill_gpus, network_token, ..scenario(gpu.clone(), 4, workload.clone()) };
        let outcome = simulate(&scenario);
        let seconds = scenario.end - scenario.warm_up;
        let (present, rate) = (outcome.turn_seconds / seconds, outcome.arrivals as f64 / seconds);
        assert!(
            is_near(present, rate * outcome.turn.mean(), 0.01),
            "{present} and {rate} × {}",
            outcome.turn.mean()
        );
        assert!(is_near(rate, 6.0, 0.05), "{rate}");
        let asked = outcome.prompt_tokens - outcome.hit_tokens;
        assert!(
            is_near(outcome.computed_prompt_tokens as f64, asked as f64, 0.01),
            "{} and {asked}",
            outcome.computed_prompt_tokens
        );
        assert!(
            is_near(outcome.answer_tokens as f64, outcome.turn.count as f64 * 90.0, 0.05),
            "{}",
            outcome.answer_tokens
        );
        assert!(outcome.first_token.mean() < outcome.turn.mean());
        assert_eq!(outcome.fetched_tokens > 0, network_token.is_some());
        let again = simulate(&scenario);
        assert_eq!(
            (again.turn.sum, again.next_token.sum),
            (outcome.turn.sum, outcome.next_token.sum),
            "the seed says all"
        );
    }
}

/// A conversation's own GPU knows its prefix; any of ten GPUs knows a tenth of them.
#[test]
fn prefixes_are_found_where_they_are() {
    let workload = Workload {
        turns_per_second: 2.0,
        turns: 10.0,
        system_tokens: 1,
        answer_tokens: 50.0,
        user_tokens: 50.0,
        ..SINGLE_TURNS
    };
    let gpu = Gpu { max_sequences: 64, ..ONE };
    let hits = |routing| {
        let outcome = simulate(&Scenario { routing, ..scenario(gpu.clone(), 10, workload.clone()) });
        outcome.hit_tokens as f64 / outcome.prompt_tokens as f64
    };
    let (own, any) = (hits(Routing::Prefix(1000.0)), hits(Routing::Random));
    // All but the user's newest message of 50 tokens, on the average.
    assert!(own > 0.9 && any < 0.6 * own, "{own} and {any}");
    let small = Gpu { kv_tokens: 0, ..gpu };
    let outcome = simulate(&Scenario { routing: Routing::Prefix(1000.0), ..scenario(small, 10, workload) });
    assert_eq!(outcome.fetched_tokens, 0);
    assert!(
        outcome.hit_tokens as f64 <= 0.02 * outcome.prompt_tokens as f64,
        "nothing is kept but system messages"
    );
}

#[test]
fn steps_lie_between_those_that_were_measured() {
    let gpu = Gpu {
        decode: &[(1.0, 1.0), (3.0, 2.0)],
        sequence: 0.5,
        context_token: 0.25,
        prompt_token: 0.125,
        ..ONE
    };
    assert_eq!([1, 2, 3, 5].map(|n| gpu.step(n, 0, 0)), [1.0, 1.5, 2.0, 3.0]);
    assert_eq!([gpu.step(1, 4, 8), gpu.step(0, 0, 4), gpu.step(0, 0, 80)], [3.0, 1.0, 10.0]);
}

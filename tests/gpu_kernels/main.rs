//! Every GPU kernel, in every format and variant, against references in f64: the tables of `engine/lab/cases/`; and in
//! `engine.rs` what the engine does around the launches.
//!
//! Run with `cargo test --release --features gpu-tests`. Without a device each test says that it was skipped.
#![cfg(feature = "gpu-tests")]

mod engine;
mod harness;

use harness::{device, max_work};
use qernel::lab::check::{CaseResult, verify};

/// All cases of an operation, `None` where there is no device.
fn check(op: &str) -> Option<Vec<CaseResult>> {
    Some(verify(&device()?, op, 1, max_work()).unwrap_or_else(|wrong| panic!("{wrong}")))
}

/// A test for each operation, so that one filter on the command line runs one of them.
macro_rules! check_each {
    ($($op:ident)*) => {
        $(
            #[test]
            fn $op() {
                check(stringify!($op));
            }
        )*

        #[test]
        fn no_operation_is_left_out() {
            let tested = [stringify!(sample), $(stringify!($op)),*];
            for cases in &qernel::lab::cases::ALL {
                assert!(tested.contains(&cases.op), "{} has no test here", cases.op);
            }
        }
    };
}

check_each! {
    add add_bias add_rms_norm argmax attention convert embed gather_rows matmul matmul_add norm_gate_up norm_matmul
    norm_qkv_rope read_bandwidth rms_norm rope silu_mul write_kv
}

#[test]
fn sample() {
    let Some(results) = check("sample") else { return };
    // Each case may have a draw that a rounding moved; of all draws, one in a thousand.
    let different: f64 = results.iter().map(|result| result.absolute_error).sum();
    let draws: usize = results.iter().map(|result| result.compared).sum();
    assert!(different * 1000.0 <= draws as f64, "{different} of {draws} draws differ");
}

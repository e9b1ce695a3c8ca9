//! Every GPU kernel, in every format and variant, against references in f64: the tables of `engine/lab/cases/`; and in
//! `engine.rs` what the engine does around the launches.
//!
//! Run with `cargo test --release --features gpu-tests`, where there is a GPU (`tests/common/gpu.rs`).

mod engine;
#[allow(dead_code, reason = "the CPU's half")]
#[path = "../common/golden_formats.rs"]
mod golden_formats;
#[path = "../common/gpu.rs"]
mod gpu;
mod harness;
mod operations;

use gpu::device;
use harness::max_work;
use qernel::lab::check::verify;

/// All cases of an operation, where there is a device.
fn check(op: &str) {
    let Some(device) = device() else { return };
    let results = verify(&device, op, 1, max_work()).unwrap_or_else(|wrong| panic!("{wrong}"));
    if op == "sample" {
        // Each case may have a draw that a rounding moved; of all draws, one in a thousand.
        let different: f64 = results.iter().map(|result| result.absolute_error).sum();
        let draws: usize = results.iter().map(|result| result.compared).sum();
        assert!(different * 1000.0 <= draws as f64, "{different} of {draws} draws differ");
    }
}

use operations::check_each;
qernel::cuda::for_each_operation!(check_each);

#[test]
fn blocks_are_decoded_as_elsewhere() {
    let Some(device) = device() else { return };
    golden_formats::check_device(&device);
}

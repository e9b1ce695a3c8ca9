//! A device for tests, and how much of it they may take.

use qernel::cuda::{self, CudaOps, Device, KernelChoice};
use qernel::dtype::Dtype;
use qernel::lab::case::{SMALL_WORK, plain_config};
use std::io::Write;
use std::rc::Rc;

/// The first GPU, or `None` after saying that the test is skipped. A GPU that cannot be opened fails the test.
pub fn device() -> Option<Rc<Device>> {
    if let Err(error) = cuda::probe() {
        // Not `eprintln`, which the test harness hides.
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        let line = format!("{test}: skipped: no CUDA device ({error})\n");
        std::io::stderr().write_all(line.as_bytes()).ok();
        return None;
    }
    Some(Rc::new(Device::open(None, qernel::ptx::ptx).expect("the device opens")))
}

/// The most work of a case: compute-sanitizer makes kernels hundreds of times slower, and `gpu-bundle/run --sanitizer` sets
/// `QERNEL_TEST_SMALL` to keep to small cases there.
pub fn max_work() -> Option<usize> {
    std::env::var_os("QERNEL_TEST_SMALL").map(|_| SMALL_WORK)
}

/// Whether something of that size is left out.
pub fn left_out(work: usize) -> bool {
    max_work().is_some_and(|most| work > most)
}

/// Operations in `dtype` that know no heads.
pub fn plain_ops(device: &Rc<Device>, dtype: Dtype) -> CudaOps {
    CudaOps::new(device, &plain_config(), dtype, KernelChoice::default()).expect("operations")
}

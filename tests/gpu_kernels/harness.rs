//! How much of the device tests may take.

use qernel::cuda::{CudaOps, Device, KernelChoice};
use qernel::dtype::Dtype;
use qernel::lab::case::{SMALL_WORK, plain_config};
use std::rc::Rc;

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

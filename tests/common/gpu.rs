//! The GPU that tests with the feature `gpu-tests` run on. The feature says that there is one: without it they fail.

use qernel::cuda::{self, Device, DeviceInfo};
use std::io::Write;
use std::rc::Rc;

/// Set to 1, it lets tests that need a GPU pass without one.
const ALLOW_NO_GPU: &str = "QERNEL_ALLOW_NO_GPU";

/// The first GPU, or `None` after saying that the test is skipped.
///
/// # Panics
/// Without a GPU, unless `QERNEL_ALLOW_NO_GPU` is 1; with a driver that does not work or a GPU that cannot be opened, whatever
/// that says.
#[allow(dead_code, reason = "tests/gpu_emulation.rs opens the GPU itself")]
pub fn device() -> Option<Rc<Device>> {
    first().map(|_| Rc::new(Device::open(None, qernel::ptx::ptx).expect("the device opens")))
}

/// As [`device`], what the driver says of it.
pub fn first() -> Option<DeviceInfo> {
    let why = match cuda::probe() {
        Ok(devices) => match devices.into_iter().next() {
            Some(first) => return Some(first),
            None => "the driver counts no device".to_owned(),
        },
        Err(error) if error.to_string().contains("no NVIDIA GPU") => error.to_string(),
        Err(error) => panic!("the driver is there and does not work: {error}"),
    };
    if std::env::var(ALLOW_NO_GPU).is_ok_and(|value| value == "1") {
        skip(&why);
        return None;
    }
    panic!("the feature gpu-tests needs a GPU: {why}. {ALLOW_NO_GPU}=1 skips these tests")
}

/// Says that the current test is skipped, on standard error itself: what `eprintln` writes is seen of failed tests alone.
pub fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    std::io::stderr().write_all(format!("{test}: skipped: {why}\n").as_bytes()).ok();
}

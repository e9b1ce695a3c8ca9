//! A program that uses `cust` links, starts and is told that there is no device, on a machine without a driver; with one,
//! which the test makes itself, every argument reaches it, and every answer comes back as one that the bindings know.

use std::{process::Command, ptr};

use cust::error::CudaError;
use cust_raw::CUresult;

/// Set where a test runs in a process of its own, with a driver of its own.
const ALONE: &str = "CUDA_DRIVER_TEST_ALONE";

fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Runs `test` of this binary once more, with [`FAKE_DRIVER`].
fn run_alone(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("fake_driver.rs");
    std::fs::write(&source, FAKE_DRIVER).unwrap();
    let compiled = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
        .arg(folder.path().join("libcuda.so.1"))
        .arg(&source)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("LD_LIBRARY_PATH", folder.path())
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("1 passed"), "the test did not run: {}", text(&output.stdout));
}

#[test]
fn cust_reports_no_device_or_finds_one() {
    match cuda_driver::status() {
        Ok(library) => {
            // With a driver the answer is the driver's: a device, or none behind an installed driver.
            println!("driver {library}: {:?}", cust::init(cust::CudaFlags::empty()));
        }
        Err(reason) => {
            let error = cust::init(cust::CudaFlags::empty()).unwrap_err();
            assert_eq!(error, CudaError::NoDevice);
            assert!(error.to_string().contains("there is no NVIDIA driver"), "{error}");
            assert!(reason.contains("libcuda.so.1"), "{reason}");
            assert_eq!(cuda_driver::last_error(), 100);
            assert_eq!(cuda_driver::describe(1234), "CUDA error 1234");
        }
    }
}

/// The driver's part in the next tests, compiled to a `libcuda.so.1`: `cuInit` and `cuCtxSetLimit` answer with
/// the code that they are given, the launches with 0 if all arguments arrived.
const FAKE_DRIVER: &str = r#"
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(code: u32) -> u32 {
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetLimit(_limit: u32, code: usize) -> u32 {
    code as u32
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorName(code: u32, text: &mut *const u8) -> u32 {
    *text = match code { 1001 => b"CUDA_ERROR_OF_TOMORROW\0".as_ptr(), 901 => b"CUDA_ERROR_OF_TODAY\0".as_ptr(), _ => return 1 };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorString(code: u32, text: &mut *const u8) -> u32 {
    *text = match code { 1001 => b"a text\0".as_ptr(), 901 => b"another\0".as_ptr(), _ => return 1 };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernel(a: u64, b: u32, c: u32, d: u32, e: u32, f: u32, g: u32, h: u32, i: u64, j: u64, k: u64) -> u32 {
    1010 * u32::from((a, b, c, d, e, f, g, h, i, j, k) != (1 << 40, 2, 3, 4, 5, 6, 7, 8, 9 << 40, 10 << 40, 11 << 40))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernelEx(a: u64, b: u64, c: u64, d: u64) -> u32 {
    if (a, b, c, d) == (1 << 40, 2 << 40, 3 << 40, 4 << 40) { 0 } else { 1010 }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, stream: u64) -> u32 {
    if (to, value, bytes, stream) == (1 << 40, 2, 3 << 40, 4 << 40) { 0 } else { 1010 }
}
"#;

#[test]
#[cfg(target_os = "linux")]
fn every_argument_reaches_the_driver() {
    if !is_alone() {
        return run_alone("every_argument_reaches_the_driver");
    }
    unsafe extern "C" {
        fn cuLaunchKernelEx(
            config: *const (),
            function: cust_raw::CUfunction,
            params: *mut *mut (),
            extra: *mut *mut (),
        ) -> CUresult;
    }
    let handle = |value: usize| value << 40;
    // The first call looks the function up, the second knows its address.
    for _ in 0..2 {
        // SAFETY: the fake driver only compares its arguments.
        unsafe {
            let launched = cust_raw::cuLaunchKernel(
                ptr::without_provenance_mut(handle(1)),
                2,
                3,
                4,
                5,
                6,
                7,
                8,
                ptr::without_provenance_mut(handle(9)),
                ptr::without_provenance_mut(handle(10)),
                ptr::without_provenance_mut(handle(11)),
            );
            assert_eq!(launched, CUresult::CUDA_SUCCESS);
            let launched = cuLaunchKernelEx(
                ptr::without_provenance(handle(1)),
                ptr::without_provenance_mut(handle(2)),
                ptr::without_provenance_mut(handle(3)),
                ptr::without_provenance_mut(handle(4)),
            );
            assert_eq!(launched, CUresult::CUDA_SUCCESS);
            let stream = ptr::without_provenance_mut(handle(4));
            let filled = cust_raw::cuMemsetD8Async(handle(1) as u64, 2, handle(3), stream);
            assert_eq!(filled, CUresult::CUDA_SUCCESS);
            // An answer after wrong arguments, so that the comparisons are known to compare.
            let filled = cust_raw::cuMemsetD8Async(handle(1) as u64, 2, handle(3) + 1, stream);
            assert_eq!((filled, cuda_driver::last_error()), (CUresult::CUDA_ERROR_UNKNOWN, 1010));
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn every_code_becomes_one_that_the_bindings_know() {
    if !is_alone() {
        return run_alone("every_code_becomes_one_that_the_bindings_know");
    }
    use cust::context::{CurrentContext, ResourceLimit};
    let mut known = 0;
    for code in (0..=1200).chain([4242, 100_100, i32::MAX as u32, 1 << 31, u32::MAX]) {
        // SAFETY: the fake driver answers with its argument.
        let answer = unsafe { cust_raw::cuInit(code) } as u32;
        known += u32::from(answer == code);
        assert!(answer == code || answer == 999, "{code}: {answer}");
        // What succeeds says nothing about errors.
        let last = if code == 0 { 0 } else { code };
        assert_eq!(cuda_driver::last_error(), last, "{code}");
    }
    // So many values has the enum of `cust_raw`: `grep -c 'CUDA_[A-Z_]* = [0-9]*,' src/cuda.rs` from its declaration on.
    assert_eq!(known, 87);

    // Codes that `cust` has, that only the bindings have, and that neither has, through a call of `cust`.
    let set = |code| CurrentContext::set_resource_limit(ResourceLimit::StackSize, code);
    for (code, expected) in [
        (0, Ok(())),
        (700, Err(CudaError::IllegalAddress)),
        (222, Err(CudaError::UnknownError)),
        (901, Err(CudaError::UnknownError)),
        (999, Err(CudaError::UnknownError)),
        (1001, Err(CudaError::UnknownError)),
    ] {
        assert_eq!(set(code), expected, "{code}");
        assert!(code == 0 || cuda_driver::last_error() == code as u32, "{code}");
    }
    // A success in between does not hide the code, another thread's failure neither.
    assert_eq!(set(0), Ok(()));
    std::thread::spawn(move || CurrentContext::set_resource_limit(ResourceLimit::StackSize, 2))
        .join()
        .unwrap()
        .unwrap_err();
    assert_eq!(cuda_driver::describe(cuda_driver::last_error()), "CUDA_ERROR_OF_TOMORROW (1001): a text");
    assert_eq!(cuda_driver::describe(901), "CUDA_ERROR_OF_TODAY (901): another");
    assert_eq!(cuda_driver::describe(1002), "CUDA error 1002");
    // A code that this driver does not explain still prints.
    assert!(CudaError::LaunchFailed.to_string().contains("does not explain"));

    // A function that this driver is too old to have.
    assert_eq!(CurrentContext::synchronize(), Err(CudaError::NotFound));
    assert_eq!(cuda_driver::last_error(), 500);
}

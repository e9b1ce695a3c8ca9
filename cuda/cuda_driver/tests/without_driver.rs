//! A program that uses `cust` links, starts and is told that there is no device, on a machine without a driver.

use std::{
    path::Path,
    process::{Command, Output},
};

use cuda_driver as _;

/// Runs `test` of this binary in a process of its own, with `library_path` for the loader.
fn run_alone(test: &str, library_path: &Path) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", library_path)
        .output()
        .unwrap()
}

fn succeeded(output: &Output) {
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
            assert_eq!(error, cust::error::CudaError::NoDevice);
            assert!(error.to_string().contains("there is no NVIDIA driver"), "{error}");
            assert!(reason.contains("libcuda.so.1"), "{reason}");
        }
    }
}

/// The driver's part in the next test, compiled to a `libcuda.so.1`: it answers 0 if all arguments arrived.
const FAKE_DRIVER: &str = r#"
#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernel(a: u64, b: u32, c: u32, d: u32, e: u32, f: u32, g: u32, h: u32, i: u64, j: u64, k: u64) -> u32 {
    u32::from((a, b, c, d, e, f, g, h, i, j, k) != (1, 2, 3, 4, 5, 6, 7, 8, 9 << 40, 10 << 40, 11 << 40))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuTexRefSetMipmapLevelBias(
    a: u64, f0: f32, f1: f64, f2: f32, b: u64, f3: f32, f4: f32, f5: f32, f6: f32, f7: f64,
    c: u64, d: u64, e: u64, f: u64, g: u64, h: u64, i: u64, f8: f32,
) -> u32 {
    let floats = (f0, f1, f2, f3, f4, f5, f6, f7, f8) == (0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5);
    u32::from(!floats || (a, b, c, d, e, f, g, h, i) != (1, 2, 3, 4, 5, 6, 7, 8, 9))
}
"#;

#[test]
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn every_argument_reaches_the_driver() {
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
    succeeded(&run_alone("call_the_fake_driver", folder.path()));
}

#[test]
#[ignore = "run by every_argument_reaches_the_driver, with a driver of its own"]
fn call_the_fake_driver() {
    type Launch = unsafe extern "C" fn(u64, u32, u32, u32, u32, u32, u32, u32, u64, u64, u64) -> u32;
    type Floats = unsafe extern "C" fn(
        u64,
        f32,
        f64,
        f32,
        u64,
        f32,
        f32,
        f32,
        f32,
        f64,
        u64,
        u64,
        u64,
        u64,
        u64,
        u64,
        u64,
        f32,
    ) -> u32;
    // SAFETY: the fake driver's functions have these signatures; the trampolines have none of their own.
    let (launch, floats) = unsafe {
        (
            std::mem::transmute::<*const (), Launch>(cust_raw::cuLaunchKernel as *const ()),
            std::mem::transmute::<*const (), Floats>(cust_raw::cuTexRefSetMipmapLevelBias as *const ()),
        )
    };
    // The first call goes through the look-up, the second straight through the slot.
    for _ in 0..2 {
        // SAFETY: both only compare their arguments.
        unsafe {
            assert_eq!(launch(1, 2, 3, 4, 5, 6, 7, 8, 9 << 40, 10 << 40, 11 << 40), 0);
            assert_eq!(floats(1, 0.5, 1.5, 2.5, 2, 3.5, 4.5, 5.5, 6.5, 7.5, 3, 4, 5, 6, 7, 8, 9, 8.5), 0);
        }
    }
    // A function that this driver is too old to have.
    // SAFETY: nothing is called but the answer for a missing function.
    assert_eq!(unsafe { cust_raw::cuInit(0) } as u32, 500);
}

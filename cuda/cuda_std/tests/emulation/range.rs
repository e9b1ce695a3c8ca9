//! Numbers beyond the range of what they are rounded to are found where that is asked for.

use cuda_std::emulation::{Defect, Emulator, Options};
use cuda_std::prelude::*;

use super::support::{buffer, grid, line};

/// Rounds one number a thread.
#[kernel]
unsafe fn narrow(x: *const f32, out: *mut f16) {
    let i = thread::thread_idx_x() as usize;
    unsafe { *out.add(i) = <f16 as Element>::from_f32(*x.add(i)) } // HERE
}

/// Two numbers a thread, one instruction on the device.
#[kernel]
unsafe fn narrow_pairs(x: *const f32, out: *mut u32) {
    let i = thread::thread_idx_x() as usize;
    unsafe {
        let (low, high) = (*x.add(2 * i), *x.add(2 * i + 1));
        *out.add(i) = f16::pack2(low, high); // HERE
    }
}

/// As [`narrow`], kept from becoming infinite.
#[kernel]
unsafe fn clamp(x: *const f32, out: *mut f16) {
    let i = thread::thread_idx_x() as usize;
    unsafe {
        let value = *x.add(i);
        if value > 65_504.0 {
            cuda_std::note_out_of_range(value); // HERE
        }
        *out.add(i) = <f16 as Element>::from_f32(if value > 65_504.0 { 65_504.0 } else { value });
    }
}

/// Numbers that f16 has, or that are no finite ones already, and one in the place of the eighth.
fn numbers(eighth: f32) -> [f32; 32] {
    let mut numbers = [1.0, -65_504.0, f32::INFINITY, f32::NAN, 1e-30, f32::NEG_INFINITY, 0.0, 2.0].repeat(4);
    numbers[7] = eighth;
    numbers.try_into().unwrap()
}

#[test]
fn a_number_that_becomes_infinite_is_a_defect_that_names_kernel_and_value() {
    for (kernel, eighth) in [("narrow", -70_000.0f32), ("narrow_pairs", 1e6), ("clamp", 65_520.0)] {
        for range in [true, false] {
            for value in [eighth, 3.0] {
                let e = &Emulator::new(Options { seed: 1, range, ..Options::default() });
                let (x, out) = (buffer(e, &numbers(value)).into(), e.allocate(64));
                let launched = unsafe {
                    match kernel {
                        "narrow" => narrow(e, &grid(1, 32), x, DevicePtrMut::from_raw(out)),
                        "narrow_pairs" => narrow_pairs(e, &grid(1, 16), x, DevicePtrMut::from_raw(out)),
                        _ => clamp(e, &grid(1, 32), x, DevicePtrMut::from_raw(out)),
                    }
                };
                if !range || value == 3.0 {
                    launched.unwrap_or_else(|report| panic!("{report}"));
                    continue;
                }
                let report = launched.expect_err(kernel);
                let text = report.to_string();
                assert_eq!((report.defect, report.kernel), (Defect::OutOfRange, kernel), "{text}");
                assert_eq!(report.line, line(include_str!("range.rs"), kernel, "// HERE"), "{text}");
                assert!(text.contains(&format!("{value:e}")), "{text}");
            }
        }
    }
}

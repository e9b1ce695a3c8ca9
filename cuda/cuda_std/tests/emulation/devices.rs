//! Devices that reach each other's memory.

use cuda_std::atomic::{AtomicWord, Ordering, Scope};
use cuda_std::emulation::{Defect, Emulator};
use cuda_std::prelude::*;

use super::support::{emulator, grid, line, values, zeros};

/// Each thread tells the other device's thread something and waits for what that says.
#[kernel]
unsafe fn meet(own: *mut u32, other: *mut u32) {
    unsafe {
        let i = thread::thread_idx_x() as usize;
        u32::store(other.add(i), 1 + i as u32, Ordering::Release, Scope::System);
        while u32::load(own.add(i), Ordering::Acquire, Scope::System) == 0 {}
    }
}

#[kernel]
unsafe fn touch(place: *mut u32) {
    unsafe { *place.add(thread::thread_idx_x() as usize) = 1 } // HERE
}

#[test]
fn devices_wait_for_each_other_and_stay_inside_their_buffers() {
    let devices = [emulator(1), emulator(2)];
    let [first, second] = devices.each_ref().map(|device| zeros(device, 64).as_raw());
    let run = |device: &Emulator, own: u64, other: u64| unsafe {
        device.reach(other, 256);
        let [own, other] = [own, other].map(DevicePtrMut::from_raw);
        meet(device, &grid(1, 32), own, other).unwrap();
        assert_eq!(values::<u32>(device, own, 32), (1..33).collect::<Vec<_>>());
        // The last thread is behind the buffer.
        let report =
            touch(device, &grid(1, 32), DevicePtrMut::from_raw(other.as_raw() + 33 * 4)).unwrap_err();
        assert_eq!(report.defect, Defect::OutOfBounds, "{report}");
        assert_eq!(report.line, line(include_str!("devices.rs"), "touch", "// HERE"), "{report}");
    };
    let [a, b] = devices;
    std::thread::scope(|scope| {
        let handles = [
            scope.spawn(move || {
                run(&a, first, second);
                a
            }),
            scope.spawn(move || {
                run(&b, second, first);
                b
            }),
        ];
        // Buffers are there until both have ended.
        let devices = handles.map(|handle| handle.join().unwrap());
        assert!(devices.iter().all(|device| device.allocated_bytes() == 256));
    });
}

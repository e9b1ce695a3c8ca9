//! `mbarrier` operations: see [`crate::mbarrier`].

use core::panic::Location;

use crate::emulation::{counter_offset, current};

#[track_caller]
pub unsafe fn init(address: u32, arrivals: u32) {
    current().counter_init(counter_offset(address), arrivals, Location::caller());
}

#[track_caller]
pub unsafe fn invalidate(address: u32) {
    current().counter_invalidate(counter_offset(address), Location::caller());
}

#[track_caller]
pub unsafe fn arrive(address: u32) {
    current().counter_arrive(counter_offset(address), 1, 0, Location::caller());
}

#[track_caller]
pub unsafe fn arrive_if(address: u32, condition: bool) {
    if condition {
        current().counter_arrive(counter_offset(address), 1, 0, Location::caller());
    }
}

#[track_caller]
pub unsafe fn arrive_expect_tx(address: u32, bytes: u32) {
    current().counter_arrive(counter_offset(address), 1, bytes, Location::caller());
}

#[track_caller]
pub unsafe fn expect_tx(address: u32, bytes: u32) {
    current().counter_arrive(counter_offset(address), 0, bytes, Location::caller());
}

#[track_caller]
pub unsafe fn arrive_after_copies(address: u32) {
    let thread = current();
    thread.expect_counter(counter_offset(address), Location::caller());
    thread.arrive_after_copies(counter_offset(address), Location::caller());
}

#[track_caller]
pub unsafe fn test_wait(address: u32, parity: u32) -> bool {
    current().counter_test(counter_offset(address), parity, Location::caller())
}

#[track_caller]
pub unsafe fn try_wait(address: u32, parity: u32) -> bool {
    current().counter_test(counter_offset(address), parity, Location::caller())
}

pub fn fence_init() {}

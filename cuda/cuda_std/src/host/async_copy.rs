//! Asynchronous copies: see [`crate::async_copy`].

use core::panic::Location;

use crate::emulation::{counter_offset, current};

macro_rules! copies {
    ($($name:ident = $bytes:literal),*) => { $(
        #[track_caller]
        pub unsafe fn $name(to: u32, from: u64) {
            current().copy(to, from, $bytes, $bytes, Location::caller());
        }
    )* };
}
copies!(copy_4 = 4, copy_8 = 8, copy_16 = 16, copy_16_l2 = 16, copy_16_l2_256 = 16);

#[track_caller]
pub unsafe fn copy_16_or_zero(to: u32, from: u64, bytes: u32) {
    current().copy(to, from, 16, bytes as usize, Location::caller());
}

pub fn commit_group() {
    current().commit_copies();
}

pub fn wait_group<const PENDING: u32>() {
    current().wait_copies(Some(PENDING as usize));
}

pub fn wait_all() {
    current().wait_copies(None);
}

#[track_caller]
pub unsafe fn bulk_copy(to: u32, from: u64, bytes: u32, barrier: u32) {
    current().bulk_copy(to, from, bytes, counter_offset(barrier), Location::caller());
}

#[track_caller]
pub unsafe fn bulk_copy_hinted(to: u32, from: u64, bytes: u32, barrier: u32, _: u64) {
    current().bulk_copy(to, from, bytes, counter_offset(barrier), Location::caller());
}

#[track_caller]
pub unsafe fn tensor_copy(to: u32, map: u64, column: u32, row: u32, barrier: u32) {
    current().tensor_copy(to, map, [column, row], counter_offset(barrier), Location::caller());
}

#[track_caller]
pub unsafe fn bulk_store(to: u64, from: u32, bytes: u32) {
    current().bulk_store(to, from, bytes, Location::caller());
}

pub fn bulk_commit_group() {
    current().commit_stores();
}

pub fn bulk_wait_group<const PENDING: u32>() {
    current().wait_stores(PENDING as usize, false);
}

pub fn bulk_wait_group_read<const PENDING: u32>() {
    current().wait_stores(PENDING as usize, true);
}

pub unsafe fn bulk_prefetch_l2(_: u64, _: u32) {}

pub fn fence_proxy_async() {
    current().fence_proxy();
}

pub fn fence_proxy_async_shared() {
    current().fence_proxy();
}

//! Kernels run under emulation: that every operation gives what the PTX ISA says (`operations`, `integers`), that each kind of
//! defect is found with its line, and that correct kernels are left alone whatever the schedule (`memory`, `order`), and
//! that devices reach each other's memory (`devices`).
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "the kernels are the examples of the tests, some of them wrong on purpose"
)]

mod devices;
mod integers;
mod memory;
mod operations;
mod order;
mod range;
mod support;
mod tf32;
mod wgmma;

//! What the driver made of a kernel.

use super::device::Device;
use super::driver::{self, check};
use super::gpu::find_function;
use crate::error::Result;
use std::ffi::c_int;

/// What one kernel takes of a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Resources {
    /// Of each thread.
    pub registers: u32,
    /// Bytes of static shared memory of each block.
    pub shared_bytes: u32,
    /// Bytes of each thread's local memory: its stack frame, with registers that did not fit.
    pub local_bytes: u32,
    /// Bytes that are stored because registers did not fit; the driver does not tell them from the stack frame.
    pub spill_bytes: Option<u32>,
    /// Blocks of the size asked for that a multiprocessor holds at a time.
    pub blocks_per_multiprocessor: u32,
}

impl Device {
    /// The resources of the kernel of that name, launched in blocks of `block_size` threads without dynamic shared memory.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the module has no such kernel.
    pub fn resources(&self, kernel: &str, block_size: u32) -> Result<Resources> {
        let function = find_function(self.module(), kernel)?;
        let attribute = |attribute: c_int| {
            let mut value = 0;
            // SAFETY: writes one int; the function is of this module.
            let status = unsafe { driver::cuFuncGetAttribute(&mut value, attribute, function) };
            check(status, "asking for a kernel's resources").map(|()| value as u32)
        };
        let mut blocks = 0;
        // SAFETY: as above.
        let status = unsafe {
            driver::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function, block_size as c_int, 0)
        };
        check(status, "asking for a kernel's occupancy")?;
        Ok(Resources {
            registers: attribute(driver::FUNCTION_REGISTERS)?,
            shared_bytes: attribute(driver::FUNCTION_SHARED_BYTES)?,
            local_bytes: attribute(driver::FUNCTION_LOCAL_BYTES)?,
            spill_bytes: None,
            blocks_per_multiprocessor: blocks as u32,
        })
    }
}

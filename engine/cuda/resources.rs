//! What the driver made of a kernel.

use super::device::Device;
use super::driver::Answer;
use crate::error::{Error, Result};
use cust::function::{BlockSize, FunctionAttribute};

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
    /// [`Error::Device`](qernel_core::Error::Device) if the PTX has no such kernel, or the driver refuses it.
    pub fn resources(&self, kernel: &str, block_size: u32) -> Result<Resources> {
        let gpu = self.gpu();
        let gpu = gpu.ok_or_else(|| Error::Device("the device is emulated: it compiles nothing".into()))?;
        let module = gpu.compile(kernel)?;
        let function = module.get_function(kernel).doing(&format!("looking up the kernel {kernel}"))?;
        let attribute = |attribute| {
            let value = function.get_attribute(attribute).doing("asking for a kernel's resources")?;
            Ok::<_, Error>(value as u32)
        };
        let blocks = function.max_active_blocks_per_multiprocessor(BlockSize::x(block_size), 0);
        Ok(Resources {
            blocks_per_multiprocessor: blocks.doing("asking for a kernel's occupancy")?,
            registers: attribute(FunctionAttribute::NumRegisters)?,
            shared_bytes: attribute(FunctionAttribute::SharedMemorySizeBytes)?,
            local_bytes: attribute(FunctionAttribute::LocalSizeBytes)?,
            spill_bytes: None,
        })
    }
}

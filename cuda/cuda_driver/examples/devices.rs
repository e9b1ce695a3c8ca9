//! Lists the NVIDIA GPUs through `cust`; on a machine without a driver it says so.
//!
//! Naming the crate is all that a program has to do, so that its symbols are linked.

use cuda_driver as _;
use cust::{
    device::Device,
    error::{CudaError, CudaResult},
};

fn main() -> CudaResult<()> {
    match cust::init(cust::CudaFlags::empty()) {
        Err(CudaError::NoDevice) => {
            println!("no NVIDIA GPU, or no driver for it");
            return Ok(());
        }
        result => result?,
    }
    for device in Device::devices()? {
        println!("{}", device?.name()?);
    }
    Ok(())
}

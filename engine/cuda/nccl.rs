//! NCCL's sum over ranks, through `cudarc`'s run-time bindings: what the laboratory holds [`add_ranks`](super::add_ranks) against.

use super::device::Device;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use cudarc::nccl::sys;
use std::ffi::CStr;
use std::ptr;
use std::rc::Rc;

/// What ranks find each other by.
#[derive(Clone, Copy)]
pub struct NcclId(sys::ncclUniqueId);

impl NcclId {
    /// A new one; `None` where the library is not installed.
    ///
    /// # Errors
    /// [`Error::Device`] with the library's reason.
    pub fn new() -> Result<Option<Self>> {
        // SAFETY: loads a library whose initialisers do nothing unusual.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        let mut id = sys::ncclUniqueId { internal: [0; 128] };
        // SAFETY: writes the id.
        check(unsafe { sys::ncclGetUniqueId(&mut id) }, "ncclGetUniqueId")?;
        Ok(Some(Self(id)))
    }
}

/// A rank among others.
pub struct Nccl {
    communicator: sys::ncclComm_t,
    /// Its context outlives the communicator.
    device: Rc<Device>,
}

impl Nccl {
    /// Rank `rank` of `num_ranks`, once all others are here, each on a thread with a GPU of its own.
    ///
    /// # Errors
    /// [`Error::Device`] with the library's reason.
    pub fn join(device: &Rc<Device>, id: NcclId, rank: usize, num_ranks: usize) -> Result<Self> {
        let int = |value: usize| {
            i32::try_from(value).map_err(|_| Error::Device(format!("NCCL takes no {value} ranks")))
        };
        let mut communicator = ptr::null_mut();
        // SAFETY: writes the handle; the device's context is current.
        let status = unsafe { sys::ncclCommInitRank(&mut communicator, int(num_ranks)?, id.0, int(rank)?) };
        check(status, "ncclCommInitRank")?;
        Ok(Self { communicator, device: device.clone() })
    }

    /// Queues that `values` becomes the sum of those of all ranks.
    ///
    /// # Errors
    /// [`Error::Device`] with the library's reason.
    pub fn all_reduce(&self, values: &mut Tensor) -> Result<()> {
        let count = values.rows() * values.cols();
        let address: *mut std::ffi::c_void =
            ptr::with_exposed_provenance_mut(values.data.ptr_mut().as_raw() as usize);
        let (float, sum) = (sys::ncclDataType_t::ncclFloat32, sys::ncclRedOp_t::ncclSum);
        let stream = self.device.stream().cast();
        // SAFETY: the tensor has so many values, and is freed behind what is queued.
        let status =
            unsafe { sys::ncclAllReduce(address, address, count, float, sum, self.communicator, stream) };
        check(status, "ncclAllReduce")
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // A failure leaves nothing to do.
        drop(self.device.synchronize());
        // SAFETY: the handle is this value's own. Destroying would wait for other ranks, which may have failed.
        unsafe { sys::ncclCommAbort(self.communicator) };
    }
}

fn check(status: sys::ncclResult_t, doing: &str) -> Result<()> {
    if status == sys::ncclResult_t::ncclSuccess {
        return Ok(());
    }
    // SAFETY: a constant string of the library.
    let text = unsafe { CStr::from_ptr(sys::ncclGetErrorString(status)) };
    Err(Error::Device(format!("{doing}: {}", text.to_string_lossy())))
}

//! Devices that have the layers of a model one behind the other: how the residual stream goes from each to the next.
//!
//! A device computes its layers, waits until they are done, and says where the rows are; the next one queues fetching them before its own
//! layers, and goes on when it has them. It reads them where they are, or, where it does not reach that memory, in host memory that both
//! reach.

use super::group::Rows;
use super::{Device, Group};
use crate::error::{Error, Result};
use crate::memory::PinnedBuffer;
use crate::tensor::{Tensor, elements};
use cuda_std::launch::DevicePtr;
use std::rc::Rc;
use std::sync::Arc;

/// How rows go from one device to the next: read there by the next one (where it reaches that memory), or through the host's.
pub(crate) const OP: &str = "hand_over";
const HOST: &str = "host";
pub(crate) const VARIANTS: [&str; 2] = ["peer", HOST];

/// A device's place in the row of devices.
pub struct Stage {
    group: Arc<Group>,
    number: usize,
    /// For rows that the next device does not reach.
    host: Option<PinnedBuffer>,
    device: Rc<Device>,
}

impl Stage {
    /// Device `number` of `group`, for steps of up to `rows` rows of `cols` values, once its neighbours are here; `chosen` is what was asked for
    /// by `--kernel hand_over=…`.
    ///
    /// # Errors
    /// [`Error::Device`] if one of them failed or does not come; [`Error::Memory`] if there is no host memory for the rows.
    pub fn join(
        device: &Rc<Device>,
        group: &Arc<Group>,
        number: usize,
        [rows, cols]: [usize; 2],
        chosen: Option<&str>,
    ) -> Result<Self> {
        let ordinal = device.info().ordinal;
        group.come(number, ordinal);
        if let Some(before) = number.checked_sub(1) {
            let from = group.ordinal(before)?;
            // SAFETY: no kernel of this device touches memory of the other one.
            let reached = unsafe { device.reach(from, &[]) };
            let reaches = chosen != Some(HOST) && reached.is_ok();
            if !reaches {
                tracing::info!("rows go from cuda:{from} to cuda:{ordinal} through host memory");
            }
            group.set_reach(before, reaches);
        }
        let is_last = number + 1 == group.num_ranks();
        let host = match is_last || group.is_reached(number)? {
            true => None,
            false => Some(PinnedBuffer::new(device, elements(elements(rows, cols)?, size_of::<f32>())?)?),
        };
        Ok(Self { group: group.clone(), number, host, device: device.clone() })
    }

    /// Fetches the first `n` rows of `x` from the device before this one, if there is one.
    ///
    /// # Errors
    /// [`Error::Device`] if that has failed or hands on other rows.
    pub(crate) fn receive(&self, n: usize, x: &mut Tensor) -> Result<()> {
        let Some(before) = self.number.checked_sub(1) else { return Ok(()) };
        x.expect(OP, "x", n, x.cols)?;
        let bytes = n * x.cols * size_of::<f32>();
        let Rows { address, bytes: found, in_host } = self.group.take_rows(before)?;
        if found != bytes {
            return Err(Error::Device(format!(
                "rank {}: expected rows of {bytes} bytes from rank {before}, found {found}",
                self.number
            )));
        }
        let to = x.ptr_mut().as_raw();
        // SAFETY: `x` has as many bytes. The rows are where the other device says, for all that it had queued is done, and stay there until all
        // have done this step; this copy is waited for.
        unsafe {
            match in_host {
                true => self.device.write(to, std::slice::from_raw_parts(address as *const u8, bytes))?,
                false => self.device.copy_from_peer(address, to, bytes)?,
            }
        }
        self.device.synchronize()
    }

    /// Hands the first `n` rows of `x` on to the device behind this one, if there is one.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub(crate) fn send(&mut self, n: usize, x: &Tensor) -> Result<()> {
        if self.number + 1 == self.group.num_ranks() {
            return Ok(());
        }
        x.expect(OP, "x", n, x.cols)?;
        let bytes = n * x.cols * size_of::<f32>();
        let mut address = x.ptr().as_raw();
        if let Some(host) = &mut self.host {
            // SAFETY: `x` has as many bytes, and the copy is waited for.
            unsafe { host.copy_from(bytes, DevicePtr::from_raw(address))? };
            host.copied()?;
            address = host.wait()?.as_ptr() as u64;
        }
        self.device.synchronize()?;
        self.group.give_rows(self.number, Rows { address, bytes, in_host: self.host.is_some() });
        Ok(())
    }
}

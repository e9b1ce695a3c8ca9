//! What the laboratory computes on.

use super::case::SMALL_WORK;
use crate::cuda::{self, Device};
use crate::error::{Error, Result};
use cuda_std::emulation;
use std::rc::Rc;
use std::str::FromStr;

/// A device as the command line names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LabDevice {
    /// The first GPU if there is one, else emulation.
    #[default]
    Auto,
    /// `cuda`, or `cuda:N`.
    Cuda(Option<u32>),
    Emulated,
}

impl FromStr for LabDevice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(Self::Auto),
            ("emulated", _) => Ok(Self::Emulated),
            ("cuda", _) => Ok(Self::Cuda(None)),
            (_, Some(Ok(ordinal))) => Ok(Self::Cuda(Some(ordinal))),
            _ => Err(Error::Request(format!(
                "expected auto, cuda, cuda:N or emulated as the laboratory's device, found {text:?}"
            ))),
        }
    }
}

impl LabDevice {
    /// Opens it; the schedules of an emulated device are drawn from `seed`.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such device.
    pub fn open(self, seed: u64) -> Result<Rc<Device>> {
        match self {
            Self::Auto if cuda::probe().is_err() => Self::Emulated.open(seed),
            Self::Auto => Self::Cuda(None).open(seed),
            Self::Cuda(ordinal) => Device::open(ordinal, qernel_ptx::ptx).map(Rc::new),
            Self::Emulated => {
                Ok(Rc::new(Device::emulated(emulation::Options { seed, ..emulation::Options::default() })))
            }
        }
    }
}

/// The most work of a case that `device` should be given.
pub fn max_work(device: &Device) -> Option<usize> {
    device.is_emulated().then_some(SMALL_WORK)
}

/// The device, for people.
pub fn describe(device: &Device) -> String {
    let info = device.info();
    if device.is_emulated() {
        return info.name.clone();
    }
    format!("{} (cuda:{})", info.name, info.ordinal)
}

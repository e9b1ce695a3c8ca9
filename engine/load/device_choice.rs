//! Where to compute.

use qernel_core::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if there is one that can be used, else the CPU.
    #[default]
    Auto,
    /// `cuda`, or `cuda:N`.
    Cuda(Option<u32>),
    /// The CPU.
    Cpu,
    /// A GPU emulated on the CPU, which checks the kernels while it runs them: for small models.
    Emulated,
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(None)),
            "emulated" => Ok(Self::Emulated),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(ordinal)) => Ok(Self::Cuda(Some(ordinal))),
                _ => Err(Error::Request(format!(
                    "expected auto, cuda, cuda:N, cpu or emulated as the device, found {text:?}"
                ))),
            },
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(ordinal)) => write!(f, "cuda:{ordinal}"),
            Self::Cpu => f.write_str("cpu"),
            Self::Emulated => f.write_str("emulated"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        for text in ["auto", "cpu", "cuda", "cuda:3", "emulated"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(matches!(bad.parse::<DeviceChoice>(), Err(Error::Request(_))), "{bad}");
        }
    }
}

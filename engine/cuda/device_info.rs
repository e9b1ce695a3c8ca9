//! What is known of a GPU before it is used, and which kernels it runs.

use crate::error::{Error, Result};

/// What is known of a GPU without using it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct DeviceInfo {
    /// The `N` of `cuda:N`, in the driver's order (see CUDA_VISIBLE_DEVICES).
    pub ordinal: u32,
    pub name: String,
    /// Major and minor, `(9, 0)` for Hopper.
    pub compute_capability: (u32, u32),
    pub multiprocessors: u32,
    /// That run at once.
    pub threads_per_multiprocessor: u32,
    /// Bytes.
    pub total_memory: usize,
    /// Bytes.
    pub l2_cache: usize,
    /// Bytes of shared memory a block may have once it asked.
    pub shared_memory_per_block: usize,
    /// CUDA version that the driver supports, as major and minor.
    pub driver_version: (u32, u32),
}

impl DeviceInfo {
    /// Which of the embedded PTX modules the device runs: `sm_90a` or `sm_80`.
    ///
    /// # Errors
    /// [`Error::Device`] if it is older than compute capability 8.0.
    pub fn target(&self) -> Result<&'static str> {
        target_for(self.compute_capability).ok_or_else(|| {
            let (major, minor) = self.compute_capability;
            Error::Device(format!(
                "{} (cuda:{}) has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or later: \
                 use --device cpu",
                self.name, self.ordinal
            ))
        })
    }
}

/// The name of the PTX target that a device of this compute capability runs, `None` if it is too old.
fn target_for(capability: (u32, u32)) -> Option<&'static str> {
    match capability {
        (9, 0) => Some("sm_90a"),
        (8.., _) => Some("sm_80"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_capability_gets_the_newest_ptx_it_runs() {
        assert_eq!(target_for((7, 5)), None);
        assert_eq!(target_for((8, 0)), Some("sm_80"));
        assert_eq!(target_for((8, 9)), Some("sm_80"));
        assert_eq!(target_for((9, 0)), Some("sm_90a"));
        assert_eq!(target_for((10, 0)), Some("sm_80"));
        assert_eq!(target_for((12, 0)), Some("sm_80"));
    }

    #[test]
    fn an_old_device_is_refused_with_its_numbers() {
        let info = DeviceInfo {
            ordinal: 1,
            name: "Tesla T4".into(),
            compute_capability: (7, 5),
            multiprocessors: 40,
            threads_per_multiprocessor: 1024,
            total_memory: 16 << 30,
            l2_cache: 4 << 20,
            shared_memory_per_block: 64 << 10,
            driver_version: (12, 4),
        };
        let text = info.target().unwrap_err().to_string();
        assert!(text.contains("Tesla T4 (cuda:1)") && text.contains("7.5") && text.contains("8.0"), "{text}");
    }
}

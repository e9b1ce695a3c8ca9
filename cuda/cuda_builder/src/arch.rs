//! GPU architectures.

/// A GPU architecture, under Rust-CUDA's names: those of the NVPTX backend from Volta on.
///
/// A number followed by `a` is for that architecture alone (it unlocks `wgmma` and its like); PTX for a plain number
/// runs on that architecture and all later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NvvmArch {
    Compute70,
    Compute72,
    Compute75,
    Compute80,
    Compute86,
    Compute87,
    Compute89,
    Compute90,
    Compute90a,
    Compute100,
    Compute100a,
    Compute103,
    Compute103a,
    Compute120,
    Compute120a,
}

impl NvvmArch {
    /// The compiler's name for it, such as `sm_90a`.
    pub fn target_cpu(self) -> &'static str {
        match self {
            NvvmArch::Compute70 => "sm_70",
            NvvmArch::Compute72 => "sm_72",
            NvvmArch::Compute75 => "sm_75",
            NvvmArch::Compute80 => "sm_80",
            NvvmArch::Compute86 => "sm_86",
            NvvmArch::Compute87 => "sm_87",
            NvvmArch::Compute89 => "sm_89",
            NvvmArch::Compute90 => "sm_90",
            NvvmArch::Compute90a => "sm_90a",
            NvvmArch::Compute100 => "sm_100",
            NvvmArch::Compute100a => "sm_100a",
            NvvmArch::Compute103 => "sm_103",
            NvvmArch::Compute103a => "sm_103a",
            NvvmArch::Compute120 => "sm_120",
            NvvmArch::Compute120a => "sm_120a",
        }
    }

    /// The PTX version asked of the compiler: 8.0, which drivers from 525 on (CUDA 12.0) load and which has all that
    /// Hopper can do, and a later one only where the architecture does not exist in it.
    pub(crate) fn ptx_feature(self) -> &'static str {
        match self {
            NvvmArch::Compute100 | NvvmArch::Compute100a => "ptx86",
            NvvmArch::Compute120 | NvvmArch::Compute120a => "ptx87",
            NvvmArch::Compute103 | NvvmArch::Compute103a => "ptx88",
            _ => "ptx80",
        }
    }
}

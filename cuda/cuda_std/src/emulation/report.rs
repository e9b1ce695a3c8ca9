//! What the emulator found wrong.

use core::fmt;
use std::boxed::Box;
use std::string::String;

/// The kinds of defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Defect {
    /// Two threads touched the same bytes, at least one of them wrote, and nothing orders the two.
    Race,
    /// Some threads wait at a barrier that others never reach.
    DivergentBarrier,
    /// Lanes wait for a warp operation (shuffle, vote, `mma`, …) that other lanes of its mask never join, or a
    /// shuffle reads a lane that takes no part.
    AbsentLanes,
    /// Nobody can go on: every thread left waits for something that no one will do.
    Deadlock,
    /// Shared memory was read that nobody wrote.
    UninitialisedShared,
    /// An access outside the buffers that the launch was given, or outside the block's shared memory.
    OutOfBounds,
    /// An access at an address that is not a multiple of its size.
    Misaligned,
    /// The destination of an asynchronous copy was touched before the copy was waited for.
    UnfinishedCopy,
    /// Sums of a `wgmma` were touched before they were waited for.
    UnfinishedProduct,
    /// What the asynchronous proxy reads (a bulk copy, `wgmma`) was written by ordinary stores without a `fence_proxy_async`.
    UnfencedProxy,
    /// A number was beyond the range of the format that it was rounded to, where [`Options::range`](super::Options::range) asks.
    OutOfRange,
    /// An `mbarrier` was used against its rules.
    BarrierMisuse,
    /// The kernel panicked: an index out of bounds, a division by zero, an assertion.
    Panic,
    /// The launch is one that a driver refuses.
    InvalidLaunch,
}

impl Defect {
    /// Every kind.
    pub const ALL: [Self; 14] = [
        Self::Race,
        Self::DivergentBarrier,
        Self::AbsentLanes,
        Self::Deadlock,
        Self::UninitialisedShared,
        Self::OutOfBounds,
        Self::Misaligned,
        Self::UnfinishedCopy,
        Self::UnfinishedProduct,
        Self::UnfencedProxy,
        Self::OutOfRange,
        Self::BarrierMisuse,
        Self::Panic,
        Self::InvalidLaunch,
    ];

    /// Its name, which stays as it is between versions.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Race => "race",
            Self::DivergentBarrier => "divergent-barrier",
            Self::AbsentLanes => "absent-lanes",
            Self::Deadlock => "deadlock",
            Self::UninitialisedShared => "uninitialised-shared",
            Self::OutOfBounds => "out-of-bounds",
            Self::Misaligned => "misaligned",
            Self::UnfinishedCopy => "unfinished-copy",
            Self::UnfinishedProduct => "unfinished-product",
            Self::UnfencedProxy => "unfenced-proxy",
            Self::OutOfRange => "out-of-range",
            Self::BarrierMisuse => "barrier-misuse",
            Self::Panic => "panic",
            Self::InvalidLaunch => "invalid-launch",
        }
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The earlier of the two accesses of a race.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Index of the block in the grid.
    pub block: [u32; 3],
    /// Index of the thread in the block.
    pub thread: [u32; 3],
    /// Source file of the access.
    pub file: &'static str,
    /// Its line.
    pub line: u32,
    /// Whether it wrote.
    pub write: bool,
}

/// A defect of a kernel, with the place where it showed. The launch ended there; memory is as it was then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What kind of defect.
    pub defect: Defect,
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Index of the block in the grid.
    pub block: [u32; 3],
    /// Index of the thread in the block.
    pub thread: [u32; 3],
    /// Source file of the access or the operation; of the kernel where the launch itself is refused.
    pub file: &'static str,
    /// Its line.
    pub line: u32,
    /// For a race, the access before.
    pub other: Option<Box<Other>>,
    /// What exactly: addresses, who waits where.
    pub detail: String,
    /// The seed of the schedule.
    pub seed: u64,
}

impl core::error::Error for Report {}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |[x, y, z]: [u32; 3]| (x, y, z);
        write!(
            f,
            "{}: kernel {}, block {:?}, thread {:?}, {}:{}: {}",
            self.defect,
            self.kernel,
            place(self.block),
            place(self.thread),
            self.file,
            self.line,
            self.detail
        )?;
        if let Some(other) = &self.other {
            let what = if other.write { "written" } else { "read" };
            write!(
                f,
                "; {what} before by block {:?}, thread {:?}, {}:{}",
                place(other.block),
                place(other.thread),
                other.file,
                other.line
            )?;
        }
        write!(f, " (seed {})", self.seed)
    }
}

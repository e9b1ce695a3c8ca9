//! Places in a ring of stages that `mbarrier`s hand from those who fill them to those who use them, and back.

use cuda_std::prelude::*;

/// A place in a ring of `COUNT` stages, and the parity of its phase: that of the barrier that says it is full. Whoever fills it waits for the phase before of the
/// one that says it is empty, `parity ^ 1`.
#[device]
#[derive(Clone, Copy)]
pub struct Stage<const COUNT: u32> {
    pub stage: u32,
    pub parity: u32,
}

#[device]
impl<const COUNT: u32> Stage<COUNT> {
    pub const FIRST: Self = Self { stage: 0, parity: 0 };

    /// The place after it.
    #[inline(always)]
    #[must_use]
    pub fn next(self) -> Self {
        let is_last = self.stage + 1 == COUNT;
        Self {
            stage: if is_last { 0 } else { self.stage + 1 },
            parity: if is_last { self.parity ^ 1 } else { self.parity },
        }
    }
}

//! Maps of matrices, by which a copy finds a box of rows and columns and lays it out for [`wgmma`](crate::wgmma). sm_90.

/// How a matrix of two-byte numbers lies in global memory and how its boxes go to shared memory: the driver's `CUtensorMap`, which a host makes with
/// `cuTensorMapEncodeTiled` and keeps in global memory, or, for an emulated device, [`TensorMap::emulated`].
///
/// A box is some rows, a multiple of 8, of [`TensorMap::COLUMNS`] columns, swizzled as [`Descriptor`](crate::wgmma::Descriptor) says; what of it is not in the matrix
/// becomes zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

impl TensorMap {
    /// Columns of a box.
    pub const COLUMNS: u32 = 64;

    /// Bytes of a box of so many rows.
    #[inline(always)]
    #[must_use]
    pub const fn box_bytes(rows: u32) -> u32 {
        rows * Self::COLUMNS * 2
    }

    /// How a map of an emulated device begins.
    #[cfg(not(target_arch = "nvptx64"))]
    pub(crate) const EMULATED: u64 = 0x70_616d_726f_736e;

    /// The map of a matrix `[rows, cols]` of two-byte numbers at `address`, for an emulated device; boxes have `box_rows` rows. The kernel has the matrix as a parameter
    /// too, for the buffers of a launch are those that its parameters lead to.
    #[cfg(not(target_arch = "nvptx64"))]
    #[must_use]
    pub const fn emulated(address: u64, rows: u32, cols: u32, box_rows: u32) -> Self {
        let mut words = [0; 16];
        words[0] = Self::EMULATED;
        words[1] = address;
        words[2] = rows as u64;
        words[3] = cols as u64;
        words[4] = box_rows as u64;
        Self(words)
    }
}

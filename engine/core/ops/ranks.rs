//! What devices that compute a model together tell each other.

use super::{Rows, Types};
use crate::error::{Error, Result};

/// The operations of a device that is a rank of several: all ranks call them in the same order, with the same shapes.
pub trait RankOps: Types {
    /// `x += Σ part_r` over the ranks `r`, in their order, so that all have the same bits; `part`, this rank's, is 0 then, its rows up to
    /// `rows.padded` too: `[n, cols]`.
    ///
    /// # Errors
    /// [`Error::Request`] where there is one rank; [`Error::Device`] from the device.
    fn add_ranks(
        &mut self,
        _rows: Rows<Self::Batch>,
        _part: &mut Self::Tensor,
        _x: &mut Self::Tensor,
    ) -> Result<()> {
        Err(Error::Request("this device is no rank of several".into()))
    }

    /// Brings `n` rows of the residual stream from the device that has the layers before these to `x`; nothing where they are on one device:
    /// `[n, hidden_size]`.
    ///
    /// # Errors
    /// [`Error::Device`] if none come, or from the device.
    fn receive_rows(&mut self, _n: usize, _x: &mut Self::Tensor) -> Result<()> {
        Ok(())
    }

    /// Hands `n` rows of the residual stream on to the device that has the layers behind these, which stay in `x` until that has called
    /// [`RankOps::receive_rows`]; nothing where they are on one device: `[n, hidden_size]`.
    ///
    /// # Errors
    /// [`Error::Device`] from the device.
    fn send_rows(&mut self, _n: usize, _x: &Self::Tensor) -> Result<()> {
        Ok(())
    }

    /// The columns of all ranks side by side: `[n, cols] -> [n, ranks * cols]`.
    ///
    /// # Errors
    /// As [`RankOps::add_ranks`].
    fn gather_ranks(&mut self, _n: usize, _part: &Self::Tensor, _out: &mut Self::Tensor) -> Result<()> {
        Err(Error::Request("this device is no rank of several".into()))
    }
}

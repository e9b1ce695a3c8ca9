//! Maps of matrices in device memory, by which kernels copy boxes of them.

use super::device::Device;
use super::driver::{Answer, cuTensorMapEncodeTiled};
use super::memory::DeviceBuffer;
use super::tensor::Activation;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::DevicePtr;
use cuda_std::tensor_map::TensorMap;
use cudarc::driver::sys::{
    CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion,
    CUtensorMapSwizzle,
};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::rc::Rc;

/// A matrix `[rows, cols]` of two-byte numbers, and the rows of its boxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mapped {
    pub address: u64,
    pub rows: usize,
    pub cols: usize,
    pub dtype: Dtype,
    pub box_rows: u32,
}

/// The maps that were asked for: what was freed and comes again is the same matrix to them.
#[derive(Default)]
pub(super) struct TensorMaps(HashMap<Mapped, DeviceBuffer<u64>>);

impl TensorMaps {
    /// The map of a matrix, all its rows; `None` if there is none yet and a graph is being recorded.
    ///
    /// # Errors
    /// As [`TensorMaps::get`].
    pub fn of(
        &mut self,
        device: &Rc<Device>,
        matrix: &Activation,
        box_rows: u32,
    ) -> Result<Option<DevicePtr<TensorMap>>> {
        let &Activation { rows, cols, dtype, .. } = matrix;
        self.get(device, Mapped { address: matrix.ptr().as_raw(), rows, cols, dtype, box_rows })
    }

    /// The map of a matrix; `None` if there is none yet and a graph is being recorded.
    ///
    /// # Errors
    /// [`Error::Request`] if the matrix has no map, [`Error::Memory`], [`Error::Device`].
    pub fn get(&mut self, device: &Rc<Device>, matrix: Mapped) -> Result<Option<DevicePtr<TensorMap>>> {
        let map = match self.0.entry(matrix) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if device.is_recording() => return Ok(None),
            Entry::Vacant(place) => {
                place.insert(DeviceBuffer::from_slice(device, &encode(device, matrix)?.0)?)
            }
        };
        Ok(Some(map.ptr().cast()))
    }
}

/// The map of a matrix.
fn encode(device: &Device, matrix: Mapped) -> Result<TensorMap> {
    let Mapped { address, rows, cols, dtype, box_rows } = matrix;
    if dtype == Dtype::F32 || !cols.is_multiple_of(8) || rows == 0 || cols == 0 {
        return Err(Error::Request(format!(
            "a matrix of {dtype} [{rows}, {cols}] has no map: rows of 16 bytes of f16 or bf16 do"
        )));
    }
    let too_large = |_| Error::Request(format!("a matrix [{rows}, {cols}] is too large for a map"));
    let (of_rows, of_cols) =
        (u32::try_from(rows).map_err(too_large)?, u32::try_from(cols).map_err(too_large)?);
    if device.is_emulated() {
        return Ok(TensorMap::emulated(address, of_rows, of_cols, box_rows));
    }
    let data_type = match dtype {
        Dtype::Bf16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        _ => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    };
    let mut map = TensorMap([0; 16]);
    // SAFETY: the arrays have the two dimensions of the matrix, the strides one less; the call writes the map, which is aligned to 64 bytes.
    unsafe {
        cuTensorMapEncodeTiled(
            (&raw mut map).cast(),
            data_type as u32,
            2,
            address as *mut c_void,
            [u64::from(of_cols), u64::from(of_rows)].as_ptr(),
            [2 * u64::from(of_cols)].as_ptr(),
            [TensorMap::COLUMNS, box_rows].as_ptr(),
            [1; 2].as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE as u32,
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B as u32,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B as u32,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE as u32,
        )
    }
    .doing("making the map of a matrix")?;
    Ok(map)
}

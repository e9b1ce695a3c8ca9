//! cuBLAS on the device's stream, through `cudarc`'s run-time bindings.

use super::device::Device;
use super::graph::{begin_recording, end_recording};
use super::memory::DeviceBuffer;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use cudarc::cublas::sys;
use std::cell::RefCell;
use std::ffi::CStr;
use std::ptr;
use std::rc::Rc;

/// Scratch memory of the library, in bytes: what NVIDIA recommends for Hopper. It is fixed, for with one of its own
/// making the library may add partial sums in another order from run to run.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// `n` rows or a few more. The library takes 1 to 2 ms to choose a kernel for a number of rows that it has not seen
/// ([`Cublas::warm_up`]), and prompts have any length. Its kernels work in tiles of rows, so most of those that are added cost nothing.
pub fn rounded_rows(n: usize) -> usize {
    let step = match n {
        0..=16 => 1,
        17..=256 => 16,
        257..=1024 => 64,
        _ => 128,
    };
    n.next_multiple_of(step)
}

/// A cuBLAS handle.
pub struct Cublas {
    handle: sys::cublasHandle_t,
    /// In use by the handle.
    workspace: DeviceBuffer<u8>,
    /// The context outlives the handle.
    device: Rc<Device>,
    /// A product of each shape that was there so far.
    known: RefCell<Vec<Product>>,
}

/// Refuses to go on where the library is not installed; cudarc would panic.
fn find_library() -> Result<()> {
    // SAFETY: loads a library whose initialisers do nothing unusual.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::Device(
        "libcublas.so is not found; install NVIDIA's package libcublas-13-0 (or libcublas-12-*, or `pip install \
         nvidia-cublas`) and name its folder in LD_LIBRARY_PATH, or do without: --kernel matmul=plain"
            .into(),
    ))
}

/// Version of the installed library; no device is needed.
///
/// # Errors
/// [`Error::Device`] if it is not installed.
pub fn library_version() -> Result<String> {
    use cudarc::cublas::sys::libraryPropertyType_t::{MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL};
    find_library()?;
    let mut parts = Vec::new();
    for property in [MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL] {
        let mut value = 0;
        // SAFETY: writes one int.
        check(unsafe { sys::cublasGetProperty(property, &mut value) }, "asking for cuBLAS's version")?;
        parts.push(value.to_string());
    }
    Ok(parts.join("."))
}

/// Starts to load the library on another thread, if it is installed: its files are hundreds of megabytes, and opening the
/// device meanwhile takes as long.
pub fn preload() {
    // Whether it is there is found out by whoever needs it; the thread ends by itself.
    drop(std::thread::Builder::new().spawn(library_version));
}

impl Cublas {
    /// Opens the library.
    ///
    /// # Errors
    /// [`Error::Device`] that names the package if the library is not installed, or with the library's own reason.
    pub fn new(device: &Rc<Device>) -> Result<Self> {
        find_library()?;
        let mut workspace = DeviceBuffer::zeroed(device, WORKSPACE_BYTES)?;
        let mut handle = ptr::null_mut();
        // SAFETY: writes the handle; the device's context is current.
        check(unsafe { sys::cublasCreate_v2(&mut handle) }, "starting cuBLAS")?;
        let address = workspace.ptr_mut().as_raw();
        let cublas = Self { handle, workspace, device: device.clone(), known: RefCell::default() };
        // SAFETY: stream and workspace live as long as the handle. The stream is set first, for that resets the
        // workspace.
        unsafe {
            check(sys::cublasSetStream_v2(handle, device.stream().cast()), "setting cuBLAS's stream")?;
            check(
                sys::cublasSetWorkspace_v2(
                    handle,
                    ptr::with_exposed_provenance_mut(address as usize),
                    WORKSPACE_BYTES,
                ),
                "setting cuBLAS's workspace",
            )?;
            // f32 stays f32 (no TF32), and sums of f16 and bf16 products stay f32 until the end.
            let mode = sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
            check(sys::cublasSetMathMode(handle, mode), "setting cuBLAS's precision")?;
        }
        Ok(cublas)
    }

    /// Queues the product; sums in f32.
    ///
    /// # Errors
    /// [`Error::Device`] if a size is over `i32::MAX`, or with the library's reason.
    ///
    /// # Safety
    /// The three ranges have the values that [`Product`] says on this device, and out overlaps neither other.
    pub unsafe fn matmul(&self, product: &Product) -> Result<()> {
        let int = |value: usize| {
            i32::try_from(value).map_err(|_| Error::Device(format!("cuBLAS takes no dimension of {value}")))
        };
        let &Product { dtype, x, weight, out, out_dtype, accumulate, scale, .. } = product;
        let (n, rows, cols) = (int(product.n)?, int(product.rows)?, int(product.cols)?);
        let out_stride = int(product.out_stride)?;
        if !self.known.borrow().iter().any(|known| known.shape() == product.shape()) {
            self.known.borrow_mut().push(*product);
        }
        let (alpha, beta) = (scale, if accumulate { 1.0f32 } else { 0.0 });
        // cuBLAS is column-major: it computes outᵀ [rows, n] = weight · xᵀ, where the stored weight is its transpose
        // and the stored x is xᵀ already.
        // SAFETY: the caller vouches for the ranges; alpha and beta are read before the call returns.
        let status = unsafe {
            sys::cublasGemmEx(
                self.handle,
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                rows,
                n,
                cols,
                ptr::from_ref(&alpha).cast(),
                ptr::with_exposed_provenance(weight.as_raw() as usize),
                format(dtype),
                cols,
                ptr::with_exposed_provenance(x.as_raw() as usize),
                format(dtype),
                cols,
                ptr::from_ref(&beta).cast(),
                ptr::with_exposed_provenance_mut(out.as_raw() as usize),
                format(out_dtype),
                out_stride,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        check(status, "cublasGemmEx")
    }
}

impl Cublas {
    /// Lets the library choose kernels for products with `n` rows of all shapes that were there so far: they are recorded and thrown
    /// away, which computes nothing.
    ///
    /// # Errors
    /// [`Error::Device`] with the library's or the driver's reason.
    pub fn warm_up(&self, n: usize) -> Result<()> {
        let known = self.known.borrow().clone();
        begin_recording(&self.device)?;
        // SAFETY: what is recorded never runs, so that it does not matter what its pointers lead to.
        let queued = known
            .iter()
            .try_for_each(|product| unsafe { self.matmul(&product.of_shape(n, self.workspace.ptr())) });
        let recording = end_recording(&self.device);
        queued?;
        recording.map(drop)
    }
}

impl Product {
    /// Everything but its rows and where they are.
    fn shape(&self) -> (Dtype, [usize; 3], Dtype, bool) {
        (self.dtype, [self.rows, self.cols, self.out_stride], self.out_dtype, self.accumulate)
    }

    /// One of the same shape with `n` rows, of what lies at `place`.
    fn of_shape(&self, n: usize, place: DevicePtr<u8>) -> Self {
        Self { n, x: place, weight: place, out: DevicePtrMut::from_raw(place.as_raw()), ..*self }
    }
}

/// `out = scale · x · weightᵀ`, or with `accumulate` `out += scale · x · weightᵀ`, all row-major.
#[derive(Clone, Copy)]
pub struct Product {
    /// Of x and weight.
    pub dtype: Dtype,
    pub n: usize,
    pub rows: usize,
    pub cols: usize,
    /// `[n, cols]`
    pub x: DevicePtr<u8>,
    /// `[rows, cols]`
    pub weight: DevicePtr<u8>,
    /// `[n, rows]`, in rows of `out_stride` values.
    pub out: DevicePtrMut<u8>,
    pub out_stride: usize,
    /// f32, or that of x and weight.
    pub out_dtype: Dtype,
    pub accumulate: bool,
    pub scale: f32,
}

fn format(dtype: Dtype) -> sys::cudaDataType_t {
    match dtype {
        Dtype::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Dtype::F16 => sys::cudaDataType_t::CUDA_R_16F,
        Dtype::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: the handle is this value's own. A failure leaves nothing to do.
        unsafe {
            sys::cublasDestroy_v2(self.handle);
        }
    }
}

fn check(status: sys::cublasStatus_t, doing: &str) -> Result<()> {
    if status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    // SAFETY: a constant string of the library.
    let text = unsafe { CStr::from_ptr(sys::cublasGetStatusString(status)) };
    Err(Error::Device(format!("{doing}: {}", text.to_string_lossy())))
}

//! The same from NVIDIA's library, which is looked for when the program runs.

use crate::gpu::Gpu;
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use cudarc::cublas::sys::{self, cublasOperation_t, cublasPointerMode_t, cudaDataType_t};
use half::f16;
use std::ptr;

/// What cuBLAS has a function for.
#[derive(Clone, Copy)]
pub enum Call {
    Saxpy {
        n: usize,
        a: f32,
        x: DevicePtr<f32>,
        y: DevicePtrMut<f32>,
    },
    /// The sum of magnitudes: reads as much, and gives the same where nothing is negative.
    Asum {
        n: usize,
        x: DevicePtr<f32>,
        out: DevicePtrMut<f32>,
    },
    /// `c = a · b` of [`example_kernels::matmul`].
    Gemm {
        size: [usize; 3],
        a: DevicePtr<f32>,
        b: DevicePtr<f32>,
        c: DevicePtrMut<f32>,
    },
    /// `c = a · bᵀ` of [`example_kernels::matmul_tensor_cores`].
    GemmF16 {
        size: [usize; 3],
        a: DevicePtr<f16>,
        b: DevicePtr<f16>,
        c: DevicePtrMut<f32>,
    },
}

pub struct Cublas(sys::cublasHandle_t);

impl Cublas {
    /// `None` where it is not installed.
    pub fn open(gpu: &Gpu) -> Option<Self> {
        // SAFETY: loads a library whose initialisers do nothing unusual; then there is a handle, and the stream lives as long
        // as the GPU.
        unsafe {
            if !sys::is_culib_present() {
                return None;
            }
            let mut handle = ptr::null_mut();
            check(sys::cublasCreate_v2(&mut handle)).ok()?;
            let cublas = Self(handle);
            check(sys::cublasSetStream_v2(handle, gpu.stream.as_inner().cast())).ok()?;
            Some(cublas)
        }
    }

    /// Queues it.
    pub fn run(&self, call: &Call) -> Result<(), String> {
        let int = |value: usize| i32::try_from(value).map_err(|_| format!("cuBLAS takes no size of {value}"));
        // SAFETY: the buffers are those of a case, which have these sizes; numbers of the host are read before the calls return.
        unsafe {
            check(match *call {
                Call::Saxpy { n, a, x, y } => {
                    sys::cublasSaxpy_v2(self.0, int(n)?, &a, host(x), 1, host_mut(y), 1)
                }
                Call::Asum { n, x, out } => {
                    // So that the result need not be waited for.
                    sys::cublasSetPointerMode_v2(self.0, cublasPointerMode_t::CUBLAS_POINTER_MODE_DEVICE);
                    let status = sys::cublasSasum_v2(self.0, int(n)?, host(x), 1, host_mut(out));
                    sys::cublasSetPointerMode_v2(self.0, cublasPointerMode_t::CUBLAS_POINTER_MODE_HOST);
                    status
                }
                Call::Gemm { size: [m, n, k], a, b, c } => {
                    let (size, b) =
                        ([int(n)?, int(m)?, int(k)?], (host(b), int(n)?, cublasOperation_t::CUBLAS_OP_N));
                    self.gemm(cudaDataType_t::CUDA_R_32F, size, b, host(a), host_mut(c))
                }
                Call::GemmF16 { size: [m, n, k], a, b, c } => {
                    let (size, b) =
                        ([int(n)?, int(m)?, int(k)?], (host(b), int(k)?, cublasOperation_t::CUBLAS_OP_T));
                    self.gemm(cudaDataType_t::CUDA_R_16F, size, b, host(a), host_mut(c))
                }
            })
        }
    }

    /// The library has columns where we have rows: it computes `cᵀ = bᵀ · aᵀ`, so that `size` is `[n, m, k]` and `b` comes first.
    unsafe fn gemm<T>(
        &self,
        dtype: cudaDataType_t,
        [n, m, k]: [i32; 3],
        (b, b_stride, transposed): (*const T, i32, cublasOperation_t),
        a: *const T,
        c: *mut f32,
    ) -> sys::cublasStatus_t {
        let (alpha, beta) = (1.0f32, 0.0f32);
        // SAFETY: the caller's promise.
        unsafe {
            sys::cublasGemmEx(
                self.0,
                transposed,
                cublasOperation_t::CUBLAS_OP_N,
                n,
                m,
                k,
                ptr::from_ref(&alpha).cast(),
                b.cast(),
                dtype,
                b_stride,
                a.cast(),
                dtype,
                k,
                ptr::from_ref(&beta).cast(),
                c.cast(),
                cudaDataType_t::CUDA_R_32F,
                n,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: its own handle. A failure leaves nothing to do.
        unsafe { sys::cublasDestroy_v2(self.0) };
    }
}

fn host<T>(pointer: DevicePtr<T>) -> *const T {
    ptr::with_exposed_provenance(pointer.as_raw() as usize)
}

fn host_mut<T>(pointer: DevicePtrMut<T>) -> *mut T {
    ptr::with_exposed_provenance_mut(pointer.as_raw() as usize)
}

fn check(status: sys::cublasStatus_t) -> Result<(), String> {
    if status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        Ok(())
    } else {
        Err(format!("cuBLAS: {status:?}"))
    }
}

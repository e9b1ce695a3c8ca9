//! The first GPU, through `cust`.

use cuda_std::launch::{Kernel, LaunchConfig, Launcher};
use cust::context::Context;
use cust::device::{Device, DeviceAttribute};
use cust::error::{CudaError, CudaResult};
use cust::event::{Event, EventFlags};
use cust::memory::{CopyDestination, DeviceBuffer, DevicePointer, DeviceSlice};
use cust::module::Module;
use cust::stream::{Stream, StreamFlags};
use example_kernels_steps::machine::Machine;
use std::cell::RefCell;
use std::ffi::c_void;

// Its symbols are what `cust` calls.
use cuda_driver as _;

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// What is used is dropped before what it uses.
pub struct Gpu {
    buffers: RefCell<Vec<DeviceBuffer<u8>>>,
    module: Module,
    pub stream: Stream,
    device: Device,
    _context: Context,
}

/// What a GPU could do at best, by its clocks.
pub struct Peaks {
    pub name: String,
    /// Bytes a second of its memory.
    pub bandwidth: f64,
    /// Operations a second in f32, a fused multiplication and addition being two.
    pub f32: Option<f64>,
    /// The same on tensor cores, f16 with sums in f32.
    pub tensor_cores: Option<f64>,
}

impl Gpu {
    pub fn open() -> CudaResult<Self> {
        let context = cust::quick_init()?;
        let module = Module::from_ptx(PTX, &[])?;
        let stream = Stream::new(StreamFlags::DEFAULT, None)?;
        let device = Device::get_device(0)?;
        Ok(Self { buffers: RefCell::default(), module, stream, device, _context: context })
    }

    pub fn peaks(&self) -> CudaResult<Peaks> {
        let get = |attribute| self.device.get_attribute(attribute).map(f64::from);
        let multiprocessors = get(DeviceAttribute::MultiprocessorCount)?;
        let clock = 1e3 * get(DeviceAttribute::ClockRate)?;
        // Data moves twice a clock.
        let memory_clock = 2e3 * get(DeviceAttribute::MemoryClockRate)?;
        let capability = (
            self.device.get_attribute(DeviceAttribute::ComputeCapabilityMajor)?,
            self.device.get_attribute(DeviceAttribute::ComputeCapabilityMinor)?,
        );
        // Operations of a multiprocessor in a clock: f32 by NVIDIA's CUDA C++ Programming Guide ("Arithmetic Instructions"), f16
        // from what its data sheets state for A100, A10 and H100.
        let of_a_clock = match capability {
            (8, 0) => Some((2.0 * 64.0, Some(2048.0))),
            (8, _) => Some((2.0 * 128.0, None)),
            (9, 0) => Some((2.0 * 128.0, Some(4096.0))),
            _ => None,
        };
        let per_second = |operations: f64| multiprocessors * clock * operations;
        Ok(Peaks {
            name: self.device.name()?,
            bandwidth: memory_clock * get(DeviceAttribute::GlobalMemoryBusWidth)? / 8.0,
            f32: of_a_clock.map(|(f32, _)| per_second(f32)),
            tensor_cores: of_a_clock.and_then(|(_, f16)| f16).map(per_second),
        })
    }

    /// Seconds of one run of `run`, the mean of many.
    pub fn seconds<E: From<CudaError>>(&self, run: impl Fn() -> Result<(), E>) -> Result<f64, E> {
        const WARM_UP: usize = 3;
        const RUNS: usize = 20;
        let [start, end] = [Event::new(EventFlags::DEFAULT)?, Event::new(EventFlags::DEFAULT)?];
        for i in 0..WARM_UP + RUNS {
            if i == WARM_UP {
                start.record(&self.stream)?;
            }
            run()?;
        }
        end.record(&self.stream)?;
        end.synchronize()?;
        Ok(f64::from(end.elapsed_time_f32(&start)?) / 1e3 / RUNS as f64)
    }
}

impl Launcher for Gpu {
    type Error = CudaError;

    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        config: &LaunchConfig,
        params: &mut [*mut c_void],
    ) -> CudaResult<()> {
        let function = self.module.get_function(kernel.name)?;
        let ([gx, gy, gz], [bx, by, bz]) = (config.grid, config.block);
        // SAFETY: the caller vouches for the parameters and for what the kernel does with them.
        unsafe { self.stream.launch(&function, (gx, gy, gz), (bx, by, bz), config.shared_bytes, params) }
    }
}

impl Machine for Gpu {
    fn allocate(&self, bytes: usize) -> CudaResult<u64> {
        let buffer = DeviceBuffer::zeroed(bytes)?;
        let address = buffer.as_device_ptr().as_raw();
        self.buffers.borrow_mut().push(buffer);
        Ok(address)
    }

    fn write(&self, to: u64, bytes: &[u8]) -> CudaResult<()> {
        // SAFETY: inside a buffer that `allocate` gave.
        let mut slice = unsafe { DeviceSlice::from_raw_parts(DevicePointer::from_raw(to), bytes.len()) };
        slice.copy_from(bytes)
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> CudaResult<()> {
        self.stream.synchronize()?;
        // SAFETY: as above.
        let slice = unsafe { DeviceSlice::from_raw_parts(DevicePointer::from_raw(from), bytes.len()) };
        slice.copy_to(bytes)
    }
}

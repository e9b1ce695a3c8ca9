//! What is asked of the driver, and in which order, by a driver of the test's own: device memory is the host's, and every call
//! writes a line.

use super::super::device::{Dependent, Device, PTX_FILE};
use super::super::graph::Graphs;
use super::super::launch::launch;
use super::super::memory::{DeviceBuffer, PinnedBuffer};
use super::super::timer::Timer;
use crate::error::Error;
use cuda_std::launch::LaunchConfig;
use gpu_kernels::read_bandwidth::{ReadBandwidthArgs, plain};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

/// What is written before what the driver writes.
const STEP: &str = "step ";
/// Set where a test runs in a process of its own, with the driver of its own.
const ALONE: &str = "QERNEL_TEST_FAKE_DRIVER";

/// Runs `test` of this binary once more with the driver, and what PTX there is: what was called, by step.
fn run_alone(test: &str, ptx: &str) -> Vec<(String, String)> {
    let folder = tempfile::tempdir().unwrap();
    install(folder.path(), ptx);
    let (_, module) = module_path!().split_once("::").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{test}"), "--nocapture"])
        .env("LD_LIBRARY_PATH", folder.path())
        .env(PTX_FILE, folder.path().join("kernels.ptx"))
        .env(ALONE, "1")
        .output()
        .unwrap();
    let (out, calls) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{calls}");
    let steps = calls.split(STEP).skip(1).map(|step| step.split_once('\n').unwrap());
    steps
        .map(|(name, calls)| (name.to_owned(), calls.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

/// A kernel as the tests launch it, and one that is shorter.
const PTX: &str = "\
.target sm_90a

.visible .entry read_bandwidth_u32_plain(
\t.param .u32 num_words
)
{
\tret;
}
.visible .entry short()
{
\tret;
}
";

fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Puts the driver and the PTX into `folder`.
fn install(folder: &Path, ptx: &str) {
    let source = folder.join("fake_driver.rs");
    std::fs::write(&source, include_str!("fake_driver.rs")).unwrap();
    std::fs::write(folder.join("kernels.ptx"), ptx).unwrap();
    let compiled = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
        .arg(folder.join("libcuda.so.1"))
        .arg(&source)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
}

fn step(name: &str) {
    eprintln!("{STEP}{name}");
}

#[test]
#[cfg(target_os = "linux")]
fn the_driver_is_asked_for_these_things_in_this_order() {
    if is_alone() {
        return use_the_driver();
    }
    let steps = run_alone("the_driver_is_asked_for_these_things_in_this_order", PTX);
    let calls = |name: &str| {
        let found = steps.iter().find(|(step, _)| step == name);
        found.unwrap_or_else(|| panic!("no step {name}: {steps:?}")).1.as_str()
    };
    assert_eq!(
        calls("open"),
        "Init DriverGetVersion DeviceGetCount DeviceGet:0 DeviceGetName DeviceGetAttribute:75 \
         DeviceGetAttribute:76 DeviceGetAttribute:16 DeviceGetAttribute:39 DeviceTotalMem DeviceGetAttribute:38 DeviceGetAttribute:97 \
         DeviceGet:0 PrimaryCtxRetain CtxSetCurrent CtxSetCurrent StreamCreate:1 ModuleLoadDataEx:0 ModuleUnload"
    );
    assert_eq!(calls("write"), "MemAlloc:8 MemsetD8Async:8 MemcpyHtoDAsync:8 StreamSynchronize");
    assert_eq!(calls("read"), "MemcpyDtoHAsync:4 StreamSynchronize");
    assert_eq!(calls("empty"), "MemAlloc:1 MemsetD8Async:0 StreamSynchronize MemFree");
    assert_eq!(calls("pin"), "MemAllocHost:4 EventCreate:2");
    assert_eq!(
        calls("copy"),
        "EventSynchronize MemcpyHtoDAsync:4 EventRecord MemcpyDtoHAsync:2 EventRecord EventSynchronize"
    );
    assert_eq!(calls("unpin"), "StreamSynchronize MemFreeHost EventDestroy");
    assert_eq!(
        calls("time"),
        "EventCreate:0 EventCreate:0 EventRecord EventRecord EventSynchronize EventElapsedTime EventDestroy \
         EventDestroy"
    );
    // A kernel is compiled once; launches wait for nothing.
    assert_eq!(calls("first launch"), "ModuleLoadDataEx:0 ModuleGetFunction LaunchKernel:1x2");
    assert_eq!(calls("second launch"), "LaunchKernel:1x2");
    // Attribute 9 asks for all shared memory, 8 for more than every kernel has; 6 lets the kernel start early.
    assert_eq!(calls("dependent"), "FuncSetAttribute:8=49153 FuncSetAttribute:9=100 LaunchKernelEx:1x2:6");
    assert_eq!(calls("dependent again"), "LaunchKernelEx:1x2:6");
    assert_eq!(
        calls("record"),
        "StreamBeginCapture:2 LaunchKernel:1x2 StreamEndCapture GraphInstantiateWithFlags:0 GraphDestroy"
    );
    assert_eq!(calls("replay"), "GraphLaunch");
    assert_eq!(calls("forget"), "StreamSynchronize GraphExecDestroy");
    assert_eq!(calls("out of memory"), "MemAlloc:1099511627776");
    assert_eq!(calls("code of tomorrow"), "MemAlloc:2989");
    assert_eq!(
        calls("close"),
        "StreamSynchronize MemFree StreamSynchronize ModuleUnload StreamDestroy PrimaryCtxRelease"
    );
}

fn use_the_driver() {
    step("open");
    let device = Rc::new(Device::open(None, |_| None).unwrap());
    let info = device.info();
    assert_eq!((info.name.as_str(), info.ordinal, info.driver_version), ("a device", 0, (13, 1)));
    assert_eq!((info.compute_capability, info.multiprocessors, info.total_memory), ((9, 0), 132, 1 << 36));
    assert_eq!((info.l2_cache, info.shared_memory_per_block), (50 << 20, 227 << 10));
    step("write");
    let mut buffer = DeviceBuffer::from_slice(&device, &[1u16, 2, 3, 4]).unwrap();
    step("read");
    assert_eq!(buffer.read(1, 2).unwrap(), [2, 3]);
    step("empty");
    drop(DeviceBuffer::<u8>::zeroed(&device, 0).unwrap());

    step("pin");
    let mut pinned = PinnedBuffer::new(&device, 4).unwrap();
    step("copy");
    pinned.wait().unwrap().copy_from_slice(&[7, 0, 8, 0]);
    // SAFETY: the buffer has four values of two bytes, and outlives the copies, which this driver makes at once.
    unsafe {
        pinned.copy_to(4, buffer.ptr_mut().cast()).unwrap();
        pinned.copy_from(2, buffer.ptr().cast::<u8>().add(4)).unwrap();
        pinned.copied().unwrap();
        assert!(pinned.copy_to(5, buffer.ptr_mut().cast()).is_err());
    }
    assert_eq!(pinned.wait().unwrap(), [3, 0, 8, 0]);
    step("");
    assert_eq!(buffer.read(0, 4).unwrap(), [7, 8, 3, 4]);
    step("unpin");
    drop(pinned);

    step("time");
    let mut timer = Timer::new(&device, 1).unwrap();
    timer.start(0).unwrap();
    timer.stop(0).unwrap();
    assert_eq!(timer.seconds(0).unwrap(), 1.5e-3);
    drop(timer);
    step("");

    launch_and_record(&device, &mut buffer);

    step("out of memory");
    let error = DeviceBuffer::<u8>::zeroed(&device, 1 << 40).err().unwrap();
    assert!(
        matches!(&error, Error::Memory(text) if text.contains("1099511627776 bytes") && text.contains("(2)"))
    );
    step("code of tomorrow");
    let error = DeviceBuffer::<u8>::zeroed(&device, 0xBAD).err().unwrap();
    assert!(
        matches!(&error, Error::Device(text) if text.ends_with("CUDA_ERROR_OF_TOMORROW (1001): what it means"))
    );
    step("close");
    drop((buffer, device));
}

fn launch_and_record(device: &Rc<Device>, buffer: &mut DeviceBuffer<u16>) {
    let config = |shared_bytes| LaunchConfig { grid: [1, 1, 1], block: [2, 1, 1], shared_bytes };
    let (words, out) = (buffer.ptr().cast(), buffer.ptr_mut().cast());
    let arguments = ReadBandwidthArgs { num_words: 0, words, out };
    // SAFETY: this driver runs no kernel.
    let alone = || unsafe { launch(&**device, plain(), &[], &config(0), arguments) }.unwrap();
    // SAFETY: as above.
    let dependent =
        || unsafe { launch(&Dependent(device), plain(), &[], &config(49153), arguments) }.unwrap();
    step("first launch");
    alone();
    step("second launch");
    alone();
    step("dependent");
    dependent();
    step("dependent again");
    dependent();

    let mut graphs = Graphs::new(device);
    assert!(!graphs.launch(&1).unwrap());
    step("record");
    graphs.begin().unwrap();
    alone();
    graphs.end(1, Ok(())).unwrap();
    step("replay");
    assert!(graphs.launch(&1).unwrap());
    step("forget");
    graphs.clear();
    step("");
}

#[test]
#[cfg(target_os = "linux")]
fn kernels_that_the_driver_refuses_are_an_error_with_its_log() {
    if is_alone() {
        step("open");
        let error = Device::open(None, |_| None).err().unwrap().to_string();
        let expected = "loading the kernel short: CUDA_ERROR_INVALID_PTX (218): what it means\nline 1: no";
        return assert!(error.contains(expected), "{error}");
    }
    let steps = run_alone(
        "kernels_that_the_driver_refuses_are_an_error_with_its_log",
        &PTX.replace("sm_90a", "refused"),
    );
    // Once more for the log, then what there was is given back.
    let calls = "StreamCreate:1 ModuleLoadDataEx:0 ModuleLoadDataEx:2 StreamSynchronize StreamDestroy PrimaryCtxRelease";
    assert!(steps[0].1.ends_with(calls), "{}", steps[0].1);
}

//! The host's side of `#[kernel]`: what a launcher is handed. What does not compile stands in `cuda_std::launch` and in
//! `cuda_std_macros`.

use std::cell::RefCell;
use std::convert::Infallible;
use std::ffi::c_void;

use cuda_std::launch::Kernel;
use cuda_std::prelude::*;

/// A parameter that is a structure.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    rows: u32,
    columns: u32,
    scale: f64,
}

/// The parameters' names are those that the generated function uses itself.
#[kernel(max_threads = 256)]
#[allow(unused_variables)]
pub unsafe fn mixed_parameters(
    launcher: u8,
    config: *const f32,
    value_0: Shape,
    out: *mut bf16,
    epsilon: f32,
    flags: [u16; 3],
) {
}

/// No parameter at all.
#[kernel]
pub unsafe fn no_parameters() {}

/// What `mixed_parameters` was given, pointers as addresses.
type Mixed = (u8, u64, Shape, u64, f32, [u16; 3]);

/// Reads the parameters back as `mixed_parameters` declares them, and keeps them.
#[derive(Default)]
struct Recorder {
    launches: RefCell<Vec<(&'static str, LaunchConfig, usize)>>,
    mixed: RefCell<Option<Mixed>>,
}

impl Launcher for Recorder {
    type Error = Infallible;

    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        config: &LaunchConfig,
        params: &mut [*mut c_void],
    ) -> Result<(), Infallible> {
        self.launches.borrow_mut().push((kernel.name, *config, params.len()));
        if let [launcher, pointer, shape, out, epsilon, flags] = *params {
            // SAFETY: the types of `mixed_parameters`, in its order.
            *self.mixed.borrow_mut() = Some(unsafe {
                (
                    *launcher.cast(),
                    *pointer.cast(),
                    *shape.cast(),
                    *out.cast(),
                    *epsilon.cast(),
                    *flags.cast(),
                )
            });
        }
        Ok(())
    }
}

const CONFIG: LaunchConfig = LaunchConfig { grid: [3, 2, 1], block: [128, 1, 1], shared_bytes: 64 };

#[test]
fn every_parameter_arrives_in_its_place() {
    let recorder = Recorder::default();
    let shape = Shape { rows: 3, columns: 5, scale: 0.25 };
    let (x, out) = (DevicePtr::from_raw(0x7f00_0000_1000), DevicePtrMut::from_raw(0x7f00_0000_2000));
    // SAFETY: nothing runs.
    let Ok(()) = unsafe { mixed_parameters(&recorder, &CONFIG, 7, x, shape, out, 1e-6, [1, 2, 3]) };
    // SAFETY: nothing runs.
    let Ok(()) = unsafe { no_parameters(&recorder, &CONFIG) };
    let launches = [("mixed_parameters", CONFIG, 6), ("no_parameters", CONFIG, 0)];
    assert_eq!(*recorder.launches.borrow(), launches);
    let mixed = (7, 0x7f00_0000_1000, shape, 0x7f00_0000_2000, 1e-6, [1, 2, 3]);
    assert_eq!(*recorder.mixed.borrow(), Some(mixed));
}

#[test]
fn device_pointers_count_in_elements() {
    let pointer = DevicePtrMut::<f32>::from_raw(1024);
    assert_eq!(pointer.add(3).as_raw(), 1036);
    assert_eq!(pointer.cast::<bf16>().add(3).as_raw(), 1030);
    assert_eq!(DevicePtr::from(pointer).as_raw(), 1024);
    assert_eq!(format!("{pointer:?}"), "DevicePtrMut(0x400)");
}

#[test]
fn elements_convert_on_the_host_as_on_the_device() {
    // Ties go to the even neighbour: 1 + 2^-8 lies between 1 and 1 + 2^-7, 1 + 2^-11 between 1 and 1 + 2^-10.
    assert_eq!(<bf16 as Element>::from_f32(1.0 + 2.0_f32.powi(-8)).to_bits(), 0x3f80);
    assert_eq!(<f16 as Element>::from_f32(1.0 + 2.0_f32.powi(-11)).to_bits(), 0x3c00);
    let lanes = [1.0, -2.0, 0.5, 3.0, -4.0, 5.0, 0.25, 7.0];
    assert_eq!(<bf16 as Element>::unpack(<bf16 as Element>::pack(lanes)), lanes);
    assert_eq!(<f16 as Element>::unpack(<f16 as Element>::pack(lanes)), lanes);
    assert_eq!(<bf16 as PackedElement>::pack2(1.0, -2.0), 0xc000_3f80);
    assert_eq!(<f16 as PackedElement>::unpack2(0xc000_3c00), (1.0, -2.0));
    assert_eq!(<f32 as Element>::LANES, <f32 as Element>::splat(0.0).len());
}

/// Arguments of two types and a value.
#[kernel_args]
pub struct Scale<E, X> {
    pub n: u32,
    pub x: *const X,
    pub factor: f32,
    /// Where it goes.
    pub out: *mut E,
}

/// What is launched with one struct.
///
/// # Safety
/// Nothing runs.
#[kernel((E, X) = [(f16, f16), bf16_wide: (bf16, f32)], (N, B) = [one: (1, 2), few: (4, 1)], name = "scale_{E}_{N}", max_threads = 256, min_blocks = B)]
pub unsafe fn scale<E: Element, X: Element, const N: usize>(
    a: Scale<E, X>,
    #[shared(N * size_of::<E>())] _room: Shared<u32>,
) {
    // SAFETY: nothing runs.
    unsafe { *a.out = E::from_f32((*a.x).to_f32() * a.factor * N as f32) }
}

#[test]
fn entries_are_named_and_found_by_their_values() {
    let names: Vec<_> = scale().instances().iter().map(|instance| instance.kernel.name).collect();
    assert_eq!(names, ["scale_f16_one", "scale_f16_few", "scale_bf16_wide_one", "scale_bf16_wide_few"]);
    let name = |values: &[_]| scale().get(values).map(|entry| entry.kernel().name);
    assert_eq!(name(&["bf16".into(), "f32".into(), 4_u32.into()]), Some("scale_bf16_wide_few"));
    assert_eq!(name(&["bf16".into()]), Some("scale_bf16_wide_one"));
    assert_eq!(name(&["bf16".into(), "f16".into()]), None);
    let kernel = scale().get(&["f16".into(), "f16".into(), 4_u32.into()]).unwrap().kernel();
    assert_eq!((kernel.max_threads, kernel.min_blocks, kernel.parameters), (256, 1, &[4, 8, 4, 8][..]));
}

macro_rules! halves {
    ($call:path, $($rest:tt)*) => { $call! { [f16, bf16] $($rest)* } };
}

/// Of a list that a macro holds.
///
/// # Safety
/// Nothing runs.
#[kernel((E, X) = [(f32, f32)], N = [few: 4], H = [f32, halves!], name = "listed_{H}_{N}")]
pub unsafe fn listed<E: Element, X: Element, H: Element, const N: usize>(a: Scale<E, X>) {
    // SAFETY: nothing runs.
    unsafe { *a.out = E::from_f32(H::from_f32(N as f32).to_f32()) }
}

#[test]
fn lists_of_macros_are_among_others() {
    let names: Vec<_> = listed().instances().iter().map(|instance| instance.kernel.name).collect();
    assert_eq!(names, ["listed_f32_few", "listed_f16_few", "listed_bf16_few"]);
}

/// Keeps the parameters of a launch as bytes.
#[derive(Default)]
struct Bytes(RefCell<Vec<Vec<u8>>>);

impl Launcher for Bytes {
    type Error = Infallible;

    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        _: &LaunchConfig,
        params: &mut [*mut c_void],
    ) -> Result<(), Infallible> {
        let parameters = params.iter().zip(kernel.parameters);
        // SAFETY: each pointer leads to a value of that size.
        let bytes =
            parameters.map(|(p, &size)| unsafe { std::slice::from_raw_parts(p.cast(), size).to_vec() });
        *self.0.borrow_mut() = bytes.collect();
        Ok(())
    }
}

#[test]
fn fields_are_parameters_of_their_own() {
    let recorder = Bytes::default();
    let (x, out) = (DevicePtr::from_raw(0x1000), DevicePtrMut::from_raw(0x2000));
    let entry = scale().get(&["f16".into()]).unwrap();
    // SAFETY: nothing runs.
    let Ok(()) = unsafe { entry.launch(&recorder, &CONFIG, ScaleArgs { n: 7, x, factor: 0.5, out }) };
    let expected = [
        7_u32.to_ne_bytes().to_vec(),
        0x1000_u64.to_ne_bytes().to_vec(),
        0.5_f32.to_ne_bytes().to_vec(),
        0x2000_u64.to_ne_bytes().to_vec(),
    ];
    assert_eq!(*recorder.0.borrow(), expected);
}

//! The symbols: naked functions that jump to the driver's, whatever their signatures.
//!
//! Each has a slot with the driver's address. Empty, the jump goes to [`slow_path`] instead, which saves every register
//! that can carry an argument (pointers, integers and floats: `cuParamSetf` has one), asks [`resolve`] for the address,
//! restores them and jumps there. Arguments on the stack stay where they are.

use std::{
    arch::naked_asm,
    ffi::{CStr, c_void},
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicPtr, Ordering},
    },
};

use libloading::Library;

use crate::{fallback, functions::for_each_function};

/// Where the driver's library is looked for: the loader's own search first, then the folders in which containers, WSL
/// and NixOS put it without telling the loader.
const LIBRARIES: [&str; 4] = [
    "libcuda.so.1",
    "/usr/local/nvidia/lib64/libcuda.so.1",
    "/usr/lib/wsl/lib/libcuda.so.1",
    "/run/opengl-driver/lib/libcuda.so.1",
];

struct Driver {
    library: Library,
    /// Which of [`LIBRARIES`] it is.
    name: &'static str,
}

fn driver() -> &'static Result<Driver, String> {
    static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
    DRIVER.get_or_init(|| {
        for name in LIBRARIES {
            // SAFETY: loading the driver runs its initialisers, which is what a program linked with it would do too.
            if let Ok(library) = unsafe { Library::new(name) } {
                return Ok(Driver { library, name });
            }
        }
        Err(format!("no NVIDIA driver: none of {} could be loaded", LIBRARIES.join(", ")))
    })
}

/// Whether the driver's library was found: its name, or where it was looked for. It says nothing about devices.
pub fn status() -> Result<&'static str, &'static str> {
    driver().as_ref().map(|driver| driver.name).map_err(String::as_str)
}

macro_rules! define {
    ($($name:ident)*) => {
        /// Position of each function in [`SLOTS`] and [`NAMES`].
        #[allow(non_camel_case_types, clippy::enum_variant_names)]
        #[derive(Clone, Copy)]
        #[repr(usize)]
        enum Function {
            $($name,)*
        }

        const NAMES: &[&CStr] = &[
            $(match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("a name has no zero in it"),
            },)*
        ];

        $(
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name() {
                jump!(Function::$name)
            }
        )*
    };
}

#[cfg(target_arch = "x86_64")]
macro_rules! jump {
    ($function:expr) => {
        naked_asm!(
            "mov r11, qword ptr [rip + {slots} + {offset}]",
            "test r11, r11",
            "jz 2f",
            "jmp r11",
            "2:",
            "mov r11d, {index}",
            "jmp {slow_path}",
            slots = sym SLOTS,
            offset = const 8 * $function as usize,
            index = const $function as usize,
            slow_path = sym slow_path,
        )
    };
}

// x9 carries the index: a veneer that the linker puts into a long branch may use x16 and x17.
#[cfg(target_arch = "aarch64")]
macro_rules! jump {
    ($function:expr) => {
        naked_asm!(
            "adrp x10, {slots}",
            "add x10, x10, :lo12:{slots}",
            "mov x9, #{index}",
            "add x10, x10, x9, lsl #3",
            "ldar x16, [x10]",
            "cbz x16, 2f",
            "br x16",
            "2:",
            "b {slow_path}",
            slots = sym SLOTS,
            index = const $function as usize,
            slow_path = sym slow_path,
        )
    };
}

for_each_function!(define);

/// The driver's address of each function; null before its first call.
static SLOTS: [AtomicPtr<c_void>; NAMES.len()] = [const { AtomicPtr::new(ptr::null_mut()) }; NAMES.len()];

/// Fills the slot of the function with this index and answers the address to jump to.
extern "C" fn resolve(index: usize) -> *const c_void {
    let (Some(name), Some(slot)) = (NAMES.get(index), SLOTS.get(index)) else {
        return fallback::not_found as *const c_void;
    };
    let address = match driver() {
        Ok(driver) => {
            // SAFETY: the symbol is only carried as an address here; the caller knows its signature.
            let symbol = unsafe { driver.library.get::<*const c_void>(*name) };
            symbol.map_or(fallback::not_found as *const c_void, |symbol| *symbol)
        }
        Err(_) if *name == c"cuGetErrorString" => fallback::error_string as *const c_void,
        Err(_) if *name == c"cuGetErrorName" => fallback::error_name as *const c_void,
        Err(_) => fallback::no_device as *const c_void,
    };
    slot.store(address.cast_mut(), Ordering::Release);
    address
}

/// The index is in r11, the arguments where the System V ABI has them: rdi, rsi, rdx, rcx, r8, r9, xmm0 to xmm7, and al
/// for variadic calls. On entry the stack is 8 bytes off its alignment of 16; 8 pushes and 136 bytes keep that right.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn slow_path() {
    naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "push rdi",
        "push rsi",
        "push rdx",
        "push rcx",
        "push r8",
        "push r9",
        "push rax",
        "sub rsp, 136",
        "movups [rsp], xmm0",
        "movups [rsp + 16], xmm1",
        "movups [rsp + 32], xmm2",
        "movups [rsp + 48], xmm3",
        "movups [rsp + 64], xmm4",
        "movups [rsp + 80], xmm5",
        "movups [rsp + 96], xmm6",
        "movups [rsp + 112], xmm7",
        "mov edi, r11d",
        "call {resolve}",
        "mov r11, rax",
        "movups xmm0, [rsp]",
        "movups xmm1, [rsp + 16]",
        "movups xmm2, [rsp + 32]",
        "movups xmm3, [rsp + 48]",
        "movups xmm4, [rsp + 64]",
        "movups xmm5, [rsp + 80]",
        "movups xmm6, [rsp + 96]",
        "movups xmm7, [rsp + 112]",
        "add rsp, 136",
        "pop rax",
        "pop r9",
        "pop r8",
        "pop rcx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "pop rbp",
        "jmp r11",
        resolve = sym resolve,
    )
}

/// The index is in x9, the arguments where the procedure call standard has them: x0 to x7, x8 and q0 to q7.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
unsafe extern "C" fn slow_path() {
    naked_asm!(
        "stp x29, x30, [sp, #-224]!",
        "mov x29, sp",
        "stp x0, x1, [sp, #16]",
        "stp x2, x3, [sp, #32]",
        "stp x4, x5, [sp, #48]",
        "stp x6, x7, [sp, #64]",
        "str x8, [sp, #80]",
        "stp q0, q1, [sp, #96]",
        "stp q2, q3, [sp, #128]",
        "stp q4, q5, [sp, #160]",
        "stp q6, q7, [sp, #192]",
        "mov x0, x9",
        "bl {resolve}",
        "mov x16, x0",
        "ldp x0, x1, [sp, #16]",
        "ldp x2, x3, [sp, #32]",
        "ldp x4, x5, [sp, #48]",
        "ldp x6, x7, [sp, #64]",
        "ldr x8, [sp, #80]",
        "ldp q0, q1, [sp, #96]",
        "ldp q2, q3, [sp, #128]",
        "ldp q4, q5, [sp, #160]",
        "ldp q6, q7, [sp, #192]",
        "ldp x29, x30, [sp], #224",
        "br x16",
        resolve = sym resolve,
    )
}

//! What `#[kernel]` refuses, and in which words. What the types of a launch refuse stands in `cuda_std::launch` as examples
//! that do not compile.

use crate::kernel::{self, LaunchBounds};

/// What the macro says of `#[kernel(attribute)] function`.
fn refusal(attribute: &str, function: &str) -> String {
    let expanded = syn::parse_str::<LaunchBounds>(attribute)
        .and_then(|bounds| kernel::expand(&bounds, &syn::parse_str(function)?));
    match expanded {
        Ok(_) => panic!("#[kernel({attribute})] {function} is a kernel"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn functions_that_cannot_be_kernels() {
    for (function, expected) in [
        ("pub fn safe(n: u32) {}", "a kernel must be an `unsafe fn`"),
        ("pub unsafe fn generic<T: Copy>(_x: *const T) {}", "a kernel cannot be generic"),
        ("pub unsafe fn with_result(n: u32) -> u32 { n }", "a kernel returns nothing"),
        ("pub async unsafe fn waiting() {}", "a kernel cannot be `async`"),
        ("pub const unsafe fn constant() {}", "a kernel cannot be `const`"),
        ("pub unsafe extern \"C\" fn foreign() {}", "sets the ABI itself"),
        ("pub unsafe fn with_reference(_x: &f32) {}", "expected a raw pointer"),
        ("pub unsafe fn method(&self) {}", "has no `self`"),
        ("pub unsafe fn with_pattern((a, b): (u32, u32)) {}", "expected a plain parameter name"),
    ] {
        let message = refusal("", function);
        assert!(message.contains(expected), "{function}: {message}");
    }
}

#[test]
fn bounds_that_cannot_be_kept() {
    for (attribute, expected) in [
        ("max_thread = 256", "expected `max_threads`, `min_blocks` or `requires`"),
        ("max_threads = 2048", "expected a number from 1 to 1024"),
        ("max_threads = 0", "expected a number from 1 to 1024"),
        ("max_threads = 32, max_threads = 64", "`max_threads` is given twice"),
        ("min_blocks = 2", "`min_blocks` needs `max_threads` beside it"),
        ("requires = \"hopper\"", "expected an architecture"),
    ] {
        let message = refusal(attribute, "pub unsafe fn right(_n: u32) {}");
        assert!(message.contains(expected), "{attribute}: {message}");
    }
}

#[test]
fn what_is_right_is_a_kernel() {
    let bounds = syn::parse_str::<LaunchBounds>("max_threads = 256, min_blocks = 2, requires = \"sm_90\"");
    let function = syn::parse_str("pub unsafe fn right(_n: u32, _x: *const f32, _out: *mut f32) {}").unwrap();
    assert!(kernel::expand(&bounds.unwrap(), &function).is_ok());
}

//! What `#[kernel]` refuses, and in which words. What the types of a launch refuse stands in `cuda_std::launch` as examples
//! that do not compile.

use crate::attribute::Attribute;
use crate::{arguments, kernel, lists};

/// What the macro says of `#[kernel(attribute)] function`.
fn refusal(attribute: &str, function: &str) -> String {
    let expanded = syn::parse_str::<Attribute>(attribute)
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
        ("pub unsafe fn generic<T: Copy>(_x: *const T) {}", "a generic kernel needs a list of values"),
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
        ("max_thread = 256", "expected `name`, `max_threads`, `min_blocks`, `requires` or a list"),
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
fn lists_that_make_no_entries() {
    const FUNCTION: &str = "pub unsafe fn listed<E>(a: Args<E>) {}";
    for (attribute, function, expected) in [
        ("E = [f32]", FUNCTION, "lists need `name"),
        ("E = [f32], name = \"listed_{N}\"", FUNCTION, "there is no list for what stands in braces"),
        ("E = [f32, f16], name = \"twice\"", FUNCTION, "two entries would be named `twice`"),
        (
            "E = [f32], name = \"unknown_{E}\"",
            "pub unsafe fn unknown<E, T>(a: Args<E>) {}",
            "there is no list of values for `T`",
        ),
        ("name = \"no_struct\"", "pub unsafe fn no_struct() {}", "takes a `#[kernel_args]` struct"),
    ] {
        let message = refusal(attribute, function);
        assert!(message.contains(expected), "{attribute} {function}: {message}");
    }
    let generic = syn::parse_str("pub struct Generic<E> { pub value: E }").unwrap();
    let message = arguments::expand(&generic).unwrap_err().to_string();
    assert!(message.contains("only pointers may be generic"), "{message}");
}

#[test]
fn what_is_right_is_a_kernel() {
    let bounds = syn::parse_str::<Attribute>("max_threads = 256, min_blocks = 2, requires = \"sm_90\"");
    let function = syn::parse_str("pub unsafe fn right(_n: u32, _x: *const f32, _out: *mut f32) {}").unwrap();
    assert!(kernel::expand(&bounds.unwrap(), &function).is_ok());
}

#[test]
fn lists_that_a_macro_holds() {
    let call = |attribute: &str| {
        let attribute = attribute.parse().unwrap();
        lists::named(
            &attribute,
            &quote::quote!(
                unsafe fn listed<E>(a: Args<E>) {}
            ),
        )
    };
    assert!(call("E = [f32], name = \"all_{E}\"").unwrap().is_none());
    let call_of = call("E = [f32, floats!], name = \"all_{E}\"").unwrap().unwrap().to_string();
    assert!(call_of.starts_with("floats ! {"), "{call_of}");
    for (attribute, expected) in [
        ("E = [!]", "expected the name of a list before `!`"),
        ("E = [floats!], W = [formats!]", "values of one list only"),
    ] {
        let message = call(attribute).unwrap_err().to_string();
        assert!(message.contains(expected), "{attribute}: {message}");
    }
}

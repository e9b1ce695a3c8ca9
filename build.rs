//! gpu-kernels -> PTX; nothing else.
fn main() {}

//! Compiles a kernel crate to PTX with rustc's own `nvptx64-nvidia-cuda` target.

//! What makes Rust a CUDA language on rustc's own `nvptx64-nvidia-cuda` target.
#![no_std]

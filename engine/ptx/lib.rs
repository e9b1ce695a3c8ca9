//! The PTX of the kernels in `gpu-kernels`, which the build script compiles.
//!
//! It is a crate of its own so that it is compiled beside everything that launches kernels.

use std::sync::OnceLock;

/// PTX for every device of compute capability 8.0 and later.
const PTX_SM_80: &str = include_str!(concat!(env!("OUT_DIR"), "/gpu-kernels.sm_80.ptx"));
/// PTX for Hopper alone (compute capability 9.0): the `a` features do not run on any other device.
const PTX_SM_90A: &str = include_str!(concat!(env!("OUT_DIR"), "/gpu-kernels.sm_90a.ptx"));

/// The targets that the kernels are compiled for.
pub const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];

/// The PTX of a target as it is run, `None` if the kernels are not compiled for it.
pub fn ptx(target: &str) -> Option<&'static str> {
    static STRIPPED: [OnceLock<String>; TARGETS.len()] = [const { OnceLock::new() }; TARGETS.len()];
    let index = TARGETS.iter().position(|&known| known == target)?;
    let with_lines = ptx_with_lines(target)?;
    Some(STRIPPED[index].get_or_init(|| cuda_builder::without_line_info(with_lines)))
}

/// The PTX of a target with the source line of every instruction (`.loc`), for people; `None` as for [`ptx`].
pub fn ptx_with_lines(target: &str) -> Option<&'static str> {
    match target {
        "sm_80" => Some(PTX_SM_80),
        "sm_90a" => Some(PTX_SM_90A),
        _ => None,
    }
}

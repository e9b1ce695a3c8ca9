//! What the kernels of `tests/kernels` look like in PTX.
//!
//! The PTX is made by the build script of that crate, with `cuda_builder`; no GPU is needed. Where `ptxas` is
//! found (in `CUDA_STD_PTXAS`, or in the search path), it assembles the PTX as well.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::process::Command;

use cuda_std_test_kernels::{PTX_SM_80, PTX_SM_90A};

const MODULES: [(&str, &str); 2] = [("sm_80", PTX_SM_80), ("sm_90a", PTX_SM_90A)];

/// The lines of one kernel.
fn entry<'a>(ptx: &'a str, name: &str) -> &'a str {
    let head = format!(".entry {name}(");
    let start = ptx.find(&head).unwrap_or_else(|| panic!("the PTX has no kernel {name}"));
    let body = &ptx[start..];
    &body[..body.find("\n}").expect("a kernel ends with a brace")]
}

/// How many instructions of a kernel start with one of `names`.
fn count(ptx: &str, kernel: &str, names: &[&str]) -> usize {
    let is_one_of = |line: &&str| names.iter().any(|name| line.trim_start().starts_with(name));
    entry(ptx, kernel).lines().filter(is_one_of).count()
}

const BARRIERS: &[&str] = &["bar.sync", "barrier.sync", "barrier.cta.sync"];

#[test]
fn barriers_are_as_many_as_in_the_source() {
    for (arch, ptx) in MODULES {
        assert_eq!(count(ptx, "one_barrier", BARRIERS), 1, "{arch}:\n{}", entry(ptx, "one_barrier"));
        assert_eq!(count(ptx, "four_barriers", BARRIERS), 4, "{arch}:\n{}", entry(ptx, "four_barriers"));
    }
}

#[test]
fn exchanges_are_as_many_as_in_the_source() {
    for (arch, ptx) in MODULES {
        assert_eq!(count(ptx, "one_vote", &["vote.sync"]), 1, "{arch}:\n{}", entry(ptx, "one_vote"));
        for name in ["shfl.sync", "vote.sync", "redux.sync"] {
            let kernel = "one_of_each_exchange";
            assert_eq!(count(ptx, kernel, &[name]), 1, "{name}, {arch}:\n{}", entry(ptx, kernel));
        }
    }
}

#[test]
fn shuffles_do_not_sink_into_the_branch_that_needs_them() {
    for (arch, ptx) in MODULES {
        let body = entry(ptx, "five_shuffles");
        assert_eq!(count(ptx, "five_shuffles", &["shfl.sync"]), 5, "{arch}:\n{body}");
        let last_shuffle = body.rfind("shfl.sync").unwrap();
        let first_branch = body.find("bra").unwrap_or(body.len());
        assert!(last_shuffle < first_branch, "a shuffle stands behind a branch, {arch}:\n{body}");
    }
}

#[test]
fn barriers_and_shared_accesses_keep_their_order() {
    for (arch, ptx) in MODULES {
        let names = ["ld.shared", "st.shared", "bar.sync"];
        let order: Vec<_> = entry(ptx, "shared_order")
            .lines()
            .filter_map(|line| names.into_iter().find(|name| line.trim_start().starts_with(name)))
            .collect();
        let expected =
            ["st.shared", "bar.sync", "ld.shared", "bar.sync", "st.shared", "bar.sync", "ld.shared"];
        assert_eq!(order, expected, "{arch}");
    }
}

#[test]
fn instructions_are_the_ones_that_were_asked_for() {
    let expected = [
        ("cover_memory", "ld.global.nc.L1::no_allocate.L2::128B.v4.b32", 3),
        ("cover_memory", "ld.global.nc.L1::no_allocate.L2::128B.b16", 1),
        ("cover_memory", "st.global.cs.v4.b32", 3),
        ("cover_mma", "ldmatrix.sync.aligned.m8n8.x4.b16", 2),
        ("cover_mma", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 2),
        ("cover_mma", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 2),
        ("cover_mma", "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32", 2),
        ("cover_mma", "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", 2),
        ("cover_elements", "cvt.rn.bf16x2.f32", 4),
        ("cover_elements", "cvt.rn.f16x2.f32", 4),
        ("cover_grid_barrier", "atom.acq_rel.gpu.add.u32", 2),
        ("cover_grid_barrier", "ld.acquire.gpu.b32", 2),
        ("cover_atomic", "red.relaxed.gpu.add.f32", 1),
        ("cover_atomic", "atom.release.cta.exch.b64", 3),
        ("cover_warp", "redux.sync.min.s32", 1),
        ("cover_warp", "redux.sync.min.u32", 1),
    ];
    for (arch, ptx) in MODULES {
        for (kernel, instruction, times) in expected {
            let found = entry(ptx, kernel).matches(instruction).count();
            assert!(
                found >= times,
                "{kernel}, {arch}: {instruction} is there {found} times, expected {times} or more"
            );
        }
    }
}

#[test]
fn a_sum_over_the_warp_is_not_fused_with_its_summands() {
    for (arch, ptx) in MODULES {
        let (fused, plain) = (&["fma", "add.f32"], &["add.rn.f32"]);
        assert_eq!(count(ptx, "sum_of_products", fused), 0, "{arch}");
        assert_eq!(count(ptx, "sum_of_products", plain), 5, "{arch}");
    }
}

#[test]
fn choices_by_constant_leave_no_trace() {
    // An ordering that is matched at run time would leave the panic of the orderings that do not exist.
    for (arch, ptx) in MODULES {
        for kernel in ["cover_atomic", "cover_grid_barrier", "cover_memory", "cover_shared"] {
            let body = entry(ptx, kernel);
            assert!(!body.contains("trap;") && !body.contains("call"), "{kernel}, {arch}");
        }
    }
}

#[test]
fn hopper_kernels_are_in_hopper_ptx_alone() {
    for kernel in ["cover_bulk_copy", "cover_dependent_launch"] {
        let head = format!(".entry {kernel}(");
        assert!(!PTX_SM_80.contains(&head), "{kernel} is in the PTX for sm_80");
        assert!(PTX_SM_90A.contains(&head), "{kernel} is not in the PTX for sm_90a");
    }
}

#[test]
fn launch_bounds_reach_the_entry() {
    for (_, ptx) in MODULES {
        let body = entry(ptx, "cover_thread");
        let head = &body[..body.find('{').unwrap()];
        assert!(head.contains(".maxntid 128"), "{head}");
        assert!(head.contains(".minnctapersm 4"), "{head}");
        assert!(!entry(ptx, "cover_warp").contains(".maxntid"));
    }
}

#[test]
fn ptxas_accepts_everything() {
    let ptxas = std::env::var_os("CUDA_STD_PTXAS").unwrap_or_else(|| OsString::from("ptxas"));
    for (arch, ptx) in MODULES {
        let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{arch}.ptx"));
        std::fs::write(&file, ptx).unwrap();
        let output = Command::new(&ptxas)
            .arg(format!("-arch={arch}"))
            .arg(&file)
            .arg("-o")
            .arg(file.with_extension("cubin"))
            .output();
        match output {
            Ok(output) => {
                assert!(output.status.success(), "{arch}: {}", String::from_utf8_lossy(&output.stderr));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("skipped: no ptxas in CUDA_STD_PTXAS or the search path");
            }
            Err(error) => panic!("cannot run {}: {error}", ptxas.display()),
        }
    }
}

//! PTX for sm_80 out of that for sm_90.

use std::collections::BTreeSet;

use crate::ptx::{LAUNCH_BOUNDS, entry_name};

/// The comment by which `#[kernel(requires = "…")]` is known in PTX: `// requires <entry> <architecture>`.
const REQUIRES: &str = "// requires ";

/// PTX for sm_80, which every later device runs, made of a module for sm_90 or sm_90a without compiling its kernels anew.
///
/// Kernels that are marked `requires` are left out, and so is `griddepcontrol`: before sm_90 no kernel starts before the one that it waits for has ended.
/// All else stays as it is: for code that has none of sm_90's instructions LLVM chooses the same ones for both architectures.
///
/// # Errors
/// A text that names the kernel and the instruction, if one that is not marked uses what sm_80 does not have.
pub fn for_sm_80(ptx: &str) -> Result<String, String> {
    let required =
        |line: &'_ str| Some(line.trim_start().strip_prefix(REQUIRES)?.split(' ').next()?.to_owned());
    let left_out: BTreeSet<String> = ptx.lines().filter_map(required).collect();
    let mut out = String::with_capacity(ptx.len());
    // What is being read, and whether it stays.
    let (mut name, mut stays) = ("", true);
    for line in ptx.lines() {
        let start = line.trim_start();
        if let Some(entry) = entry_name(line) {
            (name, stays) = (entry, !left_out.contains(entry));
        }
        let of_entry =
            [REQUIRES, LAUNCH_BOUNDS, "// .globl\t"].iter().find_map(|word| start.strip_prefix(word));
        let is_of_left_out = of_entry
            .and_then(|rest| rest.split_whitespace().next())
            .is_some_and(|entry| left_out.contains(entry));
        if stays && !is_of_left_out && !start.starts_with("griddepcontrol.") {
            if let Some(found) = beyond_sm_80(start) {
                let place = if name.is_empty() { "a function" } else { name };
                return Err(format!(
                    "{place} uses `{found}`, which sm_80 does not have: a kernel that does is marked \
                     `#[kernel(requires = \"sm_90\")]`"
                ));
            }
            match line.strip_prefix(".target ") {
                Some(_) => out.push_str(".target sm_80"),
                None => out.push_str(line),
            }
            out.push('\n');
        }
        if line == "}" {
            (name, stays) = ("", true);
        }
    }
    Ok(out)
}

/// The instruction of a line, if it is one that sm_80 does not have ("Target ISA Notes" of each in NVIDIA's PTX ISA, 8.0 to 9.0).
fn beyond_sm_80(line: &str) -> Option<&str> {
    if line.starts_with(['.', '$', '/', '{', '}', '(', ')']) {
        return None;
    }
    let line = line.split("//").next().unwrap_or(line);
    let mut words = line.split([' ', '\t', ';']).filter(|word| !word.is_empty());
    let instruction = words.next().filter(|word| !word.starts_with('@')).or_else(|| words.next())?;
    let parts: Vec<&str> = instruction.split('.').collect();
    let has = |part: &str| parts.contains(&part);
    let begins = |with: &[&str]| with.iter().any(|with| instruction.starts_with(with));
    // Between blocks of a cluster, by the copy engine, or on its barriers.
    let of_clusters =
        instruction.contains("cluster") || line.contains("%cluster") || begins(&["mapa", "getctarank"]);
    let of_copies = has("bulk")
        || has("async") && begins(&["st", "red"])
        || begins(&["fence.proxy.async", "fence.mbarrier"]);
    let of_barriers = has("try_wait") || has("expect_tx") || has("complete_tx");
    let of_warps = begins(&[
        "wgmma",
        "tcgen05",
        "elect",
        "setmaxnreg",
        "stmatrix",
        "multimem",
        "tensormap",
        "griddepcontrol",
    ]);
    // Arithmetic of bf16 other than fused, min, max, neg and abs, and conversions from it.
    let bf16 = parts.iter().skip(1).any(|part| part.starts_with("bf16"));
    let of_bf16 = bf16 && begins(&["add", "sub", "mul", "set", "ex2", "tanh", "atom", "red."])
        || begins(&["cvt"]) && parts.last().is_some_and(|part| part.starts_with("bf16"));
    let of_pairs = has("s16x2") || has("u16x2");
    let of_bytes = parts.iter().any(|part| part.starts_with("e4m3") || part.starts_with("e5m2"));
    let wide = has("b128") && begins(&["atom"]) || begins(&["redux"]) && has("f32");
    (of_clusters || of_copies || of_barriers || of_warps || of_bf16 || of_pairs || of_bytes || wide)
        .then_some(instruction)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "\
.version 8.0
.target sm_90a
.address_size 64

// launch_bounds bulk_f32 128 0
// requires bulk_f32 sm_90
// launch_bounds scale_f32 256 0
.global .align 4 .b32 cluster = 7;
\t// .globl\tbulk_f32
.visible .entry bulk_f32()
.maxntid 128
{
\tcp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1], %r2, [%r3];
\tret;
}
\t// .globl\tscale_f32
.visible .entry scale_f32()
.maxntid 256
{
\tgriddepcontrol.wait;
\t@%p1 bra \t$L__BB1_2;
\tcp.async.cg.shared.global [%r1], [%rd1], 16;
\tcvt.rn.bf16x2.f32 \t%r4, %r5, %r6;
\tfma.rn.bf16x2 \t%r4, %r5, %r6, %r7;
\tgriddepcontrol.launch_dependents;
\tret;
}
";

    #[test]
    fn marked_kernels_and_dependent_launches_are_left_out_and_nothing_else() {
        let expected = "\
.version 8.0
.target sm_80
.address_size 64

// launch_bounds scale_f32 256 0
.global .align 4 .b32 cluster = 7;
\t// .globl\tscale_f32
.visible .entry scale_f32()
.maxntid 256
{
\t@%p1 bra \t$L__BB1_2;
\tcp.async.cg.shared.global [%r1], [%rd1], 16;
\tcvt.rn.bf16x2.f32 \t%r4, %r5, %r6;
\tfma.rn.bf16x2 \t%r4, %r5, %r6, %r7;
\tret;
}
";
        assert_eq!(for_sm_80(MODULE).as_deref(), Ok(expected));
    }

    #[test]
    fn a_kernel_that_is_not_marked_and_uses_more_is_named() {
        let unmarked = MODULE.replace("// requires bulk_f32 sm_90\n", "");
        let refused = for_sm_80(&unmarked).unwrap_err();
        assert!(refused.starts_with("bulk_f32 uses `cp.async.bulk.shared::cluster"), "{refused}");
        for instruction in [
            "mbarrier.try_wait.shared.b64 p, [%r1], %r2;",
            "mbarrier.arrive.expect_tx.shared::cta.b64 %rd1, [%r1], %r2;",
            "fence.mbarrier_init.release.cluster;",
            "fence.proxy.async.shared::cta;",
            "@%p1 add.rn.bf16x2 \t%r1, %r2, %r3;",
            "cvt.f32.bf16 \t%r1, %rs1;",
            "elect.sync \t%r1|%p1, -1;",
            "mov.u32 \t%r1, %clusterid.x;",
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r1}, %rd1, %rd2, 1, 1, 1, 0, 0;",
        ] {
            let text = MODULE.replace("griddepcontrol.wait;", instruction);
            assert!(for_sm_80(&text).unwrap_err().starts_with("scale_f32 uses `"), "{instruction}");
        }
    }
}

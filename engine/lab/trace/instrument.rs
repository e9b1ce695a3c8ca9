//! Stores added to PTX: each warp leaves when it began, when it came to its wait for the kernel before, when that ended, and when it ended itself.

use crate::cuda::ptx::Module;
use std::fmt::Write;

/// Words of 8 bytes of a record: the four times, block and multiprocessor, kernel and warp.
pub(super) const RECORD_WORDS: usize = 6;
/// Words before the first record, of which the first one counts records.
pub(super) const HEADER_WORDS: usize = 16;

/// Where records go.
#[derive(Clone, Copy)]
pub(super) struct Target {
    /// The address of the header.
    pub address: u64,
    /// Records that there is room for.
    pub capacity: u32,
}

/// Names that are declared in a kernel; no compiler makes such.
const DECLARATIONS: &str = "\
\t.reg .pred %trace_p, %trace_q;
\t.reg .b32 %trace_a, %trace_b, %trace_c;
\t.reg .b64 %trace_start, %trace_ready, %trace_wait, %trace_end, %trace_at, %trace_d;
\tmov.u64 %trace_start, %globaltimer;
\tmov.u64 %trace_ready, %trace_start;
\tmov.u64 %trace_wait, %trace_start;
";

/// What a warp does before it ends. A record has a place as soon as the warp asks for one.
fn record(out: &mut String, target: Target, kernel: usize, number: usize) {
    let Target { address, capacity } = target;
    let (first, bytes) = (address + 8 * HEADER_WORDS as u64, 8 * RECORD_WORDS);
    writeln!(
        out,
        "\
\tmov.u64 %trace_end, %globaltimer;
\tmov.u32 %trace_a, %laneid;
\tsetp.ne.u32 %trace_p, %trace_a, 0;
\t@%trace_p bra $trace_{number};
\tmov.u64 %trace_at, {address};
\tatom.global.add.u32 %trace_c, [%trace_at], 1;
\tsetp.ge.u32 %trace_q, %trace_c, {capacity};
\t@%trace_q bra $trace_{number};
\tmov.u64 %trace_at, {first};
\tmad.wide.u32 %trace_at, %trace_c, {bytes}, %trace_at;
\tst.global.u64 [%trace_at], %trace_start;
\tst.global.u64 [%trace_at+8], %trace_ready;
\tst.global.u64 [%trace_at+16], %trace_wait;
\tst.global.u64 [%trace_at+24], %trace_end;
\tmov.u32 %trace_a, %ctaid.z;
\tmov.u32 %trace_b, %nctaid.y;
\tmov.u32 %trace_c, %ctaid.y;
\tmad.lo.u32 %trace_a, %trace_a, %trace_b, %trace_c;
\tmov.u32 %trace_b, %nctaid.x;
\tmov.u32 %trace_c, %ctaid.x;
\tmad.lo.u32 %trace_a, %trace_a, %trace_b, %trace_c;
\tmov.u32 %trace_b, %smid;
\tmov.b64 %trace_d, {{%trace_a, %trace_b}};
\tst.global.u64 [%trace_at+32], %trace_d;
\tmov.u32 %trace_a, {kernel};
\tmov.u32 %trace_b, %tid.x;
\tshr.u32 %trace_b, %trace_b, 5;
\tmov.b64 %trace_d, {{%trace_a, %trace_b}};
\tst.global.u64 [%trace_at+40], %trace_d;
$trace_{number}:"
    )
    .expect("strings take everything");
}

/// The module with such stores in every kernel, and the kernels' names by the numbers in the records.
pub(super) fn instrument(ptx: &str, target: Target) -> (String, Vec<String>) {
    let names: Vec<String> = Module::parse(ptx).entries().map(str::to_owned).collect();
    let mut out = String::with_capacity(ptx.len() + ptx.len() / 4);
    // Kernels that began, whether the lines are in the body of one, and ends so far.
    let (mut kernels, mut awaits_body, mut is_inside, mut ends) = (0, false, false, 0);
    for line in ptx.lines() {
        let start = line.trim_start();
        if is_inside && start == "ret;" {
            record(&mut out, target, kernels - 1, ends);
            ends += 1;
        }
        let is_wait = is_inside && start == "griddepcontrol.wait;";
        if is_wait {
            out.push_str("\tmov.u64 %trace_ready, %globaltimer;\n");
        }
        out.push_str(line);
        out.push('\n');
        if line.starts_with('.') && line.contains(".entry ") {
            kernels += 1;
            awaits_body = true;
        } else if awaits_body && start.starts_with('{') {
            (awaits_body, is_inside) = (false, true);
            out.push_str(DECLARATIONS);
        } else if line == "}" {
            is_inside = false;
        } else if is_wait {
            out.push_str("\tmov.u64 %trace_wait, %globaltimer;\n");
        }
    }
    (out, names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "\
.version 8.0
.target sm_90a
.address_size 64

.func helper()
{
\tret;
}
.visible .entry first(
\t.param .u64 first_param_0
)
.maxntid 128
{
\t.reg .pred \t%p<2>;

\tgriddepcontrol.wait;
\t@%p1 bra \t$L__BB0_2;
\tret;
$L__BB0_2:
\tret;

}
.visible .entry second()
{
\tret;

}
";

    #[test]
    fn kernels_have_stores_before_each_end_and_functions_none() {
        let (text, names) = instrument(MODULE, Target { address: 4096, capacity: 100 });
        assert_eq!(names, ["first", "second"]);
        assert_eq!(text.matches("%trace_start, %globaltimer").count(), 2);
        let wait = "mov.u64 %trace_ready, %globaltimer;\n\tgriddepcontrol.wait;\n\tmov.u64 %trace_wait, %globaltimer;\n";
        assert_eq!(text.matches(wait).count(), 1);
        assert_eq!(text.matches("atom.global.add.u32").count(), 3);
        assert_eq!(text.matches("mov.u64 %trace_at, 4224;").count(), 3);
        assert_eq!(text.matches("mov.u32 %trace_a, 1;").count(), 1);
        // Nothing else changed, and labels are there once.
        let rest: Vec<&str> = text.lines().filter(|line| !line.contains("trace_")).collect();
        for line in MODULE.lines() {
            assert!(rest.contains(&line), "{line}");
        }
        for number in 0..3 {
            assert_eq!(text.matches(&format!("\n$trace_{number}:\n\tret;")).count(), 1);
        }
        let helper = text.split(".visible").next().unwrap();
        assert!(!helper.contains("trace"));
    }
}

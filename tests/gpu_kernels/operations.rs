//! The operations, each a test of its own, for the GPU and for emulation.

/// A test for each operation, which calls `check` with its name, so that one filter on the command line runs one of them; and
/// one that none is missing here.
macro_rules! check_each {
    () => {
        $crate::operations::check_each! {
            add argmax attention bias_rope_kv convert embed gather_rows matmul matmul_add
            norm_gate_up norm_matmul norm_qkv_rope read_bandwidth rms_norm sample silu_mul
        }
    };
    ($($op:ident)*) => {
        $(
            #[test]
            fn $op() {
                check(stringify!($op));
            }
        )*

        #[test]
        fn no_operation_is_left_out() {
            let tested = [$(stringify!($op)),*];
            for cases in &qernel::lab::cases::ALL {
                assert!(tested.contains(&cases.op), "{} has no test here", cases.op);
            }
        }
    };
}
pub(crate) use check_each;

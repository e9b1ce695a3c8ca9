//! The operations, each a test of its own, for the GPU and for emulation.

/// A test for each operation, which calls `check` with its name, so that one filter on the command line runs one of them.
macro_rules! check_each {
    ($($op:ident)*) => { $(
        #[test]
        fn $op() {
            check(stringify!($op));
        }
    )* };
}
pub(crate) use check_each;

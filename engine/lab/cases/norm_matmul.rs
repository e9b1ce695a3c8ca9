//! The last norm and the head in one kernel.

use super::norm_product::{Kind, checks, timings};
use crate::lab::case::Cases;

pub const CASES: Cases =
    Cases { op: "norm_matmul", checks: || checks(Kind::Head), timings: |w| timings(Kind::Head, w) };

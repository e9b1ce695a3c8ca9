//! The norm before an MLP, gate and up, and their SwiGLU in one kernel.

use super::norm_product::{Kind, checks, timings};
use crate::lab::case::Cases;

pub const CASES: Cases =
    Cases { op: "norm_gate_up", checks: || checks(Kind::GateUp), timings: |w| timings(Kind::GateUp, w) };

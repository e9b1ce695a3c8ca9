//! Brings a model's matrices into other formats: `qernel quantize`.
//!
//! A [`Recipe`] says what is wanted, [`plan()`] what becomes of each tensor, [`write()`] does it, a few rows at a time.

mod convert;
mod mixture;
mod plan;

pub use convert::{Difference, Progress, write};
pub use mixture::Mixture;
pub use plan::{Override, Recipe, Step, expect_encoders, format_named, plan};

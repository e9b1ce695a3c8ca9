//! `qernel bench`: how fast a model runs, by llama-bench's conventions, through the same [engine](crate::engine::Engine)
//! that serves every other command.
//!
//! [`plan`] names the tests, [`measure`] runs them, [`start_up`] times a program from its start to its first token,
//! [`row`] is what is printed of a test, [`table`] prints rows, [`compare`] sets stored ones beside them and [`plot`]
//! draws them.

pub mod compare;
pub mod measure;
pub mod plan;
pub mod plot;
pub mod row;
pub mod start_up;
pub mod table;

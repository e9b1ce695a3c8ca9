//! The engine without a model: scheduling, pages, stops and texts, against a plain loop over one sequence.

mod alone;
mod banned;
mod cases;
mod mock;
mod properties;
mod scored;

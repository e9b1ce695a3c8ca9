//! What both halves of a mixture of experts share: the rows of each expert, brought together.

use super::tensor::Tensor;
use crate::error::{Error, Result};
use std::cell::Cell;

/// Rows of one expert that are multiplied at once. Their buffers are small, whatever a step's rows are.
pub(super) const ROWS_AT_ONCE: usize = 64;

/// A row that goes to an expert.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(super) struct Place {
    pub expert: usize,
    pub row: usize,
    /// Which it is of the row's experts.
    pub rank: usize,
    pub weight: f32,
}

/// Where the first `n` rows of `chosen` `[n, 2 * count]` (numbers of experts, then weights) go, by expert and then by row.
///
/// # Errors
/// [`Error::Request`] if there is no such expert.
pub(super) fn by_expert(op: &str, n: usize, chosen: &Tensor, num_experts: usize) -> Result<Vec<Place>> {
    let count = chosen.cols() / 2;
    chosen.expect(op, "chosen", n, 2 * count)?;
    let mut places = Vec::with_capacity(n * count);
    for row in 0..n {
        let (numbers, weights) = chosen.row(row).split_at(count);
        for (rank, (&number, &weight)) in numbers.iter().zip(weights).enumerate() {
            if !(number >= 0.0 && number < num_experts as f32) {
                return Err(Error::Request(format!("{op}: expert {number} must be below {num_experts}")));
            }
            places.push(Place { expert: number as usize, row, rank, weight });
        }
    }
    places.sort_unstable_by_key(|place| (place.expert, place.row));
    Ok(places)
}

/// The places of each expert, some at once: what a task takes.
pub(super) fn of_experts(places: &[Place]) -> Vec<&[Place]> {
    let of_experts = places.chunk_by(|a, b| a.expert == b.expert);
    of_experts.flat_map(|places| places.chunks(ROWS_AT_ONCE)).collect()
}

/// Calls `f` with rows of this thread, which are kept for its next call.
pub(super) fn with_scratch<T>(f: impl FnOnce(&mut Scratch) -> T) -> T {
    thread_local! {
        /// Taken out while it is in use: a thread that waits for others may compute something else meanwhile.
        static HELD: Cell<Scratch> = Cell::default();
    }
    let mut scratch = HELD.take();
    let result = f(&mut scratch);
    HELD.set(scratch);
    result
}

/// Rows of the places of one expert, kept from call to call.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// `[ROWS_AT_ONCE, hidden_size]`
    hidden: Option<Tensor>,
    /// `[ROWS_AT_ONCE, intermediate_size]` each.
    inner: [Option<Tensor>; 2],
}

impl Scratch {
    /// A tensor of `hidden_size` columns and two of `intermediate_size`.
    pub(super) fn rooms(
        &mut self,
        hidden_size: usize,
        intermediate_size: usize,
    ) -> Result<(&mut Tensor, [&mut Tensor; 2])> {
        let Self { hidden, inner: [first, second] } = self;
        let [hidden, first, second] =
            [(hidden, hidden_size), (first, intermediate_size), (second, intermediate_size)]
                .map(|(slot, cols)| room(slot, ROWS_AT_ONCE, cols));
        Ok((hidden?, [first?, second?]))
    }
}

/// What is in `slot`, or in its place a tensor that has at least `rows` rows of `cols` values.
pub(super) fn room(slot: &mut Option<Tensor>, rows: usize, cols: usize) -> Result<&mut Tensor> {
    match slot.take().filter(|tensor| tensor.cols() == cols && tensor.rows() >= rows) {
        Some(tensor) => Ok(slot.insert(tensor)),
        None => Ok(slot.insert(Tensor::new(rows, cols)?)),
    }
}

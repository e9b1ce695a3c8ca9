//! Products of matrices in blocks with inputs in eight bits: integers inside of a group of 16 or 32 values, floats between them.
//!
//! Sixteen rows of the matrix at a time are unpacked, a chunk of their columns into a scratch that stays in the L1 cache, as bytes that lie
//! as registers take them: four neighbouring codes of each row, a row a lane. One pass over them serves several rows of inputs; a step of
//! one sequence unpacks as much as it multiplies. Matrices stay in the memory map as the file has them.
//!
//! The sum of a group is exact. It is scaled and added to the sum of its row, group after group in their order, whatever the
//! instructions are and however many rows there are: a row has the same bits alone and in a batch.

mod activations;
pub(super) mod codes;
pub(super) mod dot;
mod layouts;
mod layouts_k;

use super::matmul::{Product, few_rows_of_task};
use super::simd::{CodesKernel, DotKernel, Isa, LANES};
use super::team;
use super::tensor::Tensor;
use crate::formats::{self, Blocks, MatrixFormat};
use crate::weights::Matrix;
use activations::{Activations, BLOCK};
use codes::{Codes, Rows};
use dot::{Dot, Group, STEP};
use layouts::{Layout, Room};
use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Rows of inputs that are held in eight bits at once.
const SLAB: usize = 512;

/// Columns that are unpacked at once, of many rows of inputs; of few, a quarter: it is read back but once. Multiples of every block.
const CHUNK: usize = 1024;

/// Up to this many rows of inputs are few.
const FEW_ROWS: usize = 8;

/// Rows of the matrix of one task where there are many.
const MANY_ROWS_OF_TASK: usize = 32;

/// Bytes of a row that are asked for before they are unpacked; behind the end of a row those of the next one, which is next. Sixteen rows' and
/// what is unpacked share the L1 cache.
const AHEAD: usize = 384;

/// Bytes of a line of the caches, or fewer.
const CACHE_LINE: usize = 64;

/// Calls a macro with the formats whose blocks are unpacked to integers, others are decoded to floats.
macro_rules! for_each_layout {
    ($call:ident) => {
        $call! { Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K Q3_K Q2_K IQ4_NL IQ4_XS MXFP4 }
    };
}

/// Whether matrices of `format` are multiplied here.
pub(super) fn takes(format: MatrixFormat) -> bool {
    macro_rules! any {
        ($($format:ident)*) => { matches!(format, $(MatrixFormat::$format)|*) };
    }
    for_each_layout!(any)
}

/// All of `products`, whose formats are taken and whose inputs are all the first rows of `x`.
pub(super) fn multiply(isa: Isa, n: usize, x: &Tensor, products: &[Product]) {
    thread_local! {
        /// Taken out while it is in use: a thread that waits for others may compute something else meanwhile.
        static HELD: Cell<Activations> = Cell::default();
    }
    if products.is_empty() || x.cols() == 0 {
        return;
    }
    let mut held = HELD.take();
    for first in (0..n).step_by(SLAB) {
        let count = (n - first).min(SLAB);
        held.hold(isa, x, first, count);
        for product in products {
            let slab = Slab { product, x: &held, first, count };
            macro_rules! by_format {
                ($($format:ident)*) => {
                    match product.weight.format {
                        $(MatrixFormat::$format => slab.multiply::<formats::$format>(isa),)*
                        _ => unreachable!("the format is taken"),
                    }
                };
            }
            for_each_layout!(by_format);
        }
    }
    HELD.set(held);
}

/// Rows of inputs of a product.
struct Slab<'a> {
    product: &'a Product<'a>,
    x: &'a Activations,
    first: usize,
    /// At most [`SLAB`].
    count: usize,
}

impl Slab<'_> {
    fn multiply<F: Layout>(&self, isa: Isa) {
        let rows = self.product.weight.rows;
        let rows_of_task = if self.count > FEW_ROWS { MANY_ROWS_OF_TASK } else { few_rows_of_task(rows) };
        team::for_each(rows.div_ceil(rows_of_task), |task| {
            let first = task * rows_of_task;
            let last = (first + rows_of_task).min(rows);
            let mut scratch = MaybeUninit::<Scratch>::uninit();
            let step = (last - first).div_ceil(LANES);
            for o in first..first + step {
                let tile = Tile { slab: self, o, step, last, scratch: scratch.as_mut_ptr() };
                // SAFETY: shapes were checked; tiles are disjoint, and the scratch is this task's own.
                unsafe { tile.multiply::<F>(isa) }
            }
        });
    }
}

/// Room of a task. Never cleared as a whole.
#[repr(align(64))]
struct Scratch {
    /// Of sixteen rows, [`STEP`] bytes a step.
    codes: [u8; CHUNK / 4 * STEP],
    /// [`LANES`] a group.
    scales: [f32; CHUNK / 16 * LANES],
    /// The same.
    addends: [f32; CHUNK / 16 * LANES],
    /// Sums of sixteen rows for each row of the slab.
    sums: [[f32; LANES]; SLAB],
}

/// Sixteen rows of the matrix from row `o`, each `step` behind the one before it, so far as they are before row `last`: tiles of a task
/// read as many streams, which the processor follows by itself.
#[derive(Clone, Copy)]
struct Tile<'a> {
    slab: &'a Slab<'a>,
    o: usize,
    step: usize,
    last: usize,
    scratch: *mut Scratch,
}

/// # Safety
/// All functions: shapes were checked, and the scratch is this task's own.
impl Tile<'_> {
    unsafe fn multiply<F: Layout>(&self, isa: Isa) {
        let (count, cols) = (self.slab.count, self.slab.x.cols);
        let chunk = if count > FEW_ROWS { CHUNK } else { CHUNK / 4 };
        let sums = self.sums();
        let Matrix { data, cols: stride, .. } = self.slab.product.weight;
        let bytes_of = |values: usize| values / F::Format::VALUES * F::Format::BYTES;
        let starts = std::array::from_fn(|r| bytes_of((self.o + r * self.step).min(self.last - 1) * stride));
        // SAFETY: count is at most SLAB; others as the caller vouches.
        unsafe {
            for i in 0..count {
                *sums.add(i) = [0.0; LANES];
            }
            for k in (0..cols).step_by(chunk) {
                let len = (cols - k).min(chunk);
                let data = data.as_ptr().add(bytes_of(k));
                isa.run_codes(Unpack::<F> {
                    data,
                    starts: &starts,
                    len,
                    room: self.room(),
                    layout: PhantomData,
                });
                let columns = Columns { tile: *self, k, len };
                isa.run_dot(Add::<F::Group> { columns, offset: F::OFFSET, group: PhantomData });
            }
            self.store();
        }
    }

    /// Where the rows are unpacked to.
    #[inline(always)]
    fn room(&self) -> Room {
        // SAFETY: any place of the scratch may be named; it is written before it is read.
        unsafe {
            Room {
                codes: (&raw mut (*self.scratch).codes).cast(),
                scales: (&raw mut (*self.scratch).scales).cast(),
                addends: (&raw mut (*self.scratch).addends).cast(),
            }
        }
    }

    /// [`SLAB`] of them.
    #[inline(always)]
    fn sums(&self) -> *mut [f32; LANES] {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.scratch).sums).cast() }
    }

    /// Writes the sums, or adds them.
    unsafe fn store(&self) {
        let Product { out, out_stride, accumulate, .. } = *self.slab.product;
        for i in 0..self.slab.count {
            // SAFETY: the columns of these rows are this task's own; the sums were computed.
            unsafe {
                let out = out.0.add((self.slab.first + i) * out_stride);
                let sums = *self.sums().add(i);
                for (o, sum) in (self.o..self.last).step_by(self.step).zip(sums) {
                    let out = out.add(o);
                    *out = if accumulate { *out + sum } else { sum };
                }
            }
        }
    }
}

/// Columns `k` to `k + len` of a tile: whole blocks, at most [`CHUNK`].
#[derive(Clone, Copy)]
struct Columns<'a> {
    tile: Tile<'a>,
    k: usize,
    len: usize,
}

/// Unpacks `len` values of each row.
struct Unpack<'a, F> {
    /// Where the first row of the matrix has them.
    data: *const u8,
    /// Where other rows have them, in bytes behind that; rows that are none are the last one.
    starts: &'a [usize; LANES],
    len: usize,
    room: Room,
    layout: PhantomData<F>,
}

impl<F: Layout> CodesKernel for Unpack<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<C: Codes>(self) {
        let Self { data, starts, len, mut room, .. } = self;
        let groups = F::Format::VALUES / (4 * F::Group::STEPS);
        let mut rows: Rows = starts.map(|start| data.wrapping_add(start));
        for _ in 0..len / F::Format::VALUES {
            // SAFETY: the rows are there, each of whole blocks, and the scratch has room for a chunk.
            unsafe {
                for row in rows {
                    for line in (0..F::Format::BYTES).step_by(CACHE_LINE) {
                        C::prefetch(row.wrapping_add(AHEAD + line));
                    }
                }
                F::unpack::<C>(&rows, &room);
                room = room.behind::<F::Group>(groups);
            }
            rows = rows.map(|row| row.wrapping_add(F::Format::BYTES));
        }
    }
}

/// Adds their products, once unpacked, to the sums.
struct Add<'a, G> {
    columns: Columns<'a>,
    /// What codes are above the integers that they stand for.
    offset: u8,
    group: PhantomData<G>,
}

impl<G: Group> DotKernel for Add<'_, G> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<D: Dot>(self) {
        let count = self.columns.tile.slab.count;
        let mut i = 0;
        while i < count {
            // SAFETY: the caller's; so many rows are left.
            i += unsafe {
                match count - i {
                    8.. if D::ROWS == 8 => self.rows::<D, 8>(i),
                    4.. => self.rows::<D, 4>(i),
                    2.. => self.rows::<D, 2>(i),
                    _ => self.rows::<D, 1>(i),
                }
            };
        }
    }
}

impl<G: Group> Add<'_, G> {
    /// Rows `i` to `i + N`; answers `N`.
    ///
    /// # Safety
    /// They are there, the columns are unpacked, and the processor has the instructions.
    #[inline(always)]
    unsafe fn rows<D: Dot, const N: usize>(&self, i: usize) -> usize {
        let Columns { tile, k, len } = self.columns;
        let x = tile.slab.x;
        let values_of_group = 4 * G::STEPS;
        let sums_of_x = if values_of_group == BLOCK { &x.sums32 } else { &x.sums16 };
        let is_raised = G::RAISED || (G::LARGEST == 0 && D::RAISED > 0);
        // Exact: all of them are integers far below 2^24.
        let offset = -f32::from(if G::LARGEST == 0 { D::RAISED } else { self.offset });
        // SAFETY: the rows and columns are there.
        unsafe {
            let mut sums = [D::splat(0.0); N];
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = D::load_f32(tile.sums().add(i + j).cast());
            }
            let of_row = |of: usize, j: usize| ((i + j) * x.cols + k) / of;
            let values: [_; N] = std::array::from_fn(|j| x.values.as_ptr().add(of_row(1, j)));
            let scales: [_; N] = std::array::from_fn(|j| x.scales.as_ptr().add(of_row(BLOCK, j)));
            let all: [_; N] = std::array::from_fn(|j| sums_of_x.as_ptr().add(of_row(values_of_group, j)));
            for group in 0..len / values_of_group {
                let at = tile.room().behind::<G>(group);
                let dots = D::dot::<G, N>(at.codes, values.map(|row| row.add(group * values_of_group)));
                let scale = D::load_f32(at.scales.cast());
                for j in 0..N {
                    let step = D::splat(*scales[j].add(group * values_of_group / BLOCK));
                    let mut dot = dots[j];
                    if is_raised {
                        dot = D::splat(*all[j].add(group)).mul_add(D::splat(offset), dot);
                    }
                    sums[j] = if G::ADDENDS {
                        let addend = D::load_f32(at.addends.cast());
                        addend.mul_add(D::splat(*all[j].add(group)), scale.mul(dot)).mul_add(step, sums[j])
                    } else {
                        dot.mul_add(scale.mul(step), sums[j])
                    };
                }
            }
            for (j, sum) in sums.into_iter().enumerate() {
                sum.store(tile.sums().add(i + j).cast());
            }
        }
        N
    }
}

#[cfg(test)]
mod tests;

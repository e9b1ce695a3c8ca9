//! `wgmma`: products that finish as late as they may.
//!
//! A warp's 16 rows of a product need nothing of the other three warps', so each warp has its own queue; what the four hand over is compared. Tiles are
//! checked when a product is issued and read when a wait needs the sums, so that a tile written in between is a race, or gives
//! the wrong sums. Until then the sums are NaNs that say which array they are of.

use std::boxed::Box;
use std::collections::VecDeque;
use std::format;
use std::vec::Vec;

use super::report::Defect;
use super::shadow::READ;
use super::shared::SHARED_BASE;
use super::tensor::{self, Format};
use super::thread::{Place, Thread};
use super::warp::Operation;

/// Rows of a warp, and values of the common dimension.
const ROWS: usize = 16;
const DEPTH: usize = 64;

/// What a warpgroup multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factors {
    pub format: Format,
    /// The descriptor of A; none where it is in registers.
    pub a: Option<u64>,
    pub b: u64,
    /// Columns of B: twice a thread's sums.
    pub columns: usize,
    pub transposed: bool,
    pub accumulate: bool,
}

impl Factors {
    /// `d += a · b`, both K-major.
    pub const fn new(format: Format, a: Option<u64>, b: u64) -> Self {
        Self { format, a, b, columns: 0, transposed: false, accumulate: true }
    }
}

/// What a lane brings to an operation of the warpgroup, while it waits there.
#[derive(Clone, Copy)]
pub struct Operands {
    d: *mut f32,
    count: usize,
    a: [u32; 16],
}

/// Sums of a warp under way.
struct Array {
    /// From 1.
    id: u32,
    /// `[16, columns]`
    values: Vec<f32>,
}

/// A product that has been issued.
struct Product {
    factors: Factors,
    a: Box<[[u32; 16]; 32]>,
    /// Of the array that it adds to.
    id: u32,
}

/// What one warp has under way.
#[derive(Default)]
pub struct Products {
    last_id: u32,
    arrays: Vec<Array>,
    queue: VecDeque<Product>,
    issued: usize,
}

/// What the warps of one warpgroup have issued.
#[derive(Default)]
pub struct Issued {
    factors: VecDeque<Factors>,
    /// Products that all four have issued, and that are no longer in `factors`.
    forgotten: usize,
}

/// The NaN that stands for element `i` of an array under way: no instruction makes one of this sign with a payload.
fn mark(id: u32, i: usize) -> u32 {
    0xffc0_0000 | (id & 0x7fff) << 7 | i as u32
}

/// The array that a sum belongs to, if it is under way.
fn marked(value: f32) -> Option<u32> {
    let bits = value.to_bits();
    let id = bits >> 7 & 0x7fff;
    (bits >> 22 == 0x3ff && id > 0).then_some(id)
}

/// Row and column of a lane's sum.
fn place(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (lane % 4) + i % 2)
}

/// Fields of a descriptor, in bytes.
struct Tile {
    start: u32,
    leading: u32,
    stride: u32,
}

impl Tile {
    fn of(descriptor: u64) -> Self {
        let field = |shift: u32| (descriptor >> shift & 0x3fff) as u32 * 16;
        Self { start: field(0), leading: field(16), stride: field(32) }
    }

    /// The shared address of what lies `column` values into row `row`.
    const fn address(&self, row: usize, column: usize) -> u32 {
        let row = row as u32;
        let straight = self.start + row / 8 * self.stride + row % 8 * 128 + 2 * column as u32;
        straight ^ (straight >> 7 & 7) << 4
    }
}

impl Operands {
    /// The lane's sums.
    ///
    /// # Safety
    /// The lane waits where they are, and nobody else has them.
    unsafe fn sums<'a>(self) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.d, self.count) }
    }
}

impl Thread {
    /// A product of the warpgroup, whose sums this thread has `d` of.
    pub fn multiply_matrices(&self, factors: Factors, a: [u32; 16], d: &mut [f32], place: Place) {
        let factors = Factors { columns: 2 * d.len(), ..factors };
        self.operands.set(Some(Operands { d: d.as_mut_ptr(), count: d.len(), a }));
        self.exchange(Operation::Multiply(factors), u32::MAX, &mut [0; 10], place);
    }

    /// Waits until at most `pending` products are under way.
    pub fn wait_matrices(&self, pending: usize, d: &mut [f32], place: Place) {
        self.operands.set(Some(Operands { d: d.as_mut_ptr(), count: d.len(), a: [0; 16] }));
        self.exchange(Operation::WaitForSums { pending }, u32::MAX, &mut [0; 10], place);
    }

    /// What this warp's lanes, all of which wait in one operation, have brought.
    fn warp_operands(&self) -> [Operands; 32] {
        let first = (self.index - self.lane()) as usize;
        core::array::from_fn(|lane| {
            let operands = self.block().threads[first + lane].operands.take();
            operands.unwrap_or_else(|| unreachable!("every lane left its operands"))
        })
    }

    /// Sums that are not what was left in their place were touched before they were waited for.
    fn expect_intact(&self, intact: bool, place: Place) {
        if !intact {
            let detail = "sums were changed before they were waited for".into();
            self.fail(Defect::UnfinishedProduct, place, detail);
        }
    }

    /// All lanes of the warp have come to a product: notes it.
    pub fn issue_product(&self, factors: Factors) {
        let block = self.block();
        let place = self.place.get().unwrap_or(block.launch().place());
        let (warp, group) = (self.index as usize / 32, self.index as usize / 128);
        if block.size.get() as usize / 128 <= group {
            let detail =
                format!("warp {warp} is not of a warpgroup: the block has {} threads", block.size.get());
            self.fail(Defect::AbsentLanes, place, detail);
        }
        let number = block.products[warp].borrow().issued;
        let mut issued = block.issued[group].borrow_mut();
        let Issued { factors: list, forgotten } = &mut *issued;
        if number - *forgotten == list.len() {
            list.push_back(factors);
        }
        let expected = list[number - *forgotten];
        block.products[warp].borrow_mut().issued += 1;
        let all =
            (4 * group..4 * group + 4).map(|warp| block.products[warp].borrow().issued).min().unwrap_or(0);
        while *forgotten < all {
            list.pop_front();
            *forgotten += 1;
        }
        drop(issued);
        if expected != factors {
            let detail =
                format!("the warps of a warpgroup multiply different tiles: {factors:x?} and {expected:x?}");
            self.fail(Defect::AbsentLanes, place, detail);
        }
        self.check_tiles(&factors, place);

        // SAFETY: each lane's own, which waits.
        let operands = self.warp_operands().map(|lane| (unsafe { lane.sums() }, lane.a));
        let mut products = block.products[warp].borrow_mut();
        let Products { last_id, arrays, queue, .. } = &mut *products;
        let continued = marked(operands[0].0[0]).filter(|id| arrays.iter().any(|array| array.id == *id));
        let id = match continued.filter(|_| factors.accumulate) {
            Some(id) => id,
            None => {
                *last_id = *last_id % 0x7fff + 1;
                let mut values = std::vec![0.0; ROWS * factors.columns];
                if factors.accumulate {
                    for (lane, (d, _)) in operands.iter().enumerate() {
                        for (i, value) in d.iter().enumerate() {
                            let (row, column) = self::place(lane, i);
                            values[row * factors.columns + column] = *value;
                        }
                    }
                }
                arrays.retain(|array| array.id != *last_id);
                arrays.push(Array { id: *last_id, values });
                *last_id
            }
        };
        let mut a = Box::new([[0; 16]; 32]);
        let mut intact = true;
        for (lane, (d, words)) in operands.into_iter().enumerate() {
            a[lane] = words;
            for (i, value) in d.iter_mut().enumerate() {
                intact &= continued != Some(id) || value.to_bits() == mark(id, i);
                *value = f32::from_bits(mark(id, i));
            }
        }
        queue.push_back(Product { factors, a, id });
        drop(products);
        self.expect_intact(intact, place);
    }

    /// All lanes of the warp have come to a wait: finishes what it covers.
    pub fn finish_products(&self, pending: usize) {
        let block = self.block();
        let warp = self.index as usize / 32;
        let place = self.place.get().unwrap_or(block.launch().place());
        loop {
            let mut products = block.products[warp].borrow_mut();
            if products.queue.len() <= pending {
                break;
            }
            let product = products.queue.pop_front();
            drop(products);
            let Some(product) = product else { break };
            self.check_tiles(&product.factors, place);
            let mut products = block.products[warp].borrow_mut();
            if let Some(array) = products.arrays.iter_mut().find(|array| array.id == product.id) {
                self.multiply(&product, &mut array.values);
            }
        }
        // SAFETY: each lane's own, which waits.
        let sums = self.warp_operands().map(|lane| unsafe { lane.sums() });
        let mut products = block.products[warp].borrow_mut();
        let Products { arrays, queue, .. } = &mut *products;
        let Some(id) = marked(sums[0][0]) else { return };
        if queue.iter().any(|product| product.id == id) {
            return;
        }
        let Some(index) = arrays.iter().position(|array| array.id == id) else { return };
        let array = arrays.swap_remove(index);
        let mut intact = true;
        for (lane, d) in sums.into_iter().enumerate() {
            let columns = 2 * d.len();
            for (i, value) in d.iter_mut().enumerate() {
                intact &= value.to_bits() == mark(id, i);
                let (row, column) = self::place(lane, i);
                *value = array.values.get(row * columns + column).copied().unwrap_or(f32::NAN);
            }
        }
        drop(products);
        self.expect_intact(intact, place);
    }

    /// Reads of this warp's rows of A and of all of B.
    fn check_tiles(&self, factors: &Factors, place: Place) {
        let Factors { a, b, columns, transposed, .. } = *factors;
        let check = |address: u32| {
            if !address.is_multiple_of(1024) {
                let detail = format!(
                    "the tile at shared address {address} does not begin at a multiple of 1,024 bytes"
                );
                self.fail(Defect::Misaligned, place, detail);
            }
            let offset = address.wrapping_sub(SHARED_BASE) as usize;
            self.observe_shared::<READ>(offset, 1024, 16, place);
            self.check_fences(offset, 1024, place);
        };
        if let Some(a) = a {
            let (tile, row) = (Tile::of(a), 16 * (self.index / 32 % 4));
            (0..2).for_each(|eight| check(tile.start + (row / 8 + eight) * tile.stride));
        }
        let tile = Tile::of(b);
        if transposed {
            for part in 0..columns as u32 / 64 {
                (0..DEPTH as u32 / 8)
                    .for_each(|eight| check(tile.start + part * tile.leading + eight * tile.stride));
            }
        } else {
            (0..columns as u32 / 8).for_each(|eight| check(tile.start + eight * tile.stride));
        }
    }

    /// Adds this warp's rows of a product to `sums` `[16, columns]`.
    fn multiply(&self, product: &Product, sums: &mut [f32]) {
        let Product { factors, a: registers, .. } = product;
        let block = self.block();
        // SAFETY: the tiles were checked.
        let at = |address: u32| unsafe { block.shared_at::<u16>(address).read() };
        let first_row = 16 * (self.index as usize / 32 % 4);
        let mut a = [[0u16; DEPTH]; ROWS];
        for (row, values) in a.iter_mut().enumerate() {
            for (k, value) in values.iter_mut().enumerate() {
                *value = match factors.a {
                    Some(tile) => at(Tile::of(tile).address(first_row + row, k)),
                    None => {
                        // Which lane and word hold a[row][k]: as `mma` has it.
                        let word =
                            registers[4 * (row % 8) + k % 8 / 2][4 * (k / 16) + row / 8 + 2 * (k / 8 % 2)];
                        (word >> (16 * (k % 2))) as u16
                    }
                };
            }
        }
        let tile = Tile::of(factors.b);
        for column in 0..factors.columns {
            let b: [u16; DEPTH] = core::array::from_fn(|k| {
                at(if factors.transposed {
                    tile.address(k, column % 64) + (column / 64) as u32 * tile.leading
                } else {
                    tile.address(column, k)
                })
            });
            for (row, a) in a.iter().enumerate() {
                let sum = &mut sums[row * factors.columns + column];
                *sum = tensor::add_products(tensor::HOPPER, factors.format, *sum, a, &b);
            }
        }
    }
}

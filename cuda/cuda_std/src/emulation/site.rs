//! Source locations as small numbers, so that a shadow cell has room for one.

use std::boxed::Box;
use std::cell::Cell;
use std::collections::HashMap;
use std::panic::Location;
use std::sync::{LazyLock, Mutex, PoisonError, RwLock};
use std::vec::Vec;

/// Bits of a site's number. Sites beyond are all number 0, "unknown".
pub const SITE_BITS: u32 = 14;

type Key = (&'static str, u32, u32);

static NUMBERS: LazyLock<Mutex<HashMap<Key, u32>>> = LazyLock::new(Mutex::default);
static PLACES: RwLock<Vec<&'static Location<'static>>> = RwLock::new(Vec::new());

/// The number of a location, the same for equal ones.
fn number(place: &'static Location<'static>) -> u32 {
    let key = (place.file(), place.line(), place.column());
    let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    *numbers.entry(key).or_insert_with(|| {
        let mut places = PLACES.write().unwrap_or_else(PoisonError::into_inner);
        if places.len() + 1 >= 1 << SITE_BITS {
            return 0;
        }
        places.push(place);
        places.len() as u32
    })
}

/// The location of a number, unless it is 0.
pub fn place(number: u32) -> Option<&'static Location<'static>> {
    let places = PLACES.read().unwrap_or_else(PoisonError::into_inner);
    places.get((number as usize).wrapping_sub(1)).copied()
}

/// One worker's memory of the numbers it asked for last.
pub struct SiteCache(Box<[Cell<(usize, u32)>; 256]>);

impl SiteCache {
    pub fn new() -> Self {
        Self(Box::new([const { Cell::new((0, 0)) }; 256]))
    }

    #[inline]
    pub fn number(&self, place: &'static Location<'static>) -> u32 {
        let address = core::ptr::from_ref(place) as usize;
        let slot = &self.0[(address >> 3 ^ address >> 11) & 255];
        let (key, known) = slot.get();
        if key == address {
            return known;
        }
        let number = number(place);
        slot.set((address, number));
        number
    }
}

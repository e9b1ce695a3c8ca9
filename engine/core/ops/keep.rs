//! What a device keeps of sequences, as bytes on the host: so it can outlive the program.

use super::Types;
use crate::error::{Error, Result};
use crate::host_memory;
use crate::kv_layout::{KvLayout, SlotLayout};

/// How a device gives pages and slots out and takes them back, bit for bit. All wait for what was queued before.
pub trait KeepOps: Types {
    /// The order of values within a page: bytes of one order mean nothing in another.
    fn order(&self) -> &'static str;

    /// K and V of all layers of a page, [`KvLayout::page_bytes`] bytes.
    ///
    /// # Errors
    /// [`crate::Error::Request`] if there is no such page; [`crate::Error::Device`] if the device fails.
    fn read_page(&mut self, cache: &Self::KvCache, page: usize) -> Result<Vec<u8>>;

    /// Puts them back.
    ///
    /// # Errors
    /// As [`KeepOps::read_page`]; [`crate::Error::Request`] for another number of bytes.
    fn write_page(&mut self, cache: &mut Self::KvCache, page: usize, bytes: &[u8]) -> Result<()>;

    /// What a slot holds of all layers, [`SlotLayout::slot_bytes`] bytes.
    ///
    /// # Errors
    /// As [`KeepOps::read_page`]; [`Error::Memory`] if the host has no room for it.
    fn read_slot(&mut self, states: &Self::States, slot: usize) -> Result<Vec<u8>>;

    /// Puts it back.
    ///
    /// # Errors
    /// As [`KeepOps::write_page`].
    fn write_slot(&mut self, states: &mut Self::States, slot: usize, bytes: &[u8]) -> Result<()>;
}

impl KvLayout {
    /// Refuses a page that is not there, and bytes that are not one.
    ///
    /// # Errors
    /// [`Error::Request`] that says which.
    pub fn expect_page(&self, page: usize, bytes: usize) -> Result<()> {
        if page < self.num_pages && bytes == self.page_bytes() {
            return Ok(());
        }
        Err(Error::Request(format!("{bytes} bytes for page {page} of {self:?}")))
    }
}

impl SlotLayout {
    /// Room for the bytes of a slot.
    ///
    /// # Errors
    /// [`Error::Request`] if it is not there, [`Error::Memory`] if there is none.
    pub fn room_for(&self, slot: usize) -> Result<Vec<u8>> {
        self.expect_slot(slot, self.slot_bytes())?;
        let mut bytes = Vec::new();
        host_memory::reserve("a copy of a state", &mut bytes, self.slot_bytes())?;
        Ok(bytes)
    }

    /// Refuses a slot that is not there, and bytes that are not one.
    ///
    /// # Errors
    /// [`Error::Request`] that says which.
    pub fn expect_slot(&self, slot: usize, bytes: usize) -> Result<()> {
        if slot < self.num_slots && bytes == self.slot_bytes() {
            return Ok(());
        }
        Err(Error::Request(format!("{bytes} bytes for slot {slot} of {self:?}")))
    }
}

/// Appends the bytes of values, as fast as they are copied: a state has many.
pub fn extend_bytes(bytes: &mut Vec<u8>, values: &[f32]) {
    let start = bytes.len();
    bytes.resize(start + size_of_val(values), 0);
    let places = bytes[start..].as_chunks_mut().0;
    places.iter_mut().zip(values).for_each(|(place, value)| *place = value.to_le_bytes());
}

/// Values of bytes.
pub fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes))
}

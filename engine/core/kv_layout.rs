//! What layers keep of a sequence between steps: pages that grow with it, or a slot of fixed size.

use crate::error::{Error, Result};
use crate::kv_format::{KvFormat, KvFormats};

/// Tokens of a page.
pub const PAGE_SIZE: usize = 32;

/// What a layer keeps of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// K and V of every token, in pages of [`PAGE_SIZE`] tokens: attention.
    Pages { num_key_value_heads: usize, head_dim: usize },
    /// A slot of as many bytes however long the sequence is: a recurrent layer.
    Slot { bytes: usize },
}

/// What all layers of a model keep, in their order; most keep pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateLayout {
    pub layers: Vec<LayerState>,
}

impl StateLayout {
    /// Adds a layer. Answers which it is of those that keep the like of it: layers with pages are numbered by themselves, and so
    /// are those with slots.
    pub fn add(&mut self, state: LayerState) -> usize {
        let alike = |other: &&LayerState| std::mem::discriminant(*other) == std::mem::discriminant(&state);
        let index = self.layers.iter().filter(alike).count();
        self.layers.push(state);
        index
    }

    /// The cache of the layers that keep pages: `num_pages` pages of values of `formats`.
    ///
    /// # Errors
    /// [`Error::Model`] if their pages are not all alike; [`Error::Request`] if their heads are not whole blocks of the formats.
    pub fn pages(&self, formats: impl Into<KvFormats>, num_pages: usize) -> Result<KvLayout> {
        let formats = formats.into();
        let mut layout = KvLayout { formats, num_layers: 0, num_pages, num_key_value_heads: 0, head_dim: 0 };
        for state in &self.layers {
            let &LayerState::Pages { num_key_value_heads, head_dim } = state else { continue };
            let known = (layout.num_key_value_heads, layout.head_dim);
            if layout.num_layers > 0 && known != (num_key_value_heads, head_dim) {
                return Err(Error::Model(format!(
                    "layers with {} and with {num_key_value_heads} key-value heads of {} and {head_dim} values in one model are \
                     not implemented",
                    known.0, known.1
                )));
            }
            layout = KvLayout { num_layers: layout.num_layers + 1, num_key_value_heads, head_dim, ..layout };
        }
        for format in [formats.k, formats.v] {
            if !layout.head_dim.is_multiple_of(format.multiple()) {
                return Err(Error::Request(format!(
                    "a KV cache in {format} needs heads of a multiple of {} values, this model's have {}: use f16",
                    format.multiple(),
                    layout.head_dim
                )));
            }
        }
        Ok(layout)
    }

    /// The slots of the layers that keep one: `num_slots` for each.
    ///
    /// # Errors
    /// [`Error::Model`] if they are not all alike.
    pub fn slots(&self, num_slots: usize) -> Result<SlotLayout> {
        let mut layout = SlotLayout { num_layers: 0, num_slots, bytes: 0 };
        for state in &self.layers {
            let &LayerState::Slot { bytes } = state else { continue };
            if layout.num_layers > 0 && layout.bytes != bytes {
                return Err(Error::Model(format!(
                    "layers with slots of {} and of {bytes} bytes in one model are not implemented",
                    layout.bytes
                )));
            }
            layout = SlotLayout { num_layers: layout.num_layers + 1, bytes, ..layout };
        }
        Ok(layout)
    }

    /// Bytes of the slots of one sequence, in all layers.
    pub fn slot_bytes(&self) -> usize {
        let bytes = |state: &LayerState| if let LayerState::Slot { bytes } = state { *bytes } else { 0 };
        self.layers.iter().map(bytes).fold(0, usize::saturating_add)
    }

    /// Whether a layer keeps a slot: what it holds is that of all tokens so far and cannot be cut back to fewer.
    pub fn has_slots(&self) -> bool {
        self.layers.iter().any(|state| matches!(state, LayerState::Slot { .. }))
    }
}

/// Shape of what recurrent layers keep: for each of them `num_slots` slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotLayout {
    /// Layers that keep slots.
    pub num_layers: usize,
    /// Sequences that may have one at a time.
    pub num_slots: usize,
    /// Bytes of one slot of one layer.
    pub bytes: usize,
}

impl SlotLayout {
    /// Bytes of a slot in all layers.
    pub const fn slot_bytes(&self) -> usize {
        self.num_layers * self.bytes
    }

    /// Refuses a copy from slot `of` of slots of the layout `from` to slot `slot` of these.
    ///
    /// # Errors
    /// [`Error::Request`] if one of both does not exist, or they are not of one shape.
    pub fn expect_copy(&self, slot: usize, from: &Self, of: usize) -> Result<()> {
        let alike = (self.num_layers, self.bytes) == (from.num_layers, from.bytes);
        if alike && slot < self.num_slots && of < from.num_slots {
            return Ok(());
        }
        Err(Error::Request(format!("a copy from slot {of} of {from:?} to slot {slot} of {self:?}")))
    }
}

/// A copy of what recurrent layers keep of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateCopy {
    /// The sequence's slot.
    pub slot: u32,
    /// The copy's place among the checkpoints.
    pub place: u32,
}

/// Shape of the cache. For each layer with pages, K and V are each `[num_pages, num_key_value_heads, PAGE_SIZE, head_dim]`: the
/// values of one head of one page lie together, in an order that is the device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    pub formats: KvFormats,
    pub num_layers: usize,
    pub num_pages: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
}

impl KvLayout {
    /// Values of K (or of V) of one page of one layer.
    pub const fn page_elements(&self) -> usize {
        self.num_key_value_heads * PAGE_SIZE * self.head_dim
    }

    /// Bytes of K (or of V) of one page of one layer, in `format`, which is one of the layout's.
    pub const fn part_bytes(&self, format: KvFormat) -> usize {
        format.bytes(self.page_elements())
    }

    /// Bytes of one page: K and V of all layers.
    pub const fn page_bytes(&self) -> usize {
        self.num_layers * (self.part_bytes(self.formats.k) + self.part_bytes(self.formats.v))
    }
}

/// Pages that hold `num_tokens` tokens.
pub const fn pages_for(num_tokens: usize) -> usize {
    num_tokens.div_ceil(PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;

    #[test]
    fn a_page_in_eight_bits_takes_34_bytes_for_64() {
        let state =
            |head_dim| StateLayout { layers: vec![LayerState::Pages { num_key_value_heads: 2, head_dim }] };
        let bytes = |formats| state(64).pages(formats, 1).map(|layout| layout.page_bytes());
        let (f16, q8_0) = (KvFormat::Float(Dtype::F16), KvFormat::Q8_0);
        assert_eq!(bytes(KvFormats::both(f16)).unwrap(), 2 * 2 * 64 * PAGE_SIZE * 2);
        assert_eq!(bytes(KvFormats::both(q8_0)).unwrap(), 2 * 2 * 34 * PAGE_SIZE * 2);
        assert_eq!(bytes(KvFormats { k: f16, v: q8_0 }).unwrap(), 2 * (64 + 34) * PAGE_SIZE * 2);
        let error = state(80).pages(KvFormats { k: f16, v: q8_0 }, 1).unwrap_err();
        assert!(
            matches!(&error, Error::Request(text) if text.contains("32") && text.contains("80")),
            "{error}"
        );
    }

    #[test]
    fn layers_are_numbered_by_what_they_keep() {
        let pages = LayerState::Pages { num_key_value_heads: 2, head_dim: 64 };
        let slot = LayerState::Slot { bytes: 100 };
        let mut state = StateLayout::default();
        assert_eq!([slot, slot, pages, slot, pages].map(|layer| state.add(layer)), [0, 1, 0, 2, 1]);
        let layout = state.pages(Dtype::F16, 3).unwrap();
        assert_eq!((layout.num_layers, layout.page_bytes()), (2, 2 * 2 * 2 * 64 * PAGE_SIZE * 2));
        assert_eq!((state.slot_bytes(), state.has_slots()), (300, true));
        assert_eq!(state.slots(5).unwrap(), SlotLayout { num_layers: 3, num_slots: 5, bytes: 100 });
        state.add(LayerState::Pages { num_key_value_heads: 4, head_dim: 64 });
        assert!(state.pages(Dtype::F16, 3).unwrap_err().to_string().contains("not implemented"));
        assert!(!StateLayout { layers: vec![pages] }.has_slots());
        assert_eq!(StateLayout { layers: vec![pages] }.slots(5).unwrap().num_layers, 0);
        state.add(LayerState::Slot { bytes: 1 });
        assert!(state.slots(5).unwrap_err().to_string().contains("slots of 100 and of 1 bytes"));
    }
}

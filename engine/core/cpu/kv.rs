//! K and V pages of every layer in memory, in the layout of [`KvLayout`].

use super::simd::with_element;
use super::tensor::Bytes;
use crate::error::{Error, Result};
use crate::kv_layout::{KvLayout, PAGE_SIZE};

/// The pages. Memory is taken from the system when a page is first written.
pub struct KvCache {
    layout: KvLayout,
    k: Bytes,
    v: Bytes,
}

impl KvCache {
    /// Allocates all pages, zeroed.
    ///
    /// # Errors
    /// [`Error::Memory`] if the size overflows or the system refuses.
    pub fn new(layout: &KvLayout) -> Result<Self> {
        let KvLayout { dtype, num_layers, num_pages, num_key_value_heads, head_dim } = *layout;
        let sizes = [num_layers, num_pages, num_key_value_heads, PAGE_SIZE, head_dim, dtype.size()];
        Ok(Self {
            layout: *layout,
            k: Bytes::zeroed("K pages", &sizes)?,
            v: Bytes::zeroed("V pages", &sizes)?,
        })
    }

    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// K and V of all pages of `layer`: bytes of `[num_pages, num_key_value_heads, PAGE_SIZE, head_dim]`.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn layer(&self, layer: usize) -> (&[u8], &[u8]) {
        let range = self.layer_range(layer);
        (&self.k.as_slice()[range.clone()], &self.v.as_slice()[range])
    }

    pub(super) fn layer_mut(&mut self, layer: usize) -> (&mut [u8], &mut [u8]) {
        let range = self.layer_range(layer);
        (&mut self.k.as_mut_slice()[range.clone()], &mut self.v.as_mut_slice()[range])
    }

    fn layer_range(&self, layer: usize) -> std::ops::Range<usize> {
        let bytes = self.layout.num_pages * self.layout.page_elements() * self.layout.dtype.size();
        layer * bytes..(layer + 1) * bytes
    }

    /// K and V of all pages of `layer` as f32, `[num_pages, num_key_value_heads, PAGE_SIZE, head_dim]`: for comparing
    /// with another device's.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such layer.
    pub fn read(&self, layer: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        self.expect_layer("read", layer)?;
        let (k, v) = self.layer(layer);
        let widen = |bytes: &[u8]| -> Vec<f32> {
            with_element!(self.layout.dtype, E => {
                use super::simd::Element;
                // SAFETY: each chunk is one value.
                bytes.chunks_exact(E::SIZE).map(|b| unsafe { E::get(b.as_ptr()) }).collect()
            })
        };
        Ok((widen(k), widen(v)))
    }

    pub(super) fn expect_layer(&self, op: &str, layer: usize) -> Result<()> {
        if layer < self.layout.num_layers {
            return Ok(());
        }
        Err(Error::Request(format!("{op}: layer {layer} of a cache of {} layers", self.layout.num_layers)))
    }
}

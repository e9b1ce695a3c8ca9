//! K and V pages of every layer in memory, in the shape of [`KvLayout`] and in another order: what a page holds of all layers lies
//! together, so that a pool of any size takes as much memory as pages of it were ever used.

use super::simd::{Element, with_element};
use super::tensor::Bytes;
use crate::error::{Error, Result};
use crate::host_memory;
use crate::kv_layout::{KvLayout, PAGE_SIZE};

/// The pages. Memory is taken from the system when a page is first written.
pub struct KvCache {
    layout: KvLayout,
    /// `[num_pages, num_layers, 2 (K, V), num_key_value_heads, PAGE_SIZE, head_dim]`
    pages: Bytes,
}

/// K or V.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    K,
    V,
}

impl KvCache {
    /// Reserves all pages, zeroed.
    ///
    /// # Errors
    /// [`Error::Memory`] if the size overflows or the system refuses.
    pub fn new(layout: &KvLayout) -> Result<Self> {
        let KvLayout { dtype, num_layers, num_pages, num_key_value_heads, head_dim } = *layout;
        let sizes = [num_pages, num_layers, 2, num_key_value_heads, PAGE_SIZE, head_dim, dtype.size()];
        Ok(Self { layout: *layout, pages: Bytes::zeroed("the KV cache", &sizes)? })
    }

    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Bytes from what a page holds of a layer to what the next page does.
    pub(super) fn stride(&self) -> usize {
        self.layout.page_bytes()
    }

    /// Bytes from the beginning of a page to its K or V of `layer`.
    fn offset(&self, layer: usize, kind: Kind) -> usize {
        let place = 2 * layer + usize::from(kind == Kind::V);
        place * self.layout.page_elements() * self.layout.dtype.size()
    }

    /// From K (or V) of the first page of `layer` on; that of page `p`, `[num_key_value_heads, PAGE_SIZE, head_dim]`, begins `p`
    /// [strides](KvCache::stride) behind.
    pub(super) fn first_page_on(&self, layer: usize, kind: Kind) -> &[u8] {
        self.pages.as_slice().get(self.offset(layer, kind)..).unwrap_or_default()
    }

    /// K (or V) of a page of `layer`, `[num_key_value_heads, PAGE_SIZE, head_dim]`.
    ///
    /// # Panics
    /// If there is no such page or layer.
    pub(super) fn page_mut(&mut self, layer: usize, kind: Kind, page: usize) -> &mut [u8] {
        let at = page * self.stride() + self.offset(layer, kind);
        let len = self.layout.page_elements() * self.layout.dtype.size();
        &mut self.pages.as_mut_slice()[at..at + len]
    }

    /// K and V of all pages of `layer` as f32, `[num_pages, num_key_value_heads, PAGE_SIZE, head_dim]`: for comparing
    /// with another device's.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such layer.
    pub fn read(&self, layer: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        self.expect_layer("read", layer)?;
        let mut values = [Vec::new(), Vec::new()];
        for (kind, values) in [Kind::K, Kind::V].into_iter().zip(&mut values) {
            let pages = self.first_page_on(layer, kind).chunks(self.stride());
            host_memory::reserve(
                "a copy of K or V",
                values,
                self.layout.num_pages * self.layout.page_elements(),
            )?;
            with_element!(self.layout.dtype, E => for page in pages {
                let page = &page[..self.layout.page_elements() * E::SIZE];
                // SAFETY: each chunk is one value.
                values.extend(page.chunks_exact(E::SIZE).map(|bytes| unsafe { E::get(bytes.as_ptr()) }));
            });
        }
        let [k, v] = values;
        Ok((k, v))
    }

    pub(super) fn expect_layer(&self, op: &str, layer: usize) -> Result<()> {
        if layer < self.layout.num_layers {
            return Ok(());
        }
        Err(Error::Request(format!("{op}: layer {layer} of a cache of {} layers", self.layout.num_layers)))
    }
}

//! K and V pages of every layer in memory, in the shape of [`KvLayout`] and in another order: what a page holds of all layers lies
//! together, so that a pool of any size takes as much memory as pages of it were ever used.

use super::simd::{Element, with_element};
use super::tensor::Bytes;
use crate::error::{Error, Result};
use crate::host_memory;
use crate::kv_format::{BLOCK_BYTES, KvFormat, quantise};
use crate::kv_layout::KvLayout;

/// The pages. Memory is taken from the system when a page is first written.
pub struct KvCache {
    layout: KvLayout,
    /// `[num_pages, num_layers, 2 (K, V), num_key_value_heads, PAGE_SIZE, head_dim]`, values as [`write_row`] has them
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
        let sizes = [layout.num_pages, layout.page_bytes()];
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
        let layout = &self.layout;
        let [k, v] = [layout.formats.k, layout.formats.v].map(|format| layout.part_bytes(format));
        layer * (k + v) + if kind == Kind::V { k } else { 0 }
    }

    /// The format of K (or of V).
    pub(super) fn format(&self, kind: Kind) -> KvFormat {
        match kind {
            Kind::K => self.layout.formats.k,
            Kind::V => self.layout.formats.v,
        }
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
        let len = self.layout.part_bytes(self.format(kind));
        &mut self.pages.as_mut_slice()[at..at + len]
    }

    /// What a page holds of all layers.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such page.
    pub fn read_page(&self, page: usize) -> Result<Vec<u8>> {
        self.layout.expect_page(page, self.stride())?;
        Ok(self.pages.as_slice()[page * self.stride()..][..self.stride()].to_vec())
    }

    /// Sets what a page holds of all layers.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such page, or it has another number of bytes.
    pub fn write_page(&mut self, page: usize, bytes: &[u8]) -> Result<()> {
        self.layout.expect_page(page, bytes.len())?;
        self.pages.as_mut_slice()[page * bytes.len()..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
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
            let format = self.format(kind);
            for page in pages {
                read_values(format, &page[..self.layout.part_bytes(format)], values);
            }
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

/// Values of a head, to the bytes of the same.
///
/// What is beyond the format's range becomes NaN and with it every answer that looks at it: as infinity a position could drop out
/// of attention, or win it, and nobody would know.
pub(super) fn write_row(format: KvFormat, values: &[f32], to: &mut [u8]) {
    let KvFormat::Float(dtype) = format else {
        for (values, block) in values.as_chunks().0.iter().zip(to.chunks_exact_mut(BLOCK_BYTES)) {
            let (scale, codes) = quantise(values);
            block[..2].copy_from_slice(&scale.to_le_bytes());
            block[2..].iter_mut().zip(codes).for_each(|(byte, code)| *byte = code as u8);
        }
        return;
    };
    with_element!(dtype, E => for (to, &value) in to.chunks_exact_mut(E::SIZE).zip(values) {
        let value = if value.abs() > E::LARGEST { f32::NAN } else { value };
        // SAFETY: a chunk is one value.
        unsafe { E::set(to.as_mut_ptr(), value) };
    });
}

/// Appends what [`write_row`] has written.
fn read_values(format: KvFormat, bytes: &[u8], values: &mut Vec<f32>) {
    match format {
        KvFormat::Float(dtype) => with_element!(dtype, E => {
            // SAFETY: each chunk is one value.
            values.extend(bytes.chunks_exact(E::SIZE).map(|bytes| unsafe { E::get(bytes.as_ptr()) }));
        }),
        KvFormat::Q8_0 => {
            for block in bytes.chunks_exact(BLOCK_BYTES) {
                let scale = f32::from(half::f16::from_le_bytes([block[0], block[1]]));
                values.extend(block[2..].iter().map(|&code| scale * f32::from(code as i8)));
            }
        }
    }
}

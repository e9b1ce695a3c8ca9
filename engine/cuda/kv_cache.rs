//! Pages of K and V on the device.

use super::device::Device;
use super::memory::DeviceBuffer;
use super::tensor::{decode, elements, encode};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kv_format::{BLOCK_VALUES, KvFormat, KvFormats, quantise};
use crate::kv_layout::{KvLayout, PAGE_SIZE, pages_for};
use crate::ops::OpsConfig;
use cuda_std::launch::{DevicePtr, DevicePtrMut};
use gpu_kernels::attention::formats;
use half::f16;
use std::cell::Cell;
use std::rc::Rc;

/// K and V pages of every layer, laid out as [`KvLayout`] says: all of K, then all of V. In eight bits what a page holds of a head is
/// its integers and behind them its scales.
pub struct KvCache {
    k: DeviceBuffer<u8>,
    v: DeviceBuffer<u8>,
    pub(super) layout: KvLayout,
    /// Where not both are floats of matrices.
    staging: Option<Staging>,
    /// Rows that a kernel has left there and nobody has stored yet.
    pub(super) waiting: Cell<Option<Waiting>>,
}

/// Rows of a layer that wait to be stored in its pages: for the kernel of attention that does so, or for
/// [`quantise_kv`](super::quantise_kv).
#[derive(Clone, Copy)]
pub(super) struct Waiting {
    pub layer: usize,
    /// How many.
    pub rows: usize,
    /// Of each, below [`KvLayout::num_pages`] times [`PAGE_SIZE`].
    pub slots: DevicePtr<u32>,
    pub from: Target,
}

/// Where the kernels that compute K and V leave the rows of a step as floats: what goes to pages in blocks of values must be known first.
struct Staging {
    /// `[pages_for(rows), num_key_value_heads, PAGE_SIZE, head_dim]` of floats, f32 at most.
    k: DeviceBuffer<u8>,
    v: DeviceBuffer<u8>,
    /// 0, 1, …: row `i` goes to slot `i`.
    slots: DeviceBuffer<u32>,
}

/// Where a kernel is to write K and V of the rows of a step.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub dtype: Dtype,
    /// dtype `[pages, num_key_value_heads, PAGE_SIZE, head_dim]`
    pub k: DevicePtrMut<u8>,
    pub v: DevicePtrMut<u8>,
    /// Of each row.
    pub slots: DevicePtr<u32>,
}

/// Values of K (or V) of the rows of a step, in whole pages.
fn staged_values(rows: usize, num_key_value_heads: usize, head_dim: usize) -> Result<usize> {
    elements(pages_for(rows) * PAGE_SIZE, num_key_value_heads * head_dim)
}

/// Bytes that a [`KvCache`] takes besides its pages.
pub fn staging_bytes(config: &OpsConfig, formats: KvFormats) -> usize {
    if formats.float().is_some() {
        return 0;
    }
    let rows = config.limits.max_num_tokens;
    let values = staged_values(rows, config.num_key_value_heads, config.head_dim).unwrap_or(usize::MAX);
    values.saturating_mul(2 * size_of::<f32>()).saturating_add(rows.saturating_mul(size_of::<u32>()))
}

/// The number of a format in arguments of kernels.
pub(super) const fn number(format: KvFormat) -> u32 {
    match format {
        KvFormat::Float(Dtype::F32) => formats::F32,
        KvFormat::Float(Dtype::F16) => formats::F16,
        KvFormat::Float(Dtype::Bf16) => formats::BF16,
        KvFormat::Q8_0 => formats::Q8_0,
    }
}

impl KvCache {
    /// Pages, and room for steps of `rows` rows.
    pub(super) fn new(device: &Rc<Device>, layout: &KvLayout, rows: usize) -> Result<Self> {
        let pages = elements(layout.num_layers, layout.num_pages)?;
        let zeroed = |format| DeviceBuffer::zeroed(device, elements(pages, layout.part_bytes(format))?);
        let staging = match layout.formats.float() {
            Some(_) => None,
            None => Some(Staging::new(device, layout, rows)?),
        };
        Ok(Self {
            k: zeroed(layout.formats.k)?,
            v: zeroed(layout.formats.v)?,
            layout: *layout,
            staging,
            waiting: Cell::new(None),
        })
    }

    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Bytes of K and of V of a layer.
    fn layer_bytes(&self) -> [usize; 2] {
        let KvLayout { formats, num_pages, .. } = self.layout;
        [formats.k, formats.v].map(|format| num_pages * self.layout.part_bytes(format))
    }

    /// K and V of one layer, each `[num_pages, num_key_value_heads, PAGE_SIZE, head_dim]`.
    pub(super) fn layer(&self, op: &str, layer: usize) -> Result<(DevicePtr<u8>, DevicePtr<u8>)> {
        if layer >= self.layout.num_layers {
            return Err(Error::Request(format!("{op}: layer {layer} of {}", self.layout.num_layers)));
        }
        let [k, v] = self.layer_bytes();
        Ok((self.k.ptr().add(layer * k), self.v.ptr().add(layer * v)))
    }

    /// As [`KvCache::layer`], to write.
    pub(super) fn layer_mut(
        &mut self,
        op: &str,
        layer: usize,
    ) -> Result<(DevicePtrMut<u8>, DevicePtrMut<u8>)> {
        let (k, v) = self.layer(op, layer)?;
        Ok((DevicePtrMut::from_raw(k.as_raw()), DevicePtrMut::from_raw(v.as_raw())))
    }

    /// Where a kernel that writes `dtype` is to leave K and V of `n` rows that go to `slots` of `layer`: in the pages, which may be other
    /// floats, or beside them, until they are [stored](super::quantise_kv).
    ///
    /// Rows that still wait are given up: their step has failed, and what their slots are is known no more.
    pub(super) fn target(
        &mut self,
        op: &str,
        layer: usize,
        n: usize,
        slots: DevicePtr<u32>,
        dtype: Dtype,
    ) -> Result<Target> {
        let (k, v) = self.layer_mut(op, layer)?;
        self.waiting.set(None);
        let Some(staging) = &mut self.staging else {
            let dtype = self.layout.formats.float().unwrap_or(dtype);
            return Ok(Target { dtype, k, v, slots });
        };
        if n > staging.slots.len() {
            return Err(Error::Request(format!("{op}: {n} rows, and room for {}", staging.slots.len())));
        }
        Ok(Target { dtype, k: staging.k.ptr_mut(), v: staging.v.ptr_mut(), slots: staging.slots.ptr() })
    }

    /// What a page holds of all layers, K before V of each, after everything queued before.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such page, [`Error::Device`] if an earlier kernel failed.
    pub fn read_page(&self, page: usize) -> Result<Vec<u8>> {
        self.layout.expect_page(page, self.layout.page_bytes())?;
        let mut bytes = Vec::with_capacity(self.layout.page_bytes());
        for [(k, of_k), (v, of_v)] in self.places_of(page) {
            bytes.extend(self.k.read(k, of_k)?);
            bytes.extend(self.v.read(v, of_v)?);
        }
        Ok(bytes)
    }

    /// Sets what a page holds of all layers.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such page, or it has another number of bytes.
    pub fn write_page(&mut self, page: usize, mut bytes: &[u8]) -> Result<()> {
        self.layout.expect_page(page, bytes.len())?;
        for [(k, of_k), (v, of_v)] in self.places_of(page) {
            let (of_layer, rest) = bytes.split_at(of_k + of_v);
            self.k.write(k, &of_layer[..of_k])?;
            self.v.write(v, &of_layer[of_k..])?;
            bytes = rest;
        }
        Ok(())
    }

    /// Where K and V of a page are in each layer: the first byte and how many.
    fn places_of(&self, page: usize) -> impl Iterator<Item = [(usize, usize); 2]> + use<> {
        let KvLayout { formats, num_layers, .. } = self.layout;
        let parts = [formats.k, formats.v].map(|format| self.layout.part_bytes(format));
        let of_layers = self.layer_bytes();
        let place = move |layer: usize, i: usize| (layer * of_layers[i] + page * parts[i], parts[i]);
        (0..num_layers).map(move |layer| [place(layer, 0), place(layer, 1)])
    }

    /// Sets every byte of the cache.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn fill(&mut self, byte: u8) -> Result<()> {
        self.k.fill(byte)?;
        self.v.fill(byte)
    }

    /// Sets the rows that wait to be stored, `[rows, num_key_value_heads * head_dim]` of `dtype` each.
    ///
    /// # Errors
    /// [`Error::Request`] if the cache has no room for them, or all its pages are floats.
    pub fn stage(&mut self, dtype: Dtype, k: &[f32], v: &[f32]) -> Result<()> {
        let KvLayout { num_key_value_heads: heads, head_dim, .. } = self.layout;
        let staging = self.staging.as_mut().ok_or_else(|| Error::Request("stage: pages of floats".into()))?;
        for (to, rows) in [(&mut staging.k, k), (&mut staging.v, v)] {
            let count = rows.len() / (heads * head_dim);
            let mut values = vec![0.0; staged_values(count, heads, head_dim)?];
            for (i, head) in rows.chunks(head_dim).enumerate() {
                let (row, of) = (i / heads, i % heads);
                let at = ((row / PAGE_SIZE * heads + of) * PAGE_SIZE + row % PAGE_SIZE) * head_dim;
                values[at..at + head_dim].copy_from_slice(head);
            }
            to.write(0, &encode(dtype, &values))?;
        }
        Ok(())
    }

    /// Sets K and V of one layer, in the order of [`KvCache::layout`], each rounded to the nearest of its format.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such layer, or there are more values than it has.
    pub fn write(&mut self, layer: usize, k: &[f32], v: &[f32]) -> Result<()> {
        self.layer("write", layer)?;
        let values = self.layout.num_pages * self.layout.page_elements();
        if k.len() > values || v.len() > values {
            let given = k.len().max(v.len());
            return Err(Error::Request(format!("write: {given} values for {values} of a layer")));
        }
        let (KvFormats { k: k_format, v: v_format }, head_dim) = (self.layout.formats, self.layout.head_dim);
        let [k_bytes, v_bytes] = self.layer_bytes();
        self.k.write(layer * k_bytes, &encode_heads(k_format, head_dim, k))?;
        self.v.write(layer * v_bytes, &encode_heads(v_format, head_dim, v))
    }

    /// K and V of one layer as f32, in the order of [`KvCache::layout`], after everything queued before.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such layer, [`Error::Device`] if an earlier kernel failed.
    pub fn read(&self, layer: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        self.layer("read", layer)?;
        let (KvFormats { k, v }, head_dim) = (self.layout.formats, self.layout.head_dim);
        let [k_bytes, v_bytes] = self.layer_bytes();
        let values = |format, buffer: &DeviceBuffer<u8>, bytes| {
            Ok::<_, Error>(decode_heads(format, head_dim, &buffer.read(layer * bytes, bytes)?))
        };
        Ok((values(k, &self.k, k_bytes)?, values(v, &self.v, v_bytes)?))
    }
}

impl Staging {
    fn new(device: &Rc<Device>, layout: &KvLayout, rows: usize) -> Result<Self> {
        let values = staged_values(rows, layout.num_key_value_heads, layout.head_dim)?;
        let slots: Vec<u32> = (0..u32::try_from(rows).unwrap_or(u32::MAX)).collect();
        Ok(Self {
            k: DeviceBuffer::zeroed(device, elements(values, size_of::<f32>())?)?,
            v: DeviceBuffer::zeroed(device, elements(values, size_of::<f32>())?)?,
            slots: DeviceBuffer::from_slice(device, &slots)?,
        })
    }
}

/// What pages hold of heads, `[PAGE_SIZE, head_dim]` each.
fn encode_heads(format: KvFormat, head_dim: usize, values: &[f32]) -> Vec<u8> {
    let KvFormat::Float(dtype) = format else {
        let mut bytes = Vec::with_capacity(format.bytes(values.len()));
        for head in values.chunks(PAGE_SIZE * head_dim) {
            let blocks: Vec<_> = head.as_chunks().0.iter().map(quantise).collect();
            bytes.extend(blocks.iter().flat_map(|(_, codes)| codes.map(|code| code as u8)));
            bytes.extend(blocks.iter().flat_map(|(scale, _)| scale.to_le_bytes()));
        }
        return bytes;
    };
    encode(dtype, values)
}

/// What [`encode_heads`] has written, of whole heads.
fn decode_heads(format: KvFormat, head_dim: usize, bytes: &[u8]) -> Vec<f32> {
    let KvFormat::Float(dtype) = format else {
        let mut values = Vec::new();
        for head in bytes.chunks_exact(format.bytes(PAGE_SIZE * head_dim)) {
            let (codes, scales) = head.split_at(PAGE_SIZE * head_dim);
            for (codes, &scale) in codes.chunks(BLOCK_VALUES).zip(scales.as_chunks::<2>().0) {
                let scale = f16::from_le_bytes(scale).to_f32();
                values.extend(codes.iter().map(|&code| scale * f32::from(code as i8)));
            }
        }
        return values;
    };
    decode(dtype, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_in_eight_bits_take_34_bytes_for_32_values_and_come_back() {
        let values: Vec<f32> = (0..2 * PAGE_SIZE * 64).map(|i| f32::from(i as u8) * 0.5 - 63.5).collect();
        let bytes = encode_heads(KvFormat::Q8_0, 64, &values);
        assert_eq!((bytes.len(), bytes.len() / 34), (KvFormat::Q8_0.bytes(values.len()), values.len() / 32));
        let found = decode_heads(KvFormat::Q8_0, 64, &bytes);
        assert_eq!(found.len(), values.len());
        for (found, value) in found.iter().zip(values) {
            assert!((found - value).abs() <= 0.3, "{found} for {value}");
        }
        assert_eq!(gpu_kernels::attention::formats::q8_0_bytes(96), KvFormat::Q8_0.bytes(96));
    }
}

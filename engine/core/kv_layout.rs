//! Shape of the KV cache: what a page is, and how many bytes it has.

use crate::dtype::Dtype;

/// Tokens of a page.
pub const PAGE_SIZE: usize = 32;

/// Shape of the cache. For each layer, K and V are each `[num_pages, num_key_value_heads, PAGE_SIZE, head_dim]`: the
/// values of one head of one page are contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    pub dtype: Dtype,
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

    /// Bytes of one page: K and V of all layers.
    pub const fn page_bytes(&self) -> usize {
        2 * self.num_layers * self.page_elements() * self.dtype.size()
    }
}

/// Pages that hold `num_tokens` tokens.
pub const fn pages_for(num_tokens: usize) -> usize {
    num_tokens.div_ceil(PAGE_SIZE)
}

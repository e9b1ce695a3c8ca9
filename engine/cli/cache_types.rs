//! Which formats cached K and V have.

use crate::load::KvType;
use clap::Args;

/// The formats of cached K and V, with llama.cpp's names.
#[derive(Clone, Debug, Default, Args)]
pub struct CacheTypeArgs {
    /// Format of cached K: auto (on a GPU that of matrices, on the CPU f16), f32, f16, bf16 (on a GPU only if matrices have it) or q8_0
    /// (eight bits and a scale for 32 values: half as large as f16) [default: that of --kv-cache-dtype]
    #[arg(long, value_name = "TYPE")]
    pub cache_type_k: Option<KvType>,
    /// Format of cached V, likewise
    #[arg(long, value_name = "TYPE")]
    pub cache_type_v: Option<KvType>,
    /// Format of both [default: auto]
    #[arg(long, value_name = "TYPE")]
    pub kv_cache_dtype: Option<KvType>,
}

impl CacheTypeArgs {
    /// Those of K and of V, `unasked` where nothing was said.
    pub fn types(&self, unasked: KvType) -> [KvType; 2] {
        let both = self.kv_cache_dtype.unwrap_or(unasked);
        [self.cache_type_k.unwrap_or(both), self.cache_type_v.unwrap_or(both)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_one_comes_before_what_is_said_of_both() {
        let (q8_0, f32): (KvType, KvType) = ("q8_0".parse().unwrap(), "f32".parse().unwrap());
        let args =
            |cache_type_k, kv_cache_dtype| CacheTypeArgs { cache_type_k, cache_type_v: None, kv_cache_dtype };
        assert_eq!(args(None, None).types(KvType::Precise), [KvType::Precise; 2]);
        assert_eq!(args(None, Some(q8_0)).types(KvType::Precise), [q8_0; 2]);
        assert_eq!(args(Some(f32), Some(q8_0)).types(KvType::Auto), [f32, q8_0]);
        assert_eq!(args(Some(q8_0), None).types(KvType::Auto), [q8_0, KvType::Auto]);
    }
}

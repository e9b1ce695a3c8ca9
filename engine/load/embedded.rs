//! The model that the binary carries: it needs no file, no network, and takes the same way through the engine as any
//! other GGUF file.

use bytes::Bytes;
use qernel_core::error::Result;
use qernel_core::gguf::Gguf;

/// What stands for the file name where the embedded model is described.
pub const NAME: &str = "haiku (embedded)";

/// What clients of the server call it.
pub const SHORT_NAME: &str = "haiku";

/// Bytes that begin where a page could: tensors then lie as they do in a memory-mapped file, whose alignment plain
/// `include_bytes!` does not promise.
#[repr(C, align(4096))]
struct Aligned<T: ?Sized>(T);

static HAIKU: &Aligned<[u8]> = &Aligned(*include_bytes!("../../models/haiku/haiku.gguf"));

/// The GGUF file of [`haiku`].
pub fn haiku_bytes() -> &'static [u8] {
    &HAIKU.0
}

/// The haiku model, made by `models/haiku`: Qwen2 with f16 matrices, a vocabulary of 2048 tokens and ChatML. Nothing is
/// copied.
///
/// # Errors
/// [`Error::Gguf`](qernel_core::Error::Gguf) as [`Gguf::from_bytes`].
pub fn haiku() -> Result<Gguf> {
    Gguf::from_bytes(Bytes::from_static(haiku_bytes()))
}

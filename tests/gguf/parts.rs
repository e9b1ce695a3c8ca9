//! Parts of a file, for files that the writer would not write.

use qernel::gguf::ValueType;

pub fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    [&(text.as_ref().len() as u64).to_le_bytes(), text.as_ref()].concat()
}

pub fn header(version: u32, num_tensors: u64, num_entries: u64) -> Vec<u8> {
    [b"GGUF".as_slice(), &version.to_le_bytes(), &num_tensors.to_le_bytes(), &num_entries.to_le_bytes()]
        .concat()
}

pub fn entry(key: impl AsRef<[u8]>, value_type: u32, value: &[u8]) -> Vec<u8> {
    [string(key).as_slice(), &value_type.to_le_bytes(), value].concat()
}

pub fn array(element: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [element.to_le_bytes().as_slice(), &count.to_le_bytes(), elements].concat()
}

pub fn tensor(name: &str, ne: &[u64], ggml_type: u32, offset: u64) -> Vec<u8> {
    let ne_bytes = ne.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let name = string(name);
    [
        &name,
        (ne.len() as u32).to_le_bytes().as_slice(),
        &ne_bytes,
        &ggml_type.to_le_bytes(),
        &offset.to_le_bytes(),
    ]
    .concat()
}

pub fn file(entries: &[Vec<u8>], tensors: &[Vec<u8>], data_bytes: usize) -> Vec<u8> {
    let mut bytes = header(3, tensors.len() as u64, entries.len() as u64);
    bytes.extend(entries.concat());
    bytes.extend(tensors.concat());
    bytes.resize(bytes.len().next_multiple_of(32) + data_bytes, 0);
    bytes
}

pub const U8: u32 = ValueType::U8 as u32;
pub const U32: u32 = ValueType::U32 as u32;
pub const U64: u32 = ValueType::U64 as u32;
pub const BOOL: u32 = ValueType::Bool as u32;
pub const STRING: u32 = ValueType::String as u32;
pub const ARRAY: u32 = ValueType::Array as u32;

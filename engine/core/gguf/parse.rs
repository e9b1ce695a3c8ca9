//! The walk over a file's bytes. Every length and count is compared with what is left of the file before it is used.

use super::cursor::{Cursor, Parsed, shown};
use super::types::{GgmlType, ValueType};
use super::value::Value;
use super::{DEFAULT_ALIGNMENT, MAGIC};
use std::ops::Range;

/// Dimensions of a tensor: `GGML_MAX_DIMS`.
pub(super) const MAX_DIMS: usize = 4;

/// A metadata entry; both ranges are byte offsets within the file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub key: Range<usize>,
    pub value_type: ValueType,
    pub value: Range<usize>,
}

/// A line of the tensor table.
#[derive(Clone, Debug)]
pub(super) struct TensorEntry {
    /// Where the name is, as byte offsets within the file.
    pub name: Range<usize>,
    /// ggml's dimensions, innermost first; only the first `num_dims` count.
    pub ne: [u64; MAX_DIMS],
    pub num_dims: usize,
    pub ggml_type: GgmlType,
    /// Where the data is, as byte offsets within the file. Empty where the type is unknown.
    pub data: Range<usize>,
    /// What makes the data that is in no file, of as many bytes as `data` is long.
    pub make: Option<Make>,
}

/// Makes the data of a tensor when it is asked for.
#[derive(Clone)]
pub(super) struct Make(pub super::MakeData);

impl std::fmt::Debug for Make {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Make")
    }
}

/// The parsed file, without its bytes.
#[derive(Clone, Debug)]
pub(super) struct Index {
    pub version: u32,
    pub alignment: u64,
    pub entries: Vec<Entry>,
    pub entries_by_key: Vec<usize>,
    pub tensors: Vec<TensorEntry>,
    pub tensors_by_name: Vec<usize>,
}

impl Index {
    /// Leaves those of the tensors that `is_wanted` by their names.
    pub fn retain(&mut self, data: &[u8], is_wanted: impl Fn(&str) -> bool) {
        self.tensors.retain(|tensor| is_wanted(text(data, &tensor.name)));
        // Names that were unique still are.
        self.tensors_by_name = sorted_by_name(data, &self.tensors, |tensor| &tensor.name).unwrap_or_default();
    }
}

/// A name of the file as text. It was UTF-8 when the file was opened; should another process have changed the file
/// since, the name is empty.
pub(super) fn text<'a>(data: &'a [u8], range: &Range<usize>) -> &'a str {
    std::str::from_utf8(&data[range.clone()]).unwrap_or_default()
}

/// Reads everything but the tensor data, which is all in the file.
pub(super) fn parse(data: &[u8]) -> Parsed<Index> {
    let (mut index, data_start) = parse_header(data)?;
    // Offsets count from the data section, which begins at the next multiple of the alignment.
    for tensor in &mut index.tensors {
        tensor.data = place(tensor, data_start, data.len() as u64)
            .map_err(|error| format!("tensor {}: {error}", shown(&data[tensor.name.clone()])))?;
    }
    check_overlaps(data, &index.tensors)?;
    Ok(index)
}

/// Reads everything but the tensor data, and where that begins: tensors lie relative to it.
pub(super) fn parse_header(data: &[u8]) -> Parsed<(Index, u64)> {
    let mut cursor = Cursor::new(data);
    let version = header(&mut cursor)?;
    let num_tensors = cursor.u64()?;
    let num_entries = cursor.u64()?;

    let (entries, entries_by_key) = metadata(&mut cursor, num_entries)?;
    let alignment = alignment(data, &entries, &entries_by_key)?;
    let (tensors, tensors_by_name) = tensors(&mut cursor, num_tensors, alignment)?;
    let data_start = cursor.position as u64 + padding(cursor.position as u64, alignment);
    let index = Index { version, alignment, entries, entries_by_key, tensors, tensors_by_name };
    Ok((index, data_start))
}

/// Magic number and version.
fn header(cursor: &mut Cursor<'_>) -> Parsed<u32> {
    let found = cursor.data;
    if found.len() < 8 {
        return Err(format!("it has {} bytes, which is less than a header", found.len()));
    }
    if found.starts_with(b"version https://git-lfs") {
        return Err("it is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`".to_owned());
    }
    let magic: [u8; 4] = cursor.array()?;
    if magic.iter().rev().eq(&MAGIC) {
        return Err(BIG_ENDIAN.to_owned());
    }
    if magic != MAGIC {
        return Err(format!("it begins with {:?} instead of \"GGUF\"", String::from_utf8_lossy(&magic)));
    }
    match cursor.u32()? {
        version @ (2 | 3) => Ok(version),
        1 => Err(
            "it has version 1, which only the first weeks of the format used; versions 2 and 3 are read. \
                  Convert the model again with a current llama.cpp"
                .to_owned(),
        ),
        // The version is the first number whose bytes the byte order turns around.
        version if version != 0 && version & 0xffff == 0 => Err(BIG_ENDIAN.to_owned()),
        version => Err(format!("it has version {version}; versions 2 and 3 are read")),
    }
}

const BIG_ENDIAN: &str = "it is big-endian; only little-endian files are read. Convert it with gguf-py's \
                          gguf_convert_endian.py, or convert the model again without --bigendian";

/// The metadata, and its order by key.
fn metadata(cursor: &mut Cursor<'_>, count: u64) -> Parsed<(Vec<Entry>, Vec<usize>)> {
    // The shortest entry: an empty key, a type and one byte.
    check_count(cursor, count, 8 + 4 + 1, "metadata values")?;
    let mut entries = Vec::new();
    for i in 0..count {
        let key = cursor.name().map_err(|error| format!("key {i} of the metadata: {error}"))?;
        let value = cursor.value_type().and_then(|value_type| {
            let start = cursor.position;
            cursor.value(value_type, 0)?;
            Ok((value_type, start..cursor.position))
        });
        let (value_type, value) =
            value.map_err(|error| format!("metadata {}: {error}", shown(&cursor.data[key.clone()])))?;
        entries.push(Entry { key, value_type, value });
    }
    let order = sorted_by_name(cursor.data, &entries, |entry| &entry.key)
        .map_err(|name| format!("the metadata has the key {name} twice"))?;
    Ok((entries, order))
}

/// `general.alignment`, or its default.
fn alignment(data: &[u8], entries: &[Entry], order: &[usize]) -> Parsed<u64> {
    let Some(entry) = find(data, entries, order, |entry| &entry.key, "general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT.into());
    };
    match Cursor::new(&data[entry.value.clone()]).value(entry.value_type, 0)? {
        Value::U32(alignment) if alignment.is_power_of_two() => Ok(alignment.into()),
        value => Err(format!(
            "metadata `general.alignment`: expected a power of two as u32, found {} {value}",
            entry.value_type
        )),
    }
}

/// The tensor table, and its order by name.
fn tensors(cursor: &mut Cursor<'_>, count: u64, alignment: u64) -> Parsed<(Vec<TensorEntry>, Vec<usize>)> {
    // The shortest line: an empty name, no dimension, a type and an offset.
    check_count(cursor, count, 8 + 4 + 4 + 8, "tensors")?;
    let mut tensors = Vec::new();
    for i in 0..count {
        let name = cursor.name().map_err(|error| format!("name of tensor {i}: {error}"))?;
        let line = tensor(cursor, name.clone(), alignment);
        tensors.push(line.map_err(|error| format!("tensor {}: {error}", shown(&cursor.data[name.clone()])))?);
    }
    let order = sorted_by_name(cursor.data, &tensors, |tensor| &tensor.name)
        .map_err(|name| format!("there are two tensors {name}"))?;
    Ok((tensors, order))
}

/// One line of the tensor table; `data` holds the range relative to the data section.
fn tensor(cursor: &mut Cursor<'_>, name: Range<usize>, alignment: u64) -> Parsed<TensorEntry> {
    let claimed = cursor.u32()?;
    let num_dims = usize::try_from(claimed)
        .ok()
        .filter(|&n| n <= MAX_DIMS)
        .ok_or_else(|| format!("it has {claimed} dimensions; at most {MAX_DIMS} are allowed"))?;
    let mut ne = [1; MAX_DIMS];
    for n in &mut ne[..num_dims] {
        *n = cursor.u64()?;
    }
    let ggml_type = GgmlType(cursor.u32()?);
    let offset = cursor.u64()?;
    if !offset.is_multiple_of(alignment) {
        return Err(format!("its offset {offset} is not a multiple of the alignment {alignment}"));
    }

    // As in ggml, a tensor has at most 2^63 - 1 values.
    let too_large = || format!("its dimensions {:?} overflow", &ne[..num_dims]);
    let values = ne
        .iter()
        .try_fold(1_u64, |product, &n| product.checked_mul(n))
        .filter(|&values| i64::try_from(values).is_ok())
        .ok_or_else(too_large)?;
    let bytes = match ggml_type.block() {
        Some(block) if ne[0].is_multiple_of(block.values) => {
            (values / block.values).checked_mul(block.bytes).ok_or_else(too_large)?
        }
        Some(block) => {
            return Err(format!(
                "its rows have {} values, which is not a multiple of the {} values of a {ggml_type} block",
                ne[0], block.values
            ));
        }
        None => 0,
    };
    let outside = || format!("its offset {offset} and its size of {bytes} bytes lie outside of any file");
    let end = offset.checked_add(bytes).ok_or_else(outside)?;
    let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok()).ok_or_else(outside)?;
    Ok(TensorEntry { name, ne, num_dims, ggml_type, data: range.0..range.1, make: None })
}

/// Where a tensor's data is in the file.
fn place(tensor: &TensorEntry, data_start: u64, file_size: u64) -> Parsed<Range<usize>> {
    let start = data_start.checked_add(tensor.data.start as u64);
    let end = data_start.checked_add(tensor.data.end as u64);
    match start.zip(end) {
        Some((start, end)) if end <= file_size => Ok(start as usize..end as usize),
        // An empty tensor at the very end may lie in padding that was never written.
        Some((start, end)) if start == end && data_start >= file_size => Ok(0..0),
        _ => Err(format!(
            "its {} bytes at offset {} of the data section, which begins at byte {data_start}, go beyond the end of \
             the file at byte {file_size}; it may be incomplete",
            tensor.data.len(),
            tensor.data.start,
        )),
    }
}

/// No two tensors share bytes: no writer makes such files, a damaged table does.
fn check_overlaps(data: &[u8], tensors: &[TensorEntry]) -> Parsed<()> {
    let mut order: Vec<usize> = (0..tensors.len()).filter(|&i| !tensors[i].data.is_empty()).collect();
    order.sort_unstable_by_key(|&i| tensors[i].data.start);
    for pair in order.windows(2) {
        let (first, second) = (&tensors[pair[0]], &tensors[pair[1]]);
        if first.data.end > second.data.start {
            return Err(format!(
                "the data of the tensors {} and {} overlap",
                shown(&data[first.name.clone()]),
                shown(&data[second.name.clone()])
            ));
        }
    }
    Ok(())
}

/// Bytes from `position` to the next multiple of `alignment`, a power of two.
fn padding(position: u64, alignment: u64) -> u64 {
    position.wrapping_neg() & (alignment - 1)
}

/// Refuses a count that the rest of the file cannot hold, at `least` bytes each.
fn check_count(cursor: &Cursor<'_>, count: u64, least: u64, what: &str) -> Parsed<()> {
    if count > cursor.remaining() / least {
        return Err(format!(
            "the header claims {count} {what}, but the {} bytes that follow cannot hold them; it may be incomplete",
            cursor.remaining()
        ));
    }
    Ok(())
}

/// Indices of `items` in the order of their names, or a name that occurs twice.
fn sorted_by_name<T>(data: &[u8], items: &[T], name: impl Fn(&T) -> &Range<usize>) -> Parsed<Vec<usize>> {
    let bytes = |i: usize| &data[name(&items[i]).clone()];
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_unstable_by(|&a, &b| bytes(a).cmp(bytes(b)));
    match order.windows(2).find(|pair| bytes(pair[0]) == bytes(pair[1])) {
        Some(pair) => Err(shown(bytes(pair[0]))),
        None => Ok(order),
    }
}

/// The item of this name.
pub(super) fn find<'i, T>(
    data: &[u8],
    items: &'i [T],
    order: &[usize],
    name: impl Fn(&T) -> &Range<usize>,
    wanted: &str,
) -> Option<&'i T> {
    let found = order.binary_search_by(|&i| data[name(&items[i]).clone()].cmp(wanted.as_bytes()));
    found.ok().map(|i| &items[order[i]])
}

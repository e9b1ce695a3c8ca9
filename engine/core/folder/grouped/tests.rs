//! A matrix in the layout of GPTQ; the others have folders (`tests/data/folders`).

use super::*;

fn stored(dtype: &str, shape: &[u64], data: Vec<u8>) -> Stored {
    let dtype = match dtype {
        "F32" => Dtype::F32,
        other => Dtype::Other(other.to_owned()),
    };
    Stored { dtype, shape: shape.to_vec(), data: data.into() }
}

fn words(shape: &[u64], values: &[u32]) -> Stored {
    stored("I32", shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

fn floats(shape: &[u64], values: &[f32]) -> Stored {
    stored("F32", shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

const GPTQ: Layout = Layout::Gptq { bits: 4, is_one_less: true };

/// Eight rows of 64 columns in two groups: codes are the columns, scales 1 and 2.
fn parts() -> BTreeMap<String, Stored> {
    let codes: Vec<u32> = (0..8).flat_map(|i| [[0x7654_3210, 0xfedc_ba98][i % 2]; 8]).collect();
    let scales: Vec<f32> = (0..16).map(|i| if i < 8 { 1.0 } else { 2.0 }).collect();
    let of_col: Vec<u32> = (0..64).map(|col| col / 32).collect();
    BTreeMap::from([
        ("a.qweight".to_owned(), words(&[8, 8], &codes)),
        ("a.scales".to_owned(), floats(&[2, 8], &scales)),
        ("a.qzeros".to_owned(), words(&[2, 1], &[0x7777_7777, 0x7777_7777])),
        ("a.g_idx".to_owned(), words(&[64], &of_col)),
        ("a.bias".to_owned(), floats(&[8], &[0.0; 8])),
    ])
}

fn taken(mut parts: BTreeMap<String, Stored>) -> Result<Arc<Grouped>, String> {
    let taken = take(Some(GPTQ), &mut parts).map_err(|error| error.to_string())?;
    assert_eq!(parts.keys().collect::<Vec<_>>(), ["a.bias", "a.weight"]);
    assert_eq!(parts["a.weight"].shape, [8, 64]);
    Ok(taken["a.weight"].clone())
}

fn values(grouped: &Grouped, row: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; 64];
    grouped.values(row, &mut Held::default(), &mut values);
    values
}

#[test]
fn blocks_hold_what_the_values_are() {
    let mut with_zeros = parts();
    with_zeros.insert("a.qzeros".to_owned(), words(&[2, 1], &[0x7777_7776, 0xf777_7777]));
    for (parts, formats) in
        [(parts(), &[MatrixFormat::Q4_0, MatrixFormat::Q5_0][..]), (with_zeros, &[MatrixFormat::Q5_0])]
    {
        let grouped = taken(parts).unwrap();
        assert_eq!(grouped.format(), formats[0]);
        for (row, &format) in (0..8).flat_map(|row| formats.iter().map(move |format| (row, format))) {
            let mut blocks = vec![0; format.row_bytes(64).unwrap()];
            grouped.blocks(row, &mut Held::default(), format, &mut blocks);
            let mut decoded = vec![f32::NAN; 64];
            format.decode(&blocks, &mut decoded);
            assert_eq!(decoded, values(&grouped, row), "row {row} in {format}");
        }
        // Code 3 of the second group, and a zero point of 7 in the first group of row 0, of 0 in the second of row 7.
        assert_eq!(values(&grouped, 1)[35], 2.0 * (3.0 - 8.0));
        if formats.len() == 1 {
            assert_eq!((values(&grouped, 0)[3], values(&grouped, 7)[35]), (3.0 - 7.0, 2.0 * 3.0));
        }
    }
}

#[test]
fn columns_that_were_sorted_are_of_their_own_groups() {
    let mut sorted = parts();
    let of_col: Vec<u32> = (0..64).map(|col| u32::from(col % 2 == 1)).collect();
    sorted.insert("a.g_idx".to_owned(), words(&[64], &of_col));
    let grouped = taken(sorted).unwrap();
    assert_eq!(grouped.format(), MatrixFormat::F16);
    assert_eq!(values(&grouped, 0)[..4], [-8.0, 2.0 * -7.0, -6.0, 2.0 * -5.0]);
    let mut none = parts();
    none.insert("a.g_idx".to_owned(), words(&[64], &[u32::MAX; 64]));
    assert_eq!(taken(none).unwrap().format(), MatrixFormat::Q4_0);
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let with = |name: &str, part: Option<Stored>, expected: &str| {
        let mut parts = parts();
        match part {
            Some(part) => parts.insert(name.to_owned(), part),
            None => parts.remove(name),
        };
        let message = taken(parts).expect_err(expected);
        assert!(message.contains("a.weight") && message.contains(expected), "{expected}: {message}");
    };
    with("a.scales", None, "scales are missing");
    with("a.scales", Some(words(&[2, 8], &[0; 16])), "scales are I32; expected floats");
    with("a.scales", Some(floats(&[2, 4], &[1.0; 8])), "[2, 4]; expected [2, 8]");
    with("a.scales", Some(floats(&[3, 8], &[1.0; 24])), "zero points are I32 of the shape [2, 1]");
    with("a.scales", Some(floats(&[2, 8], &[1e6; 16])), "scales have 1000000");
    with("a.scales", Some(floats(&[2, 8], &[f32::NAN; 16])), "scales have NaN");
    with("a.qzeros", Some(words(&[1, 2], &[0; 2])), "expected I32 of [2, 1]");
    with("a.g_idx", Some(words(&[2], &[0; 2])), "groups of columns are I32 of the shape [2]");
    with("a.g_idx", Some(words(&[64], &[2; 64])), "groups of columns have 2; expected less than 2");
    with("a.qweight", Some(words(&[64], &[0; 64])), "codes have the shape [64]");
    with("a.weight", Some(floats(&[8, 64], &[0.0; 512])), "is there twice");
    let mut parts = parts();
    let message = take(None, &mut parts).unwrap_err().to_string();
    assert!(message.contains("`quantization_config`"), "{message}");
}

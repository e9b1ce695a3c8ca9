//! The formats of matrices against another implementation: every bit of decoded values, and of encoded blocks where both have the encoder.

use crate::golden_formats::{digest, digest_of_values, file, format, goldens};
use half::f16;
use qernel::formats::MatrixFormat;
use qernel::testing::Random;

#[test]
fn blocks_are_decoded_as_elsewhere() {
    for golden in goldens() {
        let mut values = vec![f32::NAN; golden.num_values()];
        golden.format.decode(&golden.blocks, &mut values);
        assert_eq!(digest_of_values(&values), golden.digest, "{}", golden.format);
    }
}

#[test]
fn every_format_in_blocks_has_its_golden() {
    let of_goldens: Vec<_> = goldens().iter().map(|golden| golden.format).collect();
    for format in MatrixFormat::ALL.iter().filter(|format| format.float().is_none()) {
        assert!(of_goldens.contains(format), "{format}");
    }
}

#[test]
fn blocks_are_encoded_as_elsewhere() {
    let values: Vec<f32> = Random::new(1, "values").take(4096).collect();
    for (name, expected) in file()["encoded"].as_object().unwrap() {
        let format = format(name);
        let found = digest(format.encode(&values).unwrap());
        assert_eq!(found, expected.as_str().unwrap(), "{format}");
    }
}

/// The errors of llama.cpp's quantiser (tests/data/formats/make_rmse.py), with an importance matrix and without: those of the encoders here are
/// at most a fiftieth more.
#[test]
fn encoders_come_as_near_as_elsewhere() {
    const COLS: usize = 1024;
    let golden: serde_json::Value = serde_json::from_str(include_str!("../data/formats/rmse.json")).unwrap();
    let values: Vec<f32> = Random::new(1, "normal").take(1 << 16).collect();
    let squares: Vec<f32> = Random::new(1, "importance").take(COLS).map(|value| value * value).collect();
    for (key, importance) in [("rmse", None), ("weighted", Some(&squares[..]))] {
        let of_column = |i: usize| importance.map_or(1.0, |importance| f64::from(importance[i % COLS]));
        let weights: f64 = (0..values.len()).map(of_column).sum();
        for (name, expected) in golden[key].as_object().unwrap() {
            let format = format(name);
            if !format.has_encoder() {
                continue;
            }
            let (mut blocks, mut decoded) =
                (vec![0; format.row_bytes(COLS).unwrap()], vec![f32::NAN; values.len()]);
            for (row, decoded) in values.chunks(COLS).zip(decoded.chunks_mut(COLS)) {
                assert!(format.encode_row(row, importance, &mut blocks));
                format.decode(&blocks, decoded);
            }
            let squares = values.iter().zip(&decoded).enumerate();
            let squares = squares.map(|(i, (a, b))| of_column(i) * f64::from(a - b).powi(2));
            let (found, expected) = ((squares.sum::<f64>() / weights).sqrt(), expected.as_f64().unwrap());
            assert!(found <= 1.02 * expected, "{format}, {key}: {found}, elsewhere {expected}");
        }
    }
}

/// docs/quantised.md has a row for each format: its type's number, values of a block, bits a weight, and the encoder's error for normal values.
#[test]
fn the_table_of_formats_is_true() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/quantised.md");
    let text = std::fs::read_to_string(path).unwrap();
    let table: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("| type ")).skip(2).collect();
    let expected: Vec<String> = MatrixFormat::ALL.iter().map(|&format| row(format)).collect();
    assert_eq!(&table[..expected.len()], expected, "expected:\n{}", expected.join("\n"));
}

fn row(format: MatrixFormat) -> String {
    let values: Vec<f32> = Random::new(1, "normal").take(1 << 16).collect();
    let error = format.encode(&values).map(|blocks| {
        let mut decoded = vec![f32::NAN; values.len()];
        format.decode(&blocks, &mut decoded);
        let difference =
            |(&value, found): (&f32, f32)| f64::from(f16::from_f32(value).to_f32() - found).powi(2);
        (values.iter().zip(decoded).map(difference).sum::<f64>() / values.len() as f64).sqrt()
    });
    let error = error.map_or("–".to_owned(), |error| format!("{error:.4}"));
    let (ggml_type, block) = (format.ggml_type(), format.block_values());
    let bits = ggml_type.bits_per_weight().unwrap();
    format!("| {ggml_type} | {} | {block} | {bits} | {error} |", ggml_type.0)
}

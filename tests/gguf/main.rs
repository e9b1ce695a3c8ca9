//! The GGUF parser: well-formed, hostile and damaged files, all built in memory.

mod memory;
mod parts;
mod split;

use bytes::Bytes;
use memory::peak_allocation;
use parts::*;
use proptest::prelude::*;
use qernel::config::Config;
use qernel::formats::MatrixFormat;
use qernel::gguf::write::{Value as Written, Writer};
use qernel::gguf::{Block, GgmlType, Gguf, Value, ValueType};
use qernel::testing::TinyModel;
use qernel::weights::Weights;

/// Parses, and checks that the memory taken is within what the file's length explains: its table of contents takes at
/// most 80 bytes for a tensor's 24, three times that while it grows, and messages have a bounded length.
fn open(bytes: &[u8]) -> qernel::Result<Gguf> {
    let data = Bytes::copy_from_slice(bytes);
    let (result, peak) = peak_allocation(|| Gguf::from_bytes(data));
    assert!(peak <= 12 * bytes.len() + 4096, "{peak} bytes were allocated for a file of {}", bytes.len());
    result
}

fn error(bytes: &[u8]) -> String {
    open(bytes).expect_err("the file is not well-formed").to_string()
}

#[track_caller]
fn assert_error(bytes: &[u8], expected: &str) {
    let message = error(bytes);
    assert!(message.contains(expected), "expected an error with {expected:?}, found {message:?}");
}

/// A model of a few kilobytes.
fn smallest_model() -> TinyModel {
    TinyModel {
        hidden_size: 16,
        intermediate_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        ..TinyModel::default()
    }
}

#[test]
fn every_metadata_type_is_read() {
    let nested = Written::Array(ValueType::Array, vec![vec![1.5_f32, -2.0].into(), vec![3_u32, 4].into()]);
    for version in [2, 3] {
        let mut writer = Writer::new();
        writer
            .version(version)
            .metadata("u8", 200_u8)
            .metadata("i8", -100_i8)
            .metadata("u16", 60_000_u16)
            .metadata("i16", -30_000_i16)
            .metadata("u32", 4_000_000_000_u32)
            .metadata("i32", -2_000_000_000_i32)
            .metadata("u64", u64::MAX)
            .metadata("i64", i64::MIN)
            .metadata("f32", 0.1_f32)
            .metadata("f64", 0.1_f64)
            .metadata("bool", true)
            .metadata("string", "Grüße")
            .metadata("empty", Vec::<i32>::new())
            .metadata("strings", ["a".to_owned(), String::new(), "ccc".to_owned()].as_slice())
            .metadata("bools", vec![true, false])
            .metadata("nested", nested.clone());
        let gguf = open(&writer.to_bytes()).unwrap();

        assert_eq!(gguf.version(), version);
        assert_eq!(gguf.alignment(), 32);
        assert_eq!(gguf.metadata().count(), 16);
        assert_eq!(gguf.metadata().next().unwrap(), ("u8", Value::U8(200)));
        for (key, value) in [
            ("u8", Value::U8(200)),
            ("i8", Value::I8(-100)),
            ("u16", Value::U16(60_000)),
            ("i16", Value::I16(-30_000)),
            ("u32", Value::U32(4_000_000_000)),
            ("i32", Value::I32(-2_000_000_000)),
            ("u64", Value::U64(u64::MAX)),
            ("i64", Value::I64(i64::MIN)),
            ("f32", Value::F32(0.1)),
            ("f64", Value::F64(0.1)),
            ("bool", Value::Bool(true)),
            ("string", Value::String("Grüße".as_bytes())),
        ] {
            assert_eq!(gguf.value(key), Some(value), "{key}");
        }
        assert!(gguf.require::<Vec<i32>>("empty").unwrap().is_empty());
        assert_eq!(gguf.require::<Vec<&str>>("strings").unwrap(), ["a", "", "ccc"]);
        assert_eq!(gguf.require::<Vec<bool>>("bools").unwrap(), [true, false]);
        let Some(Value::Array(nested)) = gguf.value("nested") else { panic!("not an array") };
        let rows: Vec<Vec<Value>> = nested
            .iter()
            .map(|row| match row {
                Value::Array(row) => row.iter().collect(),
                value => panic!("{value} is not an array"),
            })
            .collect();
        assert_eq!(rows, [[Value::F32(1.5), Value::F32(-2.0)], [Value::U32(3), Value::U32(4)]]);
    }
}

#[test]
fn typed_access_says_what_was_expected_and_found() {
    let mut writer = Writer::new();
    writer
        .metadata("text", "x")
        .metadata("small", 7_u8)
        .metadata("negative", -1_i32)
        .metadata("mixed", vec![1, -1]);
    writer.metadata("float", 1.5_f64);
    let gguf = open(&writer.to_bytes()).unwrap();

    assert_eq!(gguf.require::<u32>("small").unwrap(), 7, "any integer type that fits will do");
    assert_eq!(gguf.require::<f32>("float").unwrap(), 1.5);
    assert_eq!(gguf.get::<u32>("absent").unwrap(), None);
    let message = |result: qernel::Result<u32>| result.unwrap_err().to_string();
    for (key, expected) in [
        ("text", "metadata `text`: expected u32, found string"),
        ("negative", "metadata `negative`: expected u32, found i32 -1"),
        ("mixed", "metadata `mixed`: expected u32, found array of i32"),
        ("absent", "metadata `absent`: expected u32, but it is missing"),
    ] {
        let message = message(gguf.require(key));
        assert!(message.ends_with(expected), "{message}");
    }
    let elements = gguf.require::<Vec<u32>>("mixed").unwrap_err().to_string();
    assert!(elements.ends_with("metadata `mixed`: element 1: expected u32, found i32 -1"), "{elements}");
}

#[test]
fn text_that_is_not_utf8_is_an_error_where_it_is_used() {
    let tokens = array(STRING, 2, &[string("good"), string([0xff, 0xfe])].concat());
    let gguf =
        open(&file(&[entry("tokens", ARRAY, &tokens), entry("name", STRING, &string([0xc3]))], &[], 0))
            .unwrap();
    let message = gguf.require::<Vec<&str>>("tokens").unwrap_err().to_string();
    assert!(message.contains("`tokens`: element 1: not UTF-8"), "{message}");
    assert!(gguf.require::<&str>("name").unwrap_err().to_string().contains("not UTF-8"));
    assert_error(&file(&[entry([b'k', 0xff], U8, &[0])], &[], 0), "key 0 of the metadata");
}

#[test]
fn tensors_are_found_with_shape_and_data() {
    for alignment in [1, 8, 64, 4096] {
        let mut writer = Writer::new();
        writer
            .alignment(alignment)
            .tensor("matrix", &[2, 3], GgmlType::F16, (0..12).collect())
            .tensor("vector", &[5], GgmlType::F32, vec![7; 20])
            .tensor("scalar", &[], GgmlType::F32, vec![9; 4])
            .tensor("nothing", &[0, 4], GgmlType::F32, vec![]);
        let gguf = open(&writer.to_bytes()).unwrap();
        assert_eq!(gguf.alignment(), u64::from(alignment));
        let names: Vec<_> = gguf.tensors().map(|tensor| tensor.name()).collect();
        assert_eq!(names, ["matrix", "vector", "scalar", "nothing"]);
        let matrix = gguf.tensor("matrix").unwrap();
        assert_eq!(matrix.shape(), [2, 3]);
        assert_eq!(matrix.ggml_type(), GgmlType::F16);
        assert_eq!(matrix.data().unwrap().as_ref(), (0..12).collect::<Vec<u8>>());
        assert_eq!(gguf.tensor("vector").unwrap().data().unwrap().as_ref(), [7; 20]);
        assert_eq!(gguf.tensor("scalar").unwrap().data().unwrap().as_ref(), [9; 4]);
        assert_eq!(gguf.tensor("nothing").unwrap().data().unwrap().len(), 0);
        assert!(gguf.tensor("other").is_none());
    }
}

#[test]
fn every_known_type_has_its_size() {
    assert_eq!(GgmlType::all().count(), 35);
    for ggml_type in GgmlType::all() {
        let Block { values, bytes } = ggml_type.block().unwrap();
        let size = (6 * bytes) as usize;
        let gguf = open(&file(&[], &[tensor("t", &[2 * values, 3], ggml_type.0, 0)], size)).unwrap();
        assert_eq!(gguf.tensor("t").unwrap().num_bytes(), Some(6 * bytes), "{ggml_type}");
        assert_eq!(gguf.tensor("t").unwrap().data().unwrap().len(), size, "{ggml_type}");
        assert_error(
            &file(&[], &[tensor("t", &[2 * values, 3], ggml_type.0, 0)], size - 1),
            "beyond the end",
        );
        if values > 1 {
            assert_error(
                &file(&[], &[tensor("t", &[values + 1, 3], ggml_type.0, 0)], size),
                "is not a multiple",
            );
        }
    }
}

#[test]
fn an_unknown_type_is_an_error_only_when_it_is_used() {
    for id in [4, 5, 31, 38, 43, u32::MAX] {
        let gguf = open(&file(&[], &[tensor("odd", &[8], id, 0), tensor("good", &[8], 0, 0)], 32)).unwrap();
        assert_eq!(gguf.tensor("good").unwrap().data().unwrap().len(), 32);
        assert_eq!(gguf.tensor("odd").unwrap().num_bytes(), None);
        let message = gguf.tensor("odd").unwrap().data().unwrap_err().to_string();
        assert!(message.contains(&format!("tensor `odd` has unknown type {id}")), "{message}");
    }
}

#[test]
fn other_formats_and_versions_are_named() {
    assert_error(&[], "less than a header");
    assert_error(b"GGU", "less than a header");
    assert_error(&[0; 100], "instead of \"GGUF\"");
    assert_error(b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull");
    assert_error(&header(1, 0, 0), "version 1");
    assert_error(&header(4, 0, 0), "version 4");
    assert_error(&header(0, 0, 0), "version 0");
    assert_error(&header(3_u32.swap_bytes(), 0, 0), "big-endian");
    assert_error(&[b"FUGG".as_slice(), &header(3, 0, 0)[4..]].concat(), "big-endian");
}

#[test]
fn hostile_metadata_is_refused() {
    let one = |entry: Vec<u8>| file(&[entry], &[], 64);
    assert_error(&header(3, 0, u64::MAX), "claims 18446744073709551615 metadata values");
    assert_error(&[header(3, 0, 6), vec![0; 65]].concat(), "claims 6 metadata values");
    assert_error(&header(3, u64::MAX, 0), "claims 18446744073709551615 tensors");
    assert_error(&[header(3, 0, 1), u64::MAX.to_le_bytes().repeat(2)].concat(), "may be incomplete");
    assert_error(&one(entry("k", 13, &[0; 8])), "metadata `k`: unknown value type 13");
    assert_error(&one(entry("k", u32::MAX, &[0; 8])), "unknown value type");
    assert_error(&one(entry("k", BOOL, &[2])), "a bool is 2");
    assert_error(
        &one(entry("k", STRING, &u64::MAX.to_le_bytes())),
        "metadata `k`: 18446744073709551615 bytes",
    );
    assert_error(&one(entry("k", ARRAY, &array(BOOL, 2, &[1, 2]))), "a bool is 2");
    assert_error(&one(entry("k", ARRAY, &array(13, 1, &[0; 8]))), "unknown value type 13");
    for element in [U8, U32, U64, STRING, ARRAY] {
        for count in [u64::MAX, u64::MAX / 4 + 1, 1 << 40, 1000] {
            assert_error(
                &one(entry("k", ARRAY, &array(element, count, &[0; 8]))),
                &format!("claims {count} values"),
            );
        }
    }
    let long_key = one(entry("k".repeat(5000), 99, &[0; 8]));
    assert!(error(&long_key).len() < 300, "a message does not repeat a name of any length");
    assert_error(
        &file(&[entry("k", U8, &[1]), entry("j", U8, &[1]), entry("k", U8, &[1])], &[], 0),
        "key `k` twice",
    );
}

#[test]
fn arrays_nest_to_a_bounded_depth() {
    let nested = |depth: usize| {
        let innermost = array(U8, 1, &[5]);
        let value = (1..depth).fold(innermost, |inner, _| array(ARRAY, 1, &inner));
        file(&[entry("k", ARRAY, &value)], &[], 0)
    };
    for depth in 1..=8 {
        let gguf = open(&nested(depth)).unwrap();
        let mut value = gguf.value("k").unwrap();
        for _ in 0..depth {
            let Value::Array(array) = value else { panic!("{value} at depth {depth}") };
            value = array.iter().next().unwrap();
        }
        assert_eq!(value, Value::U8(5));
    }
    assert_error(&nested(9), "nested more than 8 deep");
    assert_error(&nested(1000), "nested more than 8 deep");
}

#[test]
fn hostile_tensors_are_refused() {
    let one = |ne: &[u64], ggml_type, offset| file(&[], &[tensor("t", ne, ggml_type, offset)], 64);
    assert!(open(&one(&[4, 4], 0, 0)).is_ok());
    assert_error(&one(&[4, 4], 0, 8), "`t`: its offset 8 is not a multiple of the alignment 32");
    assert_error(&one(&[4, 4], 0, 32), "go beyond the end of the file");
    assert_error(&one(&[4, 4], 0, 1 << 62), "go beyond the end of the file");
    assert_error(&one(&[4, 4], 0, u64::MAX - 31), "outside of any file");
    assert_error(&one(&[17], 0, 0), "go beyond the end of the file");
    assert_error(&one(&[1; 5], 0, 0), "it has 5 dimensions");
    assert_error(&one(&[u64::MAX], 0, 0), "overflow");
    assert_error(&one(&[1 << 32, 1 << 31], 0, 0), "overflow");
    assert_error(&one(&[1 << 16; 4], 0, 0), "overflow");
    assert_error(&one(&[1 << 62], 0, 0), "overflow");
    assert_error(&one(&[(1 << 62) - 1], 0, 0), "go beyond the end of the file");
    assert_error(&one(&[1 << 61], GgmlType::F16.0, 0), "go beyond the end of the file");
    assert_error(
        &[header(3, 1, 0), string("t"), u32::MAX.to_le_bytes().repeat(8)].concat(),
        "4294967295 dimensions",
    );
    let two = |a: Vec<u8>, b: Vec<u8>| file(&[], &[a, b], 128);
    assert_error(&two(tensor("t", &[4], 0, 0), tensor("t", &[4], 0, 32)), "two tensors `t`");
    assert_error(&two(tensor("a", &[9], 0, 0), tensor("b", &[4], 0, 32)), "tensors `a` and `b` overlap");
    assert_error(&two(tensor("a", &[4], 0, 0), tensor("b", &[4], 0, 0)), "tensors `a` and `b` overlap");
}

#[test]
fn the_alignment_must_be_a_power_of_two() {
    for (value_type, value, accepted) in [
        (U32, 1_u32.to_le_bytes().to_vec(), true),
        (U32, (1_u32 << 31).to_le_bytes().to_vec(), true),
        (U32, 0_u32.to_le_bytes().to_vec(), false),
        (U32, 48_u32.to_le_bytes().to_vec(), false),
        (U32, u32::MAX.to_le_bytes().to_vec(), false),
        (U64, 32_u64.to_le_bytes().to_vec(), false),
        (STRING, string("32"), false),
        (ARRAY, array(U32, 1, &32_u32.to_le_bytes()), false),
    ] {
        let bytes = file(&[entry("general.alignment", value_type, &value)], &[], 0);
        match accepted {
            true => assert!(open(&bytes).is_ok()),
            false => assert_error(&bytes, "`general.alignment`: expected a power of two as u32"),
        }
    }
    // The data section of a file with a huge alignment begins behind the end of the file.
    let alignment = entry("general.alignment", U32, &(1_u32 << 31).to_le_bytes());
    assert_error(&file(&[alignment], &[tensor("t", &[4], 0, 0)], 64), "beyond the end of the file");
}

/// Files whose every byte goes into the table of contents, which takes the most memory for its length.
#[test]
fn a_table_of_contents_takes_memory_in_proportion() {
    let entries: Vec<_> = (0..30_000).map(|_| entry("", U8, &[0])).collect();
    assert_error(&file(&entries, &[], 0), "the key `` twice");
    let tensors: Vec<_> = (0..30_000).map(|_| tensor("", &[], 0, 0)).collect();
    assert_error(&file(&[], &tensors, 32), "two tensors ``");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for (model, version) in [(smallest_model(), 3), (smallest_model(), 2)] {
        let bytes = model.writer().version(version).to_bytes();
        assert!(open(&bytes).is_ok());
        for length in 0..bytes.len() {
            assert!(open(&bytes[..length]).is_err(), "cut to {length} of {} bytes", bytes.len());
        }
    }
}

/// Opens a damaged file and, where that succeeds, uses everything in it.
fn use_everything(bytes: &[u8]) {
    let Ok(gguf) = open(bytes) else { return };
    for (key, value) in gguf.metadata() {
        let _ = value.to_string();
        let _ = gguf.get::<Vec<&str>>(key);
        let _ = gguf.get::<Vec<i32>>(key);
    }
    for tensor in gguf.tensors() {
        let _ = (tensor.shape(), tensor.num_values(), tensor.num_bytes(), tensor.data());
    }
    if let Ok(config) = Config::from_gguf(&gguf) {
        let _ = (config.q_size(), config.kv_size());
        let _ = Weights::from_gguf(&gguf, &config);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn damage_never_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            any::<u8>(),
            prop::sample::select(vec![0, 1, 0x7f, 0x80, 0xff]),
        ]), 1..8),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        thread_local! {
            static MODEL: (Vec<u8>, usize) = {
                let bytes = smallest_model().writer().to_bytes();
                let data_bytes: u64 = smallest_model().gguf().tensors().filter_map(|tensor| tensor.num_bytes()).sum();
                let header = bytes.len() - data_bytes as usize;
                (bytes, header)
            };
        }
        let (mut bytes, header) = MODEL.with(Clone::clone);
        for (index, byte) in damage {
            bytes[index.index(header)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        use_everything(&bytes);
    }

    #[test]
    fn noise_behind_a_header_never_panics(noise in prop::collection::vec(any::<u8>(), 0..400), counts in any::<[u8; 2]>()) {
        let [tensors, entries] = counts.map(|count| u64::from(count % 8));
        use_everything(&[header(3, tensors, entries), noise].concat());
    }
}

#[test]
fn a_file_is_opened_through_a_map() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    let mut written = std::fs::File::create(&path).unwrap();
    TinyModel { format: MatrixFormat::F32, ..smallest_model() }.writer().write_to(&mut written).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.file_size(), std::fs::metadata(&path).unwrap().len());
    assert_eq!(gguf.require::<&str>("general.architecture").unwrap(), "qwen2");

    for (name, contents, expected) in
        [("empty", "", "less than a header"), ("text", "no model at all", "begins with")]
    {
        let path = directory.path().join(name);
        std::fs::write(&path, contents).unwrap();
        let message = Gguf::open(&path).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(expected), "{message}");
    }
    let absent = Gguf::open(directory.path().join("absent")).unwrap_err();
    assert!(matches!(absent, qernel::Error::Io { .. }), "{absent}");
    let message = Gguf::open(directory.path()).unwrap_err().to_string();
    assert!(message.contains(&*directory.path().to_string_lossy()), "{message}");
}

//! ggml's tensor types and GGUF's metadata types: identifiers, names, sizes.

use crate::dtype::Dtype;
use std::fmt;

/// A tensor's type as the file names it; any number can be held, [`GgmlType::block`] says whether it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GgmlType(pub u32);

/// Tensors are stored in blocks of `values` consecutive values of a row, each taking `bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub values: u64,
    pub bytes: u64,
}

/// `(id, name, values of a block, bytes of a block)`.
///
/// Identifiers from `enum ggml_type` in ggml/include/ggml.h; block sizes from `GGML_QUANT_SIZES` in the `gguf` Python
/// package (gguf-py/gguf/constants.py, 0.19), which has no Q2_0 yet: that one and Q8_1 are from the block structs in
/// ggml/src/ggml-common.h. (The Python table still gives Q8_1 the 40 bytes it had when its two scales were f32; ggml
/// stores them as f16. ggml never writes that type to files.)
const TYPES: [(u32, &str, u64, u64); 35] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];

/// Types of forks, and those that ggml has given up, by the numbers that files of theirs have: so that a refusal names them.
/// From ggml.h of ik_llama.cpp (BitNet's I2_S too) and of ggml until 2024.
const FOREIGN: [(u32, &str); 24] = [
    (4, "Q4_2 of early ggml"),
    (5, "Q4_3 of early ggml"),
    (31, "Q4_0_4_4, which ggml no longer has"),
    (32, "Q4_0_4_8, which ggml no longer has"),
    (33, "Q4_0_8_8, which ggml no longer has"),
    (36, "I2_S of BitNet"),
    (133, "Q6_0 of ik_llama.cpp"),
    (134, "IQ1_BN of ik_llama.cpp"),
    (135, "IQ2_BN of ik_llama.cpp"),
    (137, "IQ2_K of ik_llama.cpp"),
    (138, "IQ3_K of ik_llama.cpp"),
    (139, "IQ4_K of ik_llama.cpp"),
    (140, "IQ5_K of ik_llama.cpp"),
    (141, "IQ6_K of ik_llama.cpp"),
    (144, "IQ4_KS of ik_llama.cpp"),
    (145, "IQ2_KS of ik_llama.cpp"),
    (146, "IQ4_KSS of ik_llama.cpp"),
    (152, "IQ5_KS of ik_llama.cpp"),
    (153, "IQ2_KT of ik_llama.cpp"),
    (154, "IQ3_KT of ik_llama.cpp"),
    (155, "IQ4_KT of ik_llama.cpp"),
    (156, "IQ3_KS of ik_llama.cpp"),
    (157, "IQ2_KL of ik_llama.cpp"),
    (158, "IQ1_KT of ik_llama.cpp"),
];

impl GgmlType {
    pub const F32: Self = Self(0);
    pub const F16: Self = Self(1);
    pub const BF16: Self = Self(30);

    fn row(self) -> Option<&'static (u32, &'static str, u64, u64)> {
        TYPES.binary_search_by_key(&self.0, |row| row.0).ok().map(|i| &TYPES[i])
    }

    /// Every type that has a known size.
    pub fn all() -> impl Iterator<Item = Self> {
        TYPES.iter().map(|row| Self(row.0))
    }

    /// Its block, or `None` for an identifier that ggml does not assign (or no longer does: 4, 5, 31..33, 36..38).
    pub fn block(self) -> Option<Block> {
        self.row().map(|&(_, _, values, bytes)| Block { values, bytes })
    }

    /// Bits that a value takes, those of scales shared out; `None` as for [`GgmlType::block`].
    pub fn bits_per_weight(self) -> Option<f64> {
        self.block().map(|block| 8.0 * block.bytes as f64 / block.values as f64)
    }

    /// The format the engine computes with, or `None` for a quantised or integer type.
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::BF16 => Some(Dtype::Bf16),
            _ => None,
        }
    }
}

impl From<Dtype> for GgmlType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::BF16,
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row() {
            Some((_, name, _, _)) => f.pad(name),
            None => match FOREIGN.iter().find(|row| row.0 == self.0) {
                Some((id, name)) => f.pad(&format!("unknown type {id} ({name})")),
                None => f.pad(&format!("unknown type {}", self.0)),
            },
        }
    }
}

/// The type of a metadata value: `gguf_metadata_value_type` of the GGUF specification (ggml/docs/gguf.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

/// The method `value_type` of an enum with a variant for each type: of values that are read, and of values that are written.
macro_rules! value_type {
    () => {
        $crate::gguf::types::value_type!(U8 I8 U16 I16 U32 I32 F32 Bool String Array U64 I64 F64);
    };
    ($($name:ident)+) => {
        /// Its type in the file.
        pub fn value_type(&self) -> ValueType {
            match self {
                $(Self::$name(..) => ValueType::$name),+
            }
        }
    };
}
pub(super) use value_type;

impl ValueType {
    /// Every metadata type, by identifier.
    pub const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type with this identifier.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// Bytes of the shortest value: a string is its 8-byte length, an array its element type and 8-byte count.
    pub const fn min_size(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }

    /// Every value takes [`ValueType::min_size`] bytes.
    pub const fn is_fixed_size(self) -> bool {
        !matches!(self, Self::String | Self::Array)
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        })
    }
}

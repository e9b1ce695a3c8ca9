//! Which way an operation is computed, where there are several.

use super::simd::Isa;

/// How products are computed.
#[derive(Clone, Copy, Debug)]
pub struct MatmulKernels {
    pub isa: Isa,
    pub blocks: MatmulBlocks,
}

/// How products with matrices in blocks are computed; those of floats are f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MatmulBlocks {
    /// Inputs in eight bits, each 32 values with a scale of their own, where the format has integers for them.
    #[default]
    Int8,
    /// In f32, from decoded rows.
    Exact,
}

impl MatmulBlocks {
    /// The operation's name, as on a GPU.
    pub const OP: &str = "matmul_blocks";
    /// All, the default first.
    pub const ALL: [Self; 2] = [Self::Int8, Self::Exact];

    /// As in `--kernel matmul_blocks=exact`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Exact => "exact",
        }
    }
}

impl From<Isa> for MatmulKernels {
    /// All exact.
    fn from(isa: Isa) -> Self {
        Self { isa, blocks: MatmulBlocks::Exact }
    }
}

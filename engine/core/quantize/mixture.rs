//! Mixtures: which tensor of a model gets which format, under the names that llama-quantize has for them.
//!
//! Names, numbers and rules are those of llama.cpp (src/llama-quant.cpp, October 2026), so that files of one name are alike whoever made them.

use crate::error::Error;
use crate::formats::MatrixFormat;
use std::fmt;
use std::str::FromStr;

/// Makes [`Mixture`] of the list.
macro_rules! mixtures {
    ($($name:ident $file_type:literal $base:ident;)*) => {
        /// What a quantised file is made of.
        #[allow(non_camel_case_types, reason = "the spelling of the field")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mixture {
            $($name),*
        }

        impl Mixture {
            /// Every mixture.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// As on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }

            /// What a file calls it: `general.file_type`.
            pub const fn file_type(self) -> u32 {
                match self { $(Self::$name => $file_type),* }
            }

            /// The format of most matrices.
            pub const fn base(self) -> MatrixFormat {
                match self { $(Self::$name => MatrixFormat::$base),* }
            }
        }
    };
}

mixtures! {
    F32 0 F32; F16 1 F16; BF16 32 Bf16; Q8_0 7 Q8_0; Q6_K 18 Q6_K; Q5_K_M 17 Q5_K; Q5_K_S 16 Q5_K; Q5_1 9 Q5_1; Q5_0 8 Q5_0;
    Q4_K_M 15 Q4_K; Q4_K_S 14 Q4_K; Q4_1 3 Q4_1; Q4_0 2 Q4_0; IQ4_NL 25 IQ4_NL; IQ4_XS 30 IQ4_XS; Q3_K_L 13 Q3_K; Q3_K_M 12 Q3_K;
    Q3_K_S 11 Q3_K; Q2_K 10 Q2_K; Q2_K_S 21 Q2_K; IQ3_M 27 IQ3_S; IQ3_S 26 IQ3_S; IQ3_XS 22 IQ3_S; IQ3_XXS 23 IQ3_XXS; IQ2_M 29 IQ2_S;
    IQ2_S 28 IQ2_XS; IQ2_XS 20 IQ2_XS; IQ2_XXS 19 IQ2_XXS; IQ1_M 31 IQ1_M; IQ1_S 24 IQ1_S; TQ2_0 37 TQ2_0; TQ1_0 36 TQ1_0;
    MXFP4_MOE 38 MXFP4;
}

impl FromStr for Mixture {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let name = text.to_ascii_uppercase();
        let name = match &name[..] {
            "Q3_K" | "Q4_K" | "Q5_K" => format!("{name}_M"),
            "MXFP4" => "MXFP4_MOE".to_owned(),
            _ => name,
        };
        Self::ALL.iter().copied().find(|mixture| mixture.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|mixture| mixture.name()).collect();
            Error::Request(format!("expected a type of file ({}), found {text:?}", names.join(", ")))
        })
    }
}

impl fmt::Display for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What rules look at, of the model.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Model {
    /// Blocks, those that draft tokens among them.
    pub num_layers: usize,
    /// Query heads of a key head.
    pub heads_per_kv_head: usize,
    pub num_experts: usize,
    /// 80 layers, with fewer key heads than query heads: the matrices of values are so small that they may have more bits.
    pub is_70b: bool,
    /// The embedding is the head too.
    pub is_tied: bool,
    pub has_importance: bool,
    /// Matrices of values, of all layers.
    pub num_values: usize,
}

/// What a matrix is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Output,
    Embedding,
    /// Values of attention, alone or with queries and keys.
    Values,
    Keys,
    Queries,
    AttentionOutput,
    Up,
    Gate,
    Down,
    Other,
}

impl Role {
    /// By the tensor's name.
    pub fn of(name: &str) -> Self {
        let ends = [
            ("attn_qkv.weight", Self::Values),
            ("attn_kv_b.weight", Self::Values),
            ("attn_v.weight", Self::Values),
            ("attn_k.weight", Self::Keys),
            ("attn_q.weight", Self::Queries),
            ("attn_output.weight", Self::AttentionOutput),
            ("ffn_up", Self::Up),
            ("ffn_gate", Self::Gate),
            ("ffn_down", Self::Down),
        ];
        match name {
            crate::weights::HEAD => Self::Output,
            crate::weights::EMBEDDING => Self::Embedding,
            _ => ends.iter().find(|(part, _)| name.contains(part)).map_or(Self::Other, |&(_, role)| role),
        }
    }
}

/// A matrix that a format is wanted for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub role: Role,
    /// Which it is of the matrices of values, for those; else its layer.
    pub index: usize,
    /// `in_features`
    pub cols: usize,
    /// One of several experts.
    pub has_experts: bool,
}

/// Whether layer `i` of `n` is among those that get more bits: the first eighth, the last, and every third between.
fn more_bits(i: usize, n: usize) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

impl Mixture {
    /// Files of two bits and fewer, which have rules of their own.
    fn is_tiny(self) -> bool {
        use Mixture::{IQ1_M, IQ1_S, IQ2_M, IQ2_S, IQ2_XS, IQ2_XXS};
        matches!(self, IQ2_XXS | IQ2_XS | IQ2_S | IQ2_M | IQ1_S | IQ1_M)
    }

    /// The format of a matrix, before it is known whether its rows are whole blocks.
    pub(super) fn format(self, model: &Model, wanted: Wanted) -> MatrixFormat {
        use Mixture::MXFP4_MOE;
        let format = match wanted.role {
            Role::Output => self.of_output(wanted.cols),
            Role::Embedding if model.is_tied => self.of_output(wanted.cols),
            _ if self == MXFP4_MOE && wanted.has_experts => Some(MatrixFormat::MXFP4),
            _ if self == MXFP4_MOE => Some(MatrixFormat::Q8_0),
            Role::Embedding => self.of_embedding(),
            _ if self.is_tiny() => self.of_tiny(model, wanted),
            Role::Values => Some(self.of_values(model, wanted.index)),
            Role::Keys | Role::Queries => self.of_keys(model, wanted.role),
            Role::Down => self.of_down(model, wanted.index),
            Role::AttentionOutput => self.of_attention_output(model),
            Role::Up | Role::Gate => self.of_up(model, wanted.index),
            Role::Other => None,
        };
        format.unwrap_or(self.base())
    }

    fn of_output(self, cols: usize) -> Option<MatrixFormat> {
        use MatrixFormat::{Q5_K, Q6_K, Q8_0};
        if self == Self::MXFP4_MOE || !cols.is_multiple_of(self.base().block_values()) {
            return Some(Q8_0);
        }
        match self {
            Self::IQ3_XXS => Some(Q5_K),
            _ if self.is_tiny() => Some(Q5_K),
            _ if self.base() != Q8_0 => Some(Q6_K),
            _ => None,
        }
    }

    fn of_embedding(self) -> Option<MatrixFormat> {
        use Mixture::{IQ1_M, IQ1_S, IQ2_M, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_XXS, TQ1_0, TQ2_0};
        match self {
            IQ2_XXS | IQ2_XS | IQ1_S | IQ1_M => Some(MatrixFormat::Q2_K),
            IQ2_S | IQ2_M | IQ3_XXS => Some(MatrixFormat::IQ3_S),
            TQ1_0 | TQ2_0 => Some(MatrixFormat::Q4_K),
            _ => None,
        }
    }

    fn of_tiny(self, model: &Model, Wanted { role, index, .. }: Wanted) -> Option<MatrixFormat> {
        use MatrixFormat::{IQ2_XXS, IQ3_S, Q2_K, Q4_K, Q5_K};
        let better = if matches!(self, Self::IQ2_S | Self::IQ2_M) { IQ3_S } else { Q2_K };
        match role {
            Role::Values if model.heads_per_kv_head >= 4 || model.num_experts >= 4 => Some(Q4_K),
            Role::Values => Some(better),
            Role::Keys if model.num_experts == 8 => Some(Q4_K),
            Role::Down if index < model.num_layers / 8 => Some(better),
            Role::AttentionOutput if model.num_experts == 8 => Some(Q5_K),
            Role::AttentionOutput if matches!(self, Self::IQ1_S | Self::IQ1_M) => Some(IQ2_XXS),
            Role::AttentionOutput if better == IQ3_S => Some(IQ3_S),
            _ => None,
        }
    }

    fn of_values(self, model: &Model, i: usize) -> MatrixFormat {
        use MatrixFormat::{IQ3_S, IQ3_XXS, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0};
        let is_shared = model.heads_per_kv_head >= 4;
        let format = match self {
            Self::Q2_K if !is_shared => Q3_K,
            Self::Q2_K => Q4_K,
            Self::Q2_K_S | Self::IQ3_XXS | Self::IQ3_XS | Self::IQ3_S if is_shared => Q4_K,
            Self::IQ3_XXS if model.has_importance => IQ3_XXS,
            Self::IQ3_XXS => IQ3_S,
            Self::IQ3_M => Q4_K,
            Self::Q3_K_M if i < 2 => Q5_K,
            Self::Q3_K_M => Q4_K,
            Self::Q3_K_L => Q5_K,
            Self::IQ4_NL | Self::IQ4_XS if is_shared => Q5_K,
            Self::Q4_K_M | Self::Q5_K_M if more_bits(i, model.num_values) => Q6_K,
            Self::Q4_K_S if i < 4 => Q5_K,
            _ => self.base(),
        };
        match format {
            _ if model.num_experts == 8 => Q8_0,
            Q3_K | Q4_K if model.is_70b => Q5_K,
            format => format,
        }
    }

    fn of_keys(self, model: &Model, role: Role) -> Option<MatrixFormat> {
        match self {
            _ if model.num_experts == 8 && role == Role::Keys => Some(MatrixFormat::Q8_0),
            Self::IQ3_XS => Some(MatrixFormat::IQ3_XXS),
            Self::IQ3_XXS => Some(MatrixFormat::IQ2_S),
            _ => None,
        }
    }

    fn of_down(self, model: &Model, i: usize) -> Option<MatrixFormat> {
        use MatrixFormat::{Q3_K, Q4_1, Q4_K, Q5_1, Q5_K, Q6_K};
        let n = model.num_layers;
        let is_early = i < n / 8;
        match self {
            Self::Q2_K => Some(Q3_K),
            Self::Q2_K_S if is_early => Some(Q4_K),
            Self::IQ3_XXS if !model.has_importance => Some(if is_early { Q4_K } else { Q3_K }),
            Self::Q3_K_M => Some(if i < n / 16 { Q5_K } else { Q4_K }),
            Self::IQ3_M if is_early || (model.num_experts == 8 && more_bits(i, n)) => Some(Q4_K),
            Self::Q3_K_L => Some(Q5_K),
            Self::Q4_K_M | Self::Q5_K_M if more_bits(i, n) => Some(Q6_K),
            Self::IQ4_NL | Self::IQ4_XS if is_early && !model.has_importance => Some(Q5_K),
            Self::Q4_K_S if is_early => Some(Q5_K),
            Self::Q4_0 if is_early && model.has_importance => Some(Q4_1),
            Self::Q5_0 if is_early && model.has_importance => Some(Q5_1),
            _ => None,
        }
    }

    fn of_attention_output(self, model: &Model) -> Option<MatrixFormat> {
        use Mixture::{
            IQ3_M, IQ3_S, IQ3_XS, IQ3_XXS, IQ4_NL, IQ4_XS, Q2_K, Q3_K_L, Q3_K_M, Q3_K_S, Q4_K_M, Q4_K_S,
        };
        match self {
            Q2_K | IQ3_XS | IQ3_XXS | Q3_K_S | Q3_K_M | IQ4_NL | Q4_K_S | Q4_K_M | IQ3_S | IQ3_M | IQ4_XS
                if model.num_experts == 8 =>
            {
                Some(MatrixFormat::Q5_K)
            }
            _ if model.num_experts == 8 => None,
            Q2_K => Some(MatrixFormat::Q3_K),
            IQ3_XXS => Some(MatrixFormat::IQ3_S),
            Q3_K_M | IQ3_M => Some(MatrixFormat::Q4_K),
            Q3_K_L => Some(MatrixFormat::Q5_K),
            _ => None,
        }
    }

    fn of_up(self, model: &Model, i: usize) -> Option<MatrixFormat> {
        let n = model.num_layers;
        let is_between = (n / 8..7 * n / 8).contains(&i);
        (self == Self::IQ3_XS && is_between).then_some(MatrixFormat::IQ3_XXS)
    }
}

/// The format for rows of `cols` values, where those of `format` would not be whole blocks.
pub(super) fn fallback(format: MatrixFormat, cols: usize) -> MatrixFormat {
    use MatrixFormat::{
        F16, IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_K,
        Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, TQ1_0, TQ2_0,
    };
    let fits = |format: &MatrixFormat| cols.is_multiple_of(format.block_values());
    let smaller = match format {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => IQ4_NL,
        Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        other => other,
    };
    [format, smaller].into_iter().find(fits).unwrap_or(F16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: Model = Model {
        num_layers: 32,
        heads_per_kv_head: 4,
        num_experts: 0,
        is_70b: false,
        is_tied: false,
        has_importance: false,
        num_values: 32,
    };

    fn of(mixture: Mixture, model: &Model, name: &str, index: usize) -> MatrixFormat {
        let wanted = Wanted { role: Role::of(name), index, cols: 4096, has_experts: name.contains("_exps") };
        mixture.format(model, wanted)
    }

    #[test]
    fn names_are_those_of_llama_quantize() {
        for &mixture in Mixture::ALL {
            assert_eq!(mixture.name().to_lowercase().parse::<Mixture>().unwrap(), mixture);
            let same = Mixture::ALL.iter().filter(|other| other.file_type() == mixture.file_type());
            assert_eq!(same.count(), 1, "{mixture}");
        }
        assert_eq!("q4_k".parse::<Mixture>().unwrap(), Mixture::Q4_K_M);
        let error = "Q4".parse::<Mixture>().unwrap_err().to_string();
        assert!(error.contains("Q4_K_M, Q4_K_S") && error.ends_with("found \"Q4\""), "{error}");
    }

    /// Of 32 layers the first four, the last four and every third between have more bits.
    #[test]
    fn some_layers_get_more_bits() {
        let lifted: Vec<usize> = (0..32).filter(|&i| more_bits(i, 32)).collect();
        assert_eq!(lifted, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        for i in 0..32 {
            let expected = if lifted.contains(&i) { MatrixFormat::Q6_K } else { MatrixFormat::Q4_K };
            assert_eq!(of(Mixture::Q4_K_M, &MODEL, "blk.9.attn_v.weight", i), expected);
            assert_eq!(of(Mixture::Q4_K_M, &MODEL, "blk.9.attn_qkv.weight", i), expected);
            assert_eq!(of(Mixture::Q4_K_M, &MODEL, "blk.9.ffn_down.weight", i), expected);
            assert_eq!(of(Mixture::Q4_K_M, &MODEL, "blk.9.ffn_up.weight", i), MatrixFormat::Q4_K);
        }
        assert!((0..5).all(|i| more_bits(i, 5) == matches!(i, 2 | 4)), "without a first eighth");
    }

    #[test]
    fn the_model_decides_too() {
        use MatrixFormat::{IQ4_XS, MXFP4, Q3_K, Q4_0, Q4_1, Q4_K, Q5_K, Q6_K, Q8_0};
        let [v, down] = ["blk.0.attn_v.weight", "blk.0.ffn_down.weight"];
        assert_eq!(of(Mixture::Q2_K, &MODEL, v, 0), Q4_K);
        assert_eq!(of(Mixture::Q2_K, &Model { heads_per_kv_head: 2, ..MODEL }, v, 0), Q3_K);
        assert_eq!(of(Mixture::Q4_K_M, &Model { is_70b: true, ..MODEL }, v, 4), Q5_K);
        assert_eq!(of(Mixture::Q4_K_M, &Model { num_experts: 8, ..MODEL }, v, 4), Q8_0);
        let with = Model { has_importance: true, ..MODEL };
        assert_eq!([of(Mixture::Q4_0, &MODEL, down, 0), of(Mixture::Q4_0, &with, down, 0)], [Q4_0, Q4_1]);
        assert_eq!(
            [of(Mixture::IQ4_XS, &MODEL, down, 0), of(Mixture::IQ4_XS, &with, down, 0)],
            [Q5_K, IQ4_XS]
        );
        let [embedding, output] = ["token_embd.weight", "output.weight"];
        assert_eq!(
            [of(Mixture::Q4_0, &MODEL, embedding, 0), of(Mixture::Q4_0, &MODEL, output, 0)],
            [Q4_0, Q6_K]
        );
        assert_eq!(of(Mixture::Q4_0, &Model { is_tied: true, ..MODEL }, embedding, 0), Q6_K);
        assert_eq!(of(Mixture::MXFP4_MOE, &MODEL, "blk.1.ffn_up_exps.weight", 1), MXFP4);
        assert_eq!(of(Mixture::MXFP4_MOE, &MODEL, "blk.1.ffn_up_shexp.weight", 1), Q8_0);
    }

    #[test]
    fn rows_that_are_no_whole_blocks_get_another_format() {
        use MatrixFormat::{F16, IQ4_NL, MXFP4, Q4_0, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
        assert_eq!(fallback(Q4_K, 1024), Q4_K);
        assert_eq!([Q4_K, Q5_K, Q6_K].map(|format| fallback(format, 896)), [Q5_0, Q5_1, Q8_0]);
        assert_eq!(fallback(MatrixFormat::IQ2_XS, 896), IQ4_NL);
        assert_eq!([Q4_0, MXFP4, Q6_K].map(|format| fallback(format, 48)), [F16; 3]);
    }
}

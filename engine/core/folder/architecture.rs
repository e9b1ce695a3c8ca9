//! What the hub's `model_type` calls an architecture, and what files of it need besides new names.

use crate::config::Config;
use crate::error::{Error, Result};

/// An architecture as the hub has it.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `model_type` of `config.json`, or of its `text_config`.
    model_types: &'static [&'static str],
    /// `general.architecture`
    pub name: &'static str,
    /// Layers of linear attention, whose norms are stored with 1 subtracted.
    pub is_hybrid: bool,
    /// Heads of V stand beside those of the same head of K, and are to be taken in turns.
    pub has_grouped_values: bool,
    /// Values of a head are rotated with the one half a head on, and are to stand beside it.
    pub has_halves: bool,
    /// The weights of the experts that a token goes to are divided by their sum; `None` without experts.
    pub renormalises: Option<bool>,
    pub activation: &'static str,
    /// The matrices of a layer's experts that stand in one tensor are published with their rows as columns.
    pub has_transposed_experts: bool,
}

const USUAL: Architecture = Architecture {
    model_types: &[],
    name: "",
    is_hybrid: false,
    has_grouped_values: false,
    has_halves: false,
    renormalises: None,
    activation: "silu",
    has_transposed_experts: false,
};

const HYBRID: Architecture = Architecture { is_hybrid: true, has_grouped_values: true, ..USUAL };

const ARCHITECTURES: [Architecture; 12] = [
    Architecture { model_types: &["qwen2"], name: "qwen2", ..USUAL },
    Architecture { model_types: &["qwen3"], name: "qwen3", ..USUAL },
    Architecture { model_types: &["qwen2_moe"], name: "qwen2moe", renormalises: Some(false), ..USUAL },
    Architecture { model_types: &["qwen3_moe"], name: "qwen3moe", renormalises: Some(true), ..USUAL },
    Architecture { model_types: &["qwen3_5", "qwen3_5_text"], name: "qwen35", ..HYBRID },
    Architecture {
        model_types: &["qwen3_5_moe", "qwen3_5_moe_text"],
        name: "qwen35moe",
        renormalises: Some(true),
        ..HYBRID
    },
    Architecture {
        model_types: &["qwen3_next"],
        name: "qwen3next",
        has_grouped_values: false,
        renormalises: Some(true),
        ..HYBRID
    },
    // The text part: the names of its layers are those of others.
    Architecture {
        model_types: &["qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"],
        name: "qwen2vl",
        ..USUAL
    },
    Architecture { model_types: &["qwen3_vl", "qwen3_vl_text"], name: "qwen3vl", ..USUAL },
    Architecture {
        model_types: &["qwen3_vl_moe", "qwen3_vl_moe_text"],
        name: "qwen3vlmoe",
        renormalises: Some(true),
        has_transposed_experts: true,
        ..USUAL
    },
    Architecture { model_types: &["llama", "mistral"], name: "llama", has_halves: true, ..USUAL },
    Architecture { model_types: &["gpt2"], name: "gpt2", activation: "gelu_new", ..USUAL },
];

impl Architecture {
    /// What `model_type` names.
    ///
    /// # Errors
    /// [`Error::Folder`] that lists what is known.
    pub(super) fn named(model_type: &str) -> Result<&'static Self> {
        let found = ARCHITECTURES.iter().find(|architecture| architecture.model_types.contains(&model_type));
        found.ok_or_else(|| {
            let known: Vec<_> =
                ARCHITECTURES.iter().flat_map(|architecture| architecture.model_types).copied().collect();
            Error::Folder(format!(
                "config.json: `model_type` is {model_type:?}; those that are implemented are {}",
                known.join(", ")
            ))
        })
    }

    /// That of a model.
    ///
    /// # Errors
    /// [`Error::Folder`] for one that is in no folder.
    pub(super) fn of_config(config: &Config) -> Result<&'static Self> {
        let found = ARCHITECTURES.iter().find(|architecture| architecture.name == config.architecture);
        found.ok_or_else(|| {
            Error::Folder(format!(
                "adapters in folders are not read for {}: take a GGUF file",
                config.architecture
            ))
        })
    }

    pub(super) fn is_gpt2(&self) -> bool {
        self.name == "gpt2"
    }
}

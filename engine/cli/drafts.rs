//! The options of drafts, with llama.cpp's names.

use crate::engine::{NgramKind, NgramOptions, Speculative};
use crate::error::{Error, Result};
use crate::load::DraftChoice;
use clap::Args;
use std::path::PathBuf;

/// Which tokens are drafted.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Drafts")]
pub struct DraftArgs {
    /// Draft tokens and compute them at once, which leaves answers as they are: mtp (draft-mtp), by the block for it behind the model's last
    /// layer, in its file or in one beside it (mtp-….gguf, which comes with -hf, or --model-draft); ngram-simple, what followed the last tokens where they came last in the text; ngram-map-k, the same of tokens that came often
    /// (--spec-ngram-min-hits); ngram-mod, what followed them in any sequence
    #[arg(long, value_name = "TYPE")]
    pub spec_type: Option<SpecType>,
    /// Draft tokens by another model of the same vocabulary, on the same device; with --spec-type mtp by the block in this file; also -md
    #[arg(long, visible_alias = "spec-draft-model", value_name = "PATH")]
    pub model_draft: Option<PathBuf>,
    /// Tokens to draft at a time, at most [default: mtp 3, another model 4, n-grams 16]
    #[arg(long, alias = "draft", alias = "draft-n", visible_alias = "spec-draft-n-max", value_name = "N", value_parser = clap::value_parser!(u8).range(1..=MOST_DRAFTS))]
    pub draft_max: Option<u8>,
    /// Leave fewer drafted tokens alone
    #[arg(
        long,
        alias = "draft-n-min",
        visible_alias = "spec-draft-n-min",
        value_name = "N",
        default_value_t = 0
    )]
    pub draft_min: usize,
    /// Draft no further behind a token that is less probable, where a model drafts; 0 is off, and faster on a GPU
    #[arg(long, visible_alias = "spec-draft-p-min", value_name = "P", default_value_t = 0.0)]
    pub draft_p_min: f32,
    /// Tokens that must have come before, with --spec-type ngram-…
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub spec_ngram_size_n: u16,
    /// Tokens to draft behind them, at most
    #[arg(long, value_name = "M", default_value_t = 48, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub spec_ngram_size_m: u16,
    /// How often they must have come before, with --spec-type ngram-map-k
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub spec_ngram_min_hits: u32,
    /// The block that came with a model by name.
    #[arg(skip)]
    pub sidecar: Option<PathBuf>,
}

/// What drafts tokens without a model of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SpecType {
    /// Nothing.
    None,
    /// Multi-token prediction, by a block of the model's own.
    #[value(alias = "draft-mtp")]
    Mtp,
    /// What followed the last tokens where they came last in the text.
    NgramSimple,
    /// The same, of tokens that came often.
    NgramMapK,
    /// What followed them in any sequence.
    NgramMod,
}

/// The most tokens to draft at a time: a step computes them all.
const MOST_DRAFTS: i64 = 64;

impl DraftArgs {
    /// What drafts.
    ///
    /// # Errors
    /// [`Error::Request`] for another model where the type says that none drafts.
    pub fn choice(&self) -> Result<DraftChoice> {
        let ngram = |kind| {
            let (size_n, size_m) = (self.spec_ngram_size_n.into(), self.spec_ngram_size_m.into());
            DraftChoice::Ngram(NgramOptions { kind, size_n, size_m })
        };
        Ok(match (&self.model_draft, self.spec_type) {
            (Some(path), None) => DraftChoice::Model(path.clone()),
            (Some(path), Some(SpecType::Mtp)) => DraftChoice::MtpOf(path.clone()),
            (Some(path), Some(_)) => {
                return Err(Error::Request(format!(
                    "--model-draft {}: with it --spec-type is left out, or mtp where the file has a block that drafts (mtp-….gguf)",
                    path.display()
                )));
            }
            (None, Some(SpecType::NgramSimple)) => ngram(NgramKind::Simple),
            (None, Some(SpecType::NgramMapK)) => {
                ngram(NgramKind::MapK { min_hits: self.spec_ngram_min_hits })
            }
            (None, Some(SpecType::NgramMod)) => ngram(NgramKind::Mod),
            (None, Some(SpecType::Mtp | SpecType::None) | None) => {
                self.sidecar.clone().map_or(DraftChoice::Mtp, DraftChoice::MtpElse)
            }
        })
    }

    /// Whether the block of a model by name is to come with it.
    pub fn takes_sidecar(&self) -> bool {
        self.model_draft.is_none() && self.spec_type == Some(SpecType::Mtp)
    }

    /// Tokens that are drafted at a time, at most; 0 where nothing drafts.
    pub fn max(&self) -> usize {
        let usual = match (&self.model_draft, self.spec_type) {
            (None, None | Some(SpecType::None)) => return 0,
            (_, Some(SpecType::Mtp)) => 3,
            (Some(_), _) => 4,
            (None, Some(_)) => 16,
        };
        self.draft_max.unwrap_or(usual).into()
    }

    /// What holds for requests that say nothing of it.
    ///
    /// # Errors
    /// [`Error::Request`] for a probability that is none.
    pub fn speculative(&self) -> Result<Speculative> {
        if !(0.0..=1.0).contains(&self.draft_p_min) {
            return Err(Error::Request(format!(
                "--draft-p-min: expected 0 to 1, found {}",
                self.draft_p_min
            )));
        }
        Ok(Speculative { n_max: None, n_min: Some(self.draft_min), p_min: Some(self.draft_p_min) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::with_long_names;
    use super::*;
    use clap::Parser;
    use std::ffi::OsString;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        drafts: DraftArgs,
    }

    fn parse(line: &str) -> Result<DraftArgs, clap::Error> {
        let args = line.split_whitespace().map(OsString::from);
        Command::try_parse_from(with_long_names(std::iter::once("qernel".into()).chain(args)))
            .map(|command| command.drafts)
    }

    #[test]
    fn options_have_the_meaning_of_llama_cpp() {
        let found = |line| parse(line).map(|drafts| (drafts.max(), drafts.choice().unwrap())).unwrap();
        let ngram = |kind, size_n, size_m| DraftChoice::Ngram(NgramOptions { kind, size_n, size_m });
        assert_eq!(found("").0, 0);
        assert_eq!(found("--spec-type none --draft-max 5").0, 0);
        assert_eq!(found("--spec-type mtp"), (3, DraftChoice::Mtp));
        assert_eq!(found("--spec-type draft-mtp"), (3, DraftChoice::Mtp));
        assert_eq!(found("-md mtp-d.gguf --spec-type mtp"), (3, DraftChoice::MtpOf("mtp-d.gguf".into())));
        assert!(parse("-md d.gguf --spec-type ngram-mod").unwrap().choice().is_err());
        assert_eq!(found("--spec-type ngram-simple --draft-max 64"), (64, ngram(NgramKind::Simple, 12, 48)));
        let line =
            "--spec-type ngram-map-k --spec-ngram-size-n 8 --spec-ngram-size-m 9 --spec-ngram-min-hits 2";
        assert_eq!(found(line), (16, ngram(NgramKind::MapK { min_hits: 2 }, 8, 9)));
        assert_eq!(found("--spec-type ngram-mod --draft-n 7"), (7, ngram(NgramKind::Mod, 12, 48)));
        assert_eq!(found("-md d.gguf"), (4, DraftChoice::Model("d.gguf".into())));
        assert_eq!(found("--model-draft d.gguf --draft 6").0, 6);
        for bad in ["--spec-type ngram-cache", "--draft-max 0", "--spec-ngram-size-n 0"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let speculative = |line| parse(line).unwrap().speculative();
        let expected = Speculative { n_max: None, n_min: Some(2), p_min: Some(0.5) };
        assert_eq!(speculative("--draft-min 2 --draft-p-min 0.5").unwrap(), expected);
        assert!(speculative("--draft-p-min 1.5").is_err());
    }
}

//! How a model is shared out over several GPUs, with llama.cpp's names.

use crate::error::{Error, Result};
use crate::load::{DeviceChoice, LayerSplit, RunnerOptions, devices};
use clap::Args;
use std::str::FromStr;

/// How many GPUs compute, and what each of them has.
#[derive(Clone, Debug, Args)]
pub struct RankArgs {
    /// Share the model out over N GPUs that reach each other's memory, those from --device on: heads of attention, of linear attention too, and
    /// values between the projections of the MLP, which must be multiples of N; --split-mode tensor of N GPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub tensor_parallel: usize,
    /// How several GPUs share the model, those from --device on: none (it is on one), layer (each has consecutive layers, which are computed one
    /// after the other: room for models that one GPU does not hold), tensor (each has a part of every layer: a token comes sooner) [default:
    /// none, or layer with --tensor-split]; also -sm
    #[arg(long, value_name = "MODE")]
    pub split_mode: Option<SplitMode>,
    /// Proportions of the layers that GPUs have with --split-mode layer, such as 3,1, one for each GPU, 0 for one that has none [default:
    /// those of their free memory, of all GPUs]; also -ts
    #[arg(long, value_name = "N,N,…")]
    pub tensor_split: Option<Shares>,
    /// The GPU, or the first of several, by its number: the same as --device cuda:N; also -mg
    #[arg(long, value_name = "N")]
    pub main_gpu: Option<u32>,
}

/// How several GPUs share a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitMode {
    /// Not at all.
    None,
    /// Each has some layers.
    Layer,
    /// Each has a part of every layer.
    Tensor,
}

impl FromStr for SplitMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(Self::None),
            "layer" => Ok(Self::Layer),
            "tensor" => Ok(Self::Tensor),
            "row" => Err(Error::Request(
                "there is no split by rows of matrices: take tensor, which shares every layer out over all GPUs with one exchange behind \
                 attention and one behind the MLP, or layer"
                    .into(),
            )),
            _ => Err(Error::Request(format!("expected none, layer or tensor as the split, found {text:?}"))),
        }
    }
}

/// Proportions of what each of several GPUs has.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares(pub Vec<f64>);

impl FromStr for Shares {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let share =
            |part: &str| part.trim().parse().ok().filter(|share: &f64| share.is_finite() && *share >= 0.0);
        let shares: Option<Vec<f64>> = text.split([',', '/']).map(share).collect();
        let shares = shares.filter(|shares| shares.iter().any(|share| *share > 0.0));
        shares.map(Self).ok_or_else(|| {
            Error::Request(format!(
                "expected proportions of at least 0, not all of them 0, one for each GPU, such as 3,1; found {text:?}"
            ))
        })
    }
}

impl RankArgs {
    /// Says in `options` what these ask for.
    ///
    /// # Errors
    /// [`Error::Request`] for options that exclude each other.
    pub fn apply(&self, options: &mut RunnerOptions) -> Result<()> {
        if let Some(gpu) = self.main_gpu {
            options.device = match options.device {
                DeviceChoice::Auto | DeviceChoice::Cuda(None) => DeviceChoice::Cuda(Some(gpu)),
                DeviceChoice::Cuda(Some(ordinal)) if ordinal == gpu => options.device,
                other => {
                    return Err(Error::Request(format!(
                        "--main-gpu {gpu} is --device cuda:{gpu}, and --device is {other}: leave one of them out"
                    )));
                }
            };
        }
        let shares = self.tensor_split.as_ref().map(|Shares(shares)| shares);
        let is_parallel = self.tensor_parallel != 1;
        let mode = self.split_mode.unwrap_or(match (is_parallel, shares) {
            (true, _) => SplitMode::Tensor,
            (false, Some(_)) => SplitMode::Layer,
            (false, None) => SplitMode::None,
        });
        if is_parallel && mode != SplitMode::Tensor {
            return Err(Error::Request(format!(
                "--tensor-parallel {} is --split-mode tensor: leave one of --tensor-parallel and --split-mode out",
                self.tensor_parallel
            )));
        }
        match (mode, shares) {
            (SplitMode::None, None) => {}
            (SplitMode::None, Some(_)) => {
                return Err(Error::Request(
                    "--tensor-split is for --split-mode layer, and --split-mode is none: leave one of them out".into(),
                ));
            }
            (SplitMode::Layer, Some(shares)) => {
                options.layer_split = Some(LayerSplit::Shares(shares.clone()))
            }
            (SplitMode::Layer, None) => options.layer_split = Some(LayerSplit::Memory(None)),
            (SplitMode::Tensor, Some(shares)) => {
                let is_even = shares.windows(2).all(|pair| pair[0] == pair[1]);
                if !is_even || (is_parallel && shares.len() != self.tensor_parallel) {
                    return Err(Error::Request(format!(
                        "--tensor-split {shares:?}: --split-mode tensor shares every layer out evenly: take as many equal proportions as GPUs, or \
                         --split-mode layer"
                    )));
                }
                options.tensor_parallel = shares.len();
            }
            (SplitMode::Tensor, None) if is_parallel => options.tensor_parallel = self.tensor_parallel,
            (SplitMode::Tensor, None) => {
                options.tensor_parallel = devices("--split-mode tensor", options.device, None)?.len();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_have_the_names_of_llama_cpp() {
        for (text, mode) in
            [("none", SplitMode::None), ("layer", SplitMode::Layer), ("tensor", SplitMode::Tensor)]
        {
            assert_eq!(text.parse::<SplitMode>().unwrap(), mode);
        }
        let row = "row".parse::<SplitMode>().unwrap_err().to_string();
        assert!(row.contains("take tensor") && row.contains("or layer"), "{row}");
        assert!("rows".parse::<SplitMode>().unwrap_err().to_string().contains("none, layer or tensor"));
    }

    #[test]
    fn proportions_are_numbers_that_are_not_all_0() {
        for (text, shares) in [("3,1", vec![3.0, 1.0]), ("0.5/0, 2", vec![0.5, 0.0, 2.0]), ("1", vec![1.0])] {
            assert_eq!(text.parse::<Shares>().unwrap(), Shares(shares));
        }
        for bad in ["", "3,", ",", "a,1", "1,-1", "nan,1", "inf", "1e999", "0,0", "3;1"] {
            let error = bad.parse::<Shares>().unwrap_err().to_string();
            assert!(error.contains("such as 3,1") && error.contains(bad), "{error}");
        }
    }

    /// What `apply` makes of these.
    fn applied(
        device: DeviceChoice,
        tensor_parallel: usize,
        split_mode: Option<SplitMode>,
        tensor_split: Option<&str>,
        main_gpu: Option<u32>,
    ) -> Result<RunnerOptions> {
        let tensor_split = tensor_split.map(|text| text.parse().unwrap());
        let mut options = RunnerOptions { device, ..RunnerOptions::default() };
        RankArgs { tensor_parallel, split_mode, tensor_split, main_gpu }.apply(&mut options)?;
        Ok(options)
    }

    #[test]
    fn options_say_one_split() {
        use DeviceChoice::{Auto, Cpu, Cuda, Emulated};
        let split = |mode, shares| applied(Emulated, 1, mode, shares, None).unwrap();
        let uneven = Some(LayerSplit::Shares(vec![3.0, 1.0]));
        assert_eq!(split(None, None), RunnerOptions { device: Emulated, ..RunnerOptions::default() });
        assert_eq!(split(None, Some("3,1")).layer_split, uneven);
        assert_eq!(split(Some(SplitMode::Layer), Some("3,1")).layer_split, uneven);
        assert_eq!(split(Some(SplitMode::Layer), None).layer_split, Some(LayerSplit::Memory(None)));
        assert_eq!(split(Some(SplitMode::Tensor), Some("1,1")).tensor_parallel, 2);
        assert_eq!(applied(Auto, 4, None, Some("2,2,2,2"), None).unwrap().tensor_parallel, 4);
        assert_eq!(applied(Auto, 1, None, None, Some(3)).unwrap().device, Cuda(Some(3)));
        for (device, parallel, mode, shares, gpu, expected) in [
            (Emulated, 2, Some(SplitMode::Layer), None, None, "--tensor-parallel 2 is --split-mode tensor"),
            (Emulated, 2, None, Some("1,1,1"), None, "as many equal proportions"),
            (Emulated, 1, Some(SplitMode::Tensor), Some("3,1"), None, "or --split-mode layer"),
            (Emulated, 1, Some(SplitMode::Tensor), None, None, "say how many"),
            (Emulated, 1, Some(SplitMode::None), Some("3,1"), None, "--split-mode is none"),
            (Cpu, 1, Some(SplitMode::Tensor), None, None, "--device is cpu"),
            (Cpu, 1, None, None, Some(1), "--device is cpu"),
            (Cuda(Some(0)), 1, None, None, Some(1), "--device is cuda:0"),
        ] {
            let error = applied(device, parallel, mode, shares, gpu).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}

//! `inspect`: what a GGUF file holds and how much memory it needs.

mod memory;

use super::cache_types::CacheTypeArgs;
use super::options::{ExpertArgs, FileArgs, parse_size};
use super::output::{Output, one_line};
use super::split_mode::Shares;
use crate::config::Config;
use crate::embedded;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, Value};
use crate::lora::AdapterMetadata;
use crate::weights::Weights;
use memory::{Memory, Mib};
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

/// Options of `inspect`.
#[derive(Clone, Debug, clap::Args)]
pub struct InspectArgs {
    /// A file that holds only a vocabulary is enough.
    #[command(flatten)]
    pub file: FileArgs,
    #[command(flatten)]
    pub experts: ExpertArgs,
    /// Say what each GPU has of the layers, in these proportions, such as 3,1 (--split-mode layer).
    #[arg(long, value_name = "N,N,…")]
    pub tensor_split: Option<Shares>,
    /// Say what each of N GPUs has of every layer (--split-mode tensor).
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "tensor_split")]
    pub tensor_parallel: usize,
    /// Tokens of context to count KV memory for [default: what the model was made for].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    pub context: Option<u64>,
    #[command(flatten)]
    pub cache_types: CacheTypeArgs,
    /// Say how many copies of recurrent layers' states so much host memory holds (--checkpoint-host-memory of commands that run the model).
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0")]
    pub checkpoint_host_memory: usize,
    /// Read all tensors and name values that are NaN or infinite; exit status 3 if there are some.
    #[arg(long)]
    pub check_tensors: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command. A file that is well-formed but cannot be run is described all the same, with the reason.
///
/// # Errors
/// [`Error::Io`] and [`Error::Gguf`] where the file cannot be read; [`Error::Request`] for a split that there is not; [`Error::NotFinite`] where that was looked for and found;
/// [`Error::ClosedPipe`] where nobody reads on.
pub fn run(args: InspectArgs) -> Result<()> {
    let gguf = args.file.open()?;
    let report = Report::new(&gguf, &args)?;
    let check = args.check_tensors.then(|| gguf.check_tensors()).transpose()?;
    let report = Report { check: check.as_ref(), ..report };
    let text = match args.json {
        true => serde_json::to_string_pretty(&report)
            .map_err(|error| Error::io("standard output", error.into()))?,
        false => report.to_string().trim_end().to_owned(),
    };
    Output::stdout().line(&text)?;
    check.map_or(Ok(()), |check| check.expect_finite())
}

/// Everything that is printed; the fields are those of `--json`.
#[derive(Debug, serde::Serialize)]
struct Report<'a> {
    file: String,
    file_bytes: u64,
    /// Files that the model is in.
    num_parts: usize,
    gguf_version: u32,
    alignment: u64,
    architecture: Option<&'a str>,
    config: Option<Config>,
    /// What the file says of the adapter that it is; `null` where it is none.
    adapter: Option<AdapterMetadata>,
    /// There are no tensors.
    vocabulary_only: bool,
    /// Why the engine cannot run the file, if it cannot.
    problem: Option<String>,
    /// Tensors that the engine has no use for.
    unused_tensors: Vec<String>,
    /// Those of layers behind the last one, which draft further tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    draft_layers: Option<DraftLayers>,
    memory: Option<Memory>,
    sizes: Vec<TypeSize>,
    num_tensors: usize,
    tensor_bytes: u64,
    /// Of all tensors whose types are known.
    bits_per_weight: Option<f64>,
    #[serde(serialize_with = "metadata_as_json")]
    metadata: Vec<(&'a str, Value<'a>)>,
    tensors: Vec<TensorLine<'a>>,
    /// `null` without `--check-tensors`.
    check: Option<&'a crate::weights::TensorCheck>,
}

#[derive(Debug, serde::Serialize)]
struct TensorLine<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    ggml_type: String,
    /// Row-major, outermost dimension first.
    shape: Vec<u64>,
    /// `null` where the type is unknown.
    bytes: Option<u64>,
}

/// All tensors of one type.
#[derive(Debug, serde::Serialize)]
struct TypeSize {
    #[serde(rename = "type")]
    ggml_type: String,
    num_tensors: usize,
    bytes: u64,
    /// Scales included; `null` where the type is unknown.
    bits_per_weight: Option<f64>,
}

/// Layers that are in the file and not computed.
#[derive(Debug, serde::Serialize)]
struct DraftLayers {
    num_layers: usize,
    num_tensors: usize,
    bytes: u64,
}

impl DraftLayers {
    /// Takes the tensors of those layers out of `unused`; `None` where the model has no such layers.
    fn take(gguf: &Gguf, config: &Config, unused: &mut Vec<String>) -> Option<Self> {
        let num_layers = config.num_nextn_predict_layers;
        let mut found = Self { num_layers, num_tensors: 0, bytes: 0 };
        unused.retain(|name| {
            let is_draft = config.is_draft_tensor(name);
            if is_draft {
                found.num_tensors += 1;
                found.bytes += gguf.tensor(name).and_then(|tensor| tensor.num_bytes()).unwrap_or(0);
            }
            !is_draft
        });
        (num_layers > 0).then_some(found)
    }
}

impl<'a> Report<'a> {
    fn new(gguf: &'a Gguf, args: &InspectArgs) -> Result<Self> {
        let vocabulary_only = gguf.tensors().len() == 0;
        let adapter = AdapterMetadata::of_gguf(gguf);
        let is_adapter = matches!(adapter, Ok(Some(_)));
        let config = Config::from_gguf(gguf);
        let weights = match &config {
            Ok(config) if !vocabulary_only => Some(Weights::from_gguf(gguf, config)),
            _ => None,
        };
        let failed = config.as_ref().err().or_else(|| weights.as_ref()?.as_ref().err());
        // What an adapter lacks is in the file of its model.
        let problem = failed.filter(|_| !is_adapter).map(Error::to_string);
        let weights = weights.and_then(Result::ok);
        let config = config.ok();
        let mut unused_tensors = weights.as_ref().map(|weights| weights.unused.clone()).unwrap_or_default();
        let draft_layers =
            config.as_ref().and_then(|config| DraftLayers::take(gguf, config, &mut unused_tensors));
        let is_split = args.tensor_split.is_some() || args.tensor_parallel != 1;
        let memory = match config.as_ref().map(|config| Memory::new(config, weights.as_ref(), args)) {
            Some(Err(error)) if is_split => return Err(error),
            memory => memory.and_then(Result::ok),
        };

        let mut sizes = BTreeMap::new();
        for tensor in gguf.tensors() {
            let size = sizes.entry(tensor.ggml_type()).or_insert_with(|| TypeSize {
                ggml_type: tensor.ggml_type().to_string(),
                num_tensors: 0,
                bytes: 0,
                bits_per_weight: tensor.ggml_type().bits_per_weight(),
            });
            size.num_tensors += 1;
            size.bytes += tensor.num_bytes().unwrap_or(0);
        }
        let sizes: Vec<_> = sizes.into_values().collect();
        let (tensor_bytes, num_values) = gguf
            .tensors()
            .filter_map(|tensor| Some((tensor.num_bytes()?, tensor.num_values())))
            .fold((0, 0), |(bytes, values), (more, of)| (bytes + more, values + of));

        Ok(Self {
            file: args
                .file
                .model
                .as_ref()
                .map_or(embedded::NAME.to_owned(), |path| path.display().to_string()),
            file_bytes: gguf.file_size(),
            num_parts: gguf.num_parts(),
            gguf_version: gguf.version(),
            alignment: gguf.alignment(),
            architecture: gguf.get("general.architecture").ok().flatten(),
            config,
            adapter: adapter.ok().flatten(),
            vocabulary_only,
            problem,
            unused_tensors,
            draft_layers,
            memory,
            num_tensors: gguf.tensors().len(),
            tensor_bytes,
            bits_per_weight: (num_values > 0).then(|| 8.0 * tensor_bytes as f64 / num_values as f64),
            sizes,
            metadata: gguf.metadata().collect(),
            tensors: gguf
                .tensors()
                .map(|tensor| TensorLine {
                    name: tensor.name(),
                    ggml_type: tensor.ggml_type().to_string(),
                    shape: tensor.shape(),
                    bytes: tensor.num_bytes(),
                })
                .collect(),
            check: None,
        })
    }
}

fn metadata_as_json<S: Serializer>(metadata: &[(&str, Value<'_>)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(metadata.iter().map(|(key, value)| (key, Json(value))))
}

/// Scalars and strings as they are; an array, which may have 150,000 elements, as its type and length.
struct Json<'a>(&'a Value<'a>);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self.0 {
            Value::U8(v) => v.serialize(serializer),
            Value::I8(v) => v.serialize(serializer),
            Value::U16(v) => v.serialize(serializer),
            Value::I16(v) => v.serialize(serializer),
            Value::U32(v) => v.serialize(serializer),
            Value::I32(v) => v.serialize(serializer),
            Value::F32(v) => v.serialize(serializer),
            Value::Bool(v) => v.serialize(serializer),
            Value::U64(v) => v.serialize(serializer),
            Value::I64(v) => v.serialize(serializer),
            Value::F64(v) => v.serialize(serializer),
            Value::String(v) => String::from_utf8_lossy(v).serialize(serializer),
            Value::Array(v) => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("array_of", &v.element_type().to_string())?;
                map.serialize_entry("length", &v.len())?;
                map.end()
            }
        }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, gguf_version, alignment, .. } = self;
        let parts = if self.num_parts > 1 { format!(" in {} files", self.num_parts) } else { String::new() };
        let (file, size) = (one_line(file), Mib(self.file_bytes));
        writeln!(f, "{file}: {size}{parts}, GGUF version {gguf_version}, alignment {alignment}")?;
        writeln!(f, "architecture: {}", one_line(self.architecture.unwrap_or("not given")))?;
        if let Some(AdapterMetadata { kind, alpha, .. }) = &self.adapter {
            let count = self.num_tensors / 2;
            writeln!(
                f,
                "an adapter ({}), alpha {alpha}, {count} updates: for --lora, beside its model",
                one_line(kind)
            )?;
        }
        match &self.problem {
            Some(problem) => writeln!(f, "cannot be run: {}", one_line(problem))?,
            None if self.vocabulary_only => writeln!(f, "a vocabulary only: there are no tensors")?,
            None => {}
        }
        if !self.unused_tensors.is_empty() {
            writeln!(f, "not used: {}", one_line(&self.unused_tensors.join(", ")))?;
        }
        if let Some(DraftLayers { num_layers, num_tensors, bytes }) = self.draft_layers {
            let bytes = Mib(bytes);
            writeln!(
                f,
                "not computed: {num_layers} layers that draft further tokens ({num_tensors} tensors, {bytes})"
            )?;
        }

        writeln!(f, "\nmetadata ({})", self.metadata.len())?;
        let width = self.metadata.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0).min(48);
        for (key, value) in &self.metadata {
            writeln!(f, "  {:width$}  {value}", one_line(key))?;
        }
        if !self.tensors.is_empty() {
            writeln!(f, "\ntensors ({})", self.num_tensors)?;
            let width =
                self.tensors.iter().map(|tensor| tensor.name.chars().count()).max().unwrap_or(0).min(48);
            for TensorLine { name, ggml_type, shape, bytes } in &self.tensors {
                let mut size = String::new();
                match bytes {
                    Some(bytes) => write!(size, "{bytes}")?,
                    None => size.push('?'),
                }
                let (name, shape) = (one_line(name), format!("{shape:?}"));
                writeln!(f, "  {name:width$}  {ggml_type:8} {shape:16} {size:>12} bytes")?;
            }
            writeln!(f, "\nsizes")?;
            let bits =
                |bits: &Option<f64>| bits.map_or(String::new(), |bits| format!("{bits:8.4} bits a weight"));
            for TypeSize { ggml_type, num_tensors, bytes, bits_per_weight } in &self.sizes {
                let (bytes, bits) = (Mib(*bytes), bits(bits_per_weight));
                writeln!(f, "  {ggml_type:8} {num_tensors:5} tensors {bytes:>14}{bits}")?;
            }
            let (bytes, bits) = (Mib(self.tensor_bytes), bits(&self.bits_per_weight));
            writeln!(f, "  {:8} {:5} tensors {bytes:>14}{bits}", "all", self.num_tensors)?;
        }
        if let Some(crate::weights::TensorCheck { num_tensors, not_checked, not_finite }) = self.check {
            writeln!(f, "\nvalues that are not finite, in {num_tensors} tensors: {}", not_finite.len())?;
            not_finite.iter().try_for_each(|found| writeln!(f, "  {found}"))?;
            if !not_checked.is_empty() {
                writeln!(f, "  formats that are not looked through: {}", not_checked.join(", "))?;
            }
        }
        if let Some(config) = &self.config {
            writeln!(f, "\nconfig")?;
            let fields = serde_json::to_value(config).map_err(|_| fmt::Error)?;
            for (name, value) in
                fields.as_object().into_iter().flatten().filter(|(name, _)| *name != "architecture")
            {
                let value = value.as_str().map_or_else(|| value.to_string(), one_line);
                writeln!(f, "  {name:23}  {value}")?;
            }
        }
        self.memory.as_ref().map_or(Ok(()), |memory| write!(f, "{memory}"))
    }
}

//! Blocks of every format as another implementation decodes and encodes them (tests/data/formats/make_golden.py).

use qernel::cuda::{CudaOps, Device, KernelChoice};
use qernel::dtype::Dtype;
use qernel::formats::MatrixFormat;
use qernel::lab::case::plain_config;
use qernel::ops::Ops;
use qernel::weights::Matrix;
use sha2::{Digest, Sha256};
use std::rc::Rc;

/// Some blocks, and the digest of their values.
pub struct Golden {
    pub format: MatrixFormat,
    pub blocks: Vec<u8>,
    pub digest: String,
}

pub fn file() -> serde_json::Value {
    serde_json::from_str(include_str!("../data/formats/golden.json")).unwrap()
}

/// The format that a file calls so.
pub fn format(name: &str) -> MatrixFormat {
    let named = |format: &MatrixFormat| format.ggml_type().to_string() == name;
    MatrixFormat::ALL.iter().copied().find(named).expect("every format of the goldens is computed with")
}

pub fn goldens() -> Vec<Golden> {
    let of = |(name, golden): (&String, &serde_json::Value)| {
        let digits = golden["blocks"].as_str().unwrap().as_bytes();
        let byte = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap();
        let digest = golden["values"].as_str().unwrap().to_owned();
        Golden { format: format(name), blocks: digits.chunks(2).map(byte).collect(), digest }
    };
    file()["decoded"].as_object().unwrap().iter().map(of).collect()
}

impl Golden {
    pub fn num_values(&self) -> usize {
        self.blocks.len() / self.format.block_bytes() * self.format.block_values()
    }
}

pub fn digest(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn digest_of_values(values: &[f32]) -> String {
    digest(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
}

/// The device decodes each format to the same bits.
pub fn check_device(device: &Rc<Device>) {
    let mut ops = CudaOps::new(device, &plain_config(), Dtype::F32, KernelChoice::default()).unwrap();
    for golden in goldens() {
        let (format, cols) = (golden.format, golden.num_values());
        let data = golden.blocks.clone().into();
        let matrix = Matrix { name: format.to_string(), format, rows: 1, cols, scale: 1.0, data };
        let weight = ops.load_matrix(&matrix).unwrap();
        let mut out = ops.new_activation(1, cols).unwrap();
        ops.decode(&weight, &mut out).unwrap();
        assert_eq!(digest_of_values(&out.to_host().unwrap()), golden.digest, "{format}");
    }
}

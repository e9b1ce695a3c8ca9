//! Operations that follow indices: embed, gather_rows, write_kv; and what a batch is refused for.

use crate::harness::*;
use bytes::Bytes;
use qernel::batch::{Batch, BatchLimits, SequenceRows, WantedLogits};
use qernel::cuda::{CudaOps, KernelChoice};
use qernel::dtype::Dtype;
use qernel::kv_cache::{KvLayout, PAGE_SIZE};
use qernel::model::OpsConfig;
use qernel::ops::Ops;
use qernel::testing::Random;
use qernel::weights::Matrix;

const LIMITS: BatchLimits =
    BatchLimits { max_num_tokens: 256, max_num_sequences: 4, max_num_logits: 256, max_blocks: 8 };

/// Sequences of 1, 111 and 19 rows with random tokens on shuffled pages; every logit row is wanted.
fn ragged(seed: u64, vocab_size: u64, num_pages: usize) -> Batch {
    let mut random = Random::new(seed, "ragged batch");
    let mut pages: Vec<u32> = (0..num_pages as u32).collect();
    for i in (1..pages.len()).rev() {
        pages.swap(i, (random.next_u64() % (i as u64 + 1)) as usize);
    }
    let tokens: Vec<u32> = (0..111).map(|_| (random.next_u64() % vocab_size) as u32).collect();
    let part = |rows: usize, position, pages| SequenceRows {
        tokens: &tokens[..rows],
        position,
        pages,
        logits: WantedLogits::All,
    };
    Batch::new(&[part(1, 70, &pages[..3]), part(111, 5, &pages[3..7]), part(19, 0, &pages[7..8])])
}

#[test]
fn embed_takes_the_rows_of_the_tokens() {
    let Some(device) = device() else { return };
    for dtype in Dtype::ALL {
        let ops = &mut plain_ops(&device, dtype);
        for cols in COLUMNS {
            let vocab_size = 989;
            if left_out(vocab_size * cols) {
                continue;
            }
            let case = format!("embed {dtype} [{vocab_size}, {cols}]");
            let host = ragged(1, vocab_size as u64, 8);
            let table = rounded(dtype, &random(1, &case, vocab_size * cols));
            let bytes: Vec<u8> = match dtype {
                Dtype::F32 => table.iter().flat_map(|v| v.to_le_bytes()).collect(),
                Dtype::F16 => table.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
                Dtype::Bf16 => table.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
            };
            let data = Bytes::from(bytes);
            let matrix = Matrix { name: "table".into(), dtype, rows: vocab_size, cols, data };
            let weight = ops.load_matrix(&matrix).unwrap();
            let mut batch = ops.new_batch(&LIMITS).unwrap();
            ops.upload(&host, &mut batch).unwrap();
            let mut out = poisoned(ops, host.num_tokens(), cols);
            ops.embed(&batch, &weight, &mut out).unwrap();
            let expected: Vec<f32> =
                host.tokens.iter().flat_map(|&t| table[t as usize * cols..][..cols].to_vec()).collect();
            // Widening is exact: the same bits.
            assert_same_bits(&case, &out.to_host().unwrap(), &expected);

            let mut outside = host.clone();
            outside.tokens[5] = vocab_size as u32;
            ops.upload(&outside, &mut batch).unwrap();
            assert!(ops.embed(&batch, &weight, &mut out).is_err(), "{case}: a token behind the table");
        }
    }
}

#[test]
fn gather_rows_takes_the_wanted_rows() {
    let Some(device) = device() else { return };
    let ops = &mut plain_ops(&device, Dtype::F32);
    for cols in COLUMNS {
        let mut host = ragged(2, 10, 8);
        let n = host.num_tokens();
        for wanted in [vec![0], vec![0, 1, 7, 111, n as u32 - 1], (0..n as u32).collect()] {
            let case = format!("gather_rows, {} of [{n}, {cols}]", wanted.len());
            host.logit_rows = wanted;
            let mut batch = ops.new_batch(&LIMITS).unwrap();
            ops.upload(&host, &mut batch).unwrap();
            let x = random(1, &case, n * cols);
            let expected: Vec<f32> =
                host.logit_rows.iter().flat_map(|&r| x[r as usize * cols..][..cols].to_vec()).collect();
            let x = tensor(ops, n, cols, &x);
            let mut out = poisoned(ops, host.num_logits(), cols);
            ops.gather_rows(&batch, &x, &mut out).unwrap();
            assert_same_bits(&case, &out.to_host().unwrap(), &expected);
        }
    }
}

#[test]
fn write_kv_fills_its_slots_and_nothing_else() {
    let Some(device) = device() else { return };
    for dtype in Dtype::ALL {
        for (heads, head_dim) in [(1, 64), (2, 64), (4, 128), (7, 128)] {
            let case = format!("write_kv {dtype}, {heads} heads of {head_dim}");
            let config = OpsConfig {
                num_attention_heads: heads,
                num_key_value_heads: heads,
                head_dim,
                rope_theta: 1e6,
                max_model_len: 256,
                limits: LIMITS,
            };
            let ops = &mut CudaOps::new(&device, &config, dtype, KernelChoice::default()).unwrap();
            let layout =
                KvLayout { dtype, num_layers: 3, num_pages: 9, num_key_value_heads: heads, head_dim };
            let mut cache = ops.new_kv_cache(&layout).unwrap();
            cache.fill(0xFF).unwrap(); // NaN in every format.
            let host = ragged(3, 10, 9);
            let n = host.num_tokens();
            let mut batch = ops.new_batch(&LIMITS).unwrap();
            ops.upload(&host, &mut batch).unwrap();
            let cols = heads * head_dim;
            let k = random(1, &case, n * cols);
            let v = random(2, &case, n * cols);
            let (k_device, v_device) = (tensor(ops, n, cols, &k), tensor(ops, n, cols, &v));
            ops.write_kv(&batch, 1, &k_device, &v_device, &mut cache).unwrap();

            for (name, values, found) in
                [("k", &k, cache.read(1).unwrap().0), ("v", &v, cache.read(1).unwrap().1)]
            {
                let mut expected = vec![f32::NAN; layout.num_pages * layout.page_elements()];
                for (row, &slot) in host.slots.iter().enumerate() {
                    let (page, place) = (slot as usize / PAGE_SIZE, slot as usize % PAGE_SIZE);
                    for head in 0..heads {
                        let to = ((page * heads + head) * PAGE_SIZE + place) * head_dim;
                        let from = row * cols + head * head_dim;
                        let rounded = rounded(dtype, &values[from..][..head_dim]);
                        expected[to..][..head_dim].copy_from_slice(&rounded);
                    }
                }
                let differs = |(a, b): (&f32, &f32)| a != b && !(a.is_nan() && b.is_nan());
                let differs = found.iter().zip(&expected).position(differs);
                assert_eq!(differs, None, "{case}: index in the pages of {name} that differs");
            }
            for layer in [0, 2] {
                let (k, v) = cache.read(layer).unwrap();
                assert!(k.iter().chain(&v).all(|value| value.is_nan()), "{case}: layer {layer} was written");
            }
            assert!(
                ops.write_kv(&batch, 3, &k_device, &v_device, &mut cache).is_err(),
                "{case}: layer 3 of 3"
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_launched() {
    let Some(device) = device() else { return };
    let ops = &mut plain_ops(&device, Dtype::Bf16);
    let mut batch = ops.new_batch(&LIMITS).unwrap();
    let host = ragged(4, 10, 8);
    let n = host.num_tokens();
    ops.upload(&host, &mut batch).unwrap();
    let k = tensor(ops, n, 64, &vec![0.0; n * 64]);
    let v = tensor(ops, n, 64, &vec![0.0; n * 64]);
    let layout =
        KvLayout { dtype: Dtype::Bf16, num_layers: 1, num_pages: 7, num_key_value_heads: 1, head_dim: 64 };
    let mut cache = ops.new_kv_cache(&layout).unwrap();
    assert!(ops.write_kv(&batch, 0, &k, &v, &mut cache).is_err(), "page 7 of 7");
    let q = tensor(ops, n, 128, &vec![0.0; n * 128]);
    let mut out = poisoned_activation(ops, n, 128);
    assert!(ops.attention(&batch, 0, &q, &cache, &mut out).is_err(), "page 7 of 7");
    let wrong = KvLayout { dtype: Dtype::F16, ..layout };
    assert!(ops.new_kv_cache(&wrong).is_err(), "pages of another format");

    let mut short = ops.new_tensor(n - 1, 64).unwrap();
    assert!(ops.add(n, &mut short, &k).is_err(), "too few rows");
    let mut narrow = ops.new_tensor(n, 63).unwrap();
    assert!(ops.add(n, &mut narrow, &k).is_err(), "other columns");
    let bias = ops.load_vector(&[0.0; 63]).unwrap();
    let mut x = ops.new_tensor(n, 64).unwrap();
    assert!(ops.add_bias(n, &mut x, &bias).is_err(), "a short bias");

    let mut inconsistent = host.clone();
    inconsistent.positions[1] += 1;
    assert!(ops.upload(&inconsistent, &mut batch).is_err(), "positions");
    // A batch that was refused leaves none behind.
    assert!(ops.rope(&batch, &mut x, 1).is_ok());
    let mut inconsistent = host;
    inconsistent.kv_len[0] = 1000;
    assert!(ops.upload(&inconsistent, &mut batch).is_err(), "kv_len");
}

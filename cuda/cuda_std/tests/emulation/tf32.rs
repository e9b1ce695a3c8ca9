//! Products of TF32 on tensor cores are those of numbers whose last 13 bits are cut off.

use super::support::{buffer, emulator, grid, values};

/// Lane `i`'s words: a (16 × 8), b (8 × 8), c: numbers from -1 to 1 with all their bits.
fn words(lane: usize) -> [f32; 10] {
    std::array::from_fn(|word| {
        let bits = ((lane * 10 + word) as u32).wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995;
        bits.wrapping_mul(0x85eb_ca6b) as i32 as f32 / 2f32.powi(31)
    })
}

fn cut(value: f32) -> f64 {
    f64::from(f32::from_bits(value.to_bits() & !0x1fff))
}

#[test]
fn fragments_of_tf32_make_a_matrix_product() {
    let e = &emulator(1);
    let all: Vec<f32> = (0..32).flat_map(words).collect();
    let out = buffer(e, &[[0f32; 4]; 32]);
    // SAFETY: one warp, with ten words and four results for each lane.
    unsafe { cuda_std_test_kernels::compare_mma_tf32(e, &grid(1, 32), buffer(e, &all).cast().into(), out) }
        .unwrap();
    let a = |row: usize, k: usize| cut(words(4 * (row % 8) + k % 4)[row / 8 + 2 * (k / 4)]);
    let b = |k: usize, column: usize| cut(words(4 * column + k % 4)[4 + k / 4]);
    for (lane, found) in values(e, out, 32).into_iter().enumerate() {
        for (i, found) in found.into_iter().enumerate() {
            let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
            let sum = f64::from(words(lane)[6 + i]) + (0..8).map(|k| a(row, k) * b(k, column)).sum::<f64>();
            assert!((f64::from(found) - sum).abs() < 1e-6, "lane {lane}, sum {i}: {found} instead of {sum}");
        }
    }
}

#[test]
fn rounding_to_tf32_goes_to_the_nearest() {
    use cuda_std::mma::tf32;
    let unit = 2f32.powi(-10);
    for (value, rounded) in [
        (1.0, 1.0),
        (1.0 + 0.49 * unit, 1.0),
        (1.0 + 0.5 * unit, 1.0 + unit),
        (-1.0 - 0.6 * unit, -1.0 - unit),
        (f32::MAX, f32::INFINITY),
        (f32::NEG_INFINITY, f32::NEG_INFINITY),
    ] {
        assert_eq!(tf32(value), rounded, "{value}");
    }
    for bits in [0x7fff_ffff, 0x7f80_0001, 0xffc0_0000] {
        assert!(tf32(f32::from_bits(bits)).is_nan(), "{bits:#x}");
    }
}

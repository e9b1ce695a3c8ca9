//! Products of signed bytes on tensor cores are those of plain integers.

use super::support::{buffer, emulator, grid, values};

/// Lane `i`'s words: a (16 × 32), b (32 × 8), c, where byte `k` of word `w` is `byte(i, w, k)`.
fn words(lane: usize) -> [u32; 10] {
    std::array::from_fn(|word| (((lane * 10 + word) as u32).wrapping_mul(0x9e37_79b9)) ^ 0x5bd1_e995)
}

/// Row `row` and column `k` of a, in signed bytes.
fn a(row: usize, k: usize) -> i64 {
    let word = words(4 * (row % 8) + k % 16 / 4)[row / 8 + 2 * (k / 16)];
    i64::from((word >> (8 * (k % 4))) as i8)
}

/// Row `k` and column `column` of b, of which a product of depth 16 has the first half.
fn b(k: usize, column: usize) -> i64 {
    let word = words(4 * column + k % 16 / 4)[4 + k / 16];
    i64::from((word >> (8 * (k % 4))) as i8)
}

#[test]
fn fragments_of_bytes_make_a_matrix_product() {
    let e = &emulator(1);
    let all: Vec<u32> = (0..32).flat_map(words).collect();
    let out = buffer(e, &[[0i32; 9]; 32]);
    // SAFETY: one warp, with ten words and nine results for each lane.
    let ran = unsafe {
        cuda_std_test_kernels::compare_mma_integers(e, &grid(1, 32), buffer(e, &all).cast().into(), out)
    };
    ran.unwrap();
    for (lane, found) in values(e, out, 32).into_iter().enumerate() {
        for i in 0..4 {
            let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
            let c = i64::from(words(lane)[6 + i] as i32);
            for (depth, found) in [(32, found[i]), (16, found[4 + i])] {
                let sum = c + (0..depth).map(|k| a(row, k) * b(k, column)).sum::<i64>();
                assert_eq!(found, sum as i32, "lane {lane}, sum {i}, depth {depth}");
            }
        }
        let [x, y, c] = [0, 4, 6].map(|word| words(lane)[word]);
        let bytes = x.to_le_bytes().into_iter().zip(y.to_le_bytes());
        let sum = bytes.map(|(x, y)| i64::from(x as i8) * i64::from(y as i8)).sum::<i64>();
        assert_eq!(found[8], (i64::from(c as i32) + sum) as i32, "lane {lane}: the sum of four products");
    }
}

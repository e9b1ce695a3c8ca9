use super::activations::Activations;
use super::codes::{Bytes64, Codes, Rows};
use super::dot::{Dot, Group, STEP};
use super::layouts::{Layout, Room};
use super::{BLOCK, takes};
use crate::cpu::kernels::{MatmulBlocks, MatmulKernels};
use crate::cpu::matmul::{matmul, matmul_stacked};
use crate::cpu::simd::{CodesKernel, DotKernel, Isa, LANES};
use crate::cpu::tensor::Tensor;
use crate::formats::{self, Blocks, MatrixFormat};
use crate::testing::Random;
use crate::weights::Matrix;
use std::marker::PhantomData;

fn taken() -> impl Iterator<Item = MatrixFormat> {
    MatrixFormat::ALL.iter().copied().filter(|&format| takes(format))
}

fn kernels(isa: Isa) -> MatmulKernels {
    MatmulKernels { isa, blocks: MatmulBlocks::Int8 }
}

fn random(name: &str, rows: usize, cols: usize) -> Tensor {
    let mut tensor = Tensor::new(rows, cols).unwrap();
    for (value, random) in tensor.values_mut().iter_mut().zip(Random::new(7, name)) {
        *value = random;
    }
    tensor
}

/// Blocks of random bytes whose values are all of ordinary size.
fn blocks(format: MatrixFormat, count: usize) -> Vec<u8> {
    let mut bytes = Random::new(11, format.name()).map(|value| (value.to_bits() >> 7) as u8);
    let mut values = vec![0.0; format.block_values()];
    let mut all = Vec::new();
    while all.len() < count * format.block_bytes() {
        let block: Vec<u8> = bytes.by_ref().take(format.block_bytes()).collect();
        format.decode(&block, &mut values);
        let largest =
            values.iter().fold(0.0, |largest: f32, x| if x.abs() <= largest { largest } else { x.abs() });
        if (1e-6..1e6).contains(&largest) {
            all.extend(block);
        }
    }
    all
}

/// Random weights that start at an odd address, and their values.
fn weight(format: MatrixFormat, rows: usize, cols: usize) -> (Matrix, Vec<f32>) {
    let mut bytes = vec![0u8];
    bytes.extend(blocks(format, rows * cols / format.block_values()));
    let mut values = vec![0.0; rows * cols];
    format.decode(&bytes[1..], &mut values);
    let data = bytes::Bytes::from(bytes).slice(1..);
    (Matrix { name: "weight".into(), format, rows, cols, scale: 1.0, data }, values)
}

/// Blocks of eight rows, unpacked.
#[derive(Debug, PartialEq)]
struct Unpacked {
    codes: Vec<u8>,
    scales: Vec<f32>,
    addends: Vec<f32>,
}

/// Unpacks a block of each row with the codes of a [`Dot`].
struct Unpack<'a, F>(&'a Rows, PhantomData<F>);

impl<F: Layout> CodesKernel for Unpack<'_, F> {
    type Output = Unpacked;

    #[inline(always)]
    unsafe fn run<C: Codes>(self) -> Unpacked {
        let values = F::Format::VALUES;
        let groups = values / (4 * F::Group::STEPS);
        let mut codes = vec![0xa5; values / 4 * STEP];
        let (mut scales, mut addends) = (vec![0.0; groups * LANES], vec![0.0; groups * LANES]);
        let room =
            Room { codes: codes.as_mut_ptr(), scales: scales.as_mut_ptr(), addends: addends.as_mut_ptr() };
        // SAFETY: there is room for the values of one block.
        unsafe { F::unpack::<C>(self.0, &room) };
        Unpacked { codes, scales, addends }
    }
}

fn unpacked_are_the_values_of<F: Layout>(format: MatrixFormat) {
    let (values, bytes) = (F::Format::VALUES, F::Format::BYTES);
    let data = blocks(format, LANES);
    let rows: Rows = std::array::from_fn(|r| data[r * bytes..].as_ptr());
    // SAFETY: there is a block in each row.
    let portable = unsafe { Unpack::<F>(&rows, PhantomData).run::<Bytes64>() };
    let mut expected = vec![0.0; LANES * values];
    format.decode(&data, &mut expected);
    for (i, expected) in expected.iter().enumerate() {
        let (row, k) = (i / values, i % values);
        let group = k / (4 * F::Group::STEPS);
        let code = portable.codes[k / 4 * STEP + 4 * row + k % 4];
        let code = if F::Group::LARGEST == 0 {
            f32::from(code as i8)
        } else {
            assert!(code <= F::Group::LARGEST, "{format}: code {code}");
            f32::from(code)
        };
        let addend = if F::Group::ADDENDS { portable.addends[group * LANES + row] } else { 0.0 };
        let value = portable.scales[group * LANES + row] * (code - f32::from(F::OFFSET)) + addend;
        assert_eq!(value, *expected, "{format}: row {row}, value {k}");
    }
    for isa in Isa::available() {
        // SAFETY: there is a block in each row.
        let found = unsafe { isa.run_codes(Unpack::<F>(&rows, PhantomData)) };
        assert!(found == portable, "{format} {isa:?}: {found:?} instead of {portable:?}");
    }
}

/// Blocks unpack to what they decode to, and to the same bytes with all instructions.
#[test]
fn blocks_are_unpacked_to_their_values() {
    macro_rules! each {
        ($($format:ident)*) => { $(unpacked_are_the_values_of::<formats::$format>(MatrixFormat::$format);)* };
    }
    for_each_layout!(each);
}

/// The sums of `N` rows of a group.
struct Sums<'a, G>(&'a Codes8, [&'a [i8]; 4], PhantomData<G>);

#[repr(align(64))]
struct Codes8([u8; 8 * STEP]);

impl<G: Group> DotKernel for Sums<'_, G> {
    type Output = [[f32; LANES]; 4];

    #[inline(always)]
    unsafe fn run<D: Dot>(self) -> Self::Output {
        let mut sums = [[0.0; LANES]; 4];
        // SAFETY: there are 8 steps, and 32 values of each row.
        unsafe {
            let dots = D::dot::<G, 4>(self.0.0.as_ptr(), self.1.map(|x| x.as_ptr()));
            for ((dot, sums), x) in dots.into_iter().zip(&mut sums).zip(self.1) {
                dot.store(sums.as_mut_ptr());
                let all: i32 = x[..4 * G::STEPS].iter().map(|&x| i32::from(x)).sum();
                let raised = if G::LARGEST == 0 { i32::from(D::RAISED) * all } else { 0 };
                sums.iter_mut().for_each(|sum| *sum -= raised as f32);
            }
        }
        sums
    }
}

/// Sums are exact with all instructions, at the extremes too: where 16 bits overflowed, they would not be.
#[test]
fn sums_of_groups_are_exact() {
    fn check<G: Group>() {
        let extremes = |seed, extremes: [i32; 2]| {
            let random = Random::new(seed, "extremes");
            random.map(move |x| match (x.abs() * 1e4) as u32 % 4 {
                0 | 1 => extremes[0],
                2 => extremes[1],
                _ => extremes[0] + (x.to_bits() >> 5) as i32 % (extremes[1] - extremes[0] + 1),
            })
        };
        let of_codes = if G::LARGEST == 0 { [-128, 127] } else { [i32::from(G::LARGEST), 0] };
        let of_codes = [of_codes[0].min(of_codes[1]), of_codes[0].max(of_codes[1])];
        for seed in 0..20 {
            let mut codes = Codes8([0; 8 * STEP]);
            codes.0.iter_mut().zip(extremes(seed, of_codes)).for_each(|(code, x)| *code = x as u8);
            if seed == 0 {
                codes.0.fill(of_codes[1] as u8);
            }
            let x: Vec<Vec<i8>> = (0..4)
                .map(|i| match (seed, i) {
                    (0, 0 | 1) => vec![[127, -127][i as usize]; BLOCK],
                    _ => extremes(100 + 4 * seed + i, [-127, 127]).take(BLOCK).map(|x| x as i8).collect(),
                })
                .collect();
            let x: [&[i8]; 4] = std::array::from_fn(|i| &x[i][..]);
            for isa in Isa::available() {
                // SAFETY: there are 8 steps, and 32 values of each row.
                let sums = unsafe { isa.run_dot(Sums::<G>(&codes, x, PhantomData)) };
                for (sums, x) in sums.iter().zip(x) {
                    for (lane, sum) in sums.iter().enumerate() {
                        let code = |k: usize| codes.0[k / 4 * STEP + 4 * lane + k % 4];
                        let signed =
                            |code: u8| if G::LARGEST == 0 { i32::from(code as i8) } else { i32::from(code) };
                        let terms = (0..4 * G::STEPS).map(|k| signed(code(k)) * i32::from(x[k]));
                        assert_eq!(*sum, terms.sum::<i32>() as f32, "{isa:?}, lane {lane}");
                    }
                }
            }
        }
    }
    macro_rules! each {
        ($($format:ident)*) => { $(check::<<formats::$format as Layout>::Group>();)* };
    }
    for_each_layout!(each);
}

#[test]
fn every_format_equals_a_sum_in_f64_and_every_row_equals_itself_alone() {
    for format in taken() {
        let (cols, n) = (if format.block_values() == 256 { 1280 } else { 1376 }, 19);
        for rows in [1, 37, 66] {
            let (weight, values) = weight(format, rows, cols);
            let x = random("x", n, cols);
            let mut held = Activations::default();
            held.hold(Isa::best(), &x, 0, n);
            let mut all = Vec::new();
            for isa in Isa::available() {
                // Poisoned, with one row more than is computed.
                let mut out = Tensor::new(n + 1, rows).unwrap();
                out.values_mut().fill(f32::NAN);
                matmul(kernels(isa), n, &x, &weight, &mut out).unwrap();
                assert!(out.row(n).iter().all(|v| v.is_nan()), "wrote behind the last row");
                for (i, o) in (0..n).flat_map(|i| (0..rows).map(move |o| (i, o))) {
                    let term = |k: usize| {
                        let step = f64::from(held.scales[(i * cols + k) / BLOCK]);
                        f64::from(held.values[i * cols + k]) * step * f64::from(values[o * cols + k])
                    };
                    let exact: f64 = (0..cols).map(term).sum();
                    // As many roundings as groups, and those of codes before their offset is taken off.
                    let tolerance = 4e-6 * (0..cols).map(|k| term(k).abs()).sum::<f64>();
                    let difference = (f64::from(out.row(i)[o]) - exact).abs();
                    let found = out.row(i)[o];
                    assert!(
                        difference <= tolerance,
                        "{format} {isa:?} {rows} rows, ({i}, {o}): {found}, not {exact}"
                    );
                }
                for n in [1, 2, 5, 8, 9, 12] {
                    let mut few = Tensor::new(n, rows).unwrap();
                    matmul(kernels(isa), n, &x, &weight, &mut few).unwrap();
                    assert_eq!(few.values(), out.first(n), "{format} {isa:?} {rows} rows: {n} differ");
                }
                if isa != Isa::PORTABLE {
                    all.push(out.first(n).to_vec());
                }
            }
            assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{format}: instructions differ");
        }
    }
}

#[test]
fn inputs_are_held_to_half_a_step_with_all_instructions() {
    let mut x = random("x", 3, 96);
    x.row_mut(1)[..32].fill(0.0);
    x.row_mut(1)[32..64].fill(1e-35);
    x.row_mut(1)[70] = -1e30;
    x.row_mut(2)[5] = f32::NAN;
    x.row_mut(2)[40] = f32::INFINITY;
    for isa in Isa::available() {
        let mut held = Activations::default();
        held.hold(isa, &x, 0, 3);
        for (i, x) in x.first(2).iter().enumerate() {
            let step = held.scales[i / BLOCK];
            let difference = (x - step * f32::from(held.values[i])).abs();
            assert!(difference <= 0.5001 * step || *x == 1e-35, "{isa:?}: {i}, {difference}, step {step}");
        }
        assert!(held.scales[6].is_nan() && held.scales[7] == f32::INFINITY, "{isa:?}");
        let sum =
            |of: usize, i: usize| held.values[of * i..][..of].iter().map(|&x| f32::from(x)).sum::<f32>();
        assert!(
            (0..18).all(|i| held.sums16[i] == sum(16, i)) && (0..9).all(|i| held.sums32[i] == sum(32, i))
        );
    }
}

/// More rows than are held at once, several matrices of which one is not in blocks, added.
#[test]
fn slabs_and_stacks_are_put_together() {
    let n = super::SLAB + 3;
    let x = random("x", n, 256);
    let parts =
        [MatrixFormat::Q4_K, MatrixFormat::F16, MatrixFormat::Q6_K].map(|format| match format.float() {
            None => weight(format, 18, 256).0,
            Some(_) => {
                let bytes = format.encode(random("w", 5, 256).values()).unwrap();
                Matrix { name: "f".into(), format, rows: 5, cols: 256, scale: 1.0, data: bytes.into() }
            }
        });
    let mut out = Tensor::new(n, 41).unwrap();
    out.values_mut().fill(1.0);
    matmul_stacked(kernels(Isa::best()), n, &x, &parts, true, &mut out).unwrap();
    let mut first = 0;
    for part in &parts {
        let mut alone = Tensor::new(n, part.rows).unwrap();
        matmul(kernels(Isa::best()), n, &x, part, &mut alone).unwrap();
        for i in 0..n {
            for (sum, alone) in out.row(i)[first..].iter().zip(alone.row(i)) {
                assert_eq!(*sum, alone + 1.0, "row {i}");
            }
        }
        first += part.rows;
    }
}

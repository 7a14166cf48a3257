use candle_core::{DType, Device, Tensor};

use super::*;
use crate::cpu::{
    Element,
    element::{as_numbers, as_words},
    finish::{Onto, To},
    kept::Kept,
    packed::{Order, Weight},
};

fn draw(shape: &[usize]) -> Tensor {
    Tensor::rand(-1f32, 1.0, shape, &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A weight `[n, k]` whose numbers have two bytes, kept so or as words.
fn packed(weight: &Tensor, kept: Kept) -> Packed {
    Packed::kept_as(kept, Weight::Tensor(weight), Element::F32, Order::Plain).unwrap()
}

fn product(by: By, rows: &[f32], item: usize, weight: &Packed) -> Vec<f32> {
    let count = rows.len() / weight.inputs;
    let rows = Rows { words: as_words(rows), count, stride: weight.inputs, item };
    let mut out = vec![f32::NAN; count * weight.columns];
    let to = To::Numbers { out: Target::new(&mut out), onto: Onto::Nothing };
    multiply_by(by, rows, weight, &Finish { to, bias: None, shift: None });
    out
}

/// The greatest difference from the product in f64, over its greatest number.
fn error(got: &[f32], rows: &Tensor, weight: &Tensor) -> f64 {
    let [rows, weight] = [rows, weight].map(|tensor| tensor.to_dtype(DType::F64).unwrap());
    let exact = rows.matmul(&weight.t().unwrap()).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert_eq!(got.len(), exact.len());
    let most = exact.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    // NaN is lost by `max`.
    let difference = |(got, exact): (&f32, &f64)| (f64::from(*got) - exact).abs();
    let all = got.iter().zip(&exact).map(difference);
    assert!(got.iter().all(|x| x.is_finite()));
    all.fold(0.0, f64::max) / most
}

#[test]
fn no_rows_are_no_rows() {
    let packed = packed(&draw(&[64, 8]), Kept::Words);
    for by in [By::Whole, By::Quarters] {
        assert!(product(by, &[], 1, &packed).is_empty());
    }
}

/// Rows that fill no block, sums in several parts, more rows than are under way at once.
#[test]
fn products_equal_the_textbook_whole_and_by_quarters() {
    for (count, inputs, columns) in
        [(2, 4, 64), (30, 96, 64), (28, 1320, 128), (90, 64, 320), (6000, 2560, 64)]
    {
        let (rows, weight) = (draw(&[count, inputs]), draw(&[columns, inputs]));
        let packed = packed(&weight, Kept::Words);
        // What rounding adds up to, by chance.
        let once = f64::from(f32::EPSILON) * (inputs.max(16) as f64).sqrt();
        for (by, tolerance) in [(By::Whole, once), (By::Quarters, 3.0 * once)] {
            let error = error(&product(by, &numbers(&rows), 2, &packed), &rows, &weight);
            assert!(error < tolerance, "{count} x {inputs} x {columns} {by:?}: {error:e}");
        }
    }
}

/// By quarters a row beside a much larger one has its neighbour's rounding, and no more than that.
#[test]
fn a_row_beside_a_large_one_is_off_by_what_that_is_rounded_by() {
    let (inputs, columns) = (640, 64);
    let weight = draw(&[columns, inputs]);
    let mut rows = numbers(&draw(&[4, inputs]));
    rows[..inputs].iter_mut().for_each(|x| *x *= 1000.0);
    let packed = packed(&weight, Kept::Words);
    let [whole, quarters] = [By::Whole, By::Quarters].map(|by| product(by, &rows, 4, &packed));
    let apart = |row: usize| {
        let of = |all: &[f32]| all[row * columns..][..columns].to_vec();
        of(&whole).iter().zip(of(&quarters)).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()))
    };
    let most = whole[..columns].iter().fold(0.0, |most: f32, x| most.max(x.abs()));
    assert!(apart(1) <= 1e-5 * most, "{:e} of {most}", apart(1));
    // Others are as ever.
    assert!(apart(2).max(apart(3)) <= 1e-5 * most / 1000.0);
}

/// What shares a batch with an item, and how many threads there are, changes none of its bits; nor does how its weight is
/// kept.
#[test]
fn an_item_is_its_own_by_quarters() {
    let (item, inputs, columns) = (66, 660, 192);
    let weight = draw(&[columns, inputs]).to_dtype(DType::F16).unwrap().to_dtype(DType::F32).unwrap();
    let rows = numbers(&draw(&[3 * item, inputs]));
    let of = |rows: &[f32], kept| {
        let all = product(By::Quarters, rows, item, &packed(&weight, kept));
        all.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let all = of(&rows, Kept::Words);
    assert_eq!(of(&rows, Kept::F16), all);
    for (rows, all) in rows.chunks_exact(item * inputs).zip(all.chunks_exact(item * columns)) {
        assert_eq!(of(rows, Kept::F16), all);
    }
    for threads in [1, 3, 16] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| of(&rows, Kept::F16)), all, "{threads} threads");
    }
}

/// Rows are computed with a neighbour only where it is the same item's, whatever the batch.
#[test]
fn neighbours_are_of_one_item() {
    let best = |item, columns, inputs| strassen::best(item, &packed(&draw(&[columns, inputs]), Kept::Words));
    assert_eq!(best(256, 640, 640), By::Quarters);
    assert_eq!(best(64, 512, 2048), By::Quarters);
    for (item, columns, inputs) in [
        (1, 640, 640),
        (77, 640, 640),
        (255, 640, 640),
        (32, 640, 640),
        (256, 640, 500),
        (256, 648, 640),
        (256, 320, 640),
    ] {
        assert_eq!(best(item, columns, inputs), By::Whole, "{item} rows of {inputs} to {columns}");
    }
}

/// The same numbers by vectors, where there are any, as by loops, for as many rows as a block can have.
#[test]
fn kernels_give_the_same_bits() {
    let depth = 37;
    let (left, right) = (numbers(&draw(&[depth, HIGH])), numbers(&draw(&[2, depth + 1, LANES])));
    let right = Right { words: as_words(&right), panel: (depth + 1) * LANES };
    let before = numbers(&draw(&[HIGH, 40]));
    for (rows, panels, accumulate) in
        (1..=HIGH).flat_map(|rows| [(rows, 1, false), (rows, 2, false), (rows, 2, true)])
    {
        let [mut by_loops, mut out] = [before.clone(), before.clone()];
        let (left, right) = ((as_words(&left), rows), (right, panels));
        portable::turned_block(left, right, depth, (&mut by_loops, 40), accumulate);
        block(Element::F32, left, right, depth, (&mut out, 40), accumulate);
        let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&out), bits(&by_loops), "{rows} rows, {panels} panels");
        let touched = by_loops.iter().zip(&before).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(touched, rows * panels * LANES);
    }
}

/// Of bf16 the same numbers as of rows that lie as they are.
#[cfg(target_arch = "x86_64")]
#[test]
fn kernels_of_bf16_give_the_same_bits() {
    if !isa::multiplies_bf16() {
        return;
    }
    let depth = 37;
    let pairs = |shape: &[usize]| -> Vec<u32> {
        let halves = numbers(&draw(shape)).into_iter().map(|x| x.to_bits() >> 16).collect::<Vec<_>>();
        halves.as_chunks::<2>().0.iter().map(|[low, high]| high << 16 | low).collect()
    };
    let (lines, right) = (pairs(&[HIGH + 2, 2 * depth]), pairs(&[2, depth + 1, 2 * LANES]));
    let right = Right { words: &right, panel: (depth + 1) * LANES };
    let mut left = vec![0; HIGH * depth];
    turn((&lines, depth), [HIGH, depth], &mut left);
    let before = numbers(&draw(&[HIGH, 40]));
    for (rows, panels, accumulate) in
        (1..=HIGH).flat_map(|rows| [(rows, 1, false), (rows, 2, false), (rows, 2, true)])
    {
        let [mut by_lines, mut out] = [before.clone(), before.clone()];
        let lines = product::Left { words: &lines, stride: depth };
        let along = (&[product::Segment { a: 0, b: 0 }][..], depth);
        avx512::block(Element::Bf16, (lines, rows), (right, panels), along, (&mut by_lines, 40), accumulate);
        block(Element::Bf16, (&left, rows), (right, panels), depth, (&mut out, 40), accumulate);
        let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&out), bits(&by_lines), "{rows} rows, {panels} panels");
    }
}

/// Full blocks go through another path than others, and so do the last rows of all.
#[test]
fn rows_are_turned() {
    let (stride, depth) = (70, 50);
    for (rows, behind) in [(HIGH, 0), (HIGH, 3), (5, 0), (1, 0)] {
        let lines = numbers(&draw(&[(rows + behind) * stride]));
        let mut out = vec![0; HIGH * depth];
        turn((as_words(&lines), stride), [rows, depth], &mut out);
        let out = as_numbers(&out);
        for (k, i) in (0..depth).flat_map(|k| (0..rows).map(move |i| (k, i))) {
            assert_eq!(
                out[k * HIGH + i].to_bits(),
                lines[i * stride + k].to_bits(),
                "row {i}, number {k} of {rows}"
            );
        }
    }
}

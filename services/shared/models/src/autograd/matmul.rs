//! One matrix product over views of f32 slices, in f32 or with factors rounded to bf16.
#![expect(unsafe_code, reason = "gemm takes pointers, and bf16 needs instructions asked for at run time")]

use super::Precision;
#[cfg(target_arch = "x86_64")]
use super::amx;

/// A matrix in a slice: element `[i, j]` lies at `i * rows + j * columns`.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) data: &'a [f32],
    /// Elements from row to row.
    pub(super) rows: usize,
    /// Elements from column to column; one of the two is 1.
    pub(super) columns: usize,
}

impl<'a> View<'a> {
    /// Row by row, each `stride` after the one before.
    pub(super) fn new(data: &'a [f32], stride: usize) -> Self {
        Self { data, rows: stride, columns: 1 }
    }

    /// The same elements with rows and columns exchanged.
    pub(super) fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, ..self }
    }

    fn holds(&self, [m, n]: [usize; 2]) -> bool {
        m == 0 || n == 0 || (m - 1) * self.rows + (n - 1) * self.columns < self.data.len()
    }
}

/// Where a product goes: row by row, each `stride` after the one before.
pub(super) struct Target<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) stride: usize,
    /// Whether the product is added to what is there.
    pub(super) accumulate: bool,
}

impl<'a> Target<'a> {
    /// Overwrites `data`.
    pub(super) fn new(data: &'a mut [f32], stride: usize) -> Self {
        Self { data, stride, accumulate: false }
    }
}

/// `a` `[m, k]` times `b` `[k, n]` into `out` `[m, n]`, on this thread alone.
pub(super) fn matmul(
    [m, n, k]: [usize; 3],
    a: View<'_>,
    b: View<'_>,
    out: &mut Target<'_>,
    precision: Precision,
) {
    assert!(a.holds([m, k]) && b.holds([k, n]), "a factor is smaller than {m} x {k} x {n}");
    assert!(m == 0 || n == 0 || (m - 1) * out.stride + n <= out.data.len());
    #[cfg(target_arch = "x86_64")]
    if precision == Precision::Bf16 && amx::available() {
        return tiled([m, n, k], a, b, out);
    }
    let _ = precision;
    let step = |n: usize| isize::try_from(n).unwrap_or(isize::MAX);
    // SAFETY: the assertions above keep every element that gemm reads and writes within its slice.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.data.as_mut_ptr(),
            1,
            step(out.stride),
            out.accumulate,
            a.data.as_ptr(),
            step(a.columns),
            step(a.rows),
            b.data.as_ptr(),
            step(b.columns),
            step(b.rows),
            1.0_f32,
            1.0_f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(target_arch = "x86_64")]
fn tiled([m, n, k]: [usize; 3], a: View<'_>, b: View<'_>, out: &mut Target<'_>) {
    let left = packed_left(a, m, k);
    let right = packed_right(b, k, n);
    let depth = k.next_multiple_of(amx::DEPTH);
    let columns = n.next_multiple_of(amx::TILE);
    let left = amx::Left { data: amx::halves(&left), stride: depth };
    let right = amx::Right { data: &right, stride: columns };
    multiply([m, n, depth], left, right, out);
}

/// A packed `left` `[m, depth]` times a packed `right` `[depth, n]`.
#[cfg(target_arch = "x86_64")]
fn multiply([m, n, depth]: [usize; 3], left: amx::Left<'_>, right: amx::Right<'_>, out: &mut Target<'_>) {
    const SIDE: usize = 2 * amx::TILE;
    let mut edge = [0_f32; SIDE * SIDE];
    for column in (0..n).step_by(SIDE) {
        let width = (n - column).min(SIDE);
        for row in (0..m).step_by(SIDE) {
            let height = (m - row).min(SIDE);
            let at = [amx::Segment { a: row * left.stride, b: column }];
            let whole = height.is_multiple_of(amx::TILE) && width.is_multiple_of(amx::TILE) && !out.accumulate;
            let first = row * out.stride + column;
            let mut block = if whole {
                amx::Block { data: &mut *out.data, at: first, stride: out.stride }
            } else {
                amx::Block { data: &mut edge, at: 0, stride: SIDE }
            };
            match (height > amx::TILE, width > amx::TILE) {
                (true, true) => amx::block::<2, 2>(left, right, &at, depth, &mut block),
                (true, false) => amx::block::<2, 1>(left, right, &at, depth, &mut block),
                (false, true) => amx::block::<1, 2>(left, right, &at, depth, &mut block),
                (false, false) => amx::block::<1, 1>(left, right, &at, depth, &mut block),
            }
            if whole {
                continue;
            }
            for (i, line) in edge.chunks_exact(SIDE).take(height).enumerate() {
                let target = &mut out.data[first + i * out.stride..][..width];
                if out.accumulate {
                    target.iter_mut().zip(line).for_each(|(t, v)| *t += v);
                } else {
                    target.copy_from_slice(&line[..width]);
                }
            }
        }
    }
}

/// `[m, k]` as `[m rounded up, k rounded up]` in bf16.
#[cfg(target_arch = "x86_64")]
fn packed_left(a: View<'_>, m: usize, k: usize) -> Vec<u32> {
    let (rows, depth) = (m.next_multiple_of(amx::TILE), k.next_multiple_of(amx::DEPTH));
    let mut packed = vec![0_u32; rows * depth / 2];
    if a.columns == 1 {
        for (i, out) in amx::halves_mut(&mut packed).chunks_exact_mut(depth).take(m).enumerate() {
            // SAFETY: packing is only reached where `amx::available` has found the instructions.
            unsafe { amx::round(&a.data[i * a.rows..][..k], out) };
        }
        return packed;
    }
    // Rows lie as columns: pairs of them are interleaved, and blocks of pairs turned over.
    assert!(a.rows == 1, "one stride of a factor is 1");
    let mut pairs = vec![0_u32; amx::TILE * rows];
    for pair in (0..depth / 2).step_by(amx::TILE) {
        for (j, out) in pairs.chunks_exact_mut(rows).enumerate() {
            interleaved(a.data, a.columns, [2 * (pair + j), k], m, out);
        }
        for row in (0..rows).step_by(amx::TILE) {
            // SAFETY: as above.
            unsafe { amx::transpose(&pairs[row..], rows, &mut packed[row * depth / 2 + pair..], depth / 2) };
        }
    }
    packed
}

/// `[k, n]` as `[k rounded up / 2, n rounded up]` pairs.
#[cfg(target_arch = "x86_64")]
fn packed_right(b: View<'_>, k: usize, n: usize) -> Vec<u32> {
    let (depth, columns) = (k.next_multiple_of(amx::DEPTH), n.next_multiple_of(amx::TILE));
    let mut packed = vec![0_u32; depth / 2 * columns];
    if b.columns == 1 {
        for (pair, out) in packed.chunks_exact_mut(columns).enumerate() {
            interleaved(b.data, b.rows, [2 * pair, k], n, out);
        }
        return packed;
    }
    assert!(b.rows == 1, "one stride of a factor is 1");
    let mut lines = vec![0_u32; amx::TILE * depth / 2];
    for column in (0..columns).step_by(amx::TILE) {
        lines.fill(0);
        for (j, line) in lines.chunks_exact_mut(depth / 2).enumerate().take(n.saturating_sub(column)) {
            // SAFETY: as in `packed_left`.
            unsafe { amx::round(&b.data[(column + j) * b.columns..][..k], amx::halves_mut(line)) };
        }
        for pair in (0..depth / 2).step_by(amx::TILE) {
            // SAFETY: as in `packed_left`.
            unsafe { amx::transpose(&lines[pair..], depth / 2, &mut packed[pair * columns + column..], columns) };
        }
    }
    packed
}

/// Rows `row` and `row + 1`, of `rows` in all, each of `len` elements `stride` apart from the next, as pairs.
#[cfg(target_arch = "x86_64")]
fn interleaved(data: &[f32], stride: usize, [row, rows]: [usize; 2], len: usize, out: &mut [u32]) {
    let line = |row: usize| if row < rows { &data[row * stride..][..len] } else { &[] };
    // SAFETY: as in `packed_left`.
    unsafe { amx::interleave(line(row), line(row + 1), out) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(n: usize, seed: u64) -> Vec<f32> {
        crate::noise::TorchGenerator::new(seed).randn(n)
    }

    fn textbook([m, n, k]: [usize; 3], a: View<'_>, b: View<'_>) -> Vec<f32> {
        let at = |v: View<'_>, i: usize, j: usize| f64::from(v.data[i * v.rows + j * v.columns]);
        let element = |i, j| (0..k).map(|d| at(a, i, d) * at(b, d, j)).sum::<f64>() as f32;
        (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| element(i, j)).collect()
    }

    #[test]
    fn equals_the_textbook_in_every_layout() {
        for [m, n, k] in [[1, 1, 1], [16, 16, 32], [32, 32, 64], [33, 47, 65], [5, 100, 31], [77, 20, 130]] {
            let (a, b) = (draw(m * k, 1), draw(k * n, 2));
            for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
                let a = if ta { View::new(&a, m).transposed() } else { View::new(&a, k) };
                let b = if tb { View::new(&b, k).transposed() } else { View::new(&b, n) };
                let expected = textbook([m, n, k], a, b);
                for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 1.5e-2)] {
                    for accumulate in [false, true] {
                        let mut got = vec![0.5; m * n];
                        let mut target = Target { accumulate, ..Target::new(&mut got, n) };
                        matmul([m, n, k], a, b, &mut target, precision);
                        let shift = if accumulate { 0.5 } else { 0.0 };
                        for (got, expected) in got.iter().zip(&expected) {
                            let error = (got - expected - shift).abs() / (k as f32).sqrt();
                            assert!(error <= tolerance, "{m} {n} {k} {ta} {tb} {precision:?}: {error}");
                        }
                    }
                }
            }
        }
    }
}

//! Matrix products over views of f32 slices, in f32 or with factors rounded to bf16. A factor is made ready once, however
//! many products it goes into.
#![expect(unsafe_code, reason = "gemm takes pointers, and bf16 needs instructions asked for at run time")]

use super::Precision;
#[cfg(target_arch = "x86_64")]
use super::scratch::Scratch;
#[cfg(target_arch = "x86_64")]
use crate::cpu::amx;

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
    /// Whether columns up to the next multiple of 16 may be overwritten.
    roomy: bool,
}

impl<'a> Target<'a> {
    /// Overwrites `data`.
    pub(super) fn new(data: &'a mut [f32], stride: usize) -> Self {
        Self { data, stride, accumulate: false, roomy: false }
    }

    /// Adds to `data`.
    pub(super) fn sum(data: &'a mut [f32], stride: usize) -> Self {
        Self { accumulate: true, ..Self::new(data, stride) }
    }

    /// Overwrites `data`, and what stands between rows.
    pub(super) fn roomy(data: &'a mut [f32], stride: usize) -> Self {
        Self { roomy: true, ..Self::new(data, stride) }
    }
}

/// A factor as it is, or packed for the matrix unit.
#[derive(Debug)]
enum Form<'a> {
    Plain(View<'a>),
    #[cfg(target_arch = "x86_64")]
    Tiled(Scratch<u32>),
}

/// A left factor `[m, k]`, ready.
#[derive(Debug)]
pub(super) struct Left<'a> {
    sizes: [usize; 2],
    form: Form<'a>,
}

/// A right factor `[k, n]`, ready.
#[derive(Debug)]
pub(super) struct Right<'a> {
    sizes: [usize; 2],
    form: Form<'a>,
}

impl<'a> Left<'a> {
    /// The `[m, k]` elements of `view`.
    pub(super) fn new(view: View<'a>, sizes: [usize; 2], precision: Precision) -> Self {
        assert!(view.holds(sizes), "a left factor is smaller than {sizes:?}");
        #[cfg(target_arch = "x86_64")]
        if precision == Precision::Bf16 && amx::available() {
            return Self { sizes, form: Form::Tiled(packed_left(view, sizes)) };
        }
        let _ = precision;
        Self { sizes, form: Form::Plain(view) }
    }
}

impl<'a> Right<'a> {
    /// The `[k, n]` elements of `view`.
    pub(super) fn new(view: View<'a>, sizes: [usize; 2], precision: Precision) -> Self {
        assert!(view.holds(sizes), "a right factor is smaller than {sizes:?}");
        #[cfg(target_arch = "x86_64")]
        if precision == Precision::Bf16 && amx::available() {
            return Self { sizes, form: Form::Tiled(packed_right(view, sizes)) };
        }
        let _ = precision;
        Self { sizes, form: Form::Plain(view) }
    }
}

/// `left` `[m, k]` times `right` `[k, n]` into `out` `[m, n]`, on this thread alone.
pub(super) fn product(left: &Left<'_>, right: &Right<'_>, out: &mut Target<'_>) {
    let ([m, k], [depth, n]) = (left.sizes, right.sizes);
    assert!(k == depth, "factors of {k} columns and {depth} rows");
    assert!(m == 0 || n == 0 || (n <= out.stride && (m - 1) * out.stride + n <= out.data.len()));
    match (&left.form, &right.form) {
        (Form::Plain(a), Form::Plain(b)) => plain([m, n, k], *a, *b, out),
        #[cfg(target_arch = "x86_64")]
        (Form::Tiled(a), Form::Tiled(b)) => tiled([m, n, k], a, b, out),
        #[cfg(target_arch = "x86_64")]
        _ => unreachable!("factors of two precisions"),
    }
}

/// `a` `[m, k]` times `b` `[k, n]` into `out` `[m, n]`, as [`product`].
pub(super) fn matmul(
    [m, n, k]: [usize; 3],
    a: View<'_>,
    b: View<'_>,
    out: &mut Target<'_>,
    precision: Precision,
) {
    product(&Left::new(a, [m, k], precision), &Right::new(b, [k, n], precision), out);
}

fn plain([m, n, k]: [usize; 3], a: View<'_>, b: View<'_>, out: &mut Target<'_>) {
    assert!(a.holds([m, k]) && b.holds([k, n]));
    let step = |n: usize| isize::try_from(n).unwrap_or(isize::MAX);
    // SAFETY: the assertion above and the caller's keep every element that gemm reads and writes within its slice.
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

/// Pairs from one panel of a right factor to the next. One row more than are used, lest all panels fall into the same
/// few lines of the cache.
#[cfg(target_arch = "x86_64")]
fn panel(k: usize) -> usize {
    (k.next_multiple_of(amx::DEPTH) / 2 + 1) * amx::TILE
}

/// The product of packed factors.
#[cfg(target_arch = "x86_64")]
fn tiled([m, n, k]: [usize; 3], left: &[u32], right: &[u32], out: &mut Target<'_>) {
    const SIDE: usize = 2 * amx::TILE;
    let depth = k.next_multiple_of(amx::DEPTH);
    let left = amx::Left { data: amx::halves(left), stride: depth };
    let right = amx::Right { data: right, stride: amx::TILE, panel: panel(k) };
    let mut edge = [0_f32; SIDE * SIDE];
    for column in (0..n).step_by(SIDE) {
        let width = (n - column).min(SIDE);
        let wide = width.next_multiple_of(amx::TILE);
        for row in (0..m).step_by(SIDE) {
            let height = (m - row).min(SIDE);
            let high = height.next_multiple_of(amx::TILE);
            let at = [amx::Segment { a: row * depth, b: column / amx::TILE * right.panel }];
            let first = row * out.stride + column;
            let fits = width == wide || out.roomy && column + wide <= out.stride;
            if fits && height == high && first + (height - 1) * out.stride + wide <= out.data.len() {
                let (stride, accumulate) = (out.stride, out.accumulate);
                let mut block = amx::Block { data: &mut *out.data, at: first, stride, accumulate };
                amx::blocks(left, right, &at, depth, [height, width], &mut block);
                continue;
            }
            let mut block = amx::Block { data: &mut edge, at: 0, stride: SIDE, accumulate: false };
            amx::blocks(left, right, &at, depth, [height, width], &mut block);
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

/// `[m, k]` as `[m rounded up, k rounded up]` in bf16. What stands in rows beyond the last does not matter, what stands
/// in columns beyond is zero.
#[cfg(target_arch = "x86_64")]
pub(super) fn packed_left(a: View<'_>, [m, k]: [usize; 2]) -> Scratch<u32> {
    let (rows, depth) = (m.next_multiple_of(amx::TILE), k.next_multiple_of(amx::DEPTH));
    let mut packed = Scratch::stale(rows * depth / 2);
    if a.columns == 1 {
        for (i, out) in amx::halves_mut(&mut packed).chunks_exact_mut(depth).take(m).enumerate() {
            // SAFETY: packing is only reached where `amx::available` has found the instructions.
            unsafe { amx::round(&a.data[i * a.rows..][..k], out) };
            out[k..].fill(0);
        }
        return packed;
    }
    // Rows lie as columns: pairs of them are interleaved, and blocks of pairs turned over.
    assert!(a.rows == 1, "one stride of a factor is 1");
    let mut pairs = Scratch::stale(amx::TILE * rows);
    for pair in (0..depth / 2).step_by(amx::TILE) {
        for (j, out) in pairs.chunks_exact_mut(rows).enumerate() {
            interleaved(a.transposed(), [2 * (pair + j), k], m, out, amx::TILE);
        }
        for row in (0..rows).step_by(amx::TILE) {
            // SAFETY: as above.
            unsafe { amx::transpose(&pairs[row..], rows, &mut packed[row * depth / 2 + pair..], depth / 2) };
        }
    }
    packed
}

/// `[k, n]` as panels of 16 columns, each `[k rounded up / 2, 16]` pairs. What stands in columns beyond the last does
/// not matter, what stands in rows beyond is zero.
#[cfg(target_arch = "x86_64")]
fn packed_right(b: View<'_>, [k, n]: [usize; 2]) -> Scratch<u32> {
    let (depth, panel) = (k.next_multiple_of(amx::DEPTH), panel(k));
    let mut packed = Scratch::stale(n.div_ceil(amx::TILE) * panel);
    if b.columns == 1 {
        for pair in 0..depth / 2 {
            interleaved(b, [2 * pair, k], n, &mut packed[pair * amx::TILE..], panel);
        }
        return packed;
    }
    assert!(b.rows == 1, "one stride of a factor is 1");
    let mut lines = Scratch::<u32>::stale(amx::TILE * depth / 2);
    for (column, packed) in (0..n).step_by(amx::TILE).zip(packed.chunks_exact_mut(panel)) {
        for (j, line) in lines.chunks_exact_mut(depth / 2).enumerate().take(n - column) {
            let line = amx::halves_mut(line);
            // SAFETY: as in `packed_left`.
            unsafe { amx::round(&b.data[(column + j) * b.columns..][..k], line) };
            line[k..].fill(0);
        }
        for pair in (0..depth / 2).step_by(amx::TILE) {
            // SAFETY: as in `packed_left`.
            unsafe { amx::transpose(&lines[pair..], depth / 2, &mut packed[pair * amx::TILE..], amx::TILE) };
        }
    }
    packed
}

/// Rows `row` and `row + 1` of `view`, of `rows` in all and `len` long, as pairs in panels; zeros beyond the last row.
#[cfg(target_arch = "x86_64")]
fn interleaved(view: View<'_>, [row, rows]: [usize; 2], len: usize, out: &mut [u32], panel: usize) {
    let line = |row: usize| if row < rows { &view.data[row * view.rows..][..len] } else { &[] };
    if row >= rows {
        let panels = (0..len).step_by(amx::TILE).map(|at| (at / amx::TILE * panel, amx::TILE.min(len - at)));
        panels.for_each(|(at, len)| out[at..at + len].fill(0));
        return;
    }
    // SAFETY: as in `packed_left`.
    unsafe { amx::interleave(line(row), line(row + 1), out, panel) };
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
                        let target = if accumulate { Target::sum } else { Target::new };
                        let mut target = target(&mut got, n);
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

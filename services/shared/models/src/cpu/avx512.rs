//! Blocks of products with AVX-512, of f32 and, where the processor multiplies them, of bf16.
#![expect(unsafe_code, reason = "vector intrinsics; see `block`")]

use std::arch::x86_64::*;

use super::{
    element::Element,
    product::{LANES, Left, Right, Segment},
};

/// Rows whose sums are held in registers at once, with two vectors a row.
pub(super) const ROWS: usize = 14;

/// [`super::product::block`] on vectors.
pub(super) fn block(
    element: Element,
    (left, rows): (Left<'_>, usize),
    (right, panels): (Right<'_>, usize),
    (segments, depth): (&[Segment], usize),
    (out, stride): (&mut [f32], usize),
    accumulate: bool,
) {
    assert!((1..=2).contains(&panels) && rows > 0 && depth > 0);
    for s in segments {
        assert!(s.a + (rows - 1) * left.stride + depth <= left.words.len());
        assert!(s.b + (panels - 1) * right.panel + depth * LANES <= right.words.len());
    }
    assert!((rows - 1) * stride + panels * LANES <= out.len());
    let (mut done, to) = (0, (stride, accumulate));
    while done < rows {
        let count = match rows - done {
            n if n >= ROWS => ROWS,
            n if n >= 8 => 8,
            n if n >= 4 => 4,
            n if n >= 2 => 2,
            _ => 1,
        };
        // SAFETY: `isa` has found the instructions, those for bf16 where there is such an element. The assertions keep
        // `depth` words of each row and `depth` vectors of each panel within their slices, and the result likewise.
        unsafe {
            let (left, out) =
                (Left { words: &left.words[done * left.stride..], ..left }, &mut out[done * stride..]);
            match (element, panels) {
                (Element::F32, 1) => rows_of::<false, 1>(count, left, right, segments, depth, out, to),
                (Element::F32, _) => rows_of::<false, 2>(count, left, right, segments, depth, out, to),
                (Element::Bf16, 1) => rows_of::<true, 1>(count, left, right, segments, depth, out, to),
                (Element::Bf16, _) => rows_of::<true, 2>(count, left, right, segments, depth, out, to),
            }
        }
        done += count;
    }
}

/// # Safety
/// As said in [`block`].
#[expect(clippy::too_many_arguments, reason = "a choice of a compiled copy")]
unsafe fn rows_of<const BF16: bool, const PANELS: usize>(
    count: usize,
    left: Left<'_>,
    right: Right<'_>,
    segments: &[Segment],
    depth: usize,
    out: &mut [f32],
    to: (usize, bool),
) {
    // SAFETY: the caller's.
    unsafe {
        match (BF16, count) {
            (false, ROWS) => f32_rows::<ROWS, PANELS>(left, right, segments, depth, out, to),
            (false, 8) => f32_rows::<8, PANELS>(left, right, segments, depth, out, to),
            (false, 4) => f32_rows::<4, PANELS>(left, right, segments, depth, out, to),
            (false, 2) => f32_rows::<2, PANELS>(left, right, segments, depth, out, to),
            (false, _) => f32_rows::<1, PANELS>(left, right, segments, depth, out, to),
            (true, ROWS) => bf16_rows::<ROWS, PANELS>(left, right, segments, depth, out, to),
            (true, 8) => bf16_rows::<8, PANELS>(left, right, segments, depth, out, to),
            (true, 4) => bf16_rows::<4, PANELS>(left, right, segments, depth, out, to),
            (true, 2) => bf16_rows::<2, PANELS>(left, right, segments, depth, out, to),
            (true, _) => bf16_rows::<1, PANELS>(left, right, segments, depth, out, to),
        }
    }
}

/// Defines the loop over `R` rows and `P` vectors of columns, by a product of one word of each row.
macro_rules! rows {
    ($name:ident, $features:literal, $multiply:expr) => {
        /// # Safety
        /// As said in [`block`].
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize, const P: usize>(
            left: Left<'_>,
            right: Right<'_>,
            segments: &[Segment],
            depth: usize,
            out: &mut [f32],
            (stride, accumulate): (usize, bool),
        ) {
            // SAFETY: the caller's.
            unsafe {
                let mut sums = [[_mm512_setzero_ps(); P]; R];
                if accumulate {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        for (p, sum) in sums.iter_mut().enumerate() {
                            *sum = _mm512_loadu_ps(out.as_ptr().add(r * stride + p * LANES));
                        }
                    }
                }
                // Plain loops and wrapping sums, which stay in registers in builds that check others.
                for s in segments {
                    let mut row = left.words.as_ptr().wrapping_add(s.a);
                    let mut column = right.words.as_ptr().wrapping_add(s.b);
                    let end = row.wrapping_add(depth);
                    while row != end {
                        let mut columns = [_mm512_setzero_si512(); P];
                        let mut p = 0;
                        while p < P {
                            columns[p] =
                                _mm512_loadu_si512(column.wrapping_add(p.wrapping_mul(right.panel)).cast());
                            p = p.wrapping_add(1);
                        }
                        let mut r = 0;
                        while r < R {
                            let word = row.wrapping_add(r.wrapping_mul(left.stride)).read();
                            let word = _mm512_set1_epi32(word.cast_signed());
                            let mut p = 0;
                            while p < P {
                                sums[r][p] = $multiply(word, columns[p], sums[r][p]);
                                p = p.wrapping_add(1);
                            }
                            r = r.wrapping_add(1);
                        }
                        row = row.wrapping_add(1);
                        column = column.wrapping_add(LANES);
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    for (p, sum) in sums.iter().enumerate() {
                        _mm512_storeu_ps(out.as_mut_ptr().add(r * stride + p * LANES), *sum);
                    }
                }
            }
        }
    };
}

rows!(f32_rows, "avx512f,avx512bw,avx512vl,avx512dq,fma", |row, column, sum| {
    _mm512_fmadd_ps(_mm512_castsi512_ps(row), _mm512_castsi512_ps(column), sum)
});
rows!(
    bf16_rows,
    "avx512f,avx512bw,avx512vl,avx512dq,fma,avx512bf16",
    |row: __m512i, column: __m512i, sum| {
        _mm512_dpbf16_ps(
            sum,
            std::mem::transmute::<__m512i, __m512bh>(row),
            std::mem::transmute::<__m512i, __m512bh>(column),
        )
    }
);

//! Blocks of products with AVX-512, of f32 and, where the processor multiplies them, of bf16.
#![expect(unsafe_code, reason = "vector intrinsics; see `block`")]

use std::arch::{asm, x86_64::*};

use super::{
    amx,
    element::Element,
    product::{LANES, Left, Right, Segment},
    turned::HIGH,
};

/// Rows whose sums are held in registers at once, with two vectors a row.
pub(super) const ROWS: usize = HIGH;

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

/// The product of words that are f32, added to `sum`.
#[target_feature(enable = "avx512f")]
#[inline]
fn product_of_f32(row: __m512i, column: __m512i, sum: __m512) -> __m512 {
    _mm512_fmadd_ps(_mm512_castsi512_ps(row), _mm512_castsi512_ps(column), sum)
}

/// The products of words' pairs of bf16, added to `sum`.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn product_of_bf16(row: __m512i, column: __m512i, sum: __m512) -> __m512 {
    // SAFETY: the same bits under another name.
    let pairs = |words| unsafe { std::mem::transmute::<__m512i, __m512bh>(words) };
    _mm512_dpbf16_ps(sum, pairs(row), pairs(column))
}

rows!(f32_rows, "avx512f,avx512bw,avx512vl,avx512dq,fma", product_of_f32);
rows!(bf16_rows, "avx512f,avx512bw,avx512vl,avx512dq,fma,avx512bf16", product_of_bf16);

/// [`super::turned::block`] on vectors.
pub(super) fn turned_block(
    element: Element,
    (left, rows): (&[u32], usize),
    (right, panels): (Right<'_>, usize),
    depth: usize,
    (out, stride): (&mut [f32], usize),
    accumulate: bool,
) {
    assert!((1..=2).contains(&panels) && (1..=HIGH).contains(&rows) && HIGH * depth <= left.len());
    assert!((panels - 1) * right.panel + depth * LANES <= right.words.len());
    assert!((rows - 1) * stride + panels * LANES <= out.len());
    macro_rules! with_rows {
        ($($rows:literal)*) => {
            match (element, rows, panels) {
                // SAFETY: `isa` has found the instructions, those for bf16 where there is such an element. The assertions
                // keep `depth` vectors of each panel and as many times `HIGH` words within their slices, and the result
                // likewise.
                $(
                    (Element::F32, $rows, 1) => unsafe {
                        turned_f32::<$rows, 1>(left, right, depth, (out, stride), accumulate)
                    },
                    (Element::F32, $rows, _) => unsafe {
                        turned_f32::<$rows, 2>(left, right, depth, (out, stride), accumulate)
                    },
                    (Element::Bf16, $rows, 1) => unsafe {
                        turned_bf16::<$rows, 1>(left, right, depth, (out, stride), accumulate)
                    },
                    (Element::Bf16, $rows, _) => unsafe {
                        turned_bf16::<$rows, 2>(left, right, depth, (out, stride), accumulate)
                    },
                )*
                _ => unreachable!("at most {HIGH} rows"),
            }
        };
    }
    with_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// One word of each of `R` rows by `P` vectors of columns: words of even rows are spread to a register for all of them, those
/// of odd ones by the instruction itself.
macro_rules! turned_words {
    ($multiply:expr, $spreading:literal, $row:ident by $columns:ident to $sums:ident; $($r:literal)*) => {
        $(
            if $r < R && $r % 2 == 0 {
                let word = _mm512_set1_epi32($row.wrapping_add($r).read().cast_signed());
                let mut p = 0;
                while p < P {
                    $sums[$r][p] = $multiply(word, $columns[p], $sums[$r][p]);
                    p = p.wrapping_add(1);
                }
            } else if $r < R {
                let mut p = 0;
                while p < P {
                    asm!(
                        concat!($spreading, " {sum}, {column}, dword ptr [{row} + {at}]{{1to16}}"),
                        sum = inout(zmm_reg) $sums[$r][p],
                        column = in(zmm_reg) $columns[p],
                        row = in(reg) $row,
                        at = const 4 * $r,
                        options(pure, readonly, nostack)
                    );
                    p = p.wrapping_add(1);
                }
            }
        )*
    };
}

/// Defines the loop over `R` turned rows and `P` vectors of columns, by a product of words and the instruction for it.
macro_rules! turned_rows {
    ($name:ident, $features:literal, $multiply:expr, $spreading:literal) => {
        /// # Safety
        /// As said in [`turned_block`].
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize, const P: usize>(
            left: &[u32],
            right: Right<'_>,
            depth: usize,
            (out, stride): (&mut [f32], usize),
            accumulate: bool,
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
                // Plain loops and wrapping sums, as above.
                let mut row = left.as_ptr();
                let mut column = right.words.as_ptr();
                let end = row.wrapping_add(HIGH.wrapping_mul(depth));
                while row != end {
                    let mut columns = [_mm512_setzero_si512(); P];
                    let mut p = 0;
                    while p < P {
                        columns[p] =
                            _mm512_loadu_si512(column.wrapping_add(p.wrapping_mul(right.panel)).cast());
                        p = p.wrapping_add(1);
                    }
                    turned_words!($multiply, $spreading, row by columns to sums; 0 1 2 3 4 5 6 7 8 9 10 11 12 13);
                    row = row.wrapping_add(HIGH);
                    column = column.wrapping_add(LANES);
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

turned_rows!(turned_f32, "avx512f,avx512bw,avx512vl,avx512dq,fma", product_of_f32, "vfmadd231ps");
turned_rows!(turned_bf16, "avx512f,avx512bw,avx512vl,avx512dq,fma,avx512bf16", product_of_bf16, "vdpbf16ps");

/// Sixteen words of [`HIGH`] rows, `stride` apart and with two more behind them, to `[16, HIGH]`.
#[target_feature(enable = "avx512f")]
pub(super) fn turn(rows: &[u32], stride: usize, out: &mut [[u32; HIGH]; LANES]) {
    for (out, column) in out.iter_mut().zip(amx::columns(rows, stride)) {
        // SAFETY: as many as the mask has are written.
        unsafe {
            _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), (1 << HIGH) - 1, column);
        }
    }
}

//! Fewer products in a product of matrices: seven of quarters in place of eight (Strassen 1969, in Winograd's form with the
//! fewest sums; arXiv 1605.01078 has it on CPUs).
//!
//! A quarter has half of the numbers along the sum, every other row and every other pair of panels. A row is so computed
//! with its neighbour, which must be of the same item: its last bits depend on the other's. Errors are small beside the
//! greatest numbers of both and not beside each number's own terms (Higham 2002, section 23.2.2); NaN and infinity in one
//! are in both.

use super::{
    element::{Element, as_numbers, as_words},
    packed::Packed,
    product::SIDE,
    turned::{By, HIGH, turn},
    wide::wide,
};
use crate::autograd::scratch::Scratch;

/// Products of quarters.
pub(super) const TERMS: usize = 7;

/// Which quarter of a weight: half of the sum, and one of two neighbouring pairs of panels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quarter {
    pub(super) half: usize,
    pub(super) pair: usize,
}

const fn quarter(half: usize, pair: usize) -> Quarter {
    Quarter { half, pair }
}

const B11: Quarter = quarter(0, 0);
const B12: Quarter = quarter(0, 1);
const B21: Quarter = quarter(1, 0);
const B22: Quarter = quarter(1, 1);

/// Each term's columns: the first quarter, which is taken from the next, and that from the next.
pub(super) const CHAINS: [&[Quarter]; TERMS] =
    [&[B11], &[B21], &[B22], &[B11, B12, B22, B21], &[B11, B12], &[B11, B12, B22], &[B12, B22]];

/// Numbers along the sum, and columns, from which on there is less to multiply than to add.
const FEWEST: usize = 512;
/// Rows of an item from which on sums of columns are worth while.
const FEWEST_ROWS: usize = 64;

/// What is best for rows of which so many belong together, whatever else is computed with them.
pub(super) fn best(item: usize, weight: &Packed) -> By {
    let fits = weight.element == Element::F32
        && weight.inputs.is_multiple_of(4)
        && weight.panels().is_multiple_of(4);
    let large = weight.inputs.min(weight.columns) >= FEWEST && item >= FEWEST_ROWS;
    if fits && large && item.is_multiple_of(2) { By::Quarters } else { By::Whole }
}

/// Each term's rows of a block, turned: of `2 count` rows, `stride` apart, numbers `from..from + deep` of either half, the
/// second of which begins at `half`. `to` is where a term's go.
pub(super) fn turn_sums<'a>(
    (lines, stride): (&[u32], usize),
    count: usize,
    (from, deep, half): (usize, usize, usize),
    to: impl Fn(usize) -> &'a mut [u32],
) {
    // Room for two rows that are read and not used.
    let mut sums = Scratch::<f32>::stale(4 * (HIGH + 2) * deep);
    let mut sums: Vec<&mut [f32]> = sums.chunks_exact_mut((HIGH + 2) * deep).collect();
    for row in 0..count {
        let of = |odd: usize, at: usize| &as_numbers(lines)[(2 * row + odd) * stride + at + from..][..deep];
        let quarters = [of(0, 0), of(0, half), of(1, 0), of(1, half)];
        let [s1, s2, s3, s4] = &mut sums[..] else { return };
        let out = [s1, s2, s3, s4].map(|sums| &mut sums[row * deep..][..deep]);
        sums_of_rows(quarters, out);
    }
    let plain = |odd: usize, at: usize| (&lines[odd * stride + at + from..], 2 * stride);
    let sizes = [count, deep];
    turn(plain(0, 0), sizes, to(0));
    turn(plain(0, half), sizes, to(1));
    turn((as_words(&*sums[3]), deep), sizes, to(2));
    turn(plain(1, half), sizes, to(3));
    turn((as_words(&*sums[0]), deep), sizes, to(4));
    turn((as_words(&*sums[1]), deep), sizes, to(5));
    turn((as_words(&*sums[2]), deep), sizes, to(6));
}

wide! {
    fn sums_of_rows(quarters: [&[f32]; 4], out: [&mut [f32]; 4]) {
        let [a11, a12, a21, a22] = quarters;
        let [s1, s2, s3, s4] = out;
        let deep = a11.len();
        let (a12, a21, a22) = (&a12[..deep], &a21[..deep], &a22[..deep]);
        let (s1, s2, s3, s4) = (&mut s1[..deep], &mut s2[..deep], &mut s3[..deep], &mut s4[..deep]);
        for k in 0..deep {
            s1[k] = a21[k] + a22[k];
            s2[k] = s1[k] - a11[k];
            s3[k] = a11[k] - a21[k];
            s4[k] = a12[k] - s2[k];
        }
    }
}

wide! {
    /// Sums of terms, rows of [`SIDE`] numbers, to those of twice as many rows: in either pair of panels.
    pub(super) fn results(terms: &[&[f32]; TERMS], out: &mut [[f32; SIDE * SIDE]; 2]) {
        let [left, right] = out;
        let lines = terms.map(|sums| sums.as_chunks::<SIDE>().0);
        let out = left.as_chunks_mut::<{ 2 * SIDE }>().0.iter_mut().zip(right.as_chunks_mut::<{ 2 * SIDE }>().0);
        for (row, (left, right)) in out.enumerate().take(lines[0].len()) {
            let [p1, p2, p3, p4, p5, p6, p7] = lines.map(|lines| &lines[row]);
            for c in 0..SIDE {
                let u2 = p1[c] + p6[c];
                let u3 = u2 + p7[c];
                left[c] = p1[c] + p2[c];
                right[c] = u2 + p5[c] + p3[c];
                // The columns of the fourth have the other sign.
                left[SIDE + c] = u3 + p4[c];
                right[SIDE + c] = u3 + p5[c];
            }
        }
    }
}

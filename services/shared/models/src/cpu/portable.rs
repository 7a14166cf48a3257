//! Blocks of products of f32 as loops that the compiler vectorizes.

use super::{
    element::as_numbers,
    product::{LANES, Left, Right, Segment},
    turned::HIGH,
    wide::wide,
};

/// Rows summed side by side.
const ROWS: usize = 4;

wide! {
    /// [`super::product::block`] of f32.
    pub(super) fn block(
        left: (Left<'_>, usize),
        right: (Right<'_>, usize),
        along: (&[Segment], usize),
        to: (&mut [f32], usize),
        accumulate: bool,
    ) {
        let (((left, rows), (right, panels)), ((segments, depth), (out, stride))) = ((left, right), (along, to));
        for panel in 0..panels {
            for first in (0..rows).step_by(ROWS) {
                let count = ROWS.min(rows - first);
                let mut sums = [[0_f32; LANES]; ROWS];
                if accumulate {
                    for (r, sums) in sums.iter_mut().enumerate().take(count) {
                        sums.copy_from_slice(&out[(first + r) * stride + panel * LANES..][..LANES]);
                    }
                }
                for s in segments {
                    let columns = &as_numbers(right.words)[s.b + panel * right.panel..][..depth * LANES];
                    let a = &as_numbers(left.words)[s.a + first * left.stride..];
                    // A row that is not there is the first again, and its sums are not stored.
                    let lines: [&[f32]; ROWS] = std::array::from_fn(|r| {
                        &a[if r < count { r * left.stride } else { 0 }..][..depth]
                    });
                    for (k, column) in columns.as_chunks::<LANES>().0.iter().enumerate() {
                        for (sums, line) in sums.iter_mut().zip(lines) {
                            let x = line[k];
                            sums.iter_mut().zip(column).for_each(|(sum, y)| *sum = x.mul_add(*y, *sum));
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate().take(count) {
                    out[(first + r) * stride + panel * LANES..][..LANES].copy_from_slice(sums);
                }
            }
        }
    }
}

wide! {
    /// [`super::turned::block`] of f32.
    pub(super) fn turned_block(
        left: (&[u32], usize),
        right: (Right<'_>, usize),
        depth: usize,
        out: (&mut [f32], usize),
        accumulate: bool,
    ) {
        let (((left, rows), (right, panels)), (out, stride)) = ((left, right), out);
        let lines = &as_numbers(left).as_chunks::<HIGH>().0[..depth];
        for panel in 0..panels {
            let columns = &as_numbers(right.words)[panel * right.panel..][..depth * LANES];
            let columns = columns.as_chunks::<LANES>().0;
            for first in (0..rows).step_by(ROWS) {
                // Rows beyond the block's are any of it, and their sums are not stored.
                let row: [usize; ROWS] = std::array::from_fn(|r| (first + r).min(HIGH - 1));
                let count = ROWS.min(rows - first);
                let mut sums = [[0_f32; LANES]; ROWS];
                if accumulate {
                    for (r, sums) in sums.iter_mut().enumerate().take(count) {
                        sums.copy_from_slice(&out[(first + r) * stride + panel * LANES..][..LANES]);
                    }
                }
                for (line, column) in lines.iter().zip(columns) {
                    for (sums, row) in sums.iter_mut().zip(row) {
                        let x = line[row];
                        sums.iter_mut().zip(column).for_each(|(sum, y)| *sum = x.mul_add(*y, *sum));
                    }
                }
                for (r, sums) in sums.iter().enumerate().take(count) {
                    out[(first + r) * stride + panel * LANES..][..LANES].copy_from_slice(sums);
                }
            }
        }
    }
}

//! What becomes of a block of sums.
#![expect(unsafe_code, reason = "threads write different parts of one result; see `Finish::block`")]

use super::{
    element::{Element, as_numbers_mut},
    packed::{Order, Packed},
    product::{Block, LANES, SIDE},
    target::Target,
    wide::wide,
};
use crate::autograd::activation::{normal, sigmoid};

/// What a number goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    Nothing,
    Silu,
    /// With the normal distribution function.
    Gelu,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
}

impl Activation {
    #[inline(always)]
    pub(super) fn of(self, x: f32) -> f32 {
        match self {
            Self::Nothing => x,
            Self::Silu => x * sigmoid(x),
            Self::Gelu => x * normal(x).0,
            Self::QuickGelu => x * sigmoid(1.702 * x),
        }
    }
}

/// What a result is added to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Onto<'a> {
    Nothing,
    /// What is there.
    Itself,
    /// Rows as long as the result's.
    Other(&'a [f32]),
}

/// Where sums go.
#[derive(Clone, Copy, Debug)]
pub(super) enum To<'a> {
    /// Rows of numbers.
    Numbers { out: Target<'a, f32>, onto: Onto<'a> },
    /// Rows of factors for the next product, `stride` words apart.
    Factors { out: Target<'a, u32>, stride: usize, element: Element, activation: Activation },
    /// Each value times its gate's GELU, of a weight packed by halves.
    Gated { out: Target<'a, u32>, stride: usize, element: Element },
}

/// The end of a product.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finish<'a> {
    pub(super) to: To<'a>,
    /// Added to each column, as they are packed; zeros beyond the last.
    pub(super) bias: Option<&'a [f32]>,
    /// Added to each column, for each item.
    pub(super) shift: Option<&'a [f32]>,
}

impl Finish<'_> {
    /// Takes the sums of a block's rows from `column` on. Blocks that are under way at one time are of different rows or
    /// columns.
    pub(super) fn block(&self, at: &Block, column: usize, weight: &Packed, sums: &[f32; SIDE * SIDE]) {
        const ZEROS: [f32; SIDE] = [0.0; SIDE];
        let bias = self.bias.map_or(&ZEROS[..], |bias| &bias[column..(column + SIDE).min(bias.len())]);
        match self.to {
            To::Numbers { out, onto } => {
                let (stride, width) = (weight.columns, SIDE.min(weight.columns - column));
                let shift = self.shift.map(|shift| &shift[at.item * stride + column..][..width]);
                numbers((sums, bias, shift), at, (out, onto), [stride, column, width]);
            }
            To::Factors { out, stride, element: Element::F32, activation } => {
                let width = SIDE.min(weight.columns - column);
                activate((sums, bias), [at.first, at.rows, width], activation, (out, stride, column));
            }
            To::Gated { out, stride, element: Element::F32 } => {
                debug_assert_eq!(weight.order, Order::Halves);
                let column = column / 2;
                let width = LANES.min(weight.columns / 2 - column);
                gate((sums, bias), [at.first, at.rows, width], (out, stride, column));
            }
            To::Factors { out, stride, element: element @ Element::Bf16, activation } => {
                let width = SIDE.min(weight.columns - column);
                let mut lines = [0.0; SIDE * SIDE];
                activated((sums, bias), [at.rows, width], activation, &mut lines);
                let end = if column + SIDE >= weight.columns { stride } else { element.words(column + SIDE) };
                factors(&lines, [at.first, at.rows, width], (out, stride), [column / 2, end]);
            }
            To::Gated { out, stride, element: Element::Bf16 } => {
                debug_assert_eq!(weight.order, Order::Halves);
                let (all, column) = (weight.columns / 2, column / 2);
                let width = LANES.min(all - column);
                let mut lines = [0.0; SIDE * SIDE];
                gated((sums, bias), [at.rows, width], &mut lines);
                let end = if column + LANES >= all { stride } else { (column + LANES) / 2 };
                factors(&lines, [at.first, at.rows, width], (out, stride), [column / 2, end]);
            }
        }
    }
}

wide! {
    fn numbers(
        from: (&[f32; SIDE * SIDE], &[f32], Option<&[f32]>),
        at: &Block,
        to: (Target<'_, f32>, Onto<'_>),
        sizes: [usize; 3],
    ) {
        let ((sums, bias, shift), (out, onto), [stride, column, width]) = (from, to, sizes);
        let mut added = [0.0; SIDE];
        added[..bias.len()].copy_from_slice(bias);
        if let Some(shift) = shift {
            added.iter_mut().zip(shift).for_each(|(added, shift)| *added += shift);
        }
        for (i, line) in sums.as_chunks::<SIDE>().0.iter().enumerate().take(at.rows) {
            let Some(row) = at.row(i) else { continue };
            let first = row * stride + column;
            // SAFETY: rows and columns of a block are its own.
            let out = unsafe { out.part(first, width) };
            let before: Option<&[f32]> = match onto {
                Onto::Other(other) => Some(&other[first..][..width]),
                _ => None,
            };
            match (onto, before) {
                (Onto::Itself, _) => (0..width).for_each(|c| out[c] += line[c] + added[c]),
                (_, Some(before)) => (0..width).for_each(|c| out[c] = before[c] + (line[c] + added[c])),
                _ => (0..width).for_each(|c| out[c] = line[c] + added[c]),
            }
        }
    }
}

/// Writes `$value` of each `$c` of a line of `$width`: in a loop of its own where it is whole, so that it is made vectors of.
macro_rules! each_number {
    ($out:expr, $width:expr, $whole:ident, |$c:ident| $value:expr) => {
        if let Some(out) = $out.first_chunk_mut::<{ $whole }>() {
            for $c in 0..$whole {
                out[$c] = $value;
            }
        } else {
            for $c in 0..$width {
                $out[$c] = $value;
            }
        }
    };
}

wide! {
    /// Through an activation to rows of f32, from `column` on.
    fn activate(
        from: (&[f32; SIDE * SIDE], &[f32]),
        sizes: [usize; 3],
        activation: Activation,
        to: (Target<'_, u32>, usize, usize),
    ) {
        let ((sums, bias), [first, rows, width], (out, stride, column)) = (from, sizes, to);
        let mut added = [0.0; SIDE];
        added[..bias.len()].copy_from_slice(bias);
        for (i, line) in sums.as_chunks::<SIDE>().0.iter().enumerate().take(rows) {
            // SAFETY: as in `numbers`.
            let out = as_numbers_mut(unsafe { out.part((first + i) * stride + column, width) });
            match activation {
                Activation::Nothing => each_number!(out, width, SIDE, |c| line[c] + added[c]),
                Activation::Silu => each_number!(out, width, SIDE, |c| Activation::Silu.of(line[c] + added[c])),
                Activation::Gelu => each_number!(out, width, SIDE, |c| Activation::Gelu.of(line[c] + added[c])),
                Activation::QuickGelu => {
                    each_number!(out, width, SIDE, |c| Activation::QuickGelu.of(line[c] + added[c]));
                }
            }
        }
    }
}

wide! {
    /// Values times their gates' GELU to rows of f32, from `column` on.
    fn gate(
        from: (&[f32; SIDE * SIDE], &[f32]),
        sizes: [usize; 3],
        to: (Target<'_, u32>, usize, usize),
    ) {
        let ((sums, bias), [first, rows, width], (out, stride, column)) = (from, sizes, to);
        let mut added = [0.0; SIDE];
        added[..bias.len()].copy_from_slice(bias);
        let gated = |line: &[f32; SIDE], c: usize| {
            (line[c] + added[c]) * Activation::Gelu.of(line[LANES + c] + added[LANES + c])
        };
        for (i, line) in sums.as_chunks::<SIDE>().0.iter().enumerate().take(rows) {
            // SAFETY: as in `numbers`.
            let out = as_numbers_mut(unsafe { out.part((first + i) * stride + column, width) });
            each_number!(out, width, LANES, |c| gated(line, c));
        }
    }
}

wide! {
    fn activated(
        from: (&[f32; SIDE * SIDE], &[f32]),
        sizes: [usize; 2],
        activation: Activation,
        out: &mut [f32; SIDE * SIDE],
    ) {
        let ((sums, bias), [rows, width]) = (from, sizes);
        let mut added = [0.0; SIDE];
        added[..bias.len()].copy_from_slice(bias);
        added[width..].fill(0.0);
        let lines = out.as_chunks_mut::<SIDE>().0.iter_mut().zip(sums.as_chunks::<SIDE>().0).take(rows);
        // One loop for each, so that each is vectorized.
        macro_rules! each {
            ($activation:expr) => {
                for (out, line) in lines {
                    for c in 0..SIDE {
                        out[c] = $activation.of(line[c] + added[c]);
                    }
                }
            };
        }
        match activation {
            Activation::Nothing => each!(Activation::Nothing),
            Activation::Silu => each!(Activation::Silu),
            Activation::Gelu => each!(Activation::Gelu),
            Activation::QuickGelu => each!(Activation::QuickGelu),
        }
    }
}

wide! {
    fn gated(from: (&[f32; SIDE * SIDE], &[f32]), sizes: [usize; 2], out: &mut [f32; SIDE * SIDE]) {
        let ((sums, bias), [rows, _]) = (from, sizes);
        let mut added = [0.0; SIDE];
        added[..bias.len()].copy_from_slice(bias);
        let lines = out.as_chunks_mut::<SIDE>().0.iter_mut().zip(sums.as_chunks::<SIDE>().0).take(rows);
        for (out, line) in lines {
            for c in 0..LANES {
                let (value, gate) = (line[c] + added[c], line[LANES + c] + added[LANES + c]);
                out[c] = value * Activation::Gelu.of(gate);
            }
        }
    }
}

/// Rounds `rows` lines of `width` numbers to bf16, to the words `start..end` of each row of the result, zeros beyond the
/// numbers.
fn factors(
    lines: &[f32; SIDE * SIDE],
    [first, rows, width]: [usize; 3],
    (out, stride): (Target<'_, u32>, usize),
    [start, end]: [usize; 2],
) {
    for (i, line) in lines.as_chunks::<SIDE>().0.iter().take(rows).enumerate() {
        // SAFETY: as in `numbers`.
        let out = unsafe { out.part((first + i) * stride + start, end - start) };
        Element::Bf16.round(&line[..width], out);
    }
}

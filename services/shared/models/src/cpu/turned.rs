//! Products of rows that are turned first: blocks of [`HIGH`] rows, each `[depth, HIGH]` words, so that whatever a vector
//! kernel reads follows in memory. Large ones of f32 take fewer products, by quarters (see [`strassen`]).
#![expect(unsafe_code, reason = "threads write different parts of one buffer; see `Target::part`")]

use std::ops::Range;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::{amx, avx512, isa};
use super::{
    element::Element,
    finish::Finish,
    packed::Packed,
    portable,
    product::{self, Block, LANES, Right, SIDE},
    room::Desk,
    strassen,
    target::Target,
};
use crate::autograd::scratch::Scratch;

/// Rows of a block: as many sums as registers hold with two vectors of columns.
pub(super) const HIGH: usize = 14;
/// Words of rows that are under way at once: what the last cache holds.
const UNDER_WAY: usize = 6 << 20;
/// Blocks of rows of a task at most.
const TALL: usize = 20;
/// Tasks for a thread at least: threads are not equally fast.
const TASKS: usize = 10;
/// Sums that a task goes through again for each part of a sum.
const TASK_SUMS: usize = 128 << 10;
/// Words along a sum that are gone through at once: a task's rows of them stay in a cache.
const PART: usize = 640;

/// Whether products of it are of rows that are turned: the matrix unit takes them as they lie.
pub(super) fn suits(element: Element) -> bool {
    #[cfg(target_arch = "x86_64")]
    if element == Element::Bf16 && amx::available() {
        return false;
    }
    let _ = element;
    true
}

/// Rows of words, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    pub(super) words: &'a [u32],
    pub(super) count: usize,
    pub(super) stride: usize,
    /// How many at a time belong together: a number may be rounded as others of these require, and no more.
    pub(super) item: usize,
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// As one.
    Whole,
    /// As seven of half as many rows, columns and numbers along the sum.
    Quarters,
}

impl By {
    /// Products in place of one.
    fn terms(self) -> usize {
        match self {
            Self::Whole => 1,
            Self::Quarters => strassen::TERMS,
        }
    }

    /// Rows, pairs of panels or numbers along the sum for one of a term.
    fn each(self) -> usize {
        match self {
            Self::Whole => 1,
            Self::Quarters => 2,
        }
    }
}

/// Rows as the kernels read them: term by term, part by part along the sum, block by block.
struct Turned {
    words: Scratch<u32>,
    blocks: usize,
    /// Of a term.
    depth: usize,
}

impl Turned {
    fn new(rows: Rows<'_>, depth: usize, by: By) -> Self {
        let (blocks, depth) = ((rows.count / by.each()).div_ceil(HIGH), depth / by.each());
        let mut words = Scratch::stale(by.terms() * blocks * HIGH * depth);
        let target = Target::new(&mut words);
        let place = |term, from, block, deep| {
            // SAFETY: each term's part of each block is written once.
            unsafe { target.part(at(depth, blocks, term, from, block, deep), HIGH * deep) }
        };
        (0..blocks).into_par_iter().with_max_len(1).for_each(|block| {
            let (first, count) = (block * HIGH, HIGH.min(rows.count / by.each() - block * HIGH));
            for (from, deep) in parts(depth) {
                match by {
                    By::Whole => {
                        let lines = &rows.words[first * rows.stride + from..];
                        turn((lines, rows.stride), [count, deep], place(0, from, block, deep));
                    }
                    By::Quarters => {
                        let lines = &rows.words[2 * first * rows.stride..];
                        strassen::turn_sums((lines, rows.stride), count, (from, deep, depth), |term| {
                            place(term, from, block, deep)
                        });
                    }
                }
            }
        });
        Self { words, blocks, depth }
    }

    fn block(&self, term: usize, (from, deep): (usize, usize), block: usize) -> &[u32] {
        &self.words[at(self.depth, self.blocks, term, from, block, deep)..][..HIGH * deep]
    }
}

/// Where a part of a block begins.
fn at(depth: usize, blocks: usize, term: usize, from: usize, block: usize, deep: usize) -> usize {
    HIGH * (blocks * (term * depth + from) + block * deep)
}

/// Parts of a sum: where each begins, and how many words it has.
pub(super) fn parts(depth: usize) -> impl Iterator<Item = (usize, usize)> {
    product::pieces(depth, PART)
}

/// `count` rows of `depth` words, `stride` apart, to `[depth, HIGH]`; what is beyond them is left as it is or not.
pub(super) fn turn((lines, stride): (&[u32], usize), [count, depth]: [usize; 2], out: &mut [u32]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if count == HIGH && isa::best() == isa::Isa::Avx512 {
        let out = out.as_chunks_mut::<HIGH>().0.as_chunks_mut::<LANES>().0;
        for out in &mut out[..depth / LANES] {
            // Two rows more than are wanted.
            if lines.len() < (LANES - 1) * stride + done + LANES {
                break;
            }
            // SAFETY: `isa` has found the instructions.
            unsafe { avx512::turn(&lines[done..], stride, out) };
            done += LANES;
        }
    }
    if done == depth {
        return;
    }
    for row in 0..count {
        let line = &lines[row * stride + done..row * stride + depth];
        out[done * HIGH + row..].iter_mut().step_by(HIGH).zip(line).for_each(|(out, x)| *out = *x);
    }
}

/// The sum of `rows` (at most [`HIGH`]) of `left`, `[depth, HIGH]`, by one or two panels, over what is in `out`, whose rows
/// are `stride` apart, or added to it.
pub(super) fn block(
    element: Element,
    left: (&[u32], usize),
    right: (Right<'_>, usize),
    depth: usize,
    out: (&mut [f32], usize),
    accumulate: bool,
) {
    #[cfg(target_arch = "x86_64")]
    if isa::best() == isa::Isa::Avx512 {
        return avx512::turned_block(element, left, right, depth, out, accumulate);
    }
    assert_eq!(element, Element::F32, "elsewhere weights of bf16 are multiplied as f32");
    portable::turned_block(left, right, depth, out, accumulate);
}

/// `rows` by `weight`, each block given to `finish`.
pub(super) fn multiply(rows: Rows<'_>, weight: &Packed, finish: &Finish<'_>) {
    assert!(rows.count.is_multiple_of(rows.item), "{} rows of items of {}", rows.count, rows.item);
    multiply_by(strassen::best(rows.item, weight), rows, weight, finish);
}

/// [`multiply`] in that way.
pub(super) fn multiply_by(by: By, rows: Rows<'_>, weight: &Packed, finish: &Finish<'_>) {
    assert_eq!(weight.taps, 1, "a product of rows");
    assert!(rows.count.is_multiple_of(by.each()), "{} rows {by:?}", rows.count);
    assert!(finish.shift.is_none(), "rows of a product are of no item");
    if rows.count == 0 {
        return;
    }
    // Whole blocks of rows at a time.
    let whole = HIGH * by.each();
    let each = by.terms() * weight.depth / (by.each() * by.each());
    let most = (UNDER_WAY / each.max(1)).max(4 * whole) / whole * whole;
    let even = rows.count.div_ceil(rows.count.div_ceil(most).max(1)).next_multiple_of(whole);
    for first in (0..rows.count).step_by(even) {
        let words = &rows.words[first * rows.stride..];
        let rows = Rows { words, count: even.min(rows.count - first), ..rows };
        let left = Turned::new(rows, weight.depth, by);
        products(by, &left, (first, rows.count), weight, finish);
    }
}

/// Blocks of rows and pairs of panels, or pairs of pairs, that a task computes.
struct Task {
    blocks: Range<usize>,
    units: Range<usize>,
}

fn products(by: By, left: &Turned, (first, count): (usize, usize), weight: &Packed, finish: &Finish<'_>) {
    let units = weight.panels().div_ceil(2 * by.each());
    let down = left.blocks.div_ceil(TALL);
    let tall = left.blocks.div_ceil(down);
    let wanted = (TASKS * rayon::current_num_threads()).div_ceil(down);
    let most = (TASK_SUMS / (by.terms() * tall * HIGH * SIDE)).max(1);
    let wide = (units / wanted).clamp(1, most);
    // Those of the same columns follow each other.
    let tasks = (0..units.div_ceil(wide) * down).into_par_iter().with_max_len(1).map(|task| {
        let (across, at) = (task / down * wide, task % down * tall);
        Task { blocks: at..(at + tall).min(left.blocks), units: across..(across + wide).min(units) }
    });
    tasks.for_each(|task| one_task(by, left, &task, (first, count), weight, finish));
}

fn one_task(
    by: By,
    left: &Turned,
    task: &Task,
    (first, count): (usize, usize),
    weight: &Packed,
    finish: &Finish<'_>,
) {
    let Task { blocks, units } = task;
    let rows_of = |block: usize| HIGH.min(count / by.each() - block * HIGH);
    let of_a_term = blocks.len() * HIGH * SIDE;
    // A block is looked at as if it had the rows of another kernel's.
    let mut sums = Scratch::<f32>::stale(units.len() * by.terms() * of_a_term + SIDE * SIDE);
    let deepest = parts(left.depth).map(|(_, deep)| deep).max().unwrap_or(0);
    let mut desk = match by {
        By::Whole => weight.desk(deepest * LANES),
        By::Quarters => Some(Desk::stale(2 * (deepest + 1) * LANES)),
    };
    for part in parts(left.depth) {
        for term in 0..by.terms() {
            for unit in units.clone() {
                let (right, panels) = match by {
                    By::Whole => {
                        let panels = (weight.panels() - 2 * unit).min(2);
                        let words = (part.0 * LANES, part.1 * LANES);
                        (weight.right((2 * unit, panels), words, &mut desk), panels)
                    }
                    By::Quarters => (weight.quarters(strassen::CHAINS[term], unit, part, &mut desk), 2),
                };
                let at = ((unit - units.start) * by.terms() + term) * of_a_term;
                for (block_sums, at) in
                    sums[at..][..of_a_term].chunks_exact_mut(HIGH * SIDE).zip(blocks.clone())
                {
                    let left = (left.block(term, part, at), rows_of(at));
                    block(weight.element, left, (right, panels), part.1, (block_sums, SIDE), part.0 > 0);
                }
            }
        }
    }
    let mut both = [[0.0; SIDE * SIDE]; 2];
    for unit in units.clone() {
        let of_the_unit = (unit - units.start) * by.terms() * of_a_term;
        for at in blocks.clone() {
            let from = of_the_unit + (at - blocks.start) * HIGH * SIDE;
            let begin = first + at * HIGH * by.each();
            let block = Block { a: 0, first: begin, rows: rows_of(at) * by.each(), margins: None, item: 0 };
            let column = 2 * by.each() * unit * LANES;
            match by {
                By::Whole => {
                    if let Some(sums) = sums[from..].first_chunk() {
                        finish.block(&block, column, weight, sums);
                    }
                }
                By::Quarters => {
                    let terms: [&[f32]; strassen::TERMS] =
                        std::array::from_fn(|term| &sums[from + term * of_a_term..][..rows_of(at) * SIDE]);
                    strassen::results(&terms, &mut both);
                    for (i, sums) in both.iter().enumerate() {
                        finish.block(&block, column + i * SIDE, weight, sums);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! Products of rows by packed weights: the blocks that kernels compute, and their division among threads.

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::{amx, avx512};
use super::{
    element::Element,
    finish::Finish,
    isa::{self, Isa},
    packed::Packed,
    portable,
};
use crate::autograd::scratch::Scratch;

/// Columns of a panel.
pub(super) const LANES: usize = 16;
/// Rows and columns of the blocks that a result is computed in.
pub(super) const SIDE: usize = 32;
/// Parts of a sum at most: a kernel's taps.
pub(super) const MOST_TAPS: usize = 16;
/// Words of rows that a task goes through again for each of its columns: half of a usual second cache.
const TASK_WORDS: usize = 256 << 10;
/// Blocks of rows of a task at most.
const MOST_BLOCKS: usize = 64;
/// Words along a sum whose panels are gone through at once.
const PART: usize = 1280;

/// Rows of words, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left<'a> {
    pub(super) words: &'a [u32],
    pub(super) stride: usize,
}

/// Panels of 16 columns, `panel` words apart, each `[depth, 16]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Right<'a> {
    pub(super) words: &'a [u32],
    pub(super) panel: usize,
}

/// Where a part of a sum finds its rows and its panels, in words from their starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) a: usize,
    pub(super) b: usize,
}

/// Rows that a kernel reads beyond the last, and writes beyond it: a tile's.
pub(super) const SLACK: usize = 15;

/// The sum over `segments` of products `depth` words deep: `rows` (at most 32) by `panels` (one or two), over what is in
/// `out` or added to it. `left` and `out` have room for rows up to the next multiple of 16.
pub(super) fn block(
    element: Element,
    (left, rows): (Left<'_>, usize),
    (right, panels): (Right<'_>, usize),
    (segments, depth): (&[Segment], usize),
    (out, stride): (&mut [f32], usize),
    accumulate: bool,
) {
    #[cfg(target_arch = "x86_64")]
    if element == Element::Bf16 && amx::available() {
        let left = amx::Left { data: amx::halves(left.words), stride: 2 * left.stride };
        let right = amx::Right { data: right.words, stride: LANES, panel: right.panel };
        let mut out = amx::Block { data: out, at: 0, stride, accumulate };
        let mut halves = [amx::Segment { a: 0, b: 0 }; MOST_TAPS];
        for (to, Segment { a, b }) in halves.iter_mut().zip(segments) {
            *to = amx::Segment { a: 2 * a, b: *b };
        }
        return amx::blocks(
            left,
            right,
            &halves[..segments.len()],
            2 * depth,
            [rows, panels * LANES],
            &mut out,
        );
    }
    let _ = element;
    let (left, right, along, to) = ((left, rows), (right, panels), (segments, depth), (out, stride));
    match isa::best() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::block(element, left, right, along, to, accumulate),
        _ => portable::block(left, right, along, to, accumulate),
    }
}

/// Rows of a block that a kernel is best at.
pub(super) fn high(element: Element) -> usize {
    #[cfg(target_arch = "x86_64")]
    if isa::best() == Isa::Avx512 && !(element == Element::Bf16 && amx::available()) {
        return 2 * avx512::ROWS;
    }
    let _ = element;
    SIDE
}

/// The rows of a product.
#[derive(Clone, Copy, Debug)]
pub(super) enum Space {
    /// One after the other, `stride` words apart.
    Rows { count: usize, stride: usize },
    /// The pixels of pictures, whose rows overlap.
    Pixels(Pixels),
}

/// Pixels of a convolution's result, as rows of a product: where what they are summed over begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pixels {
    pub(super) items: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Words of an item.
    pub(super) item: usize,
    /// Words from one row of pixels to the next.
    pub(super) line: usize,
    /// Words from pixel to pixel.
    pub(super) step: usize,
}

/// Up to 32 rows that lie evenly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// The first one's words.
    pub(super) a: usize,
    /// The first one's number in the result.
    pub(super) first: usize,
    pub(super) rows: usize,
    /// Rows between those of the result: of a picture that is gone through with its margins, the width of its lines with
    /// and without them, and where in a line the block begins.
    pub(super) margins: Option<[usize; 3]>,
    pub(super) item: usize,
}

impl Block {
    /// The number in the result of the block's row `i`, if it is one.
    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> Option<usize> {
        let Some([line, width, at]) = self.margins else { return Some(self.first + i) };
        let (down, across) = ((at + i) / line, (at + i) % line);
        // `first` is the number that the block's first row has or would have at the end of its line.
        (across < width).then(|| self.first + down * width + across - at.min(width))
    }
}

impl Space {
    /// Blocks of the whole, and the rows between them.
    fn blocks(&self, high: usize) -> usize {
        match self {
            Self::Rows { count, .. } => count.div_ceil(high),
            Self::Pixels(pixels) => pixels.items * pixels.blocks(high),
        }
    }

    fn stride(&self) -> usize {
        match self {
            Self::Rows { stride, .. } => *stride,
            Self::Pixels(pixels) => pixels.step,
        }
    }

    fn block(&self, at: usize, high: usize) -> Block {
        match self {
            Self::Rows { count, stride } => {
                let first = at * high;
                let rows = high.min(count - first);
                Block { a: first * stride, first, rows, margins: None, item: 0 }
            }
            Self::Pixels(pixels) => {
                let each = pixels.blocks(high);
                pixels.block(at / each, at % each, high)
            }
        }
    }
}

impl Pixels {
    /// Lines gone through with their margins, as one: less is left over at the ends.
    fn joined(&self) -> bool {
        let margined = self.line / self.step;
        let rounded = |n: usize| n.next_multiple_of(SIDE / 2);
        self.line.is_multiple_of(self.step)
            && margined < 2 * self.width
            && rounded((self.height - 1) * margined + self.width) < self.height * rounded(self.width)
    }

    /// Of one item.
    fn blocks(&self, high: usize) -> usize {
        if self.joined() {
            ((self.height - 1) * (self.line / self.step) + self.width).div_ceil(high)
        } else {
            self.height * self.width.div_ceil(high)
        }
    }

    fn block(&self, item: usize, at: usize, high: usize) -> Block {
        let (start, result) = (item * self.item, item * self.height * self.width);
        if self.joined() {
            let margined = self.line / self.step;
            let first = at * high;
            let rows = high.min((self.height - 1) * margined + self.width - first);
            let (down, across) = (first / margined, first % margined);
            return Block {
                a: start + first * self.step,
                first: result + down * self.width + across.min(self.width),
                rows,
                margins: Some([margined, self.width, across]),
                item,
            };
        }
        let across = self.width.div_ceil(high);
        let (down, first) = (at / across, at % across * high);
        Block {
            a: start + down * self.line + first * self.step,
            first: result + down * self.width + first,
            rows: high.min(self.width - first),
            margins: None,
            item,
        }
    }
}

/// `rows` by `weight`, each block given to `finish`. `shifts` are where each tap's rows begin from a block's own.
pub(super) fn multiply(words: &[u32], space: &Space, shifts: &[usize], weight: &Packed, finish: &Finish<'_>) {
    assert_eq!(shifts.len(), weight.taps, "as many shifts as taps");
    let high = high(weight.element);
    let (blocks, pairs) = (space.blocks(high), weight.panels().div_ceil(2));
    if blocks == 0 {
        return;
    }
    let (tall, wide) = division(blocks, high * space.stride(), weight);
    let down = blocks.div_ceil(tall);
    let parts = parts(weight.depth, shifts);
    let most = parts.iter().map(Part::words).max().unwrap_or(0);
    (0..down * wide).into_par_iter().with_max_len(1).for_each(|task| {
        let rows = task / wide * tall..((task / wide + 1) * tall).min(blocks);
        let across = task % wide;
        let mut sums = Scratch::<f32>::stale(rows.len() * SIDE * SIDE);
        let mut desk = weight.desk(most);
        for pair in across * pairs / wide..(across + 1) * pairs / wide {
            let panels = (weight.panels() - 2 * pair).min(2);
            for (i, part) in parts.iter().enumerate() {
                let right = weight.right((2 * pair, panels), (part.from, part.words()), &mut desk);
                for (at, sums) in rows.clone().zip(sums.chunks_exact_mut(SIDE * SIDE)) {
                    let at = space.block(at, high);
                    let left = Left { words: &words[at.a..], stride: space.stride() };
                    let along = (&*part.segments, part.depth);
                    block(weight.element, (left, at.rows), (right, panels), along, (sums, SIDE), i > 0);
                }
            }
            for (at, sums) in rows.clone().zip(sums.as_chunks().0) {
                finish.block(&space.block(at, high), 2 * pair * LANES, weight, sums);
            }
        }
    });
}

/// How many blocks of rows a task has, and into how many tasks the columns are divided: with the least to read again.
/// A task reads its rows for each pair of panels, from the second cache if they fit it, and its panels once.
fn division(blocks: usize, words: usize, weight: &Packed) -> (usize, usize) {
    let pairs = weight.panels().div_ceil(2);
    let wanted = 4 * rayon::current_num_threads();
    let fitting = (TASK_WORDS / words.max(1)).clamp(2, MOST_BLOCKS);
    let of = |tall: usize| {
        let tall = tall.clamp(1, MOST_BLOCKS).min(blocks);
        let down = blocks.div_ceil(tall);
        let wide = wanted.div_ceil(down).clamp(1, pairs);
        let again = if tall * words <= TASK_WORDS { 1 } else { pairs.div_ceil(wide) };
        (down * weight.words() + blocks * words * wide * again, tall, wide)
    };
    let best = [fitting, 2 * fitting, 4 * fitting, MOST_BLOCKS].map(of).into_iter().min();
    best.map_or((1, 1), |(_, tall, wide)| (tall, wide))
}

/// A part of a sum that is gone through for all of a task's rows before the next.
struct Part {
    /// Words of a panel before it.
    from: usize,
    /// One after the other in what follows of the panel.
    segments: Vec<Segment>,
    depth: usize,
}

impl Part {
    /// Of a panel.
    fn words(&self) -> usize {
        self.segments.len() * self.depth * LANES
    }
}

/// The whole sum in parts whose panels stay in a cache: some taps together, or a tap in pieces.
fn parts(depth: usize, shifts: &[usize]) -> Vec<Part> {
    if depth > PART {
        let of = |(tap, shift): (usize, &usize)| {
            let part = |(from, piece)| Part {
                from: (tap * depth + from) * LANES,
                segments: vec![Segment { a: shift + from, b: 0 }],
                depth: piece,
            };
            pieces(depth, PART).map(part).collect::<Vec<_>>()
        };
        return shifts.iter().enumerate().flat_map(of).collect();
    }
    let together = PART / depth;
    let of = |(at, shifts): (usize, &[usize])| Part {
        from: at * together * depth * LANES,
        segments: shifts.iter().enumerate().map(|(i, a)| Segment { a: *a, b: i * depth * LANES }).collect(),
        depth,
    };
    shifts.chunks(together).enumerate().map(of).collect()
}

/// Where pieces of a sum begin, and how deep they are: about `most`, and whole tiles of the matrix unit.
pub(super) fn pieces(depth: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = depth.div_ceil(depth.div_ceil(most).max(1)).next_multiple_of(LANES);
    (0..depth).step_by(size.max(1)).map(move |from| (from, size.min(depth - from)))
}

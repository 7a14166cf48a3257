//! Convolutions of 3 x 3 with fewer products: Winograd's minimal filtering (Lavin and Gray 2015, arXiv 1509.09308).
//!
//! A tile of `n` x `n` results is summed over `n + 2` pixels each way. Its pixels and the kernel are mapped to as many
//! points, each point's products are summed over the channels as those of a matrix, and the sums are mapped back. That
//! is `(n + 2)²` products for each channel in place of `9 n²`: 2.25 times fewer for tiles of two, 4 times for tiles of
//! four. Weights are 1.8 or 4 times as large, and there is a little more rounding.
#![expect(unsafe_code, reason = "threads write different parts of one buffer; see `Target::part`")]

use std::ops::Range;

use rayon::prelude::*;

use super::{
    element::{Element, as_words},
    finish::Onto,
    packed::Packed,
    product::LANES,
    target::Target,
    turned::{self, HIGH},
    wide::wide,
};
use crate::autograd::scratch::Scratch;

/// Rows and columns of the kernel.
pub(super) const KERNEL: usize = 3;
/// Numbers at points that are under way at once: what the last cache holds.
const UNDER_WAY: usize = 4 << 20;
/// Numbers at one point that a task goes through again for each of its columns.
const TASK_NUMBERS: usize = 128 << 10;
/// Points of a tile at most.
const MOST_POINTS: usize = 36;
/// Tiles mapped by a task.
const GROUP: usize = 8;
/// Channels below which mapping takes more time than it saves.
const FEWEST: usize = 48;
/// Weights of a kernel, over channels in and out, up to which the larger tiles are taken: they are always faster, and
/// beyond it their weights would take more memory than that is worth.
const MOST_FOR_FOUR: usize = 3 << 17;

/// Results of a tile, each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tile {
    Two,
    Four,
}

impl Tile {
    /// The best for a kernel of so many channels in and out, if any saves time.
    pub(super) fn for_channels(inputs: usize, outputs: usize) -> Option<Self> {
        match inputs * outputs {
            _ if inputs.min(outputs) < FEWEST => None,
            0..=MOST_FOR_FOUR => Some(Self::Four),
            _ => Some(Self::Two),
        }
    }

    pub(super) fn side(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Pixels that it is summed over, and points, each way.
    fn reach(self) -> usize {
        self.side() + KERNEL - 1
    }

    pub(super) fn points(self) -> usize {
        self.reach() * self.reach()
    }

    /// What factors at its points are, where others are `element`: those of four lose too many digits in bf16.
    pub(super) fn element(self, element: Element) -> Element {
        match self {
            Self::Two => element,
            Self::Four => Element::F32,
        }
    }

    /// A kernel's `[C, 3, 3]` numbers at each point, `[points, C]`. In f64, for it is done once.
    pub(super) fn kernel(self, numbers: &[f32], out: &mut [f32]) {
        match self {
            Self::Two => spread_two(numbers, out),
            Self::Four => spread_four(numbers, out),
        }
    }
}

wide! {
    fn spread_two(numbers: &[f32], out: &mut [f32]) {
        spread(&TWO, numbers, out);
    }
}

wide! {
    fn spread_four(numbers: &[f32], out: &mut [f32]) {
        spread(&FOUR, numbers, out);
    }
}

/// A kernel's numbers to points, each way.
const TWO: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];
const FOUR: [[f64; 3]; 6] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];

/// `[C, 3, 3]` to `[R * R, C]`, sixteen channels at a time.
#[inline(always)]
fn spread<const R: usize>(map: &[[f64; KERNEL]; R], numbers: &[f32], out: &mut [f32]) {
    let (kernels, channels) = (numbers.as_chunks::<9>().0, numbers.len() / 9);
    for from in (0..channels).step_by(LANES) {
        let mut lanes = [[0.0; LANES]; 9];
        for (c, kernel) in kernels[from..].iter().take(LANES).enumerate() {
            for (lanes, number) in lanes.iter_mut().zip(kernel) {
                lanes[c] = *number;
            }
        }
        let mut points = [[[0.0; LANES]; R]; R];
        spread_lanes(map, &lanes, &mut points);
        let count = LANES.min(channels - from);
        for (at, point) in points.as_flattened().iter().enumerate() {
            out[at * channels + from..][..count].copy_from_slice(&point[..count]);
        }
    }
}

/// The compiler unrolls the loops but for the one over channels, which it makes vectors of.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "rounded once, at the end")]
fn spread_lanes<const R: usize>(
    map: &[[f64; KERNEL]; R],
    kernel: &[[f32; LANES]; 9],
    points: &mut [[[f32; LANES]; R]; R],
) {
    for c in 0..LANES {
        let mut across = [[0.0; R]; KERNEL];
        for (row, across) in across.iter_mut().enumerate() {
            for (at, map) in map.iter().enumerate() {
                let number = |k: usize| map[k] * f64::from(kernel[KERNEL * row + k][c]);
                across[at] = number(0) + number(1) + number(2);
            }
        }
        for (points, down) in points.iter_mut().zip(map) {
            for (at, point) in points.iter_mut().enumerate() {
                let sum = down[0] * across[0][at] + down[1] * across[1][at] + down[2] * across[2][at];
                point[c] = sum as f32;
            }
        }
    }
}

/// Pixels to points, one way.
#[inline(always)]
fn pixels_of_two([a, b, c, d]: [f32; 4]) -> [f32; 4] {
    [a - c, b + c, c - b, b - d]
}

/// Sums at points to results, one way.
#[inline(always)]
fn results_of_two([a, b, c, d]: [f32; 4]) -> [f32; 2] {
    [a + b + c, b - c - d]
}

#[inline(always)]
fn pixels_of_four([a, b, c, d, e, f]: [f32; 6]) -> [f32; 6] {
    let (even, odd) = (c.mul_add(-4.0, e), b.mul_add(-4.0, d));
    let (even_too, odd_too) = (e - c, d - b);
    [
        a.mul_add(4.0, c.mul_add(-5.0, e)),
        even + odd,
        even - odd,
        odd_too.mul_add(2.0, even_too),
        odd_too.mul_add(-2.0, even_too),
        b.mul_add(4.0, d.mul_add(-5.0, f)),
    ]
}

#[inline(always)]
fn results_of_four([a, b, c, d, e, f]: [f32; 6]) -> [f32; 4] {
    let (sum, difference) = (b + c, b - c);
    let (sum_too, difference_too) = (d + e, d - e);
    [
        a + sum + sum_too,
        difference_too.mul_add(2.0, difference),
        sum_too.mul_add(4.0, sum),
        difference_too.mul_add(8.0, difference + f),
    ]
}

/// `map` down each column of a square of numbers and then along each row of what that gave, of sixteen channels. The
/// compiler unrolls the loops but for the one over channels, which it makes vectors of.
#[inline(always)]
fn both_ways<const FROM: usize, const TO: usize>(
    from: &[[[f32; LANES]; FROM]; FROM],
    to: &mut [[[f32; LANES]; TO]; TO],
    map: impl Fn([f32; FROM]) -> [f32; TO],
) {
    for c in 0..LANES {
        let mut half = [[0.0; FROM]; TO];
        for column in 0..FROM {
            let mut line = [0.0; FROM];
            for row in 0..FROM {
                line[row] = from[row][column][c];
            }
            let mapped = map(line);
            for row in 0..TO {
                half[row][column] = mapped[row];
            }
        }
        for row in 0..TO {
            let mapped = map(half[row]);
            for column in 0..TO {
                to[row][column][c] = mapped[column];
            }
        }
    }
}

/// Up to sixteen channels, zeros beyond the end.
#[inline(always)]
fn read(numbers: &[f32], lanes: &mut [f32; LANES]) {
    if let Some(all) = numbers.first_chunk() {
        *lanes = *all;
    } else {
        let (own, rest) = lanes.split_at_mut(numbers.len());
        own.copy_from_slice(numbers);
        rest.fill(0.0);
    }
}

/// Pictures with their margins, large enough for whole tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pictures<'a> {
    pub(super) numbers: &'a [f32],
    pub(super) items: usize,
    /// Rows of pixels of an item.
    pub(super) height: usize,
    pub(super) width: usize,
}

/// What becomes of the results, `[items, height, width, columns]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Results<'a> {
    pub(super) out: Target<'a, f32>,
    pub(super) onto: Onto<'a>,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Added to each column, as they are packed.
    pub(super) bias: &'a [f32],
    /// Added to each column, for each item.
    pub(super) shift: Option<&'a [f32]>,
}

/// Tiles that are under way, and where their numbers lie: point after point, a row for each tile.
#[derive(Clone, Copy, Debug)]
struct Tiles {
    /// The first one's number among all items'.
    first: usize,
    count: usize,
    /// Tiles of an item, down and across.
    down: usize,
    across: usize,
    /// Numbers from tile to tile, before and after the products.
    strides: [usize; 2],
    /// Numbers from point to point.
    points: [usize; 2],
}

impl Tiles {
    /// Item and place in it.
    fn at(&self, tile: usize) -> (usize, [usize; 2]) {
        let (line, across) = ((self.first + tile) / self.across, (self.first + tile) % self.across);
        (line / self.down, [line % self.down, across])
    }

    /// Groups of them, for tasks.
    fn groups(&self) -> impl IndexedParallelIterator<Item = Range<usize>> {
        let count = self.count;
        (0..count.div_ceil(GROUP)).into_par_iter().map(move |i| i * GROUP..count.min((i + 1) * GROUP))
    }
}

/// The whole: `pictures` convolved with `weight`, which [`Tile::kernel`] has mapped. The order of sums of a number does
/// not depend on what else is computed.
pub(super) fn convolve(tile: Tile, pictures: Pictures<'_>, weight: &Packed, results: &Results<'_>) {
    let side = tile.side();
    let (down, across) = (results.height.div_ceil(side), results.width.div_ceil(side));
    assert!(pictures.height >= down * side + KERNEL - 1 && pictures.width >= across * side + KERNEL - 1);
    assert_eq!((weight.taps, weight.element), (tile.points(), tile.element(weight.element)));
    assert_eq!(
        pictures.numbers.len(),
        pictures.items * pictures.height * pictures.width * weight.inputs,
        "pictures of the weight's channels"
    );
    let strides = [weight.depth.next_multiple_of(LANES), weight.panels() * LANES];
    let all = pictures.items * down * across;
    if all == 0 {
        return;
    }
    let parts = all.div_ceil((UNDER_WAY / (tile.points() * (strides[0] + strides[1]))).max(GROUP));
    let most = all.div_ceil(parts);
    // One vector more than are used, lest all points fall into the same lines of the cache.
    let points = strides.map(|stride| most * stride + LANES);
    let mut before = Scratch::<u32>::stale(tile.points() * points[0]);
    let mut after = Scratch::<f32>::stale(tile.points() * points[1]);
    for first in (0..all).step_by(most) {
        let tiles = Tiles { first, count: most.min(all - first), down, across, strides, points };
        let into = Target::new(&mut before);
        tiles.groups().for_each(|group| match tile {
            Tile::Two => pixels_in_twos(pictures, weight, tiles, group, into),
            Tile::Four => pixels_in_fours(pictures, weight, tiles, group, into),
        });
        products(&before, tiles, weight, Target::new(&mut after));
        tiles.groups().for_each(|group| match tile {
            Tile::Two => results_in_twos(&after, tiles, group, weight.columns, results),
            Tile::Four => results_in_fours(&after, tiles, group, weight.columns, results),
        });
    }
}

/// At each point, rows of tiles by its weights.
fn products(before: &[u32], tiles: Tiles, weight: &Packed, after: Target<'_, f32>) {
    let (count, points) = (tiles.count, weight.taps);
    let enough = (4 * rayon::current_num_threads()).div_ceil(points);
    let tasks = enough.max((count * tiles.strides[0]).div_ceil(TASK_NUMBERS)).min(count.div_ceil(HIGH));
    // Whole blocks.
    let rows = count.div_ceil(tasks).next_multiple_of(HIGH);
    let tasks = count.div_ceil(rows);
    let [stride, out_stride] = tiles.strides;
    (0..points * tasks).into_par_iter().with_max_len(1).for_each(|task| {
        let (point, first) = (task / tasks, task % tasks * rows);
        let count = rows.min(count - first);
        // SAFETY: tasks are of different points or tiles.
        let out = unsafe { after.part(point * tiles.points[1] + first * out_stride, count * out_stride) };
        let words = &before[point * tiles.points[0] + first * stride..];
        let blocks = count.div_ceil(HIGH);
        let mut left = Scratch::<u32>::stale(blocks * HIGH * weight.depth);
        // None: what is mapped is kept as words.
        let mut desk = weight.desk(weight.depth * LANES);
        for (from, depth) in turned::parts(weight.depth) {
            let left = &mut left[blocks * HIGH * from..][..blocks * HIGH * depth];
            let each = || (0..count).step_by(HIGH).map(|row| (row, HIGH.min(count - row)));
            for ((row, high), left) in each().zip(left.chunks_exact_mut(HIGH * depth)) {
                turned::turn((&words[row * stride + from..], stride), [high, depth], left);
            }
            for panel in (0..weight.panels()).step_by(2) {
                let panels = (weight.panels() - panel).min(2);
                let begin = (point * weight.depth + from) * LANES;
                let right = weight.right((panel, panels), (begin, depth * LANES), &mut desk);
                for ((row, high), left) in each().zip(left.chunks_exact(HIGH * depth)) {
                    let out = (&mut out[row * out_stride + panel * LANES..], out_stride);
                    turned::block(weight.element, (left, high), (right, panels), depth, out, from > 0);
                }
            }
        }
    });
}

/// Tiles' pixels to points, as factors for `weight`.
#[inline(always)]
fn pixels<const SIDE: usize, const REACH: usize>(
    from: Pictures<'_>,
    weight: &Packed,
    tiles: Tiles,
    group: Range<usize>,
    to: Target<'_, u32>,
    map: impl Fn([f32; REACH]) -> [f32; REACH],
) {
    let ([stride, _], channels, each) = (tiles.strides, weight.inputs, weight.element.each());
    let mut rounded = [[0; LANES]; MOST_POINTS];
    let (mut pixels, mut points) = ([[[0.0; LANES]; REACH]; REACH], [[[0.0; LANES]; REACH]; REACH]);
    for tile in group {
        let (item, [down, across]) = tiles.at(tile);
        let corner = (item * from.height + down * SIDE) * from.width + across * SIDE;
        let tile = tile * stride;
        for c in (0..stride * each).step_by(LANES) {
            let (begin, end) = (channels.min(c), channels.min(c + LANES));
            for (y, row) in pixels.iter_mut().enumerate() {
                for (x, pixel) in row.iter_mut().enumerate() {
                    let at = (corner + y * from.width + x) * channels;
                    read(&from.numbers[at + begin..at + end], pixel);
                }
            }
            both_ways(&pixels, &mut points, &map);
            // SAFETY: groups are of different tiles.
            let place =
                |point: usize| unsafe { to.part(point * tiles.points[0] + tile + c / each, LANES / each) };
            match weight.element {
                Element::F32 => {
                    for (i, lanes) in points.as_flattened().iter().enumerate() {
                        place(i).copy_from_slice(as_words(lanes));
                    }
                }
                Element::Bf16 => {
                    let words = &mut rounded.as_flattened_mut()[..REACH * REACH * LANES / 2];
                    weight.element.round(points.as_flattened().as_flattened(), words);
                    for (i, words) in words.as_chunks::<{ LANES / 2 }>().0.iter().enumerate() {
                        place(i).copy_from_slice(words);
                    }
                }
            }
        }
    }
}

wide! {
    fn pixels_in_twos(from: Pictures<'_>, weight: &Packed, tiles: Tiles, group: Range<usize>, to: Target<'_, u32>) {
        pixels::<2, 4>(from, weight, tiles, group, to, pixels_of_two);
    }
}

wide! {
    fn pixels_in_fours(from: Pictures<'_>, weight: &Packed, tiles: Tiles, group: Range<usize>, to: Target<'_, u32>) {
        pixels::<4, 6>(from, weight, tiles, group, to, pixels_of_four);
    }
}

/// Tiles' sums to results.
#[inline(always)]
fn results<const SIDE: usize, const REACH: usize>(
    from: &[f32],
    tiles: Tiles,
    group: Range<usize>,
    columns: usize,
    to: &Results<'_>,
    map: impl Fn([f32; REACH]) -> [f32; SIDE],
) {
    let [_, stride] = tiles.strides;
    let (mut sums, mut mapped) = ([[[0.0; LANES]; REACH]; REACH], [[[0.0; LANES]; SIDE]; SIDE]);
    for tile in group {
        let (item, [down, across]) = tiles.at(tile);
        let (top, left, tile) = (down * SIDE, across * SIDE, tile * stride);
        for c in (0..columns).step_by(LANES) {
            let width = LANES.min(columns - c);
            for (i, sum) in sums.as_flattened_mut().iter_mut().enumerate() {
                read(&from[i * tiles.points[1] + tile + c..][..LANES], sum);
            }
            let mut added = [0.0; LANES];
            read(&to.bias[c..c + LANES], &mut added);
            if let Some(shift) = to.shift {
                let shift = &shift[item * columns + c..][..width];
                added.iter_mut().zip(shift).for_each(|(added, shift)| *added += shift);
            }
            both_ways(&sums, &mut mapped, &map);
            for (y, row) in mapped.iter().enumerate().take(to.height - top) {
                for (x, value) in row.iter().enumerate().take(to.width - left) {
                    let mut value = *value;
                    value.iter_mut().zip(&added).for_each(|(value, added)| *value += added);
                    let at = ((item * to.height + top + y) * to.width + left + x) * columns + c;
                    // SAFETY: groups are of different pixels.
                    let out = unsafe { to.out.part(at, width) };
                    match to.onto {
                        Onto::Nothing => out.copy_from_slice(&value[..width]),
                        Onto::Itself => out.iter_mut().zip(value).for_each(|(out, v)| *out += v),
                        Onto::Other(other) => {
                            let other = &other[at..at + width];
                            out.iter_mut().zip(other).zip(value).for_each(|((out, o), v)| *out = o + v);
                        }
                    }
                }
            }
        }
    }
}

wide! {
    fn results_in_twos(from: &[f32], tiles: Tiles, group: Range<usize>, columns: usize, to: &Results<'_>) {
        results::<2, 4>(from, tiles, group, columns, to, results_of_two);
    }
}

wide! {
    fn results_in_fours(from: &[f32], tiles: Tiles, group: Range<usize>, columns: usize, to: &Results<'_>) {
        results::<4, 6>(from, tiles, group, columns, to, results_of_four);
    }
}

//! Attention whose scores are a few rows in each thread's cache.
#![expect(unsafe_code, reason = "threads write different parts of one result")]

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::{
    element::{Element, as_words},
    operand::Operand,
    packed::turn_from,
    product::{LANES, Left, Right, SIDE, SLACK, Segment, block},
    target::Target,
    turned::{self, HIGH, turn},
    wide::{folded, wide},
};
use crate::autograd::{activation::exp, scratch::Scratch};

/// Keys and values of some tokens, for each item and head as products take them.
#[derive(Debug)]
pub(crate) struct Keys {
    element: Element,
    items: usize,
    heads: usize,
    tokens: usize,
    /// Numbers of a head.
    width: usize,
    /// By item and head: panels of 16 tokens, each `[width, 16]`.
    keys: Scratch<u32>,
    /// By item and head: panels of 16 numbers, each `[tokens, 16]`.
    values: Scratch<u32>,
}

/// Sizes of keys or values of one head, in words.
#[derive(Clone, Copy)]
struct Panels {
    depth: usize,
    panel: usize,
    count: usize,
}

impl Panels {
    fn new(depth: usize, columns: usize) -> Self {
        Self { depth, panel: (depth + 1) * LANES, count: columns.div_ceil(LANES) }
    }

    fn len(self) -> usize {
        self.panel * self.count
    }
}

impl Keys {
    /// Of `items` times as many rows: each a token's keys or values, head by head.
    pub(crate) fn new(both: [&Operand; 2], items: usize, heads: [usize; 2]) -> Self {
        Self::within(both, items, heads, Scratch::stale)
    }

    /// [`Keys::new`] in memory of their own: those that are held do not take what is used over and over.
    pub(crate) fn kept(both: [&Operand; 2], items: usize, heads: [usize; 2]) -> Self {
        Self::within(both, items, heads, Scratch::own)
    }

    fn within(
        [keys, values]: [&Operand; 2],
        items: usize,
        [heads, width]: [usize; 2],
        room: fn(usize) -> Scratch<u32>,
    ) -> Self {
        let element = keys.element;
        let tokens = keys.rows / items;
        let (by_token, by_number) = Self::panels(element, tokens, width);
        let mut packed = Self {
            element,
            items,
            heads,
            tokens,
            width,
            keys: room(items * heads * by_token.len()),
            values: room(items * heads * by_number.len()),
        };
        let both = packed.keys.par_chunks_exact_mut(by_token.len());
        let both = both.zip(packed.values.par_chunks_exact_mut(by_number.len())).enumerate();
        both.for_each(|(at, (key_words, value_words))| {
            let (row, head) = (at / heads * tokens, at % heads * width);
            pack_keys(keys, [row, tokens], [head, width], by_token, key_words);
            pack_values(values, [row, tokens], [head, width], by_number, value_words);
        });
        packed
    }

    fn panels(element: Element, tokens: usize, width: usize) -> (Panels, Panels) {
        (Panels::new(element.words(width), tokens), Panels::new(element.words(tokens), width))
    }
}

/// Numbers `at..at + width` of a row, as words padded to a product's depth; copied where they do not lie so.
fn numbers<'a>(operand: &'a Operand, row: usize, [at, width]: [usize; 2], copy: &'a mut [u32]) -> &'a [u32] {
    let words = &operand.words[row * operand.stride..][..operand.stride];
    match operand.element {
        Element::F32 => &words[at..at + width],
        Element::Bf16 if at.is_multiple_of(2) && width.is_multiple_of(32) => &words[at / 2..(at + width) / 2],
        Element::Bf16 => {
            let half = |i: usize| (words[i / 2] >> (16 * (i % 2))) & 0xffff;
            for (word, out) in copy.iter_mut().enumerate() {
                let of = |i: usize| if i < width { half(at + i) } else { 0 };
                *out = of(2 * word) | of(2 * word + 1) << 16;
            }
            copy
        }
    }
}

fn pack_keys(
    from: &Operand,
    [row, tokens]: [usize; 2],
    columns: [usize; 2],
    panels: Panels,
    out: &mut [u32],
) {
    let depth = panels.depth;
    let mut lines = vec![0; LANES * depth];
    let mut copy = vec![0; depth];
    for (at, out) in out.chunks_exact_mut(panels.panel).enumerate() {
        let count = LANES.min(tokens - at * LANES);
        for (i, line) in lines.chunks_exact_mut(depth).enumerate() {
            if i < count {
                line.copy_from_slice(numbers(from, row + at * LANES + i, columns, &mut copy));
            } else {
                line.fill(0);
            }
        }
        turn_from(&lines, depth, [depth, LANES], &mut out[..depth * LANES]);
    }
}

fn pack_values(
    from: &Operand,
    [row, tokens]: [usize; 2],
    [at, width]: [usize; 2],
    panels: Panels,
    out: &mut [u32],
) {
    let words = |row: usize| &from.words[row * from.stride..][..from.stride];
    for (panel, out) in out.chunks_exact_mut(panels.panel).enumerate() {
        let (first, count) = (at + panel * LANES, LANES.min(width - panel * LANES));
        for (word, out) in out.chunks_exact_mut(LANES).take(panels.depth).enumerate() {
            out.fill(0);
            match from.element {
                Element::F32 => out[..count].copy_from_slice(&words(row + word)[first..first + count]),
                Element::Bf16 => {
                    for (token, shift) in [(2 * word, 0), (2 * word + 1, 16)] {
                        if token < tokens {
                            let words = words(row + token);
                            for (i, out) in (first..first + count).zip(&mut *out) {
                                *out |= ((words[i / 2] >> (16 * (i % 2))) & 0xffff) << shift;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Queries that attend to keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queries<'a> {
    /// Rows of tokens, item by item, each head by head.
    pub(crate) rows: &'a Operand,
    /// What scores are multiplied by.
    pub(crate) scale: f32,
    /// Whether a token sees itself and those before it alone.
    pub(crate) causal: bool,
}

/// `softmax(q k^T scale) v` of each item and head: rows as many as queries, as factors of the next product. `keys` are of
/// all items together, in order.
pub(crate) fn attend(queries: Queries<'_>, keys: &[&Keys]) -> Result<Operand> {
    let q = queries.rows;
    let of: Vec<(&Keys, usize)> =
        keys.iter().flat_map(|keys| (0..keys.items).map(move |item| (*keys, item))).collect();
    let Keys { element, heads, width, .. } = *keys[0];
    let rows = q.rows / of.len();
    let fits = |keys: &&Keys| (keys.element, keys.heads, keys.width) == (element, heads, width);
    if rows * of.len() != q.rows || q.element != element || q.width != heads * width || !keys.iter().all(fits)
    {
        bail!("{} rows of queries do not fit the keys of {} items", q.rows, of.len());
    }
    let mut out = Operand::stale(element, q.rows, heads * width).of_items(of.len());
    let stride = out.stride;
    // Heads of an odd width would share words.
    let mut numbers =
        (element == Element::Bf16 && width % 2 == 1).then(|| Scratch::<f32>::stale(q.rows * q.width));
    if element == Element::Bf16 && out.width != 2 * stride {
        out.words.fill(0);
    }
    let target = Target::new(&mut out.words);
    let plain = numbers.as_mut().map(|numbers| Target::new(numbers));
    // Rows that kernels are best at.
    let high = if turned::suits(element) { 2 * HIGH } else { SIDE };
    let blocks = rows.div_ceil(high);
    (0..of.len() * heads * blocks).into_par_iter().with_max_len(1).for_each(|task| {
        let (at, row) = (task / blocks, task % blocks * high);
        let ((keys, item), head) = (of[at / heads], at % heads);
        let place = Place { item: at / heads, rows: [row, high.min(rows - row)], head, of: rows };
        let one_block = if turned::suits(element) { one_block_turned } else { one_block };
        let lines = one_block(queries, keys, (item, place));
        for (i, line) in lines.chunks_exact(width.next_multiple_of(LANES)).enumerate().take(place.rows[1]) {
            let at = place.item * rows + row + i;
            match plain {
                // SAFETY: a head's numbers of a row are one task's.
                Some(plain) => unsafe { plain.part(at * heads * width + head * width, width) }
                    .copy_from_slice(&line[..width]),
                None => store(target, at * stride, element, head * width, &line[..width]),
            }
        }
    });
    Ok(match numbers {
        Some(numbers) => Operand::new(element, &numbers, heads * width).of_items(of.len()),
        None => out,
    })
}

/// Some rows of an item's queries.
#[derive(Clone, Copy)]
struct Place {
    item: usize,
    /// The first and how many.
    rows: [usize; 2],
    head: usize,
    /// Of an item.
    of: usize,
}

/// Numbers of one head of some rows as a product takes them: as they lie, or copied where they are not whole words of it.
fn lines<'a>(
    q: &'a Operand,
    [first, count]: [usize; 2],
    [at, width]: [usize; 2],
    copied: &'a mut [u32],
) -> Left<'a> {
    let aligned = match q.element {
        Element::F32 => Some(at),
        Element::Bf16 => (at.is_multiple_of(2) && width.is_multiple_of(32)).then_some(at / 2),
    };
    if let Some(at) = aligned {
        return Left { words: &q.words[first * q.stride + at..], stride: q.stride };
    }
    let depth = q.element.words(width);
    let mut copy = vec![0; depth];
    for (i, line) in copied.chunks_exact_mut(depth).enumerate().take(count) {
        line.copy_from_slice(numbers(q, first + i, [at, width], &mut copy));
    }
    Left { words: copied, stride: depth }
}

/// The result's rows of one head, each padded to whole panels.
fn one_block(queries: Queries<'_>, keys: &Keys, (item, place): (usize, Place)) -> Scratch<f32> {
    let Keys { element, heads, tokens, width, .. } = *keys;
    let (by_token, by_number) = Keys::panels(element, tokens, width);
    let Place { rows: [row, count], head, .. } = place;
    let (q, from) = (queries.rows, place.item * place.of + row);
    let at = head * width;
    let head = item * heads + head;
    let keys_of = &keys.keys[head * by_token.len()..][..by_token.len()];
    let values_of = &keys.values[head * by_number.len()..][..by_number.len()];

    let mut copied = Scratch::<u32>::stale((SIDE + SLACK) * by_token.depth);
    let left = lines(q, [from, count], [at, width], &mut copied);
    // Keys that no row of the block sees need no scores.
    let seen = if queries.causal { (row + count).min(tokens) } else { tokens };
    let columns = seen.next_multiple_of(LANES);
    let mut scores = Scratch::<f32>::stale(SIDE * columns);
    for panel in (0..columns / LANES).step_by(2) {
        let panels = (columns / LANES - panel).min(2);
        block(
            element,
            (left, count),
            (Right { words: &keys_of[panel * by_token.panel..], panel: by_token.panel }, panels),
            (&[Segment { a: 0, b: 0 }], by_token.depth),
            (&mut scores[panel * LANES..], columns),
            false,
        );
    }
    // Weights, not yet divided by their sums.
    let depth = element.words(seen);
    let mut weights = Scratch::<u32>::stale((SIDE + SLACK) * depth);
    let mut sums = [0.0; SIDE];
    let lines = scores.chunks_exact_mut(columns).zip(weights.chunks_exact_mut(depth)).take(count);
    for (i, (scores, weights)) in lines.enumerate() {
        let seen = if queries.causal { (row + i + 1).min(tokens) } else { tokens };
        sums[i] = exponentials(&mut scores[..seen], queries.scale);
        element.round(&scores[..seen], weights);
    }
    let wide = width.next_multiple_of(LANES);
    let mut out = Scratch::<f32>::stale(SIDE * wide);
    for panel in (0..by_number.count).step_by(2) {
        let panels = (by_number.count - panel).min(2);
        block(
            element,
            (Left { words: &weights, stride: depth }, count),
            (Right { words: &values_of[panel * by_number.panel..], panel: by_number.panel }, panels),
            (&[Segment { a: 0, b: 0 }], depth),
            (&mut out[panel * LANES..], wide),
            false,
        );
    }
    for (line, sum) in out.chunks_exact_mut(wide).zip(sums).take(count) {
        scale(line, 1.0 / sum);
    }
    out
}

/// [`one_block`] where rows are turned.
fn one_block_turned(queries: Queries<'_>, keys: &Keys, (item, place): (usize, Place)) -> Scratch<f32> {
    let Keys { element, heads, tokens, width, .. } = *keys;
    let (by_token, by_number) = Keys::panels(element, tokens, width);
    let Place { rows: [row, count], head, .. } = place;
    let (q, from) = (queries.rows, place.item * place.of + row);
    let at = head * width;
    let head = item * heads + head;
    let keys_of = &keys.keys[head * by_token.len()..][..by_token.len()];
    let values_of = &keys.values[head * by_number.len()..][..by_number.len()];
    // Keys that no row of the block sees need no scores.
    let seen = if queries.causal { (row + count).min(tokens) } else { tokens };
    let (columns, depth) = (seen.next_multiple_of(LANES), element.words(seen));
    let (wide, deepest) = (width.next_multiple_of(LANES), turned::parts(depth).map(|(_, deep)| deep).max());
    let mut left = Scratch::<u32>::stale(2 * HIGH * by_token.depth.max(deepest.unwrap_or(0)));
    let each = || (0..count).step_by(HIGH).map(|row| (row, HIGH.min(count - row)));

    // Two rows more than there are, of these and below: what turns them reads so many.
    let mut copied = Scratch::<u32>::stale((2 * HIGH + 2) * by_token.depth);
    let Left { words, stride } = lines(q, [from, count], [at, width], &mut copied);
    let mut scores = Scratch::<f32>::stale((2 * HIGH + 2) * columns);
    for ((row, rows), left) in each().zip(left.chunks_exact_mut(HIGH * by_token.depth)) {
        turn((&words[row * stride..], stride), [rows, by_token.depth], left);
        for panel in (0..columns / LANES).step_by(2) {
            let panels = (columns / LANES - panel).min(2);
            let right = Right { words: &keys_of[panel * by_token.panel..], panel: by_token.panel };
            let out = (&mut scores[row * columns + panel * LANES..], columns);
            turned::block(element, (left, rows), (right, panels), by_token.depth, out, false);
        }
    }
    // Weights, not yet divided by their sums.
    let mut rounded = Scratch::<u32>::stale(if element == Element::F32 { 0 } else { (2 * HIGH + 2) * depth });
    let mut sums = [0.0; 2 * HIGH];
    for (i, (scores, sum)) in scores.chunks_exact_mut(columns).zip(&mut sums).enumerate().take(count) {
        let own = if queries.causal { (row + i + 1).min(tokens) } else { tokens };
        *sum = exponentials(&mut scores[..own], queries.scale);
        match element {
            Element::F32 => scores[own..].fill(0.0),
            Element::Bf16 => element.round(&scores[..own], &mut rounded[i * depth..][..depth]),
        }
    }
    let (weights, stride) = match element {
        Element::F32 => (as_words(&scores), columns),
        Element::Bf16 => (&*rounded, depth),
    };
    let mut out = Scratch::<f32>::stale(2 * HIGH * wide);
    for (from, deep) in turned::parts(depth) {
        for ((row, rows), left) in each().zip(left.chunks_exact_mut(HIGH * deep)) {
            turn((&weights[row * stride + from..], stride), [rows, deep], left);
            for panel in (0..by_number.count).step_by(2) {
                let panels = (by_number.count - panel).min(2);
                let words = &values_of[panel * by_number.panel + from * LANES..];
                let right = Right { words, panel: by_number.panel };
                let out = (&mut out[row * wide + panel * LANES..], wide);
                turned::block(element, (left, rows), (right, panels), deep, out, from > 0);
            }
        }
    }
    for (line, sum) in out.chunks_exact_mut(wide).zip(sums).take(count) {
        scale(line, 1.0 / sum);
    }
    out
}

/// Rounds a head's numbers into a row of words, from the number `at` on; an even number of them where words hold two.
fn store(out: Target<'_, u32>, row: usize, element: Element, at: usize, line: &[f32]) {
    let (at, len) = match element {
        Element::F32 => (at, line.len()),
        Element::Bf16 => (at / 2, line.len() / 2),
    };
    // SAFETY: a head's numbers of a row are one task's.
    element.round(line, unsafe { out.part(row + at, len) });
}

wide! {
    /// Exponentials of the differences from the greatest, times `scale`, and their sum.
    fn exponentials(x: &mut [f32], scale: f32) -> f32 {
        const LANES: usize = 32;
        let mut most = [f32::NEG_INFINITY; LANES];
        let (whole, rest) = x.as_chunks::<LANES>();
        let greater = |a: f32, b: f32| if b > a { b } else { a };
        for part in whole {
            most.iter_mut().zip(part).for_each(|(most, x)| *most = greater(*most, *x));
        }
        most.iter_mut().zip(rest).for_each(|(most, x)| *most = greater(*most, *x));
        let shift = -folded(most, greater) * scale;
        let mut sums = [0_f32; LANES];
        let (whole, rest) = x.as_chunks_mut::<LANES>();
        for part in whole {
            part.iter_mut().zip(&mut sums).for_each(|(x, sum)| {
                *x = exp(x.mul_add(scale, shift));
                *sum += *x;
            });
        }
        rest.iter_mut().zip(&mut sums).for_each(|(x, sum)| {
            *x = exp(x.mul_add(scale, shift));
            *sum += *x;
        });
        folded(sums, |a, b| a + b)
    }
}

wide! {
    fn scale(x: &mut [f32], by: f32) {
        x.iter_mut().for_each(|x| *x *= by);
    }
}

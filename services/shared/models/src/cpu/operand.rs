//! Rows of factors for products.

use rayon::prelude::*;

use super::{element::Element, product::SLACK};
use crate::autograd::scratch::Scratch;

/// Rows rounded at once by a thread.
const ROWS: usize = 16;

/// `[rows, width]` numbers as words, rows padded to what products take, with room behind the last.
#[derive(Debug)]
pub(crate) struct Operand {
    pub(super) words: Scratch<u32>,
    pub(super) element: Element,
    pub(super) rows: usize,
    pub(super) width: usize,
    /// Words from row to row.
    pub(super) stride: usize,
    /// How many rows at a time are an item's, where that is known: else 1.
    pub(super) item: usize,
}

impl Operand {
    /// Left over from some earlier use.
    pub(super) fn stale(element: Element, rows: usize, width: usize) -> Self {
        let stride = element.words(width);
        Self { words: Scratch::stale((rows + SLACK) * stride), element, rows, width, stride, item: 1 }
    }

    /// `rows` rounded, each `width` numbers.
    pub(crate) fn new(element: Element, numbers: &[f32], width: usize) -> Self {
        let mut operand = Self::stale(element, numbers.len() / width, width);
        operand.fill(|first, out| {
            for (row, out) in numbers[first * width..].chunks_exact(width).zip(out) {
                element.round(row, out);
            }
        });
        operand
    }

    /// The same of so many items.
    pub(crate) fn of_items(mut self, items: usize) -> Self {
        self.item = if self.rows.is_multiple_of(items.max(1)) { self.rows / items.max(1) } else { 1 };
        self
    }

    /// Calls `f` with the number of a first row and the words of it and some that follow, for all rows.
    pub(super) fn fill<'a>(&'a mut self, f: impl Fn(usize, std::slice::ChunksExactMut<'a, u32>) + Sync) {
        let (stride, len) = (self.stride, self.rows * self.stride);
        let chunks = self.words[..len].par_chunks_mut(ROWS * stride).enumerate();
        chunks.for_each(|(at, out)| f(at * ROWS, out.chunks_exact_mut(stride)));
    }
}

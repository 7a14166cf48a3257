//! Where pixels lie while they are convolved.
//!
//! Rows are laid one after another with one zero between, and items with one row of zeros between, so that a
//! neighbour's place differs from a pixel's by the same shift everywhere. A convolution is then a sum of matrix
//! products, one for each tap of the kernel, over all places; what comes out at the zeros' places is left behind.

use std::ops::Range;

/// The greatest number of places laid out at once, where items are small: what stays in the cache.
const PLACES: usize = 2 << 10;

/// One convolution's geometry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lattice {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) out_height: usize,
    pub(super) out_width: usize,
    side: usize,
    stride: usize,
    /// Row and column of the place where the first output is computed.
    offset: usize,
}

/// A run of an item's pixels: `len` of them from `pixel`, `step` apart at their places from `place`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) item: usize,
    pub(super) pixel: usize,
    pub(super) place: usize,
    pub(super) len: usize,
    pub(super) step: usize,
}

impl Lattice {
    pub(super) fn new([height, width]: [usize; 2], side: usize, stride: usize, padding: [usize; 2]) -> Self {
        let [near, far] = padding;
        let out = |size: usize| (size + near + far - side) / stride + 1;
        let (out_height, out_width) = (out(height), out(width));
        Self { height, width, out_height, out_width, side, stride, offset: side / 2 - near }
    }

    pub(super) fn plane(&self) -> usize {
        self.height * self.width
    }

    pub(super) fn out_plane(&self) -> usize {
        self.out_height * self.out_width
    }

    fn border(&self) -> usize {
        self.side / 2
    }

    /// Places from row to row.
    fn pitch(&self) -> usize {
        self.width + self.border()
    }

    /// Places of one item.
    fn item(&self) -> usize {
        (self.height + self.border()) * self.pitch()
    }

    /// `batch` items, some at a time.
    pub(super) fn groups(&self, batch: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let size = (PLACES / self.item()).max(1);
        (0..batch).step_by(size).map(move |first| first..(first + size).min(batch))
    }

    /// Places that `items` items fill, a multiple of 32.
    pub(super) fn places(&self, items: usize) -> usize {
        (items * self.item()).next_multiple_of(32)
    }

    /// Zeros before the first place, so that every tap finds some.
    pub(super) fn lead(&self) -> usize {
        if self.side == 1 { 0 } else { (self.pitch() + 1).next_multiple_of(16) }
    }

    /// Length of a plane of `items` items with the zeros around it. No multiple of a page, which would put all
    /// channels' rows into the same few lines of the cache.
    pub(super) fn length(&self, items: usize) -> usize {
        let len = self.places(items) + 2 * self.lead();
        if len.is_multiple_of(256) { len + 32 } else { len }
    }

    /// How far each tap of the kernel is from its centre, plus the lead.
    pub(super) fn shifts(&self) -> Vec<usize> {
        let (border, pitch, lead) = (self.border(), self.pitch(), self.lead());
        let taps = (0..self.side).flat_map(|y| (0..self.side).map(move |x| (y, x)));
        taps.map(|(y, x)| lead + y * pitch + x - border * pitch - border).collect()
    }

    /// Rows of the input of one plane of `items` items, `pixel` counted from the plane of the first, with `between`
    /// pixels from item to item.
    pub(super) fn input_runs(
        &self,
        items: usize,
        between: usize,
    ) -> impl Iterator<Item = Run> + Clone + use<> {
        let Self { height, width, .. } = *self;
        let (item_places, pitch) = (self.item(), self.pitch());
        let row = move |item: usize, y: usize| Run {
            item,
            pixel: item * between + y * width,
            place: item * item_places + y * pitch,
            len: width,
            step: 1,
        };
        (0..items).flat_map(move |item| (0..height).map(move |y| row(item, y)))
    }

    /// The same of the output.
    pub(super) fn output_runs(
        &self,
        items: usize,
        between: usize,
    ) -> impl Iterator<Item = Run> + Clone + use<> {
        let Self { out_height, out_width, stride, offset, .. } = *self;
        let (item_places, pitch) = (self.item(), self.pitch());
        let row = move |item: usize, y: usize| Run {
            item,
            pixel: item * between + y * out_width,
            place: item * item_places + (stride * y + offset) * pitch + offset,
            len: out_width,
            step: stride,
        };
        (0..items).flat_map(move |item| (0..out_height).map(move |y| row(item, y)))
    }
}

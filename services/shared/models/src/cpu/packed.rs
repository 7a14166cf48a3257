//! Weights as products take them.
#![expect(unsafe_code, reason = "instructions asked for at run time, and bytes seen as words")]

use std::ops::Range;

use candle_core::{DType, Result, Storage, Tensor, bail};
use candle_nn::VarBuilder;
use half::{bf16, slice::HalfFloatSliceExt};
use rayon::prelude::*;
use safetensors::Dtype;

#[cfg(target_arch = "x86_64")]
use super::{amx, isa};
use super::{
    element::Element,
    kept::Kept,
    product::{LANES, MOST_TAPS, Right},
    room::{Desk, Room},
    strassen::Quarter,
    wanted, wanted_of,
};
use crate::weights::Stored;

/// Reads as many numbers of a weight as there is room for, from one on.
type Read<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);
/// A row of a weight, or a part of one, from `[K, ..]` to `[taps, K]`.
type Map<'a> = &'a (dyn Fn(&[f32], &mut [f32]) + Sync);

/// Numbers of a row that are packed at once, all its taps counted.
const PART: usize = 2048;
/// Numbers of a weight from which on it is kept in two bytes each if they hold it: it comes from memory each time.
const MANY: usize = 1 << 18;

/// Which of a weight's rows go to which columns of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// As they are.
    Plain,
    /// The first half's and the second half's by turns, a panel each: values beside their gates.
    Halves,
}

/// `[N, K, taps..]` as panels of 16 columns, each tap after tap of `[depth, 16]` words, or of as many halves.
#[derive(Debug)]
pub(super) struct Packed {
    words: Room,
    kept: Kept,
    pub(super) element: Element,
    /// Columns of the product, N.
    pub(super) columns: usize,
    /// Numbers that go into a sum, of one tap.
    pub(super) inputs: usize,
    pub(super) taps: usize,
    /// Words that go into a sum, of one tap.
    pub(super) depth: usize,
    /// Words from panel to panel, as they are kept. One row more than are used, lest all panels fall into the same lines of
    /// the cache.
    panel: usize,
    pub(super) order: Order,
}

/// A weight that a network has asked for.
#[derive(Debug)]
pub(crate) enum Loaded {
    Tensor(Tensor),
    /// It is packed as that, so it may stay where it is; with what stands for it then.
    Stored(Stored, Element, Tensor),
}

impl Loaded {
    pub(crate) fn new(vb: &VarBuilder<'_>, shape: &[usize], name: &str) -> Result<Self> {
        if let Some(element) = wanted_of(vb.dtype(), vb.device()) {
            return Ok(match Stored::of(vb, shape, name)? {
                Ok(stored) => Self::Stored(stored, element, Tensor::zeros(0, vb.dtype(), vb.device())?),
                Err(tensor) => Self::Tensor(tensor),
            });
        }
        Ok(Self::Tensor(vb.get(shape, name)?))
    }

    /// What `pack` makes of it with a tensor without elements to stand for it, or itself where it is not to be packed.
    pub(crate) fn packed<T>(
        self,
        pack: impl FnOnce(Weight<'_>, Element) -> Result<T>,
    ) -> Result<std::result::Result<(Tensor, T), Tensor>> {
        match &self {
            Self::Tensor(tensor) => match wanted(tensor) {
                Some(element) => {
                    let none = Tensor::zeros(0, tensor.dtype(), tensor.device())?;
                    Ok(Ok((none, pack(Weight::Tensor(tensor), element)?)))
                }
                None => Ok(Err(tensor.clone())),
            },
            Self::Stored(stored, element, none) => {
                Ok(Ok((none.clone(), pack(Weight::Stored(stored), *element)?)))
            }
        }
    }
}

/// A weight `[N, K]` or `[N, K, h, w]` that is to be packed: f32 or bf16 on the CPU, contiguous; or in its file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weight<'a> {
    Tensor(&'a Tensor),
    Stored(&'a Stored),
}

impl<'a> Weight<'a> {
    pub(super) fn dims(self) -> &'a [usize] {
        match self {
            Self::Tensor(tensor) => tensor.dims(),
            Self::Stored(stored) => stored.dims(),
        }
    }

    /// Looks at `count` numbers from `first` on where they come straight from a file; tensors are their maker's business.
    fn check(self, first: usize, count: usize) -> Result<()> {
        match self {
            Self::Tensor(_) => Ok(()),
            Self::Stored(stored) => Ok(stored.check(first, count)?),
        }
    }

    /// The shortest that holds its numbers as they are multiplied.
    fn shortest(self, element: Element) -> Kept {
        let (computed, stored) = match self {
            Self::Tensor(tensor) => (tensor.dtype(), None),
            Self::Stored(stored) => (stored.dtype(), Some(stored.stored_as())),
        };
        match (element, computed, stored) {
            (Element::F32, DType::BF16, _) | (Element::F32, _, Some(Dtype::BF16)) => Kept::Bf16,
            (Element::F32, _, Some(Dtype::F16)) => Kept::F16,
            _ => Kept::Words,
        }
    }

    /// Words of its file, where its numbers need not be read one by one to be kept so.
    fn halves(self, element: Element, kept: Kept) -> Option<Halves<'a>> {
        let Self::Stored(stored) = self else { return None };
        let layout = match (element, kept, stored.stored_as()) {
            (Element::F32, Kept::F16, Dtype::F16) | (Element::F32, Kept::Bf16, Dtype::BF16) => Layout::Apart,
            (Element::Bf16, _, Dtype::BF16) => Layout::Pairs,
            (Element::Bf16, _, Dtype::F16) => Layout::RoundedPairs,
            _ => return None,
        };
        // SAFETY: all bits are words.
        let (before, words, behind) = unsafe { stored.bytes().align_to() };
        let whole = before.is_empty() && behind.is_empty() && cfg!(target_endian = "little");
        whole.then_some(Halves { words, layout })
    }

    /// Calls `pack` with what reads its numbers.
    fn read_by<T>(self, pack: impl FnOnce(Read<'_>) -> Result<T>) -> Result<T> {
        let tensor = match self {
            Self::Stored(stored) => return pack(&|first, out| stored.read(first, out)),
            Self::Tensor(tensor) => tensor,
        };
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("a weight is packed on the CPU, where it is contiguous")
        };
        match tensor.dtype() {
            DType::F32 => {
                let all = &storage.as_slice::<f32>()?[start..end];
                pack(&|first, out| out.copy_from_slice(&all[first..][..out.len()]))
            }
            DType::BF16 => {
                let all = &storage.as_slice::<bf16>()?[start..end];
                pack(&|first, out| all[first..][..out.len()].convert_to_f32_slice(out))
            }
            other => bail!("a weight of type {other:?} cannot be packed"),
        }
    }
}

impl Packed {
    /// A weight as it is, in as few bytes as hold it if it is large.
    pub(super) fn new(weight: Weight<'_>, element: Element, order: Order) -> Result<Self> {
        let large = weight.dims().iter().product::<usize>() >= MANY;
        Self::kept_as(if large { weight.shortest(element) } else { Kept::Words }, weight, element, order)
    }

    /// A weight as it is, of whose numbers all can be kept so.
    pub(super) fn kept_as(kept: Kept, weight: Weight<'_>, element: Element, order: Order) -> Result<Self> {
        let taps: usize = weight.dims()[2..].iter().product();
        if taps > MOST_TAPS {
            bail!("a kernel of {taps} numbers cannot be packed");
        }
        if taps == 1 {
            return Self::made(weight, (element, kept), order, (taps, None));
        }
        let tap_by_tap = |row: &[f32], out: &mut [f32]| {
            let inputs = out.len() / taps;
            for (tap, out) in out.chunks_exact_mut(inputs).enumerate() {
                out.iter_mut().zip(row.iter().skip(tap).step_by(taps)).for_each(|(out, x)| *out = *x);
            }
        };
        Self::made(weight, (element, kept), order, (taps, Some(&tap_by_tap)))
    }

    /// A weight, each of whose rows is mapped from `[K, ..]` to `[taps, K]`, as each part of it is by itself.
    pub(super) fn mapped(
        weight: Weight<'_>,
        element: Element,
        order: Order,
        taps: usize,
        map: Map<'_>,
    ) -> Result<Self> {
        Self::made(weight, (element, Kept::Words), order, (taps, Some(map)))
    }

    fn made(
        weight: Weight<'_>,
        (element, kept): (Element, Kept),
        order: Order,
        (taps, map): (usize, Option<Map<'_>>),
    ) -> Result<Self> {
        let [columns, inputs, ..] = *weight.dims() else {
            bail!("a weight of shape {:?} cannot be packed", weight.dims())
        };
        let of_a_row: usize = weight.dims()[1..].iter().product();
        if columns * of_a_row * taps == 0 || order == Order::Halves && !columns.is_multiple_of(2) {
            bail!("a weight of shape {:?} cannot be packed", weight.dims());
        }
        assert!(kept == Kept::Words || element == Element::F32, "bf16 lie in pairs");
        let depth = element.words(inputs);
        let panel = kept.words((taps * depth + 1) * LANES);
        let panels = match order {
            Order::Plain => columns.div_ceil(LANES),
            Order::Halves => 2 * (columns / 2).div_ceil(LANES),
        };
        let mut words = Room::zeros(panels * panel)?;
        let rows_of = |at: usize| {
            let (first, end) = match order {
                Order::Plain => (at * LANES, columns),
                Order::Halves => (at % 2 * (columns / 2) + at / 2 * LANES, (at % 2 + 1) * (columns / 2)),
            };
            first..(first + LANES).min(end)
        };
        weight.read_by(|read| {
            let halves = weight.halves(element, kept).filter(|_| map.is_none() && inputs.is_multiple_of(2));
            let source = Rows { read, halves, each: of_a_row / inputs, inputs, map, taps, element, kept };
            words.par_chunks_mut(panel).enumerate().try_for_each_init(
                || source.buffers(),
                |buffers, (at, out)| {
                    let rows = rows_of(at);
                    // Which also brings them into a cache, in order.
                    weight.check(rows.start * of_a_row, rows.len() * of_a_row)?;
                    source.pack(rows, buffers, out);
                    Ok(())
                },
            )
        })?;
        Ok(Self { words, kept, element, columns, inputs, taps, depth, panel, order })
    }

    /// Words that products take of it.
    pub(super) fn words(&self) -> usize {
        self.panels() * (self.taps * self.depth + 1) * LANES
    }

    /// Words that it is kept in.
    #[cfg(test)]
    pub(super) fn kept_words(&self) -> usize {
        self.words.len()
    }

    /// Where [`Packed::right`] widens two panels of so many words, if it does. In a page of their own: a processor has not
    /// the addresses of enough small ones.
    pub(super) fn desk(&self, words: usize) -> Option<Desk> {
        (self.kept != Kept::Words).then(|| Desk::stale(2 * (words + LANES)))
    }

    /// One or two panels from `panel` on, of each `words` of a product from `from` on: at most as many as `desk`, which is
    /// this weight's, is for.
    pub(super) fn right<'a>(
        &'a self,
        (panel, panels): (usize, usize),
        (from, words): (usize, usize),
        desk: &'a mut Option<Desk>,
    ) -> Right<'a> {
        let kept = &self.words[panel * self.panel + self.kept.words(from)..];
        let Some(desk) = desk else {
            assert_eq!(self.kept, Kept::Words, "a weight's own desk");
            return Right { words: kept, panel: self.panel };
        };
        let stride = words + LANES;
        assert!(panels * stride <= desk.len(), "a desk for {panels} times {words} words");
        for (kept, out) in kept.chunks(self.panel).zip(desk.chunks_exact_mut(stride)).take(panels) {
            self.kept.widen(&kept[..self.kept.words(words)], &mut out[..words]);
        }
        Right { words: desk, panel: stride }
    }

    /// Sums of quarters of four panels: the first, taken from the next, and that from the next. They are `deep` numbers of
    /// each half of the sum, from `from` on, in two panels on a desk of as many.
    pub(super) fn quarters<'a>(
        &'a self,
        chain: &[Quarter],
        four: usize,
        (from, deep): (usize, usize),
        desk: &'a mut Option<Desk>,
    ) -> Right<'a> {
        let (stride, words) = ((deep + 1) * LANES, deep * LANES);
        let Some(desk) = desk else { unreachable!("sums are made on a desk") };
        assert!(2 * stride <= desk.len() && self.taps == 1, "a desk for twice {words} words");
        for (panel, out) in desk.chunks_exact_mut(stride).enumerate().take(2) {
            let parts: [&[u32]; 4] = std::array::from_fn(|i| {
                let quarter = chain[i.min(chain.len() - 1)];
                let at = self.kept.words((quarter.half * self.depth / 2 + from) * LANES);
                let panel = 4 * four + 2 * quarter.pair + panel;
                &self.words[panel * self.panel + at..][..self.kept.words(words)]
            });
            self.kept.differences(&parts[..chain.len()], &mut out[..words]);
        }
        Right { words: desk, panel: stride }
    }

    /// Panels of 16 columns.
    pub(super) fn panels(&self) -> usize {
        self.words.len() / self.panel
    }
}

/// A file's `[N, K]` numbers of two bytes, two in a word, that are turned without being read one by one.
#[derive(Clone, Copy)]
struct Halves<'a> {
    words: &'a [u32],
    layout: Layout,
}

/// How such words lie in a panel.
#[derive(Clone, Copy)]
enum Layout {
    /// Both numbers of a word apart, in rows of their own.
    Apart,
    /// As they are.
    Pairs,
    /// From f16, rounded to bf16.
    RoundedPairs,
}

/// A weight's rows on their way into panels.
#[derive(Clone, Copy)]
struct Rows<'a> {
    read: Read<'a>,
    halves: Option<Halves<'a>>,
    /// Numbers of an input in the weight.
    each: usize,
    inputs: usize,
    map: Option<Map<'a>>,
    taps: usize,
    element: Element,
    kept: Kept,
}

/// Of one part of 16 rows.
struct Buffers {
    row: Vec<f32>,
    mapped: Vec<f32>,
    /// `[taps, 16, stride]`, with more room than a row takes: else they would fall into the same lines of the cache.
    words: Vec<u32>,
    stride: usize,
    /// `[words of a part, 16]`, where they are kept otherwise.
    turned: Vec<u32>,
}

impl Rows<'_> {
    /// So many inputs at a time that they stay in a cache: whole words of them, and whole registers of those.
    fn part(&self) -> usize {
        (PART / self.taps).next_multiple_of(2 * LANES).min(self.inputs)
    }

    fn buffers(&self) -> Buffers {
        let (part, stride) = (self.part(), self.element.words(self.part()) + LANES);
        Buffers {
            row: vec![0.0; part * self.each],
            mapped: vec![0.0; part * self.taps],
            words: vec![0; self.taps * LANES * stride],
            stride,
            turned: vec![0; if self.kept == Kept::Words { 0 } else { stride * LANES }],
        }
    }

    /// How many inputs of 16 rows were turned without being read as numbers.
    fn turn_halves(&self, rows: &Range<usize>, out: &mut [u32]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if let Some(Halves { words, layout }) = self.halves
            && rows.len() == LANES
            && isa::best() == isa::Isa::Avx512
        {
            let stride = self.inputs / 2;
            let lines = &words[rows.start * stride..rows.end * stride];
            let mut turned = [0; LANES * LANES];
            let whole = stride / LANES * LANES;
            for at in (0..whole).step_by(LANES) {
                let out = &mut out[at * LANES..][..LANES * LANES];
                // SAFETY: `isa` has found the instructions, those for bf16 where there is such an element.
                unsafe {
                    match layout {
                        Layout::Apart => {
                            amx::transpose(&lines[at..], stride, &mut turned, LANES);
                            super::kept::split(&turned, out);
                        }
                        Layout::Pairs => amx::transpose(&lines[at..], stride, out, LANES),
                        Layout::RoundedPairs => {
                            amx::transpose(&lines[at..], stride, &mut turned, LANES);
                            super::kept::round_pairs(&turned, out);
                        }
                    }
                }
            }
            return 2 * whole;
        }
        let _ = (rows, out, self.halves);
        0
    }

    /// At most 16 rows to `[taps, depth, 16]`.
    fn pack(&self, rows: Range<usize>, buffers: &mut Buffers, out: &mut [u32]) {
        let Self { each, inputs, taps, element, kept, .. } = *self;
        let (part, depth, stride) = (self.part(), element.words(inputs), buffers.stride);
        for from in (self.turn_halves(&rows, out)..inputs).step_by(part) {
            let count = part.min(inputs - from);
            let (row, mapped) = (&mut buffers.row[..count * each], &mut buffers.mapped[..count * taps]);
            let wide = element.words(count);
            for (i, n) in rows.clone().enumerate() {
                (self.read)((n * inputs + from) * each, row);
                if let Some(map) = self.map {
                    map(row, mapped);
                }
                let numbers: &[f32] = if self.map.is_some() { mapped } else { row };
                for (tap, numbers) in numbers.chunks_exact(count).enumerate() {
                    element.round(numbers, &mut buffers.words[(tap * LANES + i) * stride..][..wide]);
                }
            }
            for (tap, lines) in buffers.words.chunks_exact(LANES * stride).enumerate() {
                let to = kept.words((tap * depth + element.words(from)) * LANES);
                if kept == Kept::Words {
                    turn_from(lines, stride, [wide, rows.len()], &mut out[to..]);
                    continue;
                }
                let turned = &mut buffers.turned[..wide * LANES];
                if rows.len() < LANES {
                    turned.fill(0);
                }
                turn_from(lines, stride, [wide, rows.len()], turned);
                kept.narrow(turned, &mut out[to..][..kept.words(wide * LANES)]);
            }
        }
    }
}

/// Rows of `depth` words that lie `stride` apart, `count` of them at most 16, to `[depth, 16]`; columns beyond them keep
/// what they have.
pub(super) fn turn_from(rows: &[u32], stride: usize, [depth, count]: [usize; 2], out: &mut [u32]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if count == LANES && isa::best() == isa::Isa::Avx512 {
        while done + LANES <= depth {
            // SAFETY: `isa` has found the instructions.
            unsafe { amx::transpose(&rows[done..], stride, &mut out[done * LANES..], LANES) };
            done += LANES;
        }
    }
    if done == depth {
        return;
    }
    for column in 0..count {
        let row = &rows[column * stride..][done..depth];
        out[done * LANES + column..].iter_mut().step_by(LANES).zip(row).for_each(|(out, word)| *out = *word);
    }
}

//! Weights as products take them.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "instructions asked for at run time"))]

use candle_core::{DType, Result, Storage, Tensor, bail};
use half::{bf16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::{amx, isa};
use super::{
    element::Element,
    product::{LANES, MOST_TAPS},
    room::Room,
};

/// Which of a weight's rows go to which columns of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// As they are.
    Plain,
    /// The first half's and the second half's by turns, a panel each: values beside their gates.
    Halves,
}

/// `[N, K, taps..]` as panels of 16 columns, each tap after tap of `[depth, 16]` words.
#[derive(Debug)]
pub(super) struct Packed {
    words: Room,
    pub(super) element: Element,
    /// Columns of the product, N.
    pub(super) columns: usize,
    /// Numbers that go into a sum, of one tap.
    pub(super) inputs: usize,
    pub(super) taps: usize,
    /// Words that go into a sum, of one tap.
    pub(super) depth: usize,
    /// Words from panel to panel. One row more than are used, lest all panels fall into the same lines of the cache.
    pub(super) panel: usize,
    pub(super) order: Order,
}

/// A weight's numbers in the type that they were loaded in.
#[derive(Clone, Copy)]
enum Numbers<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl Numbers<'_> {
    /// Those from `first` on, as f32.
    fn read(self, first: usize, out: &mut [f32]) {
        match self {
            Self::F32(all) => out.copy_from_slice(&all[first..][..out.len()]),
            Self::Bf16(all) => all[first..][..out.len()].convert_to_f32_slice(out),
        }
    }
}

impl Packed {
    /// `weight` `[N, K]` or `[N, K, h, w]`, contiguous, in f32 or bf16.
    pub(super) fn new(weight: &Tensor, element: Element, order: Order) -> Result<Self> {
        let taps: usize = weight.dims()[2..].iter().product();
        if taps > MOST_TAPS {
            bail!("a kernel of {taps} numbers cannot be packed");
        }
        Self::mapped(weight, element, order, taps, |row, out| {
            if taps == 1 {
                return out.copy_from_slice(row);
            }
            let inputs = out.len() / taps;
            for (tap, out) in out.chunks_exact_mut(inputs).enumerate() {
                out.iter_mut().zip(row.iter().skip(tap).step_by(taps)).for_each(|(out, x)| *out = *x);
            }
        })
    }

    /// `weight` `[N, K, ..]`, contiguous, in f32 or bf16, each of its rows mapped from `[K, ..]` to `[taps, K]`.
    pub(super) fn mapped(
        weight: &Tensor,
        element: Element,
        order: Order,
        taps: usize,
        map: impl Fn(&[f32], &mut [f32]) + Sync,
    ) -> Result<Self> {
        let (columns, inputs) = (weight.dim(0)?, weight.dim(1)?);
        if weight.elem_count() * taps == 0 || order == Order::Halves && !columns.is_multiple_of(2) {
            bail!("a weight of shape {:?} cannot be packed", weight.shape());
        }
        let (storage, layout) = weight.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("a weight is packed on the CPU, where it is contiguous")
        };
        let numbers = match weight.dtype() {
            DType::F32 => Numbers::F32(&storage.as_slice::<f32>()?[start..end]),
            DType::BF16 => Numbers::Bf16(&storage.as_slice::<bf16>()?[start..end]),
            other => bail!("a weight of type {other:?} cannot be packed"),
        };
        let depth = element.words(inputs);
        let panel = (taps * depth + 1) * LANES;
        let panels = match order {
            Order::Plain => columns.div_ceil(LANES),
            Order::Halves => 2 * (columns / 2).div_ceil(LANES),
        };
        let of_a_row = (end - start) / columns;
        let mut words = Room::zeros(panels * panel)?;
        words.par_chunks_mut(panel).enumerate().for_each(|(at, out)| {
            let (first, end) = match order {
                Order::Plain => (at * LANES, columns),
                Order::Halves => (at % 2 * (columns / 2) + at / 2 * LANES, (at % 2 + 1) * (columns / 2)),
            };
            let rows = first..(first + LANES).min(end);
            let (mut row, mut mapped) = (vec![0.0; of_a_row], vec![0.0; taps * inputs]);
            let line = taps * depth;
            let mut lines = vec![0; LANES * line];
            for (n, lines) in rows.clone().zip(lines.chunks_exact_mut(line)) {
                numbers.read(n * of_a_row, &mut row);
                map(&row, &mut mapped);
                for (numbers, words) in mapped.chunks_exact(inputs).zip(lines.chunks_exact_mut(depth)) {
                    element.round(numbers, words);
                }
            }
            // Tap after tap, and so as one.
            turn_from(&lines, line, [line, rows.len()], out);
        });
        Ok(Self { words, element, columns, inputs, taps, depth, panel, order })
    }

    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }

    /// Panels of 16 columns.
    pub(super) fn panels(&self) -> usize {
        self.words.len() / self.panel
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
    for column in 0..count {
        let row = &rows[column * stride..][..depth];
        out[column..].iter_mut().step_by(LANES).zip(row).skip(done).for_each(|(out, word)| *out = *word);
    }
}

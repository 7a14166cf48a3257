//! Normalizations, written as what comes next takes them.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::{
    element::Element,
    finish::Activation,
    operand::Operand,
    wide::{folded, wide},
};
use crate::autograd::slices;

/// What follows a normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Nothing,
    Silu,
}

/// Pixels whose sums are one task's, to be added up in order.
const PIXELS: usize = 256;
/// Rows normalized by a task.
const ROWS: usize = 16;

/// Pictures' pixels, in one slice or side by side in several: each with its channels.
pub(super) type Parts<'a> = &'a [(&'a [f32], usize)];

/// Group normalization of given channels.
#[derive(Debug)]
pub(crate) struct Normalization {
    weight: Vec<f32>,
    bias: Vec<f32>,
    groups: usize,
    eps: f32,
}

/// What normalization comes to for each channel of each item: a factor and a shift.
#[derive(Debug)]
pub(super) struct Coefficients {
    factors: Vec<f32>,
    shifts: Vec<f32>,
    then: Then,
}

/// An item's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Affine<'a> {
    pub(super) factors: &'a [f32],
    pub(super) shifts: &'a [f32],
    pub(super) then: Then,
}

impl Normalization {
    /// Of `groups` groups of channels, each with its weight and bias.
    pub(crate) fn new([weight, bias]: [&Tensor; 2], groups: usize, eps: f32) -> Result<Self> {
        let values = |t: &Tensor| t.to_dtype(DType::F32)?.to_vec1::<f32>();
        Ok(Self { weight: values(weight)?, bias: values(bias)?, groups, eps })
    }

    /// Of `items` pictures of `pixels` pixels each. Sums are in f64.
    pub(super) fn coefficients(
        &self,
        parts: Parts<'_>,
        [items, pixels]: [usize; 2],
        then: Then,
    ) -> Result<Coefficients> {
        let channels: usize = parts.iter().map(|(_, channels)| channels).sum();
        if channels != self.weight.len() || items * pixels == 0 {
            bail!("a normalization of {} channels got {channels}", self.weight.len());
        }
        let chunks = pixels.div_ceil(PIXELS);
        // Of each chunk the sums of all channels, then those of their squares.
        let mut sums = vec![0_f64; items * chunks * 2 * channels];
        sums.par_chunks_mut(2 * channels).enumerate().for_each(|(at, sums)| {
            let (item, chunk) = (at / chunks, at % chunks);
            let (first, end) = (chunk * PIXELS, pixels.min((chunk + 1) * PIXELS));
            let (plain, squares) = sums.split_at_mut(channels);
            let mut done = 0;
            for (x, width) in parts {
                let x = &x[(item * pixels + first) * width..(item * pixels + end) * width];
                add_up(x, &mut plain[done..done + width], &mut squares[done..done + width]);
                done += width;
            }
        });
        let (mut factors, mut shifts) = (vec![0.0; items * channels], vec![0.0; items * channels]);
        let each = factors.chunks_exact_mut(channels).zip(shifts.chunks_exact_mut(channels));
        for ((factors, shifts), sums) in each.zip(sums.chunks_exact(chunks * 2 * channels)) {
            self.item(sums, pixels, factors, shifts);
        }
        Ok(Coefficients { factors, shifts, then })
    }

    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "the result is f32")]
    fn item(&self, sums: &[f64], pixels: usize, factors: &mut [f32], shifts: &mut [f32]) {
        let channels = self.weight.len();
        let width = channels / self.groups;
        let count = (width * pixels) as f64;
        for group in 0..self.groups {
            let own = group * width..(group + 1) * width;
            let total = |half: usize| -> f64 {
                let chunks = sums.chunks_exact(2 * channels);
                chunks.map(|sums| sums[half * channels..][own.clone()].iter().sum::<f64>()).sum()
            };
            let mean = total(0) / count;
            // NaN is lost here and kept by the mean.
            let variance = (total(1) / count - mean * mean).max(0.0);
            let scale = 1.0 / (variance + f64::from(self.eps)).sqrt();
            for c in own.clone() {
                let factor = scale * f64::from(self.weight[c]);
                factors[c] = factor as f32;
                shifts[c] = (f64::from(self.bias[c]) - mean * factor) as f32;
            }
        }
    }

    /// Normalized pixels as rows of factors.
    pub(crate) fn rows(&self, x: &[f32], sizes: [usize; 2], element: Element) -> Result<Operand> {
        let width = self.weight.len();
        let coefficients = self.coefficients(&[(x, width)], sizes, Then::Nothing)?;
        let mut operand = Operand::stale(element, sizes[0] * sizes[1], width).of_items(sizes[0]);
        operand.fill(|first, out| {
            let mut line = vec![0.0; width];
            for (row, out) in (first..).zip(out) {
                let item = row / sizes[1];
                let Affine { factors, shifts, then } = coefficients.of(item, width);
                let x = &x[row * width..][..width];
                element.made(&mut line, out, |line| affine(x, [factors, shifts], then, line));
            }
        });
        Ok(operand)
    }
}

impl Coefficients {
    /// Those of an item.
    pub(super) fn of(&self, item: usize, channels: usize) -> Affine<'_> {
        let own = item * channels..(item + 1) * channels;
        Affine { factors: &self.factors[own.clone()], shifts: &self.shifts[own], then: self.then }
    }
}

wide! {
    /// Adds each pixel's channels to `sums`, and their squares.
    fn add_up(x: &[f32], sums: &mut [f64], squares: &mut [f64]) {
        let squares = &mut squares[..sums.len()];
        for x in x.chunks_exact(sums.len()) {
            for ((x, sum), square) in x.iter().zip(&mut *sums).zip(&mut *squares) {
                let x = f64::from(*x);
                *sum += x;
                *square = x.mul_add(x, *square);
            }
        }
    }
}

wide! {
    /// Each channel times its factor plus its shift, and then.
    pub(super) fn affine(x: &[f32], by: [&[f32]; 2], then: Then, out: &mut [f32]) {
        let [factors, shifts] = by;
        let both = out.iter_mut().zip(x).zip(factors.iter().zip(shifts));
        match then {
            Then::Nothing => both.for_each(|((y, x), (f, s))| *y = x.mul_add(*f, *s)),
            Then::Silu => both.for_each(|((y, x), (f, s))| *y = Activation::Silu.of(x.mul_add(*f, *s))),
        }
    }
}

wide! {
    /// A row less its mean, by its deviation, times a weight plus a bias.
    fn normalized(x: &[f32], affine: [&[f32]; 2], eps: f32, y: &mut [f32]) {
        let [weight, bias] = affine;
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let n = x.len() as f32;
        let mean = sum(x, |v| v) / n;
        let variance = sum(x, |v| (v - mean) * (v - mean)) / n;
        let scale = 1.0 / (variance + eps).sqrt();
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = ((x - mean) * scale).mul_add(*w, *b);
        }
    }
}

/// Sum of `f`, in lanes that are added up at the end.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    const LANES: usize = 64;
    let mut lanes = [0_f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for part in whole {
        lanes.iter_mut().zip(part).for_each(|(lane, x)| *lane += f(*x));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane += f(*x));
    folded(lanes, |a, b| a + b)
}

/// Each row of `x` normalized, as rows of factors.
pub(crate) fn layer_norm(x: &[f32], affine: [&[f32]; 2], eps: f32, element: Element) -> Operand {
    let width = affine[0].len();
    let mut operand = Operand::stale(element, x.len() / width, width);
    operand.fill(|first, out| {
        let mut line = vec![0.0; width];
        for (x, out) in x[first * width..].chunks_exact(width).zip(out) {
            element.made(&mut line, out, |line| normalized(x, affine, eps, line));
        }
    });
    operand
}

/// The same in f32.
pub(crate) fn layer_norm_forward(x: &Tensor, affine: [&[f32]; 2], eps: f32) -> Result<Tensor> {
    let width = affine[0].len();
    if x.dims().last() != Some(&width) {
        bail!("a normalization of {width} numbers got {:?}", x.shape());
    }
    let mut out = vec![0.0; x.elem_count()];
    slices::with(&x.to_dtype(DType::F32)?, |x| {
        let both = out.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width));
        both.for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                normalized(x, affine, eps, out);
            }
        });
        Ok(())
    })?;
    Tensor::from_vec(out, x.shape(), x.device())
}

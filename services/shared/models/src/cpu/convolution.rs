//! Convolutions as sums of products over shifted rows of pixels, or in tiles with fewer products.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::{
    element::{Element, as_numbers},
    finish::{Finish, Onto, To},
    matrix::packed_bias,
    norm::{Affine, Coefficients, Normalization, Parts, Then, affine},
    packed::{Order, Packed, Weight},
    product::{Pixels, SLACK, Space, multiply},
    target::Target,
    turned::{self, Rows},
    winograd::{self, KERNEL, Pictures, Results, Tile},
};
use crate::autograd::{scratch::Scratch, slices};

/// Zeros around a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Margins {
    /// Above and to the left.
    pub(crate) before: usize,
    /// Below and to the right.
    pub(crate) behind: usize,
}

/// What is convolved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    /// `[B, H, W, C]` each, their channels side by side.
    pub(crate) parts: &'a [&'a Tensor],
    /// A normalization before.
    pub(crate) norm: Option<(&'a Normalization, Then)>,
    /// A larger size before, each pixel by its nearest.
    pub(crate) size: Option<[usize; 2]>,
    pub(crate) margins: Margins,
}

/// A square kernel `[N, C, k, k]` with its bias, packed.
#[derive(Debug)]
pub(crate) struct Convolution {
    weight: Packed,
    bias: Vec<f32>,
    kernel: usize,
    stride: usize,
    /// What its weights are mapped for, where it is computed with fewer products.
    tile: Option<Tile>,
}

/// Pictures as factors, with their margins.
struct Lattice {
    words: Scratch<u32>,
    items: usize,
    height: usize,
    width: usize,
    /// Words of a pixel.
    pixel: usize,
}

/// Sizes of a picture before and after it is made larger.
#[derive(Clone, Copy)]
struct Sizes {
    items: usize,
    from: [usize; 2],
    to: [usize; 2],
}

impl Convolution {
    /// From `weight` `[N, C, k, k]` and `bias` of N numbers.
    pub(crate) fn new(weight: Weight<'_>, bias: &Tensor, stride: usize, element: Element) -> Result<Self> {
        let (outputs, inputs, kernel) = match *weight.dims() {
            [outputs, inputs, kernel, width] if kernel == width && stride > 0 => (outputs, inputs, kernel),
            ref dims => bail!("a kernel of {dims:?} by steps of {stride} is not convolved with"),
        };
        let saves = kernel == KERNEL && stride == 1 && turned::suits(element);
        let tile = if saves { Tile::for_channels(inputs, outputs) } else { None };
        Self::tiled(weight, bias, stride, element, tile)
    }

    /// In tiles of that size, if any.
    pub(super) fn tiled(
        weight: Weight<'_>,
        bias: &Tensor,
        stride: usize,
        element: Element,
        tile: Option<Tile>,
    ) -> Result<Self> {
        let &[_, _, kernel, _] = weight.dims() else { bail!("a kernel has four dimensions") };
        let weight = match tile {
            Some(tile) => {
                let map = |row: &[f32], out: &mut [f32]| tile.kernel(row, out);
                Packed::mapped(weight, tile.element(element), Order::Plain, tile.points(), &map)?
            }
            None => Packed::new(weight, element, Order::Plain)?,
        };
        Ok(Self { bias: packed_bias(bias, &weight)?, weight, kernel, stride, tile })
    }

    /// Words that its weight is kept in.
    #[cfg(test)]
    pub(super) fn kept_words(&self) -> usize {
        self.weight.kept_words()
    }

    /// `[B, H, W, N]` in f32, each item's channels shifted by `shift` `[B, N]`, and added to `onto`.
    pub(crate) fn forward(
        &self,
        source: &Source<'_>,
        shift: Option<&Tensor>,
        onto: Option<&Tensor>,
    ) -> Result<Tensor> {
        let first = source.parts[0];
        let (items, height, width, _) = first.dims4()?;
        let device = first.device().clone();
        let sizes = Sizes { items, from: [height, width], to: source.size.unwrap_or([height, width]) };
        let to = self.out_size(sizes.to, source.margins)?;
        let parts: Vec<Tensor> =
            source.parts.iter().map(|part| part.to_dtype(DType::F32)).collect::<Result<_>>()?;
        let parts: Vec<&Tensor> = parts.iter().collect();
        let lattice = slices::with_list(&parts, |numbers| {
            let parts: Vec<(&[f32], usize)> =
                numbers.iter().map(|numbers| (*numbers, numbers.len() / (items * height * width))).collect();
            let coefficients =
                source.norm.map(|(norm, then)| norm.coefficients(&parts, [items, height * width], then));
            self.lattice(&parts, sizes, coefficients.transpose()?.as_ref(), source.margins)
        })?;
        let [height, width] = to;
        let mut out = vec![0.0; items * height * width * self.weight.columns];
        let shift = shift.map(|shift| shift.flatten_all()?.to_vec1::<f32>()).transpose()?;
        match onto {
            Some(onto) => {
                slices::with(onto, |onto| {
                    self.run(&lattice, to, shift.as_deref(), Onto::Other(onto), &mut out)
                })?;
            }
            None => self.run(&lattice, to, shift.as_deref(), Onto::Nothing, &mut out)?,
        }
        Tensor::from_vec(out, (items, height, width, self.weight.columns), &device)
    }

    /// Of a picture that has such margins.
    fn out_size(&self, sides: [usize; 2], margins: Margins) -> Result<[usize; 2]> {
        let [height, width] = sides.map(|side| margins.before + side + margins.behind);
        if height < self.kernel || width < self.kernel {
            bail!("a picture of {height} x {width} is smaller than its kernel");
        }
        Ok([height, width].map(|side| (side - self.kernel) / self.stride + 1))
    }

    /// Pixels that fill up the last tile, beyond a side with such margins.
    fn filling(&self, side: usize, margins: Margins) -> usize {
        let Some(tile) = self.tile else { return 0 };
        let results = margins.before + side + margins.behind - (KERNEL - 1);
        results.next_multiple_of(tile.side()) - results
    }

    /// The source as rows of factors.
    fn lattice(
        &self,
        parts: Parts<'_>,
        sizes: Sizes,
        coefficients: Option<&Coefficients>,
        margins: Margins,
    ) -> Result<Lattice> {
        let channels: usize = parts.iter().map(|(_, channels)| channels).sum();
        if channels != self.weight.inputs {
            bail!("a kernel of {} channels got {channels}", self.weight.inputs);
        }
        let Sizes { items, from: [_, from_width], to: [height, width] } = sizes;
        let Margins { before, behind } = margins;
        let element = if self.tile.is_some() { Element::F32 } else { self.weight.element };
        let filled = |side: usize| before + side + behind + self.filling(side, margins);
        let (high, wide) = (filled(height), filled(width));
        let pixel = element.words(channels);
        let len = items * high * wide * pixel;
        let mut words = Scratch::stale(len + SLACK * self.stride * pixel);
        words[..len].par_chunks_exact_mut(wide * pixel).enumerate().for_each(|(at, out)| {
            let (item, y) = (at / high, at % high);
            if !(before..before + height).contains(&y) {
                return out.fill(0);
            }
            out[..before * pixel].fill(0);
            out[(before + width) * pixel..].fill(0);
            let from_y = (y - before) * sizes.from[0] / height;
            let mut line = vec![0.0; channels];
            let own = coefficients.map(|c| c.of(item, channels));
            let row = (item * sizes.from[0] + from_y) * from_width;
            let mut last = None;
            for (x, out) in out[before * pixel..(before + width) * pixel].chunks_exact_mut(pixel).enumerate()
            {
                let from_x = x * from_width / width;
                if from_width == width {
                    element.made(&mut line, out, |line| gather(parts, row + x, own, line));
                    continue;
                }
                if last != Some(from_x) {
                    gather(parts, row + from_x, own, &mut line);
                    last = Some(from_x);
                }
                element.round(&line, out);
            }
        });
        Ok(Lattice { words, items, height: high, width: wide, pixel })
    }

    fn run(
        &self,
        lattice: &Lattice,
        [height, width]: [usize; 2],
        shift: Option<&[f32]>,
        onto: Onto<'_>,
        out: &mut [f32],
    ) -> Result<()> {
        let len = lattice.items * height * width * self.weight.columns;
        let fits = |numbers: &[f32]| numbers.len() == len;
        let onto_fits = if let Onto::Other(other) = onto { fits(other) } else { true };
        let shift_fits = shift.is_none_or(|shift| shift.len() == lattice.items * self.weight.columns);
        if !fits(out) || !onto_fits || !shift_fits {
            bail!(
                "a convolution's result is [{}, {height}, {width}, {}]",
                lattice.items,
                self.weight.columns
            );
        }
        let out = Target::new(out);
        if let Some(tile) = self.tile {
            let &Lattice { items, height: high, width: wide, pixel, .. } = lattice;
            let numbers = &as_numbers(&lattice.words)[..items * high * wide * pixel];
            let pictures = Pictures { numbers, items, height: high, width: wide };
            let results = Results { out, onto, height, width, bias: &self.bias, shift };
            winograd::convolve(tile, pictures, &self.weight, &results);
            return Ok(());
        }
        let finish = Finish { to: To::Numbers { out, onto }, bias: Some(&self.bias), shift };
        let each_pixel = self.kernel == 1 && (lattice.height, lattice.width) == (height, width);
        if each_pixel && turned::suits(self.weight.element) && shift.is_none() {
            let (item, stride) = (height * width, lattice.pixel);
            let rows = Rows { words: &lattice.words, count: lattice.items * item, stride, item };
            turned::multiply(rows, &self.weight, &finish);
            return Ok(());
        }
        let line = lattice.width * lattice.pixel;
        let space = Space::Pixels(Pixels {
            items: lattice.items,
            height,
            width,
            item: lattice.height * line,
            line: line * self.stride,
            step: lattice.pixel * self.stride,
        });
        let tap = |tap: usize| tap / self.kernel * line + tap % self.kernel * lattice.pixel;
        let shifts: Vec<usize> = (0..self.kernel * self.kernel).map(tap).collect();
        multiply(&lattice.words, &space, &shifts, &self.weight, &finish);
        Ok(())
    }
}

/// One pixel's channels, normalized.
#[inline]
fn gather(parts: Parts<'_>, pixel: usize, by: Option<Affine<'_>>, line: &mut [f32]) {
    let mut done = 0;
    for (numbers, width) in parts {
        let (numbers, line) = (&numbers[pixel * width..][..*width], &mut line[done..done + width]);
        match by {
            Some(Affine { factors, shifts, then }) => {
                affine(numbers, [&factors[done..], &shifts[done..]], then, line);
            }
            None => line.copy_from_slice(numbers),
        }
        done += width;
    }
}

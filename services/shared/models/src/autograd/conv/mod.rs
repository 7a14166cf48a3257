//! Convolution with its gradients.

mod lattice;
mod plain;
#[cfg(target_arch = "x86_64")]
mod tiled;

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use lattice::{Lattice, Run};

use super::{Precision, scratch::Scratch, slices, vector};
#[cfg(target_arch = "x86_64")]
use crate::cpu::amx;

/// `x` `[B, C_in, H, W]` by `weight` `[C_out, C_in, k, k]` with k 1 or 3, plus `bias`, `[C_out]` or one for each item,
/// `[B, C_out]`. `padding` is before and behind, in both directions.
pub(crate) fn conv2d(
    x: &Tensor,
    [weight, bias]: [&Tensor; 2],
    stride: usize,
    padding: [usize; 2],
    precision: Precision,
) -> Result<Tensor> {
    x.contiguous()?.apply_op3(
        &weight.contiguous()?,
        &bias.contiguous()?,
        Conv2d { stride, padding, precision },
    )
}

/// Channels in and out and the kernel's side.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    c_in: usize,
    c_out: usize,
    side: usize,
}

impl Kernel {
    fn taps(self) -> usize {
        self.side * self.side
    }

    fn len(self) -> usize {
        self.taps() * self.c_in * self.c_out
    }
}

/// What a convolution's results are added to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start<'a> {
    /// One for each channel, or for each channel of each item; or empty, for zero.
    pub(super) bias: &'a [f32],
    /// Whether to add to what is there too.
    pub(super) add: bool,
}

impl Start<'_> {
    /// Nothing.
    pub(super) const NOTHING: Self = Self { bias: &[], add: false };

    /// Puts `sums`, at the places of `run`, to their pixels of channel `channel` of `channels`.
    #[inline(always)]
    fn put(self, run: Run, [channel, channels]: [usize; 2], sums: &[f32], pixels: &mut [f32]) {
        let Run { item, pixel, place, len, step } = run;
        let bias =
            if self.bias.is_empty() { 0.0 } else { self.bias[(item * channels + channel) % self.bias.len()] };
        let pixels = &mut pixels[pixel..][..len];
        match (step, self.add) {
            (1, false) => pixels.iter_mut().zip(&sums[place..][..len]).for_each(|(p, s)| *p = s + bias),
            (1, true) => pixels.iter_mut().zip(&sums[place..][..len]).for_each(|(p, s)| *p += s + bias),
            (_, add) => {
                for (pixel, sum) in pixels.iter_mut().zip(sums[place..].iter().step_by(step)) {
                    *pixel = if add { *pixel } else { 0.0 } + sum + bias;
                }
            }
        }
    }
}

/// A convolution of pictures of one size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Convolution {
    lattice: Lattice,
    kernel: Kernel,
    precision: Precision,
}

/// A kernel ready for one direction: as it is, or packed for the matrix unit.
#[derive(Debug)]
pub(super) enum Weights<'a> {
    Plain(&'a [f32]),
    #[cfg(target_arch = "x86_64")]
    Tiled(Scratch<u32>),
}

impl Convolution {
    /// Of pictures `size` by a kernel of the shape `weight`.
    pub(super) fn new(
        weight: &Shape,
        size: [usize; 2],
        stride: usize,
        padding: [usize; 2],
        precision: Precision,
    ) -> Result<Self> {
        let (c_out, c_in, side, other) = weight.dims4()?;
        if side != other || !(side == 1 || side == 3) || stride == 0 {
            bail!("convolution: a kernel of {weight:?} at stride {stride}");
        }
        let [near, far] = padding;
        if near.max(far) > side / 2 || size.iter().any(|size| size + near + far < side) {
            bail!("convolution: {size:?} padded by {padding:?} is smaller than a kernel of {weight:?}");
        }
        let lattice = Lattice::new(size, side, stride, padding);
        Ok(Self { lattice, kernel: Kernel { c_in, c_out, side }, precision })
    }

    /// `batch` items, as many at a time as stay in the cache.
    pub(super) fn groups(&self, batch: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        self.lattice.groups(batch)
    }

    /// Numbers of one item going in.
    pub(super) fn input_len(&self) -> usize {
        self.kernel.c_in * self.lattice.plane()
    }

    /// Numbers of one item coming out.
    pub(super) fn output_len(&self) -> usize {
        self.kernel.c_out * self.lattice.out_plane()
    }

    fn is_tiled(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.precision == Precision::Bf16 && amx::available();
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// The kernel, to convolve with.
    pub(super) fn weights<'a>(&self, weight: &'a [f32]) -> Weights<'a> {
        assert_eq!(weight.len(), self.kernel.len());
        #[cfg(target_arch = "x86_64")]
        if self.is_tiled() {
            return Weights::Tiled(tiled::forward_taps(self.kernel, weight));
        }
        Weights::Plain(weight)
    }

    /// The kernel, to take gradients back with.
    pub(super) fn weights_back<'a>(&self, weight: &'a [f32]) -> Weights<'a> {
        assert_eq!(weight.len(), self.kernel.len());
        #[cfg(target_arch = "x86_64")]
        if self.is_tiled() {
            return Weights::Tiled(tiled::backward_taps(self.kernel, weight));
        }
        Weights::Plain(weight)
    }

    /// Items of `x` to items of `y`, a group of [`Convolution::groups`] at most.
    pub(super) fn forward(&self, x: &[f32], weights: &Weights<'_>, start: Start<'_>, y: &mut [f32]) {
        match weights {
            Weights::Plain(weight) => plain::forward(&self.lattice, self.kernel, [x, weight], start, y),
            #[cfg(target_arch = "x86_64")]
            Weights::Tiled(taps) => tiled::forward(&self.lattice, self.kernel, x, taps, start, y),
        }
    }

    /// The gradient `dy` of items to that of the input, added to `dx` if `add`; a group at most.
    pub(super) fn backward(&self, dy: &[f32], weights: &Weights<'_>, add: bool, dx: &mut [f32]) {
        let start = Start { add, ..Start::NOTHING };
        match weights {
            Weights::Plain(weight) => plain::backward(&self.lattice, self.kernel, [dy, weight], start, dx),
            #[cfg(target_arch = "x86_64")]
            Weights::Tiled(taps) => tiled::backward(&self.lattice, self.kernel, dy, taps, start, dx),
        }
    }

    /// Zeros for [`Convolution::weight_slopes`] to add to.
    pub(super) fn slope_sums(&self) -> Scratch<f32> {
        let Kernel { c_in, c_out, .. } = self.kernel;
        Scratch::zeros(self.kernel.taps() * c_out.next_multiple_of(16) * c_in.next_multiple_of(16))
    }

    /// Adds a group's share of the weight's gradient to `sums`.
    pub(super) fn weight_slopes(&self, x: &[f32], dy: &[f32], sums: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if self.is_tiled() {
            return tiled::weight_slopes(&self.lattice, self.kernel, [x, dy], sums);
        }
        plain::weight_slopes(&self.lattice, self.kernel, [x, dy], sums);
    }

    /// The sums as the weight lies.
    pub(super) fn slopes(&self, sums: &[f32]) -> Vec<f32> {
        let Kernel { c_in, c_out, .. } = self.kernel;
        let (rows, stride, taps) =
            (c_out.next_multiple_of(16), c_in.next_multiple_of(16), self.kernel.taps());
        let mut slopes = vec![0_f32; self.kernel.len()];
        for (row, slopes) in slopes.chunks_exact_mut(c_in * taps).enumerate() {
            for (tap, sums) in sums.chunks_exact(rows * stride).enumerate() {
                let sums = &sums[row * stride..][..c_in];
                slopes[tap..].iter_mut().step_by(taps).zip(sums).for_each(|(slope, sum)| *slope = *sum);
            }
        }
        slopes
    }

    /// Adds the gradient of the bias to `sums`, `[C_out]` or one for each item.
    pub(super) fn bias_slopes(&self, dy: &[f32], sums: &mut [f32]) {
        let n = sums.len();
        for (i, dy) in dy.chunks_exact(self.lattice.out_plane()).enumerate() {
            sums[i % n] += vector::sum(dy);
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Conv2d {
    stride: usize,
    padding: [usize; 2],
    precision: Precision,
}

impl Conv2d {
    /// The convolution and the number of items.
    fn convolution(self, x: &Shape, weight: &Shape, bias: &Shape) -> Result<(Convolution, usize)> {
        let (batch, c_in, height, width) = x.dims4()?;
        let convolution =
            Convolution::new(weight, [height, width], self.stride, self.padding, self.precision)?;
        let c_out = convolution.kernel.c_out;
        if c_in != convolution.kernel.c_in || !(*bias.dims() == [c_out] || *bias.dims() == [batch, c_out]) {
            bail!("convolution: {x:?} does not fit a kernel of {weight:?} with a bias of {bias:?}");
        }
        Ok((convolution, batch))
    }
}

/// The part of `values`, one for each channel or for each channel of each item, that belongs to `items`.
fn of_items<'a>(values: &'a [f32], channels: usize, items: &Range<usize>) -> &'a [f32] {
    if values.len() == channels { values } else { &values[items.start * channels..items.end * channels] }
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (convolution, batch) = self.convolution(lx.shape(), lw.shape(), lb.shape())?;
        let (x, w, b) = (slices::of(x, lx)?, slices::of(w, lw)?, slices::of(b, lb)?);
        let Convolution { lattice, kernel, .. } = convolution;
        let weights = convolution.weights(w);
        let (input, output) = (convolution.input_len(), convolution.output_len());
        let mut y = Vec::with_capacity(batch * output);
        for items in convolution.groups(batch) {
            y.resize(items.end * output, 0_f32);
            let start = Start { bias: of_items(b, kernel.c_out, &items), add: false };
            let x = &x[items.start * input..items.end * input];
            convolution.forward(x, &weights, start, &mut y[items.start * output..]);
        }
        slices::result(y, (batch, kernel.c_out, lattice.out_height, lattice.out_width))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (convolution, batch) = self.convolution(x.shape(), w.shape(), b.shape())?;
        let (input, output) = (convolution.input_len(), convolution.output_len());
        let mut dx = x.track_op().then(|| Vec::with_capacity(x.elem_count()));
        let mut db = vec![0_f32; b.elem_count()];
        let dw = slices::with_all(&[x, w, grad], |[x, w, dy]| {
            convolution.bias_slopes(dy, &mut db);
            let weights = dx.is_some().then(|| convolution.weights_back(w));
            let mut sums = convolution.slope_sums();
            for items in convolution.groups(batch) {
                let dy = &dy[items.start * output..items.end * output];
                convolution.weight_slopes(&x[items.start * input..items.end * input], dy, &mut sums);
                let (Some(dx), Some(weights)) = (&mut dx, &weights) else { continue };
                dx.resize(items.end * input, 0_f32);
                convolution.backward(dy, weights, false, &mut dx[items.start * input..]);
            }
            Ok(convolution.slopes(&sums))
        })?;
        let dx = dx.map(|dx| slices::tensor_like(dx, x)).transpose()?;
        Ok((dx, Some(slices::tensor_like(dw, w)?), Some(slices::tensor_like(db, b)?)))
    }
}

#[cfg(test)]
mod tests;

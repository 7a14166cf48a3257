//! Into a transformer over pixels and out of it: channels exchanged with pixels within the projection's product.

use candle_core::{Result, Shape, Tensor, bail};

use super::{
    Precision,
    many::{self, Operation},
    matmul::{Left, Right, Target, View, matmul, product},
    norm::{GroupNorm, Items},
    scratch::Scratch,
    vector,
};

/// `x` `[B, C, H, W]`, normalized over `num_groups` groups of channels by `norm`'s weight and bias, its pixels as rows
/// `[B, H * W, C]` through the linear map of weight and bias `proj`.
pub(crate) fn pixels_in(
    x: &Tensor,
    norm: [&Tensor; 2],
    (num_groups, eps): (usize, f32),
    proj: [&Tensor; 2],
    precision: Precision,
) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if !channels.is_multiple_of(num_groups) || *proj[0].dims() != [channels; 2] {
        bail!("pixels of {:?} into a projection of {:?}", x.shape(), proj[0].shape());
    }
    let sizes = Sizes { batch, channels, pixels: height * width, precision };
    let norm_op = GroupNorm { num_groups, eps, then_silu: false };
    many::apply(PixelsIn { sizes, norm: norm_op }, &[x, norm[0], norm[1], proj[0], proj[1]])
}

/// Rows `[B, H * W, C]` through the linear map of weight and bias `proj`, as pixels added to `x` `[B, C, H, W]`.
pub(crate) fn pixels_out(
    rows: &Tensor,
    x: &Tensor,
    proj: [&Tensor; 2],
    precision: Precision,
) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if *rows.dims() != [batch, height * width, channels] || *proj[0].dims() != [channels; 2] {
        bail!("rows of {:?} to pixels of {:?}", rows.shape(), x.shape());
    }
    let sizes = Sizes { batch, channels, pixels: height * width, precision };
    many::apply(PixelsOut { sizes, shape: x.shape().clone() }, &[rows, x, proj[0], proj[1]])
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    channels: usize,
    pixels: usize,
    precision: Precision,
}

impl Sizes {
    /// Numbers of one item.
    fn len(self) -> usize {
        self.channels * self.pixels
    }

    /// As channels of pixels; transposed, as pixels of channels.
    fn planes(self, item: &[f32]) -> View<'_> {
        View::new(item, self.pixels)
    }

    /// As pixels of channels; transposed, as channels of pixels.
    fn rows(self, item: &[f32]) -> View<'_> {
        View::new(item, self.channels)
    }

    /// The weight's gradient from one item's rows before and behind, added to `dw`.
    fn weight_slopes(self, dy: View<'_>, x: View<'_>, dw: &mut [f32]) {
        let sizes = [self.channels, self.channels, self.pixels];
        matmul(sizes, dy, x, &mut Target::sum(dw, self.channels), self.precision);
    }
}

struct PixelsIn {
    sizes: Sizes,
    norm: GroupNorm,
}

impl Operation for PixelsIn {
    fn name(&self) -> &'static str {
        "pixels-in"
    }

    fn forward(&self, inputs: &[&[f32]], _: bool) -> Result<(Vec<f32>, Shape)> {
        let (sizes, affine) = (self.sizes, [inputs[1], inputs[2]]);
        let Sizes { batch, channels, pixels, precision } = sizes;
        let weight = Right::new(sizes.rows(inputs[3]).transposed(), [channels; 2], precision);
        let mut y = Vec::with_capacity(inputs[0].len());
        let mut normed = Scratch::stale(sizes.len());
        for x in inputs[0].chunks_exact(sizes.len()) {
            let start = y.len();
            y.resize(start + sizes.len(), 0_f32);
            let moments = self.norm.moments(x, channels, pixels);
            self.norm.forward(Items { x, pixels, moments: &moments }, affine, &mut normed);
            let x = Left::new(sizes.planes(&normed).transposed(), [pixels, channels], precision);
            product(&x, &weight, &mut Target::new(&mut y[start..], channels));
            vector::add_to_rows(&mut y[start..], inputs[4]);
        }
        Ok((y, (batch, pixels, channels).into()))
    }

    fn backward(&self, inputs: &[&[f32]], dy: &[f32]) -> Result<Vec<Vec<f32>>> {
        let (sizes, affine) = (self.sizes, [inputs[1], inputs[2]]);
        let Sizes { channels, pixels, precision, .. } = sizes;
        let weight = Left::new(sizes.rows(inputs[3]).transposed(), [channels; 2], precision);
        let [mut d_norm, mut d_shift, mut dw, mut db] =
            [1, 2, 3, 4].map(|input: usize| vec![0_f32; inputs[input].len()]);
        let mut dx = Vec::with_capacity(inputs[0].len());
        let mut normed = Scratch::stale(sizes.len());
        for (x, dy) in inputs[0].chunks_exact(sizes.len()).zip(dy.chunks_exact(sizes.len())) {
            let start = dx.len();
            dx.resize(start + sizes.len(), 0_f32);
            let dx = &mut dx[start..];
            let moments = self.norm.moments(x, channels, pixels);
            let items = Items { x, pixels, moments: &moments };
            vector::add_rows(&mut db, dy);
            let turned = sizes.rows(dy).transposed();
            let dy = Right::new(sizes.rows(dy).transposed(), [channels, pixels], precision);
            product(&weight, &dy, &mut Target::new(dx, pixels));
            self.norm.backward(items, affine, dx, &mut normed, [&mut d_norm, &mut d_shift]);
            sizes.weight_slopes(turned, sizes.planes(&normed).transposed(), &mut dw);
        }
        Ok(vec![dx, d_norm, d_shift, dw, db])
    }
}

struct PixelsOut {
    sizes: Sizes,
    shape: Shape,
}

impl Operation for PixelsOut {
    fn name(&self) -> &'static str {
        "pixels-out"
    }

    fn forward(&self, inputs: &[&[f32]], _: bool) -> Result<(Vec<f32>, Shape)> {
        let sizes = self.sizes;
        let Sizes { channels, pixels, precision, .. } = sizes;
        let weight = Left::new(sizes.rows(inputs[2]), [channels; 2], precision);
        let mut y = Vec::with_capacity(inputs[1].len());
        for (rows, x) in inputs[0].chunks_exact(sizes.len()).zip(inputs[1].chunks_exact(sizes.len())) {
            let start = y.len();
            for (x, bias) in x.chunks_exact(pixels).zip(inputs[3]) {
                y.extend(x.iter().map(|x| x + bias));
            }
            let rows = Right::new(sizes.rows(rows).transposed(), [channels, pixels], precision);
            product(&weight, &rows, &mut Target::sum(&mut y[start..], pixels));
        }
        Ok((y, self.shape.clone()))
    }

    fn backward(&self, inputs: &[&[f32]], dy: &[f32]) -> Result<Vec<Vec<f32>>> {
        let sizes = self.sizes;
        let Sizes { channels, pixels, precision, .. } = sizes;
        let weight = Right::new(sizes.rows(inputs[2]), [channels; 2], precision);
        let [mut dw, mut db] = [2, 3].map(|input: usize| vec![0_f32; inputs[input].len()]);
        let mut d_rows = Vec::with_capacity(inputs[0].len());
        for (rows, dy) in inputs[0].chunks_exact(sizes.len()).zip(dy.chunks_exact(sizes.len())) {
            let start = d_rows.len();
            d_rows.resize(start + sizes.len(), 0_f32);
            sizes.weight_slopes(sizes.planes(dy), sizes.rows(rows), &mut dw);
            db.iter_mut().zip(dy.chunks_exact(pixels)).for_each(|(db, dy)| *db += vector::sum(dy));
            let dy = Left::new(sizes.planes(dy).transposed(), [pixels, channels], precision);
            product(&dy, &weight, &mut Target::new(&mut d_rows[start..], channels));
        }
        Ok(vec![d_rows, dy.to_vec(), dw, db])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::{
        group_norm, linear,
        rearrange::exchange,
        testing::{draw, equal_with_gradients, gradients_hold},
    };

    #[test]
    fn equal_their_parts_and_their_gradients_hold() {
        for (dims, groups) in [([3, 12, 5, 4], 3), ([2, 32, 8, 8], 4)] {
            let [batch, channels, height, width] = dims;
            let (x, w) = (draw(dims.as_slice(), 1), (draw((channels, channels), 2) * 0.2).unwrap());
            let (a, b, c) = (draw(channels, 3), draw(channels, 4), draw(channels, 5));
            let inputs = [&x, &a, &b, &w, &c];
            for precision in [Precision::F32, Precision::Bf16] {
                let whole = |t: &[Tensor]| {
                    pixels_in(&t[0], [&t[1], &t[2]], (groups, 1e-5), [&t[3], &t[4]], precision)
                };
                let parts = |t: &[Tensor]| {
                    let normed = group_norm(&t[0], [&t[1], &t[2]], groups, 1e-5, false)?;
                    let rows = exchange(&normed.reshape((batch, channels, height * width))?)?;
                    linear(&rows, &t[3], Some(&t[4]), precision)
                };
                equal_with_gradients(&inputs, whole, parts, precision);
                if precision == Precision::F32 {
                    gradients_hold(&inputs, whole);
                }
            }
        }
    }

    #[test]
    fn the_way_out_too() {
        for [batch, channels, height, width] in [[3, 12, 5, 4], [2, 32, 8, 8]] {
            let rows = draw((batch, height * width, channels), 1);
            let x = draw((batch, channels, height, width), 2);
            let (w, b) = ((draw((channels, channels), 3) * 0.2).unwrap(), draw(channels, 4));
            let inputs = [&rows, &x, &w, &b];
            for precision in [Precision::F32, Precision::Bf16] {
                let whole = |t: &[Tensor]| pixels_out(&t[0], &t[1], [&t[2], &t[3]], precision);
                let parts = |t: &[Tensor]| {
                    let pixels = exchange(&linear(&t[0], &t[2], Some(&t[3]), precision)?)?;
                    pixels.reshape(t[1].shape())? + &t[1]
                };
                equal_with_gradients(&inputs, whole, parts, precision);
                if precision == Precision::F32 {
                    gradients_hold(&inputs, whole);
                }
            }
        }
    }
}

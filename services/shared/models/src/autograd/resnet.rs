//! A whole residual block as one operation: what lies between its convolutions stays in the cache.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::{Result, Shape, Tensor, bail};

use super::{
    Precision,
    conv::{Convolution, Start, Weights},
    many::{self, Operation},
    norm::{GroupNorm, Items},
    scratch::Scratch,
    vector,
};

/// diffusers' `ResnetBlock2D`, each layer by its weight and bias.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResnetTensors<'a> {
    pub(crate) norms: [[&'a Tensor; 2]; 2],
    pub(crate) convs: [[&'a Tensor; 2]; 2],
    pub(crate) shortcut: Option<[&'a Tensor; 2]>,
    /// The normalizations' number of groups, and what is added to their variances.
    pub(crate) groups: (usize, f32),
}

/// `x`, `[B, C_in, H, W]` in one or more parts of its channels, to `[B, C_out, H, W]`: two normalized convolutions around
/// a residual, each channel of each item shifted between them by `shift` `[B, C_out]`.
pub(crate) fn resnet_block(
    x: &[&Tensor],
    shift: Option<&Tensor>,
    tensors: &ResnetTensors<'_>,
    precision: Precision,
) -> Result<Tensor> {
    let ResnetTensors { norms, convs, shortcut, groups: (num_groups, eps) } = tensors;
    let Some(first) = x.first() else { bail!("a residual block of nothing") };
    let (batch, _, height, width) = first.dims4()?;
    let parts = x.iter().map(|part| part.dim(1)).collect::<Result<Vec<_>>>()?;
    let channels = [parts.iter().sum(), convs[0][0].dim(0)?];
    let conv = |[weight, _]: [&Tensor; 2]| {
        Convolution::new(weight.shape(), [height, width], 1, [weight.dim(2)? / 2; 2], precision)
    };
    let sizes = Sizes { batch, channels, pixels: height * width };
    let fits =
        x.iter().all(|part| matches!(*part.dims(), [b, _, h, w] if [b, h, w] == [batch, height, width]))
            && shift.is_none_or(|shift| *shift.dims() == [batch, channels[1]])
            && convs[0][0].dim(1)? == channels[0]
            && channels.iter().all(|channels| channels.is_multiple_of(*num_groups))
            && (shortcut.is_some() || channels[0] == channels[1]);
    if !fits {
        bail!(
            "a residual block from {channels:?} channels got parts of {parts:?}, the first {:?}",
            first.shape()
        );
    }
    let op = Block {
        sizes,
        parts,
        shifted: shift.is_some(),
        norm: GroupNorm { num_groups: *num_groups, eps: *eps, then_silu: true },
        convs: [conv(convs[0])?, conv(convs[1])?],
        shortcut: shortcut.map(conv).transpose()?,
        shape: (batch, channels[1], height, width).into(),
        kept: Mutex::default(),
    };
    let mut inputs: Vec<&Tensor> = norms.iter().chain(convs).chain(shortcut).flatten().copied().collect();
    inputs.extend(shift);
    inputs.extend(x);
    many::apply(op, &inputs)
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    /// In and out.
    channels: [usize; 2],
    pixels: usize,
}

struct Block {
    sizes: Sizes,
    /// Channels of the input's parts.
    parts: Vec<usize>,
    shifted: bool,
    norm: GroupNorm,
    convs: [Convolution; 2],
    shortcut: Option<Convolution>,
    shape: Shape,
    kept: Mutex<Option<Kept>>,
}

/// What the first convolution gave and the moments of both normalizations, for the way back.
#[derive(Debug, Default)]
struct Kept {
    hidden: Vec<f32>,
    moments: [Vec<[f32; 2]>; 2],
}

/// The operation's inputs by name.
struct Inputs<'a> {
    norms: [[&'a [f32]; 2]; 2],
    convs: [[&'a [f32]; 2]; 2],
    shortcut: Option<[&'a [f32]; 2]>,
    shift: Option<&'a [f32]>,
    x: &'a [&'a [f32]],
}

impl Block {
    fn named<'a>(&self, inputs: &'a [&'a [f32]]) -> Inputs<'a> {
        let pair = |at: usize| [inputs[at], inputs[at + 1]];
        let shortcut = self.shortcut.map(|_| pair(8));
        let mut rest = &inputs[if shortcut.is_some() { 10 } else { 8 }..];
        let shift = self.shifted.then(|| rest[0]);
        rest = &rest[usize::from(self.shifted)..];
        Inputs { norms: [pair(0), pair(2)], convs: [pair(4), pair(6)], shortcut, shift, x: rest }
    }

    /// Where some items' results lie.
    fn range(&self, items: &Range<usize>) -> Range<usize> {
        let len = self.sizes.channels[1] * self.sizes.pixels;
        items.start * len..items.end * len
    }

    /// Some items' input, its parts joined in `joined` where there are several.
    fn input<'a>(
        &self,
        x: &[&'a [f32]],
        items: &Range<usize>,
        joined: &'a mut Option<Scratch<f32>>,
    ) -> &'a [f32] {
        let Sizes { channels: [channels, _], pixels, .. } = self.sizes;
        if let [x] = x {
            return &x[items.start * channels * pixels..items.end * channels * pixels];
        }
        let mut all = Scratch::stale(items.len() * channels * pixels);
        for (item, all) in items.clone().zip(all.chunks_exact_mut(channels * pixels)) {
            let mut rest = all;
            for (x, part) in x.iter().zip(&self.parts) {
                let len = part * pixels;
                let (to, behind) = rest.split_at_mut(len);
                to.copy_from_slice(&x[item * len..][..len]);
                rest = behind;
            }
        }
        joined.insert(all)
    }

    fn normalized(&self, items: Items<'_>, norm: [&[f32]; 2]) -> Scratch<f32> {
        let mut y = Scratch::stale(items.x.len());
        self.norm.forward(items, norm, &mut y);
        y
    }

    /// The first convolution's bias, with each item's shift.
    fn first_bias(&self, inputs: &Inputs<'_>, items: &Range<usize>) -> Scratch<f32> {
        let bias = inputs.convs[0][1];
        let Some(shift) = inputs.shift else {
            let mut all = Scratch::stale(bias.len());
            all.copy_from_slice(bias);
            return all;
        };
        let mut all = Scratch::stale(items.len() * bias.len());
        all.copy_from_slice(&shift[items.start * bias.len()..items.end * bias.len()]);
        vector::add_to_rows(&mut all, bias);
        all
    }
}

/// Sums of gradients of the layers.
struct LayerSlopes {
    norms: [[Vec<f32>; 2]; 2],
    convs: [Scratch<f32>; 2],
    shortcut: Option<Scratch<f32>>,
    /// Of the first convolution by item, of the second and of the shortcut.
    biases: [Vec<f32>; 3],
}

impl Block {
    fn slopes(&self, inputs: &Inputs<'_>) -> LayerSlopes {
        let channels = self.sizes.channels[1];
        LayerSlopes {
            norms: inputs.norms.map(|norm| norm.map(|t| vec![0.0; t.len()])),
            convs: self.convs.map(|conv| conv.slope_sums()),
            shortcut: self.shortcut.map(|conv| conv.slope_sums()),
            biases: [self.sizes.batch * channels, channels, channels].map(|len| vec![0.0; len]),
        }
    }

    /// Some items' gradient `dy` to that of the input, which is written to `dx`; from the input and what the first
    /// convolution gave.
    fn chunk_back(
        &self,
        inputs: &Inputs<'_>,
        ready: &Back<'_>,
        slopes: &mut LayerSlopes,
        (items, x, hidden, dy): (&Range<usize>, Items<'_>, Items<'_>, &[f32]),
        dx: &mut [f32],
    ) {
        let channels = self.sizes.channels[1];
        let [bias_1, bias_2, bias_shortcut] = &mut slopes.biases;
        let [[norm_1, shift_1], [norm_2, shift_2]] = &mut slopes.norms;
        let [conv_1, conv_2] = &self.convs;

        let (mut d_hidden, mut normed) = (Scratch::stale(dy.len()), Scratch::stale(dy.len()));
        conv_2.backward(dy, &ready.convs[1], false, &mut d_hidden);
        self.norm.backward(hidden, inputs.norms[1], &mut d_hidden, &mut normed, [norm_2, shift_2]);
        conv_2.weight_slopes(&normed, dy, &mut slopes.convs[1]);
        conv_2.bias_slopes(dy, bias_2);

        let mut normed = Scratch::stale(dx.len());
        conv_1.backward(&d_hidden, &ready.convs[0], false, dx);
        self.norm.backward(x, inputs.norms[0], dx, &mut normed, [norm_1, shift_1]);
        conv_1.weight_slopes(&normed, &d_hidden, &mut slopes.convs[0]);
        conv_1.bias_slopes(&d_hidden, &mut bias_1[items.start * channels..items.end * channels]);

        if let (Some(conv), Some(weights), Some(sums)) =
            (&self.shortcut, &ready.shortcut, &mut slopes.shortcut)
        {
            conv.weight_slopes(x.x, dy, sums);
            conv.bias_slopes(dy, bias_shortcut);
            conv.backward(dy, weights, true, dx);
        } else {
            vector::add(dx, dy);
        }
    }

    /// Appends some items to each of the parts that they are joined of.
    fn split(&self, joined: &[f32], parts: &mut [Vec<f32>]) {
        for item in joined.chunks_exact(self.sizes.channels[0] * self.sizes.pixels) {
            let mut rest = item;
            for (part, channels) in parts.iter_mut().zip(&self.parts) {
                let (of_part, behind) = rest.split_at(channels * self.sizes.pixels);
                part.extend_from_slice(of_part);
                rest = behind;
            }
        }
    }

    /// In the order of the operation's inputs, before those of the input itself.
    fn listed(&self, slopes: LayerSlopes) -> Vec<Vec<f32>> {
        let [bias_1, bias_2, bias_shortcut] = slopes.biases;
        let mut total = vec![0.0; bias_2.len()];
        vector::add_rows(&mut total, &bias_1);
        let [conv_1, conv_2] = &self.convs;
        let mut list: Vec<Vec<f32>> = slopes.norms.into_iter().flatten().collect();
        list.extend([conv_1.slopes(&slopes.convs[0]), total, conv_2.slopes(&slopes.convs[1]), bias_2]);
        if let (Some(conv), Some(sums)) = (&self.shortcut, slopes.shortcut) {
            list.extend([conv.slopes(&sums), bias_shortcut]);
        }
        if self.shifted {
            list.push(bias_1);
        }
        list
    }
}

/// Kernels ready for the way back.
struct Back<'a> {
    convs: [Weights<'a>; 2],
    shortcut: Option<Weights<'a>>,
}

impl Operation for Block {
    fn name(&self) -> &'static str {
        "resnet-block"
    }

    fn forward(&self, inputs: &[&[f32]], keep: bool) -> Result<(Vec<f32>, Shape)> {
        let inputs = self.named(inputs);
        let Sizes { channels, pixels, .. } = self.sizes;
        let [conv_1, conv_2] = &self.convs;
        let weights = [conv_1.weights(inputs.convs[0][0]), conv_2.weights(inputs.convs[1][0])];
        let shortcut = self
            .shortcut
            .as_ref()
            .zip(inputs.shortcut)
            .map(|(conv, [w, bias])| (conv, conv.weights(w), bias));
        let mut kept = Kept { hidden: Vec::with_capacity(self.shape.elem_count()), ..Kept::default() };
        let mut y = Vec::with_capacity(self.shape.elem_count());
        for items in conv_1.groups(self.sizes.batch) {
            let (range, mut joined) = (self.range(&items), None);
            let x = self.input(inputs.x, &items, &mut joined);
            kept.hidden.resize(range.end, 0_f32);
            let hidden = &mut kept.hidden[range.start..];
            let bias = self.first_bias(&inputs, &items);
            let start = Start { bias: &bias, add: false };
            let moments = self.norm.moments(x, channels[0], pixels);
            let normed = self.normalized(Items { x, pixels, moments: &moments }, inputs.norms[0]);
            kept.moments[0].extend(moments);
            conv_1.forward(&normed, &weights[0], start, hidden);
            match &shortcut {
                Some((conv, weights, bias)) => {
                    y.resize(range.end, 0_f32);
                    conv.forward(x, weights, Start { bias, add: false }, &mut y[range.start..]);
                }
                None => y.extend_from_slice(x),
            }
            let start = Start { bias: inputs.convs[1][1], add: true };
            let moments = self.norm.moments(hidden, channels[1], pixels);
            let normed = self.normalized(Items { x: hidden, pixels, moments: &moments }, inputs.norms[1]);
            kept.moments[1].extend(moments);
            conv_2.forward(&normed, &weights[1], start, &mut y[range.start..]);
        }
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = keep.then_some(kept);
        Ok((y, self.shape.clone()))
    }

    fn backward(&self, inputs: &[&[f32]], dy: &[f32]) -> Result<Vec<Vec<f32>>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Kept { hidden, moments }) = &*kept else { bail!("a residual block kept nothing") };
        let (inputs, pixels) = (self.named(inputs), self.sizes.pixels);
        let [conv_1, conv_2] = &self.convs;
        let ready = Back {
            convs: [conv_1.weights_back(inputs.convs[0][0]), conv_2.weights_back(inputs.convs[1][0])],
            shortcut: self.shortcut.as_ref().zip(inputs.shortcut).map(|(conv, [w, _])| conv.weights_back(w)),
        };
        let mut slopes = self.slopes(&inputs);
        let mut parts: Vec<Vec<f32>> = inputs.x.iter().map(|x| Vec::with_capacity(x.len())).collect();
        for items in conv_1.groups(self.sizes.batch) {
            let (range, mut joined) = (self.range(&items), None);
            let x = self.input(inputs.x, &items, &mut joined);
            let groups = items.start * self.norm.num_groups..items.end * self.norm.num_groups;
            let with_moments = |x, i: usize| Items { x, pixels, moments: &moments[i][groups.clone()] };
            let (before, after) = (with_moments(x, 0), with_moments(&hidden[range.clone()], 1));
            let mut dx = Scratch::stale(x.len());
            self.chunk_back(&inputs, &ready, &mut slopes, (&items, before, after, &dy[range]), &mut dx);
            self.split(&dx, &mut parts);
        }
        let mut gradients = self.listed(slopes);
        gradients.extend(parts);
        Ok(gradients)
    }
}

#[cfg(test)]
mod tests;

//! Convolution on the lattice in f32.

use super::{Kernel, Lattice, Start, lattice::Run};
use crate::autograd::{
    Precision,
    matmul::{Target, View, matmul},
    scratch::Scratch,
};

/// Planes of `channels` of items among `pixels`, laid out with zeros around.
fn laid_out(
    pixels: &[f32],
    [channels, plane]: [usize; 2],
    [length, lead]: [usize; 2],
    runs: &(impl Iterator<Item = Run> + Clone),
) -> Scratch<f32> {
    let mut out = Scratch::zeros(channels * length);
    for (channel, out) in out.chunks_exact_mut(length).enumerate() {
        let pixels = &pixels[channel * plane..];
        for Run { pixel, place, len, step, .. } in runs.clone() {
            let row = &pixels[pixel..][..len];
            out[lead + place..].iter_mut().step_by(step).zip(row).for_each(|(out, x)| *out = *x);
        }
    }
    out
}

/// The opposite: what lies at the runs' places, to their pixels.
fn gathered(
    places: &[f32],
    length: usize,
    (pixels, [channels, plane]): (&mut [f32], [usize; 2]),
    start: Start<'_>,
    runs: &(impl Iterator<Item = Run> + Clone),
) {
    for (channel, places) in places.chunks_exact(length).enumerate() {
        let pixels = &mut pixels[channel * plane..];
        runs.clone().for_each(|run| start.put(run, [channel, channels], places, pixels));
    }
}

/// One group's convolution, to `y`.
pub(super) fn forward(
    lattice: &Lattice,
    kernel: Kernel,
    [x, weight]: [&[f32]; 2],
    start: Start<'_>,
    y: &mut [f32],
) {
    let Kernel { c_in, c_out, .. } = kernel;
    let (plane, out_plane, taps) = (lattice.plane(), lattice.out_plane(), kernel.taps());
    let items = x.len() / (c_in * plane);
    let (length, places) = (lattice.length(items), lattice.places(items));
    let runs = lattice.input_runs(items, c_in * plane);
    let x = laid_out(x, [c_in, plane], [length, lattice.lead()], &runs);
    let mut sums = Scratch::zeros(c_out * places);
    for (tap, shift) in lattice.shifts().into_iter().enumerate() {
        let weight = View { data: &weight[tap..], rows: c_in * taps, columns: taps };
        let mut target = Target::sum(&mut sums, places);
        matmul([c_out, places, c_in], weight, View::new(&x[shift..], length), &mut target, Precision::F32);
    }
    let runs = lattice.output_runs(items, c_out * out_plane);
    gathered(&sums, places, (y, [c_out, out_plane]), start, &runs);
}

/// One group's gradient of the input, to `dx`.
pub(super) fn backward(
    lattice: &Lattice,
    kernel: Kernel,
    [dy, weight]: [&[f32]; 2],
    start: Start<'_>,
    dx: &mut [f32],
) {
    let Kernel { c_in, c_out, .. } = kernel;
    let (plane, out_plane, taps) = (lattice.plane(), lattice.out_plane(), kernel.taps());
    let items = dx.len() / (c_in * plane);
    let (length, places) = (lattice.length(items), lattice.places(items));
    let runs = lattice.output_runs(items, c_out * out_plane);
    let dy = laid_out(dy, [c_out, out_plane], [length, lattice.lead()], &runs);
    let mut sums = Scratch::zeros(c_in * places);
    for (tap, shift) in lattice.shifts().iter().rev().enumerate() {
        let weight = View { data: &weight[tap..], rows: taps, columns: c_in * taps };
        let mut target = Target::sum(&mut sums, places);
        matmul([c_in, places, c_out], weight, View::new(&dy[*shift..], length), &mut target, Precision::F32);
    }
    gathered(&sums, places, (dx, [c_in, plane]), start, &lattice.input_runs(items, c_in * plane));
}

/// One group's share of the weight's gradient, added to `sums`.
pub(super) fn weight_slopes(lattice: &Lattice, kernel: Kernel, [x, dy]: [&[f32]; 2], sums: &mut [f32]) {
    let Kernel { c_in, c_out, .. } = kernel;
    let (plane, out_plane) = (lattice.plane(), lattice.out_plane());
    let items = x.len() / (c_in * plane);
    let (length, places, lead) = (lattice.length(items), lattice.places(items), lattice.lead());
    let x = laid_out(x, [c_in, plane], [length, lead], &lattice.input_runs(items, c_in * plane));
    let runs = lattice.output_runs(items, c_out * out_plane);
    let dy = laid_out(dy, [c_out, out_plane], [length, lead], &runs);
    let (rows, stride) = (c_out.next_multiple_of(16), c_in.next_multiple_of(16));
    for (shift, sums) in lattice.shifts().iter().zip(sums.chunks_exact_mut(rows * stride)) {
        let x = View::new(&x[*shift..], length).transposed();
        let mut target = Target::sum(sums, stride);
        matmul([c_out, c_in, places], View::new(&dy[lead..], length), x, &mut target, Precision::F32);
    }
}

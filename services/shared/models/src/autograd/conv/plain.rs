//! Convolution on the lattice in f32.

use super::{Kernel, Lattice, lattice::Run};
use crate::autograd::{
    Precision,
    matmul::{Target, View, matmul},
};

/// Planes of `channels`, each `[items]` of pixels among `pixels`, laid out with zeros around.
fn laid_out(
    pixels: &[f32],
    [channels, plane]: [usize; 2],
    length: usize,
    lead: usize,
    runs: impl Iterator<Item = Run> + Clone,
) -> Vec<f32> {
    let mut out = vec![0_f32; channels * length];
    for (channel, out) in out.chunks_exact_mut(length).enumerate() {
        let pixels = &pixels[channel * plane..];
        for Run { pixel, place, len, step } in runs.clone() {
            let row = &pixels[pixel..][..len];
            out[lead + place..].iter_mut().step_by(step).zip(row).for_each(|(out, x)| *out = *x);
        }
    }
    out
}

/// The opposite: adds what lies at the runs' places to the pixels.
fn gathered(
    places: &[f32],
    length: usize,
    pixels: &mut [f32],
    plane: usize,
    runs: impl Iterator<Item = Run> + Clone,
) {
    for (channel, places) in places.chunks_exact(length).enumerate() {
        for Run { pixel, place, len, step } in runs.clone() {
            let row = &mut pixels[channel * plane + pixel..][..len];
            row.iter_mut().zip(places[place..].iter().step_by(step)).for_each(|(x, place)| *x += place);
        }
    }
}

/// Adds the convolution to `y`.
pub(super) fn forward(lattice: &Lattice, kernel: Kernel, x: &[f32], weight: &[f32], y: &mut [f32]) {
    let Kernel { c_in, c_out, .. } = kernel;
    let (plane, out_plane, taps) = (lattice.plane(), lattice.out_plane(), kernel.taps());
    for group in lattice.groups() {
        let (items, length) = (group.len(), lattice.length(group.len()));
        let runs = lattice.input_runs(items, c_in * plane);
        let x = laid_out(&x[group.start * c_in * plane..], [c_in, plane], length, lattice.lead(), runs);
        let places = lattice.places(items);
        let mut sums = vec![0_f32; c_out * places];
        for (tap, shift) in lattice.shifts().into_iter().enumerate() {
            let weight = View { data: &weight[tap..], rows: c_in * taps, columns: taps };
            let mut target = Target { accumulate: true, ..Target::new(&mut sums, places) };
            matmul([c_out, places, c_in], weight, View::new(&x[shift..], length), &mut target, Precision::F32);
        }
        let runs = lattice.output_runs(items, c_out * out_plane);
        gathered(&sums, places, &mut y[group.start * c_out * out_plane..], out_plane, runs);
    }
}

/// Writes the gradients of input and weight.
pub(super) fn backward(
    lattice: &Lattice,
    kernel: Kernel,
    [x, weight, dy]: [&[f32]; 3],
    mut dx: Option<&mut [f32]>,
    dw: &mut [f32],
) {
    let Kernel { c_in, c_out, .. } = kernel;
    let (plane, out_plane, taps) = (lattice.plane(), lattice.out_plane(), kernel.taps());
    let (lead, shifts) = (lattice.lead(), lattice.shifts());
    for group in lattice.groups() {
        let (items, length, places) = (group.len(), lattice.length(group.len()), lattice.places(group.len()));
        let runs = lattice.input_runs(items, c_in * plane);
        let x = laid_out(&x[group.start * c_in * plane..], [c_in, plane], length, lead, runs.clone());
        let out_runs = lattice.output_runs(items, c_out * out_plane);
        let dy = laid_out(&dy[group.start * c_out * out_plane..], [c_out, out_plane], length, lead, out_runs);
        for (tap, shift) in shifts.iter().enumerate() {
            let mut sums = vec![0_f32; c_out * c_in];
            let x = View::new(&x[*shift..], length).transposed();
            let dy = View::new(&dy[lead..], length);
            matmul([c_out, c_in, places], dy, x, &mut Target::new(&mut sums, c_in), Precision::F32);
            dw[tap..].iter_mut().step_by(taps).zip(sums).for_each(|(dw, sum)| *dw += sum);
        }
        let Some(dx) = dx.as_deref_mut() else { continue };
        let mut sums = vec![0_f32; c_in * places];
        for (tap, shift) in shifts.iter().rev().enumerate() {
            let weight = View { data: &weight[tap..], rows: taps, columns: c_in * taps };
            let mut target = Target { accumulate: true, ..Target::new(&mut sums, places) };
            matmul([c_in, places, c_out], weight, View::new(&dy[*shift..], length), &mut target, Precision::F32);
        }
        gathered(&sums, places, &mut dx[group.start * c_in * plane..], plane, runs);
    }
}

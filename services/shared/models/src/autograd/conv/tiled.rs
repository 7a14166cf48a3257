//! Convolution on the lattice with bf16 factors, on the matrix unit.
#![expect(unsafe_code, reason = "instructions asked for at run time")]

use super::{Kernel, Lattice, Start, lattice::Run};
use crate::{
    autograd::{
        matmul::{View, packed_left},
        scratch::Scratch,
    },
    cpu::amx::{self, Block, DEPTH, Left, Right, Segment, TILE},
};

/// Rows and columns of the result computed at once.
const SIDE: usize = 2 * TILE;
/// Places summed at a time in the weight's gradient, for all taps before the next: what the first cache holds.
const STRETCH: usize = 256;

/// Channels in pairs, `[channels / 2, length]`, zeros around; channels rounded up to a multiple of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn paired(
    pixels: &[f32],
    [channels, plane]: [usize; 2],
    [length, lead]: [usize; 2],
    runs: &(impl Iterator<Item = Run> + Clone),
) -> Scratch<u32> {
    let mut out = Scratch::stale(channels.next_multiple_of(DEPTH) / 2 * length);
    for (pair, out) in out.chunks_exact_mut(length).enumerate() {
        if 2 * pair >= channels {
            out.fill(0);
            continue;
        }
        let (first, second) = (&pixels[2 * pair * plane..], (2 * pair + 1) * plane);
        let mut done = 0;
        for Run { pixel, place, len, step, .. } in runs.clone() {
            let first = &first[pixel..][..len];
            let second = if 2 * pair + 1 < channels { &pixels[second + pixel..][..len] } else { &[] };
            let end = lead + place + (len - 1) * step + 1;
            if step == 1 {
                out[done..lead + place].fill(0);
                amx::interleave(first, second, &mut out[lead + place..end], TILE);
            } else {
                out[done..end].fill(0);
                for (i, out) in out[lead + place..end].iter_mut().step_by(step).enumerate() {
                    let second = second.get(i..=i).unwrap_or(&[]);
                    amx::interleave(&first[i..=i], second, std::slice::from_mut(out), TILE);
                }
            }
            done = end;
        }
        out[done..].fill(0);
    }
    out
}

/// Channels as planes, `[channels, length]` of halves, zeros around; rows up to a multiple of 16 are left as they are.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn planar(
    pixels: &[f32],
    [channels, plane]: [usize; 2],
    [length, lead]: [usize; 2],
    runs: &(impl Iterator<Item = Run> + Clone),
) -> Scratch<u32> {
    let mut words = Scratch::stale(channels.next_multiple_of(TILE) * length / 2);
    for (channel, out) in amx::halves_mut(&mut words).chunks_exact_mut(length).enumerate().take(channels) {
        let pixels = &pixels[channel * plane..];
        let mut done = 0;
        for Run { pixel, place, len, step, .. } in runs.clone() {
            let row = &pixels[pixel..][..len];
            let end = lead + place + (len - 1) * step + 1;
            if step == 1 {
                out[done..lead + place].fill(0);
                amx::round(row, &mut out[lead + place..end]);
            } else {
                out[done..end].fill(0);
                for (x, out) in row.iter().zip(out[lead + place..end].iter_mut().step_by(step)) {
                    amx::round(std::slice::from_ref(x), std::slice::from_mut(out));
                }
            }
            done = end;
        }
        out[done..].fill(0);
    }
    words
}

/// Planes from `lead` on, turned over into pairs of places, `[places / 2, channels]`.
#[target_feature(enable = "avx512f")]
fn turned(words: &[u32], [length, lead]: [usize; 2], places: usize) -> Scratch<u32> {
    let channels = 2 * words.len() / length;
    let mut out = Scratch::stale(places / 2 * channels);
    for channel in (0..channels).step_by(TILE) {
        for place in (0..places / 2).step_by(TILE) {
            let from = &words[channel * length / 2 + lead / 2 + place..];
            amx::transpose(from, length / 2, &mut out[place * channels + channel..], channels);
        }
    }
    out
}

/// The kernel's taps one after the other, each `[c_out, c_in]`.
fn by_tap(kernel: Kernel, weight: &[f32]) -> Scratch<f32> {
    let (taps, size) = (kernel.taps(), kernel.c_in * kernel.c_out);
    let mut out = Scratch::stale(taps * size);
    for (i, weight) in weight.chunks_exact(taps).enumerate() {
        out[i..].iter_mut().step_by(size).zip(weight).for_each(|(out, w)| *out = *w);
    }
    out
}

/// Taps packed as left factors: each `[rows, depth]` in bf16, padded.
fn packed(taps: usize, [rows, depth]: [usize; 2], tap: impl Fn(usize) -> Scratch<u32>) -> Scratch<u32> {
    let len = rows.next_multiple_of(TILE) * depth.next_multiple_of(DEPTH) / 2;
    let mut out = Scratch::stale(taps * len);
    for (i, out) in out.chunks_exact_mut(len).enumerate() {
        out.copy_from_slice(&tap(i));
    }
    out
}

/// The kernel from input to output.
pub(super) fn forward_taps(kernel: Kernel, weight: &[f32]) -> Scratch<u32> {
    let Kernel { c_in, c_out, .. } = kernel;
    let weight = by_tap(kernel, weight);
    packed(kernel.taps(), [c_out, c_in], |tap| {
        packed_left(View::new(&weight[tap * c_in * c_out..], c_in), [c_out, c_in])
    })
}

/// The kernel turned around, from output to input.
pub(super) fn backward_taps(kernel: Kernel, weight: &[f32]) -> Scratch<u32> {
    let Kernel { c_in, c_out, .. } = kernel;
    let weight = by_tap(kernel, weight);
    let taps = kernel.taps();
    packed(taps, [c_in, c_out], |tap| {
        packed_left(View::new(&weight[(taps - 1 - tap) * c_in * c_out..], c_in).transposed(), [c_in, c_out])
    })
}

/// One group's pictures `from` (in pairs) by `kernel` (taps of `[rows, depth]`), to pixels of planes of `to`.
fn convolve(
    (lattice, items): (&Lattice, usize),
    from: &[u32],
    (kernel, rows): (&[u32], usize),
    start: Start<'_>,
    (to, plane): (&mut [f32], usize),
    runs: &(impl Iterator<Item = Run> + Clone),
) {
    let (length, places) = (lattice.length(items), lattice.places(items));
    let depth = from.len() / length * 2;
    let height = rows.next_multiple_of(TILE);
    let left = Left { data: amx::halves(kernel), stride: depth };
    let right = Right { data: from, stride: length, panel: TILE };
    // Not a multiple of a page from row to row.
    let stride = places + TILE;
    let mut sums = Scratch::stale(SIDE * stride);
    let shifts = lattice.shifts();
    let mut segments = vec![Segment { a: 0, b: 0 }; shifts.len()];
    for row in (0..rows).step_by(SIDE) {
        let count = (rows - row).min(SIDE);
        for place in (0..places).step_by(SIDE) {
            for (tap, (segment, shift)) in segments.iter_mut().zip(&shifts).enumerate() {
                *segment = Segment { a: (tap * height + row) * depth, b: shift + place };
            }
            let mut out = Block { data: &mut sums, at: place, stride, accumulate: false };
            amx::blocks(left, right, &segments, depth, [count, SIDE], &mut out);
        }
        for (channel, sums) in sums.chunks_exact(stride).enumerate().take(count) {
            let pixels = &mut to[(row + channel) * plane..];
            runs.clone().for_each(|run| start.put(run, [row + channel, rows], sums, pixels));
        }
    }
}

/// One group's convolution, to `y`.
pub(super) fn forward(
    lattice: &Lattice,
    kernel: Kernel,
    x: &[f32],
    taps: &[u32],
    start: Start<'_>,
    y: &mut [f32],
) {
    let Kernel { c_in, c_out, .. } = kernel;
    let (plane, out_plane) = (lattice.plane(), lattice.out_plane());
    let items = x.len() / (c_in * plane);
    let (length, lead) = (lattice.length(items), lattice.lead());
    let runs = lattice.input_runs(items, c_in * plane);
    // SAFETY: a kernel is packed only where `amx::available` has found the instructions.
    let x = unsafe { paired(x, [c_in, plane], [length, lead], &runs) };
    let runs = lattice.output_runs(items, c_out * out_plane);
    convolve((lattice, items), &x, (taps, c_out), start, (y, out_plane), &runs);
}

/// One group's gradient of the input, to `dx`.
pub(super) fn backward(
    lattice: &Lattice,
    kernel: Kernel,
    dy: &[f32],
    taps: &[u32],
    start: Start<'_>,
    dx: &mut [f32],
) {
    let Kernel { c_in, c_out, .. } = kernel;
    let (plane, out_plane) = (lattice.plane(), lattice.out_plane());
    let items = dx.len() / (c_in * plane);
    let (length, lead) = (lattice.length(items), lattice.lead());
    let runs = lattice.output_runs(items, c_out * out_plane);
    // SAFETY: as in `forward`.
    let dy = unsafe { paired(dy, [c_out, out_plane], [length, lead], &runs) };
    let runs = lattice.input_runs(items, c_in * plane);
    convolve((lattice, items), &dy, (taps, c_in), start, (dx, plane), &runs);
}

/// One group's share of the weight's gradient, added to `sums`: planes of `dy` by pairs of places of `x`. The taps shift
/// `dy`, since pairs can be shifted by even numbers only.
pub(super) fn weight_slopes(lattice: &Lattice, kernel: Kernel, [x, dy]: [&[f32]; 2], sums: &mut [f32]) {
    let Kernel { c_in, c_out, .. } = kernel;
    let (plane, out_plane) = (lattice.plane(), lattice.out_plane());
    let items = x.len() / (c_in * plane);
    let (laid, places) = ([lattice.length(items), lattice.lead()], lattice.places(items));
    let runs = lattice.input_runs(items, c_in * plane);
    let out_runs = lattice.output_runs(items, c_out * out_plane);
    // SAFETY: callers have asked `amx::available`.
    let (dy, x) = unsafe {
        let x = planar(x, [c_in, plane], laid, &runs);
        (planar(dy, [c_out, out_plane], laid, &out_runs), turned(&x, laid, places))
    };
    let (rows, stride) = (c_out.next_multiple_of(TILE), c_in.next_multiple_of(TILE));
    let left = Left { data: amx::halves(&dy), stride: laid[0] };
    let right = Right { data: &x, stride, panel: TILE };
    let shifts = lattice.shifts();
    for place in (0..places).step_by(STRETCH) {
        let depth = STRETCH.min(places - place);
        for column in (0..stride).step_by(SIDE) {
            for row in (0..rows).step_by(SIDE) {
                for (tap, shift) in shifts.iter().rev().enumerate() {
                    let at = [Segment { a: row * laid[0] + place + shift, b: place / 2 * stride + column }];
                    let at_sum = (tap * rows + row) * stride + column;
                    let mut out = Block { data: &mut *sums, at: at_sum, stride, accumulate: true };
                    let size = [(rows - row).min(SIDE), (stride - column).min(SIDE)];
                    amx::blocks(left, right, &at, depth, size, &mut out);
                }
            }
        }
    }
}

//! Convolution on the lattice with bf16 factors, on the matrix unit.
#![expect(unsafe_code, reason = "instructions asked for at run time, and words seen as halves")]

use super::{Kernel, Lattice, lattice::Run};
use crate::autograd::amx::{self, Block, DEPTH, Left, Right, Segment, TILE};

/// Rows and columns of the result computed at once.
const SIDE: usize = 2 * TILE;

/// Channels in pairs, `[channels / 2, length]`, zeros around; channels rounded up to a multiple of 32.
fn paired(
    pixels: &[f32],
    [channels, plane]: [usize; 2],
    length: usize,
    lead: usize,
    runs: impl Iterator<Item = Run> + Clone,
) -> Vec<u32> {
    let mut out = vec![0_u32; channels.next_multiple_of(DEPTH) / 2 * length];
    for (pair, out) in out.chunks_exact_mut(length).enumerate().take(channels.div_ceil(2)) {
        let (first, second) = (&pixels[2 * pair * plane..], (2 * pair + 1) * plane);
        for Run { pixel, place, len, step } in runs.clone() {
            let first = &first[pixel..][..len];
            let second = if 2 * pair + 1 < channels { &pixels[second + pixel..][..len] } else { &[] };
            let out = &mut out[lead + place..];
            if step == 1 {
                // SAFETY: callers have asked `amx::available`, which asks for these instructions.
                unsafe { amx::interleave(first, second, &mut out[..len]) };
            } else {
                for i in 0..len {
                    let mut one = [0];
                    // SAFETY: as above.
                    unsafe { amx::interleave(&first[i..=i], second.get(i..=i).unwrap_or(&[]), &mut one) };
                    out[i * step] = one[0];
                }
            }
        }
    }
    out
}

/// Channels as planes, `[channels, length]` of halves, zeros around; channels rounded up to a multiple of 16.
fn planar(
    pixels: &[f32],
    [channels, plane]: [usize; 2],
    length: usize,
    lead: usize,
    runs: impl Iterator<Item = Run> + Clone,
) -> Vec<u32> {
    let mut words = vec![0_u32; channels.next_multiple_of(TILE) * length / 2];
    for (channel, out) in amx::halves_mut(&mut words).chunks_exact_mut(length).enumerate().take(channels) {
        let pixels = &pixels[channel * plane..];
        for Run { pixel, place, len, step } in runs.clone() {
            let row = &pixels[pixel..][..len];
            let out = &mut out[lead + place..];
            if step == 1 {
                // SAFETY: as in `paired`.
                unsafe { amx::round(row, &mut out[..len]) };
            } else {
                for (i, x) in row.iter().enumerate() {
                    // SAFETY: as in `paired`.
                    unsafe { amx::round(&[*x], &mut out[i * step..=i * step]) };
                }
            }
        }
    }
    words
}

/// Planes from `lead` on, turned over into pairs of places, `[places / 2, channels]`.
fn turned(words: &[u32], length: usize, lead: usize, places: usize) -> Vec<u32> {
    let channels = 2 * words.len() / length;
    let mut out = vec![0_u32; places / 2 * channels];
    for channel in (0..channels).step_by(TILE) {
        for place in (0..places / 2).step_by(TILE) {
            let from = &words[channel * length / 2 + lead / 2 + place..];
            // SAFETY: as in `paired`; places are a multiple of 32 and channels of 16.
            unsafe { amx::transpose(from, length / 2, &mut out[place * channels + channel..], channels) };
        }
    }
    out
}

/// The kernel as one matrix `[rows, depth]` for each tap, in bf16 and padded; `at` gives a weight's place from row,
/// column and tap.
fn taps(
    weight: &[f32],
    [rows, columns, taps]: [usize; 3],
    at: impl Fn(usize, usize, usize) -> usize,
) -> Vec<u16> {
    let (height, depth) = (rows.next_multiple_of(TILE), columns.next_multiple_of(DEPTH));
    let mut out = vec![0_u16; taps * height * depth];
    let mut line = vec![0_f32; columns];
    for (tap, out) in out.chunks_exact_mut(height * depth).enumerate() {
        for (row, out) in out.chunks_exact_mut(depth).enumerate().take(rows) {
            line.iter_mut().enumerate().for_each(|(column, line)| *line = weight[at(row, column, tap)]);
            // SAFETY: as in `paired`.
            unsafe { amx::round(&line, out) };
        }
    }
    out
}

/// Multiplies up to two tiles high and wide.
fn block(a: Left<'_>, b: Right<'_>, segments: &[Segment], depth: usize, [rows, columns]: [usize; 2], out: &mut Block<'_>) {
    match (rows > TILE, columns > TILE) {
        (true, true) => amx::block::<2, 2>(a, b, segments, depth, out),
        (true, false) => amx::block::<2, 1>(a, b, segments, depth, out),
        (false, true) => amx::block::<1, 2>(a, b, segments, depth, out),
        (false, false) => amx::block::<1, 1>(a, b, segments, depth, out),
    }
}

/// One group's pictures `from` (in pairs) by `kernel` (taps of `[rows, depth]`), added to pixels of planes of `to`.
fn convolve(
    lattice: &Lattice,
    items: usize,
    from: &[u32],
    (kernel, rows): (&[u16], usize),
    (to, plane): (&mut [f32], usize),
    runs: impl Iterator<Item = Run> + Clone,
) {
    let (length, places) = (lattice.length(items), lattice.places(items));
    let depth = from.len() / length * 2;
    let height = rows.next_multiple_of(TILE);
    let (left, right) = (Left { data: kernel, stride: depth }, Right { data: from, stride: length });
    let mut sums = vec![0_f32; SIDE * places];
    let shifts = lattice.shifts();
    let mut segments = vec![Segment { a: 0, b: 0 }; shifts.len()];
    for row in (0..rows).step_by(SIDE) {
        let count = (rows - row).min(SIDE);
        for place in (0..places).step_by(SIDE) {
            for (tap, (segment, shift)) in segments.iter_mut().zip(&shifts).enumerate() {
                *segment = Segment { a: (tap * height + row) * depth, b: shift + place };
            }
            let mut out = Block { data: &mut sums, at: place, stride: places };
            block(left, right, &segments, depth, [count, SIDE], &mut out);
        }
        for (channel, sums) in sums.chunks_exact(places).enumerate().take(count) {
            let pixels = &mut to[(row + channel) * plane..];
            for Run { pixel, place, len, step } in runs.clone() {
                let target = &mut pixels[pixel..][..len];
                if step == 1 {
                    target.iter_mut().zip(&sums[place..][..len]).for_each(|(t, s)| *t += s);
                } else {
                    target.iter_mut().zip(sums[place..].iter().step_by(step)).for_each(|(t, s)| *t += s);
                }
            }
        }
    }
}

/// Adds the convolution to `y`.
pub(super) fn forward(lattice: &Lattice, kernel: Kernel, x: &[f32], weight: &[f32], y: &mut [f32]) {
    let Kernel { c_in, c_out, .. } = kernel;
    let (plane, out_plane, count) = (lattice.plane(), lattice.out_plane(), kernel.taps());
    let weight = taps(weight, [c_out, c_in, count], |row, column, tap| (row * c_in + column) * count + tap);
    for group in lattice.groups() {
        let items = group.len();
        let runs = lattice.input_runs(items, c_in * plane);
        let pixels = &x[group.start * c_in * plane..];
        let x = paired(pixels, [c_in, plane], lattice.length(items), lattice.lead(), runs);
        let runs = lattice.output_runs(items, c_out * out_plane);
        let y = &mut y[group.start * c_out * out_plane..];
        convolve(lattice, items, &x, (&weight, c_out), (y, out_plane), runs);
    }
}

/// Adds the gradients of input and weight to `dx` and `dw`.
pub(super) fn backward(
    lattice: &Lattice,
    kernel: Kernel,
    [x, weight, dy]: [&[f32]; 3],
    mut dx: Option<&mut [f32]>,
    dw: &mut [f32],
) {
    let Kernel { c_in, c_out, .. } = kernel;
    let (plane, out_plane, count) = (lattice.plane(), lattice.out_plane(), kernel.taps());
    let lead = lattice.lead();
    // The kernel turned around, from output to input.
    let around = |row: usize, column: usize, tap: usize| (column * c_in + row) * count + count - 1 - tap;
    let weight = if dx.is_some() { taps(weight, [c_in, c_out, count], around) } else { Vec::new() };
    let mut sums = vec![0_f32; count * c_in * c_out];
    for group in lattice.groups() {
        let (items, length) = (group.len(), lattice.length(group.len()));
        let runs = lattice.input_runs(items, c_in * plane);
        let out_runs = lattice.output_runs(items, c_out * out_plane);
        let x = planar(&x[group.start * c_in * plane..], [c_in, plane], length, lead, runs.clone());
        let dy = &dy[group.start * c_out * out_plane..];
        let planes = planar(dy, [c_out, out_plane], length, lead, out_runs.clone());
        let places = lattice.places(items);
        let dy_turned = turned(&planes, length, lead, places);
        weight_gradient(lattice, kernel, (amx::halves(&x), length), (&dy_turned, places), &mut sums);
        let Some(dx) = dx.as_deref_mut() else { continue };
        let dy = paired(dy, [c_out, out_plane], length, lead, out_runs);
        convolve(lattice, items, &dy, (&weight, c_in), (&mut dx[group.start * c_in * plane..], plane), runs);
    }
    for (tap, sums) in sums.chunks_exact(c_in * c_out).enumerate() {
        for (row, sums) in sums.chunks_exact(c_out).enumerate() {
            for (column, sum) in sums.iter().enumerate() {
                dw[(column * c_in + row) * count + tap] += sum;
            }
        }
    }
}

/// Adds one group's share to `sums` `[taps, c_in, c_out]`: planes of `x` by pairs of places of `dy`.
fn weight_gradient(
    lattice: &Lattice,
    kernel: Kernel,
    (x, length): (&[u16], usize),
    (dy, places): (&[u32], usize),
    sums: &mut [f32],
) {
    let Kernel { c_in, c_out, .. } = kernel;
    let (left, right) =
        (Left { data: x, stride: length }, Right { data: dy, stride: c_out.next_multiple_of(TILE) });
    let mut tile = [0_f32; SIDE * SIDE];
    for row in (0..c_in).step_by(SIDE) {
        let height = (c_in - row).min(SIDE);
        for column in (0..c_out).step_by(SIDE) {
            let width = (c_out - column).min(SIDE);
            for (tap, shift) in lattice.shifts().into_iter().enumerate() {
                let segment = Segment { a: row * length + shift, b: column };
                let mut out = Block { data: &mut tile, at: 0, stride: SIDE };
                block(left, right, &[segment], places, [height, width], &mut out);
                for (i, line) in tile.chunks_exact(SIDE).enumerate().take(height) {
                    let sums = &mut sums[(tap * c_in + row + i) * c_out + column..][..width];
                    sums.iter_mut().zip(line).for_each(|(sum, v)| *sum += v);
                }
            }
        }
    }
}

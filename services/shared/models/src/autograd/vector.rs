//! Loops over slices, compiled once as the crate is and once for AVX-512, which is chosen where the processor has it.
//! Both do the same operations in the same order: their results differ by no bit.
#![expect(unsafe_code, reason = "instructions asked for at run time")]

use super::activation::{exp, normal, sigmoid, silu_slope};
use crate::cpu::wide::folded;

/// Defines a function twice, with and without wider vectors, and a third that chooses.
macro_rules! widened {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$doc])*
        pub(super) fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
                fn wide($($arg: $type),*) $(-> $result)? {
                    plain($($arg),*)
                }
                if has_wide_vectors() {
                    // SAFETY: the processor has the instructions.
                    return unsafe { wide($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
fn has_wide_vectors() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

/// Sums kept side by side, so that neither width of vectors waits for one.
const LANES: usize = 32;

/// Sum of `f` over slices of one length.
#[inline(always)]
fn sum_with<const N: usize>(slices: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let mut lanes = [0_f32; LANES];
    let len = slices[0].len();
    let whole = len / LANES * LANES;
    let slices = slices.map(|s| &s[..len]);
    for at in (0..whole).step_by(LANES) {
        let parts: [&[f32]; N] = std::array::from_fn(|s| &slices[s][at..at + LANES]);
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(std::array::from_fn(|s| parts[s][lane]));
        }
    }
    // Half as many at once before single ones: rows of 77 padded to 80 are common.
    let half = whole + (len - whole) / (LANES / 2) * (LANES / 2);
    if half > whole {
        let parts: [&[f32]; N] = std::array::from_fn(|s| &slices[s][whole..half]);
        for (lane, sum) in lanes.iter_mut().take(LANES / 2).enumerate() {
            *sum += f(std::array::from_fn(|s| parts[s][lane]));
        }
    }
    let rest: f32 = (half..len).map(|i| f(std::array::from_fn(|s| slices[s][i]))).sum();
    folded(lanes, |a, b| a + b) + rest
}

/// The greatest of `x`; NaN only if all are.
#[inline(always)]
fn greatest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    let of = |a: f32, b: f32| if b > a { b } else { a };
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, v)| *lane = of(*lane, *v));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, v)| *lane = of(*lane, *v));
    folded(lanes, of)
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "a count of values")]
fn count(x: &[f32]) -> f32 {
    x.len() as f32
}

/// Mean and reciprocal standard deviation.
#[inline(always)]
fn mean_and_scale(x: &[f32], eps: f32) -> [f32; 2] {
    let n = count(x);
    let mean = sum_with([x], |[v]| v) / n;
    let variance = sum_with([x], |[v]| (v - mean) * (v - mean)) / n;
    [mean, 1.0 / (variance + eps).sqrt()]
}

/// Gradients of a value and its gate.
#[inline(always)]
fn geglu_slopes(value: f32, gate: f32, dy: f32) -> [f32; 2] {
    let (above, density) = normal(gate);
    [dy * gate * above, dy * value * gate.mul_add(density, above)]
}

widened! {
    /// Mean and reciprocal standard deviation.
    fn moments(x: &[f32], eps: f32) -> [f32; 2] {
        mean_and_scale(x, eps)
    }

    /// The sum of `x`.
    fn sum(x: &[f32]) -> f32 {
        sum_with([x], |[v]| v)
    }

    /// Adds `x` to `to`.
    fn add(to: &mut [f32], x: &[f32]) {
        to.iter_mut().zip(x).for_each(|(to, x)| *to += x);
    }

    /// Adds `row` to each row of `to`.
    fn add_to_rows(to: &mut [f32], row: &[f32]) {
        for to in to.chunks_exact_mut(row.len()) {
            to.iter_mut().zip(row).for_each(|(to, x)| *to += x);
        }
    }

    /// Adds each row of `x` to `sums`.
    fn add_rows(sums: &mut [f32], x: &[f32]) {
        for x in x.chunks_exact(sums.len()) {
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
        }
    }

    /// `x` times the first of `by` plus the second, through SiLU if `then_silu`.
    fn affine(x: &[f32], by: [f32; 2], then_silu: bool, y: &mut [f32]) {
        let [factor, shift] = by;
        let both = y.iter_mut().zip(x);
        if then_silu {
            both.for_each(|(y, x)| {
                let z = x.mul_add(factor, shift);
                *y = z * sigmoid(z);
            });
        } else {
            both.for_each(|(y, x)| *y = x.mul_add(factor, shift));
        }
    }

    /// Turns `dy`, a gradient behind [`affine`] by a factor and a shift, to that before SiLU; gives its sum and that of
    /// its products with `x` less a mean, the third of `by`.
    fn affine_slopes(x: &[f32], by: [f32; 3], then_silu: bool, dy: &mut [f32]) -> [f32; 2] {
        let [factor, shift, mean] = by;
        if then_silu {
            dy.iter_mut().zip(x).for_each(|(dy, x)| *dy *= silu_slope(x.mul_add(factor, shift)));
        }
        [sum_with([dy], |[dz]| dz), sum_with([dy, x], |[dz, x]| dz * (x - mean))]
    }

    /// [`affine`] with SiLU to `y`, and [`affine_slopes`], at the price of one exponential.
    fn affine_both(x: &[f32], by: [f32; 3], dy: &mut [f32], y: &mut [f32]) -> [f32; 2] {
        let [factor, shift, mean] = by;
        for ((dy, x), y) in dy.iter_mut().zip(x).zip(y) {
            let z = x.mul_add(factor, shift);
            let s = sigmoid(z);
            *y = z * s;
            *dy *= s * z.mul_add(1.0 - s, 1.0);
        }
        [sum_with([dy], |[dz]| dz), sum_with([dy, x], |[dz, x]| dz * (x - mean))]
    }

    /// `dz` times the first of `by`, plus `x` times the second, plus the third, in place of `dz`.
    fn combine(dz: &mut [f32], x: &[f32], by: [f32; 3]) {
        let [by_dz, by_x, shift] = by;
        dz.iter_mut().zip(x).for_each(|(dz, x)| *dz = dz.mul_add(by_dz, x.mul_add(by_x, shift)));
    }

    /// Each row of `x` normalized, times a weight plus a bias.
    fn normalize_rows(x: &[f32], affine: [&[f32]; 2], eps: f32, y: &mut [f32]) {
        let [weight, bias] = affine;
        let width = weight.len();
        let bias = &bias[..width];
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let [mean, scale] = mean_and_scale(x, eps);
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = ((x - mean) * scale).mul_add(*w, *b);
            }
        }
    }

    /// Gradients of [`normalize_rows`] from `x`, the result's gradient and the weight: that of `x` is added to `dx`,
    /// those of weight and bias to `slopes`.
    fn normalize_rows_back(from: [&[f32]; 3], eps: f32, dx: &mut [f32], slopes: [&mut [f32]; 2]) {
        let ([x, dy, weight], [dw, db]) = (from, slopes);
        let width = weight.len();
        let (dw, db) = (&mut dw[..width], &mut db[..width]);
        for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let [mean, scale] = mean_and_scale(x, eps);
            let mean_dz = sum_with([dy, weight], |[dy, w]| dy * w) / count(x);
            let mean_dz_x = sum_with([dy, weight, x], |[dy, w, x]| dy * w * (x - mean)) * scale / count(x);
            for i in 0..width {
                let unit = (x[i] - mean) * scale;
                dw[i] += dy[i] * unit;
                db[i] += dy[i];
                dx[i] += scale * (dy[i] * weight[i] - mean_dz - unit * mean_dz_x);
            }
        }
    }

    /// Softmax of each row of `scores`, of a stride and a context, over its context times `scale`; with `causal`, row `i`
    /// over its first `i + 1`. The rest of the row is zero.
    fn softmax_rows(scores: &mut [f32], sizes: [usize; 2], causal: bool, scale: f32) {
        let [stride, context] = sizes;
        for (i, row) in scores.chunks_exact_mut(stride).enumerate() {
            let seen = if causal { (i + 1).min(context) } else { context };
            // Whole vectors: beyond the last, numbers whose exponentials are next to nothing, and then nothing.
            let (row, hidden) = row.split_at_mut(seen.next_multiple_of(16).min(stride));
            hidden.fill(0.0);
            row[seen..].fill(f32::NEG_INFINITY);
            let shift = -greatest(row) * scale;
            row.iter_mut().for_each(|v| *v = exp(v.mul_add(scale, shift)));
            row[seen..].fill(0.0);
            let factor = 1.0 / sum_with([&*row], |[v]| v);
            row.iter_mut().for_each(|v| *v *= factor);
        }
    }

    /// Turns `slopes`, gradients of `weights` from [`softmax_rows`], to those of the scores.
    fn softmax_rows_back(weights: &[f32], slopes: &mut [f32], sizes: [usize; 2], scale: f32) {
        let [stride, context] = sizes;
        for (weights, slopes) in weights.chunks_exact(stride).zip(slopes.chunks_exact_mut(stride)) {
            // Beyond the context weights are zero, and so shall slopes be.
            slopes[context..].fill(0.0);
            let mean = sum_with([weights, slopes], |[w, d]| w * d);
            slopes.iter_mut().zip(weights).for_each(|(d, w)| *d = w * (*d - mean) * scale);
        }
    }

    /// Rows of `n` values and `n` gates to each value by its gate's GELU.
    fn geglu(both: &[f32], n: usize, y: &mut [f32]) {
        for (row, y) in both.chunks_exact(2 * n).zip(y.chunks_exact_mut(n)) {
            let (values, gates) = row.split_at(n);
            for ((y, value), gate) in y.iter_mut().zip(values).zip(gates) {
                *y = value * gate * normal(*gate).0;
            }
        }
    }

    /// Gradients of [`geglu`] in the place of `both`.
    fn geglu_back(both: &mut [f32], n: usize, dy: &[f32]) {
        for (row, dy) in both.chunks_exact_mut(2 * n).zip(dy.chunks_exact(n)) {
            let (values, gates) = row.split_at_mut(n);
            let ((values, values_rest), (gates, gates_rest)) =
                (values.as_chunks_mut::<LANES>(), gates.as_chunks_mut::<LANES>());
            let (dy, dy_rest) = dy.as_chunks::<LANES>();
            for ((values, gates), dy) in values.iter_mut().zip(gates).zip(dy) {
                // Copies, lest the compiler think that one write changes what is read next.
                let (mut value, mut gate, dy) = (*values, *gates, *dy);
                for ((value, gate), dy) in value.iter_mut().zip(&mut gate).zip(&dy) {
                    [*value, *gate] = geglu_slopes(*value, *gate, *dy);
                }
                (*values, *gates) = (value, gate);
            }
            for ((value, gate), dy) in values_rest.iter_mut().zip(gates_rest).zip(dy_rest) {
                [*value, *gate] = geglu_slopes(*value, *gate, *dy);
            }
        }
    }
}

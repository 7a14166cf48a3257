//! Random numbers as functions of seed, label, step and index: nothing to save. Numbers are the same on
//! every machine, those of the normal distribution but for the last bit of its library's logarithm and sine.

use std::f64::consts::TAU;

use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use sha2::{Digest, Sha256};

/// The generator of one purpose, `label`, at `step` for the item `index`. Streams that differ in anything share
/// nothing.
#[must_use]
pub fn stream(seed: u64, label: &str, step: u64, index: u64) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    for number in [seed, step, index] {
        hash.update(number.to_le_bytes());
    }
    hash.update(label);
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// `count` values of the standard normal distribution, by Box and Muller in double precision.
#[must_use]
pub fn normal(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let (u1, u2): (f64, f64) = (rng.random(), rng.random());
        let radius = (-2.0 * (1.0 - u1).ln()).sqrt();
        let (sin, cos) = (TAU * u2).sin_cos();
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(count);
    values
}

/// `count` values uniform in `-bound..bound`.
#[must_use]
pub fn uniform(rng: &mut ChaCha8Rng, bound: f32, count: usize) -> Vec<f32> {
    (0..count).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_its_arguments_alone() {
        let draw = |seed, label, step, index| normal(&mut stream(seed, label, step, index), 3);
        let one = draw(1, "noise", 2, 3);
        assert_eq!(one, draw(1, "noise", 2, 3));
        for other in
            [draw(2, "noise", 2, 3), draw(1, "time", 2, 3), draw(1, "noise", 3, 3), draw(1, "noise", 2, 2)]
        {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn values_have_the_moments_asked_for() {
        let mut rng = stream(0, "moments", 0, 0);
        let moments = |values: &[f32]| {
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
            (mean, square)
        };
        let (mean, square) = moments(&normal(&mut rng, 100_001));
        assert!(mean.abs() < 0.01 && (square - 1.0).abs() < 0.02, "{mean} {square}");
        let (mean, square) = moments(&uniform(&mut rng, 3.0, 100_000));
        assert!(mean.abs() < 0.03 && (square - 3.0).abs() < 0.05, "{mean} {square}");
    }
}

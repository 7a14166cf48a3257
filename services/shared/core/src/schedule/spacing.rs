//! How `num_inference_steps` timesteps are chosen out of the training timesteps.

use crate::scheduler::TimestepSpacing;

/// Timesteps in falling order. Linspace keeps fractions; who wants whole numbers rounds. With trailing spacing some
/// counts give one timestep more, the last -1: numpy's `arange` rounds its length up, and diffusers follows it.
pub(super) fn timesteps(spacing: TimestepSpacing, train: u32, steps: u32, steps_offset: u32) -> Vec<f64> {
    let (last, count) = (f64::from(train) - 1.0, f64::from(steps));
    match spacing {
        TimestepSpacing::Leading => {
            let ratio = train / steps;
            (0..steps).rev().map(|i| f64::from(i * ratio) + f64::from(steps_offset)).collect()
        }
        TimestepSpacing::Linspace => {
            let step = if steps > 1 { last / (count - 1.0) } else { 0.0 };
            let at = |i: u32| if i + 1 == steps && steps > 1 { last } else { f64::from(i) * step };
            (0..steps).rev().map(at).collect()
        }
        TimestepSpacing::Trailing => {
            // numpy fills an arange with start + i * (second - start), not with start - i * ratio.
            let train = f64::from(train);
            let ratio = train / count;
            let delta = (train - ratio) - train;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most steps + 1")]
            let length = (train / ratio).ceil() as u32;
            (0..length).map(|i| (train + f64::from(i) * delta).round_ties_even() - 1.0).collect()
        }
    }
}

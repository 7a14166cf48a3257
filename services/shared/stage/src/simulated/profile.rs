//! What a simulated cluster is like: its model's shapes and its devices' times.

mod read;

use candle_core::DType;
use sdxl_core::{Conditioner, ConditionerInfo, DenoiserInfo, Size, StageKind, VaeInfo};
use std::time::Duration;

/// The most pictures that any profile lets share a step, as with `--max-batch`.
const MOST_TOGETHER: usize = 1024;

/// One file for all stages of a cluster, checked whole whichever of them reads it.
///
/// TOML, with every time in seconds; `profiles/h200.toml` shows all there is. The times of sizes that it does not list
/// follow from those that it does, by the pictures' area: linear between two sizes, in proportion beyond the smallest
/// and the largest. A step of `n` evaluations takes `overhead_seconds + n * per_evaluation_seconds`; the overhead beyond
/// the listed sizes is that of the nearest.
#[derive(Clone, Debug)]
pub struct Profile {
    pub(super) name: String,
    /// A hash of the file.
    pub(super) revision: String,
    /// Of embeddings, and what the stages say that they compute in.
    pub(super) dtype: DType,
    pub(super) text_encoder: TextEncoderProfile,
    pub(super) base_unet: DenoiserProfile,
    pub(super) refiner: Option<DenoiserProfile>,
    pub(super) vae: VaeProfile,
}

/// The text encoder's part.
#[derive(Clone, Debug)]
pub(super) struct TextEncoderProfile {
    pub(super) warm_up: Duration,
    pub(super) base: ConditionerProfile,
    /// There if the profile has a refiner.
    pub(super) refiner: Option<ConditionerProfile>,
}

/// One conditioner's part.
#[derive(Clone, Debug)]
pub(super) struct ConditionerProfile {
    pub(super) info: ConditionerInfo,
    pub(super) per_text: Duration,
}

/// A denoiser's part.
#[derive(Clone, Debug)]
pub(crate) struct DenoiserProfile {
    pub(super) warm_up: Duration,
    pub(super) info: DenoiserInfo,
    steps: Vec<(Size, StepTime)>,
}

/// What a step takes at one size.
#[derive(Clone, Copy, Debug)]
struct StepTime {
    overhead: f64,
    per_evaluation: f64,
    max_batch: usize,
}

/// The VAE's part.
#[derive(Clone, Debug)]
pub(super) struct VaeProfile {
    pub(super) warm_up: Duration,
    pub(super) info: VaeInfo,
    /// Seconds a picture.
    pictures: Vec<(Size, f64)>,
}

impl Profile {
    /// The part of the stage `kind`, which is a denoiser.
    pub(crate) fn denoiser(&self, kind: StageKind) -> Option<&DenoiserProfile> {
        if kind == StageKind::Refiner { self.refiner.as_ref() } else { Some(&self.base_unet) }
    }
}

impl TextEncoderProfile {
    pub(super) fn conditioner(&self, which: Conditioner) -> Option<&ConditionerProfile> {
        match which {
            Conditioner::Base => Some(&self.base),
            Conditioner::Refiner => self.refiner.as_ref(),
        }
    }
}

impl DenoiserProfile {
    /// A step with so many evaluations of the network, together; one from a cache counts as a part.
    pub(crate) fn step(&self, size: Size, evaluations: f64) -> Duration {
        let overhead = by_area(&self.steps, size, |time| time.overhead, Beyond::Same);
        let each = by_area(&self.steps, size, |time| time.per_evaluation, Beyond::InProportion);
        seconds(overhead + evaluations * each)
    }

    /// The most pictures of `size` that share a step: as listed, else as many more or fewer than at the listed size next
    /// to it in area as that is larger or smaller, so that a full batch has as many pixels.
    pub(crate) fn max_batch(&self, size: Size) -> usize {
        let distance = |other: Size| (pixels(other) / pixels(size)).ln().abs();
        let exact = self.steps.iter().find(|(listed, _)| *listed == size);
        let nearest = || self.steps.iter().min_by(|(a, _), (b, _)| distance(*a).total_cmp(&distance(*b)));
        let Some((listed, time)) = exact.or_else(nearest) else { return 1 };
        let area = |size: Size| u64::from(size.height) * u64::from(size.width);
        let pictures = (time.max_batch as u64).saturating_mul(area(*listed)) / area(size).max(1);
        usize::try_from(pictures).unwrap_or(MOST_TOGETHER).clamp(1, MOST_TOGETHER)
    }
}

impl VaeProfile {
    pub(super) fn picture(&self, size: Size) -> Duration {
        seconds(by_area(&self.pictures, size, |time| *time, Beyond::InProportion))
    }
}

/// What becomes of a value beyond the smallest and the largest listed size.
#[derive(Clone, Copy)]
enum Beyond {
    Same,
    InProportion,
}

/// The value of a size from those that are listed.
fn by_area<T>(listed: &[(Size, T)], size: Size, value: impl Fn(&T) -> f64, beyond: Beyond) -> f64 {
    if let Some((_, exact)) = listed.iter().find(|(listed, _)| *listed == size) {
        return value(exact);
    }
    let own = pixels(size);
    let points = || listed.iter().map(|(size, at)| (pixels(*size), value(at)));
    let below = points().filter(|(area, _)| *area <= own).max_by(|a, b| a.0.total_cmp(&b.0));
    let above = points().filter(|(area, _)| *area >= own).min_by(|a, b| a.0.total_cmp(&b.0));
    match (below, above) {
        (Some((low, at_low)), Some((high, at_high))) if low < high => {
            at_low + (at_high - at_low) * (own - low) / (high - low)
        }
        (Some(_), Some((_, same))) => same,
        (Some((area, nearest)), None) | (None, Some((area, nearest))) => match beyond {
            Beyond::Same => nearest,
            Beyond::InProportion => nearest * own / area,
        },
        (None, None) => 0.0,
    }
}

fn pixels(size: Size) -> f64 {
    (f64::from(size.height) * f64::from(size.width)).max(1.0)
}

/// The reader lets only finite times through that are far below what a [`Duration`] holds.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests;

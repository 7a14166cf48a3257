//! How long a step of a stage takes, learnt from the steps that it does.

use crate::size::Size;
use std::{collections::BTreeMap, time::Duration};

/// Weight of a new time in the running mean of those before it.
const NEWEST: f64 = 0.2;

/// Times of steps by the pictures' size and by how often the network is evaluated in the step (twice for each guided
/// picture, and in part where the rest comes from a cache), as running means.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTimes {
    /// Seconds by hundredths of an evaluation, by height and width.
    known: BTreeMap<(u32, u32), BTreeMap<u32, f64>>,
}

impl StepTimes {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A step of `evaluations` at `size` took `time`.
    pub fn observe(&mut self, size: Size, evaluations: f64, time: Duration) {
        let seconds = time.as_secs_f64();
        let of_size = self.known.entry((size.height, size.width)).or_default();
        of_size
            .entry(hundredths(evaluations))
            .and_modify(|mean| *mean += NEWEST * (seconds - *mean))
            .or_insert(seconds);
    }

    /// How long a step of `evaluations` at `size` takes: as it was seen, or between what was seen of that size; else as
    /// at the size next to it in area, in proportion. `None` while nothing is known.
    #[must_use]
    pub fn estimate(&self, size: Size, evaluations: f64) -> Option<Duration> {
        let evaluations = hundredths(evaluations);
        let seconds = match self.known.get(&(size.height, size.width)) {
            Some(of_size) => between(of_size, evaluations)?,
            None => {
                let area = |(height, width): (u32, u32)| (f64::from(height) * f64::from(width)).max(1.0);
                let own = area((size.height, size.width));
                let distance = |other: f64| (other / own).ln().abs();
                let nearest = self
                    .known
                    .keys()
                    .min_by(|a, b| distance(area(**a)).total_cmp(&distance(area(**b))))
                    .copied()?;
                between(self.known.get(&nearest)?, evaluations)? * own / area(nearest)
            }
        };
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// Whether a step of `evaluations` at `size` has been seen.
    #[must_use]
    pub fn knows(&self, size: Size, evaluations: f64) -> bool {
        let evaluations = hundredths(evaluations);
        self.known.get(&(size.height, size.width)).is_some_and(|of_size| of_size.contains_key(&evaluations))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as casts saturate, so does this"
)]
fn hundredths(evaluations: f64) -> u32 {
    ((evaluations * 100.0).round() as u32).max(1)
}

/// Linear between the numbers of evaluations that were seen; beyond the largest in proportion, below the smallest as
/// that, because a small batch may take as long.
fn between(of_size: &BTreeMap<u32, f64>, evaluations: u32) -> Option<f64> {
    let below = of_size.range(..=evaluations).next_back();
    let above = of_size.range(evaluations..).next();
    Some(match (below, above) {
        (Some((low, at_low)), Some((high, at_high))) if low < high => {
            at_low + (at_high - at_low) * f64::from(evaluations - low) / f64::from(high - low)
        }
        (_, Some((_, seconds))) => *seconds,
        (Some((low, at_low)), None) => at_low * f64::from(evaluations) / f64::from(*low),
        (None, None) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(times: &StepTimes, side: u32, evaluations: f64) -> f64 {
        times.estimate(Size::new(side, side), evaluations).unwrap().as_secs_f64()
    }

    #[test]
    fn what_was_seen_is_told_and_follows_changes() {
        let mut times = StepTimes::new();
        let size = Size::new(64, 64);
        assert_eq!(times.estimate(size, 2.0), None);
        times.observe(size, 2.0, Duration::from_secs(10));
        assert!((seconds(&times, 64, 2.0) - 10.0).abs() < 1e-9);
        assert!(times.knows(size, 2.0) && !times.knows(size, 4.0) && !times.knows(Size::new(64, 72), 2.0));
        for _ in 0..50 {
            times.observe(size, 2.0, Duration::from_secs(20));
        }
        assert!((seconds(&times, 64, 2.0) - 20.0).abs() < 0.01);
    }

    #[test]
    fn what_was_not_seen_follows_from_what_was() {
        let mut times = StepTimes::new();
        times.observe(Size::new(64, 64), 2.0, Duration::from_secs(3));
        times.observe(Size::new(64, 64), 8.0, Duration::from_secs(6));
        for (evaluations, expected) in [(0.25, 3.0), (1.0, 3.0), (4.0, 4.0), (16.0, 12.0)] {
            assert!((seconds(&times, 64, evaluations) - expected).abs() < 1e-9, "{evaluations}");
        }
        // Four times the area, from the size that is nearest to it.
        assert!((seconds(&times, 128, 2.0) - 12.0).abs() < 1e-9);
        times.observe(Size::new(192, 192), 2.0, Duration::from_secs(18));
        assert!((seconds(&times, 128, 2.0) - 8.0).abs() < 1e-9);
    }
}

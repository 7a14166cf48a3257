//! What requests take alone, which slowdowns and deadlines by factor are measured by.

use super::{call::Timing, work::Work};
use sdxl_core::{Size, StageKind};
use std::collections::HashMap;

/// The least run time seen of each stage at each size, in seconds: of a step for denoisers, of a call for the others.
#[derive(Clone, Debug, Default)]
pub(super) struct Baseline(HashMap<(StageKind, Size), f64>);

impl Baseline {
    /// Takes in what a request of `size` took. Zeros, which a cache may answer with, tell nothing.
    pub(super) fn learn(&mut self, size: Size, timings: &[Timing]) {
        for timing in timings.iter().filter(|timing| timing.run > 0.0) {
            let unit = timing.run / units(timing.steps);
            self.0.entry((timing.stage, size)).and_modify(|least| *least = least.min(unit)).or_insert(unit);
        }
    }

    /// What a request with these timings would have taken alone, in seconds: what its pictures share and the longest
    /// of its pictures, as if each had replicas to itself. `None` where nothing is known.
    pub(super) fn alone(&self, size: Size, timings: &[Timing]) -> Option<f64> {
        let (mut shared, mut pictures) = (0.0, HashMap::new());
        for timing in timings.iter().filter(|timing| timing.run > 0.0) {
            let least = self.0.get(&(timing.stage, size)).copied().unwrap_or_default();
            let time = least * units(timing.steps);
            match timing.image_index {
                None => shared += time,
                Some(index) => *pictures.entry(index).or_insert(0.0) += time,
            }
        }
        let alone = pictures.into_values().fold(0.0, f64::max) + shared;
        (alone > 0.0).then_some(alone)
    }

    /// The same of a request that has not been sent, in seconds; 0 where nothing is known.
    pub(super) fn expected(&self, work: &Work) -> f64 {
        let base = work.refiner_split.map_or(work.steps, |split| {
            // Near enough: the denoisers cut the schedule at a timestep.
            (f64::from(split) * f64::from(work.steps)).round() as u32
        });
        let stages = [
            (StageKind::TextEncoder, 1),
            (StageKind::BaseUnet, base),
            (StageKind::Refiner, work.steps - base.min(work.steps)),
            (StageKind::Vae, 1),
        ];
        let least = |stage| self.0.get(&(stage, work.size)).copied().unwrap_or_default();
        stages.into_iter().map(|(stage, count)| least(stage) * f64::from(count)).sum()
    }
}

/// Steps, or one call.
fn units(steps: u32) -> f64 {
    f64::from(steps.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size::new(512, 512);

    fn timing(stage: StageKind, image_index: Option<u32>, run: f64, steps: u32) -> Timing {
        Timing { stage, image_index, queue: 9.0, run, total: 10.0, steps }
    }

    fn request(step: f64, pictures: u32) -> Vec<Timing> {
        let mut timings = vec![timing(StageKind::TextEncoder, None, 0.5, 0)];
        for index in 0..pictures {
            timings.push(timing(StageKind::BaseUnet, Some(index), step * 10.0, 10));
            timings.push(timing(StageKind::Vae, Some(index), 1.0, 0));
        }
        timings
    }

    #[test]
    fn a_request_alone_takes_the_least_of_each_stage() {
        let mut baseline = Baseline::default();
        assert_eq!(baseline.alone(SIZE, &request(0.2, 1)), None);
        baseline.learn(SIZE, &request(0.2, 1));
        baseline.learn(SIZE, &request(0.1, 1)); // with fewer others in its steps
        baseline.learn(SIZE, &request(0.3, 1));
        let alone = |timings: &[Timing]| baseline.alone(SIZE, timings).unwrap();
        assert!((alone(&request(0.3, 1)) - 2.5).abs() < 1e-9);
        assert!((alone(&request(0.3, 4)) - 2.5).abs() < 1e-9, "pictures are made side by side");
        assert!((alone(&request(0.3, 1)[1..]) - 2.0).abs() < 1e-9, "a text that was cached takes nothing");
        assert_eq!(baseline.alone(Size::new(64, 64), &request(0.1, 1)), None, "sizes are apart");
    }

    #[test]
    fn zeros_are_no_times() {
        let mut baseline = Baseline::default();
        baseline.learn(SIZE, &[timing(StageKind::TextEncoder, None, 0.0, 0)]);
        baseline.learn(SIZE, &request(0.1, 1));
        assert!((baseline.alone(SIZE, &request(0.1, 1)).unwrap() - 2.5).abs() < 1e-9);
    }

    #[test]
    fn a_request_to_come_is_known_by_its_work() {
        let mut baseline = Baseline::default();
        baseline.learn(SIZE, &request(0.1, 1));
        baseline.learn(SIZE, &[timing(StageKind::Refiner, Some(0), 0.8, 4)]);
        let mut work = Work {
            prompt: String::new(),
            size: SIZE,
            steps: 20,
            num_images: 1,
            seed: 0,
            refiner_split: None,
            tenant: Default::default(),
            priority: Default::default(),
            deadline: None,
        };
        assert!((baseline.expected(&work) - (0.5 + 2.0 + 1.0)).abs() < 1e-9);
        work.refiner_split = Some(0.75);
        assert!((baseline.expected(&work) - (0.5 + 1.5 + 1.0 + 1.0)).abs() < 1e-9);
    }
}

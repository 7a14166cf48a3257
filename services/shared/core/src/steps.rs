//! How each step of a slice is done: with guidance or without, by the whole network or by its outer layers alone.

use std::ops::Range;

/// Step caching in the manner of DeepCache (Ma et al. 2023, arXiv 2312.00858): what the network's inner layers made in one
/// step is taken again in those after it, which compute the outer layers alone. It changes the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeepCache {
    /// Of so many steps the first is computed whole.
    pub cache_interval: u32,
    /// The skip connection, counted from the outermost, which is 0, within which nothing is computed anew.
    pub cache_branch_id: u32,
}

/// How each step of a slice of a schedule is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepKinds {
    /// The slice's first step.
    pub begin_step: u32,
    /// The steps, of the whole schedule, in which both halves are evaluated.
    pub guided: Range<u32>,
    /// `None` where every step is computed whole.
    pub deep_cache: Option<DeepCache>,
}

impl StepKinds {
    /// Every step guided, where there is a negative half, and computed whole.
    #[must_use]
    pub fn plain() -> Self {
        Self { begin_step: 0, guided: 0..u32::MAX, deep_cache: None }
    }

    /// Whether guidance is on in `step`.
    #[must_use]
    pub fn is_guided(&self, step: u32) -> bool {
        self.guided.contains(&step)
    }

    /// Whether guidance is on in any of `steps`.
    #[must_use]
    pub fn is_guided_in(&self, steps: Range<u32>) -> bool {
        meet(&self.guided, &steps)
    }

    /// How many items the network is given in `step`: two with guidance.
    #[must_use]
    pub fn evaluations(&self, step: u32) -> u32 {
        if self.is_guided(step) { 2 } else { 1 }
    }

    /// Whether `step` needs nothing of the steps before it but their latents: each where nothing is cached, else one of
    /// `cache_interval`, and where guidance begins or ends, since there the halves to take up are others.
    #[must_use]
    pub fn is_whole(&self, step: u32) -> bool {
        let Some(DeepCache { cache_interval, .. }) = self.deep_cache else { return true };
        let since = step.saturating_sub(self.begin_step);
        let turns = since > 0 && self.is_guided(step) != self.is_guided(step - 1);
        since.is_multiple_of(cache_interval.max(1)) || turns
    }

    /// What `step` costs in evaluations of the whole network, of which one from the cache costs the part `cached`.
    #[must_use]
    pub fn cost(&self, step: u32, cached: f32) -> f64 {
        let one = if self.is_whole(step) { 1.0 } else { f64::from(cached) };
        f64::from(self.evaluations(step)) * one
    }

    /// Whether a checkpoint is made before `step`, where one is wanted every `interval` steps (0 for none): at the first step from
    /// there on that is computed whole.
    #[must_use]
    pub fn is_checkpoint(&self, step: u32, interval: u32) -> bool {
        if interval == 0 || step <= self.begin_step || !self.is_whole(step) {
            return false;
        }
        let before = (self.begin_step..step).rev().find(|earlier| self.is_whole(*earlier));
        step / interval > before.unwrap_or(self.begin_step) / interval
    }
}

/// Whether some step is in both.
pub(crate) fn meet(a: &Range<u32>, b: &Range<u32>) -> bool {
    a.start.max(b.start) < a.end.min(b.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(guided: Range<u32>, cache_interval: u32) -> StepKinds {
        let deep_cache = (cache_interval > 0).then_some(DeepCache { cache_interval, cache_branch_id: 0 });
        StepKinds { begin_step: 2, guided, deep_cache }
    }

    fn steps(what: impl Fn(u32) -> bool) -> Vec<u32> {
        (2..14).filter(|step| what(*step)).collect()
    }

    #[test]
    fn without_a_cache_every_step_is_whole_and_may_be_begun_from() {
        let plain = kinds(0..50, 0);
        assert_eq!(steps(|step| plain.is_whole(step)).len(), 12);
        assert_eq!(steps(|step| plain.is_checkpoint(step, 5)), [5, 10]);
        assert_eq!(steps(|step| plain.is_checkpoint(step, 1)), (3..14).collect::<Vec<_>>());
        assert!(steps(|step| plain.is_checkpoint(step, 0)).is_empty());
    }

    #[test]
    fn of_so_many_steps_from_the_slices_first_one_is_whole() {
        let cached = kinds(0..50, 3);
        assert_eq!(steps(|step| cached.is_whole(step)), [2, 5, 8, 11]);
        // Wanted at 4, 8 and 12; after 11 the next whole step is 14.
        assert_eq!(steps(|step| cached.is_checkpoint(step, 4)), [5, 8]);
        assert!(cached.is_checkpoint(14, 4));
        assert_eq!(steps(|step| cached.is_checkpoint(step, 1)), [5, 8, 11]);
    }

    #[test]
    fn where_guidance_begins_and_ends_a_step_is_whole() {
        let both = kinds(4..9, 3);
        assert_eq!(steps(|step| both.is_guided(step)), [4, 5, 6, 7, 8]);
        assert_eq!(steps(|step| both.is_whole(step)), [2, 4, 5, 8, 9, 11]);
    }

    #[test]
    fn a_step_costs_what_is_computed_in_it() {
        let both = kinds(4..9, 3);
        let costs: Vec<_> = (2..7).map(|step| both.cost(step, 0.25)).collect();
        assert_eq!(costs, [1.0, 0.25, 2.0, 2.0, 0.5]);
    }
}

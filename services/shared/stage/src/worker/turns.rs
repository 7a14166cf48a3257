//! Whose turn it is: which runs take the next step, together.
//!
//! Tenants have equal shares of the device's time, as long as they have work (start-time fair queueing: each has a
//! clock that runs while the device works for it, and the one whose clock is furthest behind leads). Among one tenant's
//! runs the one that is due first leads. A run is due at its deadline, or earlier, when a few times as long has passed
//! as it would take alone: so what hurries goes first, and without deadlines short and long runs are slowed down alike.
//! Whatever leads, other runs of its size join it, in the same order, for a batch costs less than its parts.

use sdxl_core::{Priority, Size, Tenant};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// A run without a deadline is due when so many times its own time has passed.
const INTERACTIVE_SLOWDOWN: u32 = 10;
const BATCH_SLOWDOWN: u32 = 100;

/// When a run is due that arrived at `arrival` and takes `alone` by itself.
pub(super) fn due(
    arrival: Instant,
    alone: Duration,
    priority: Priority,
    deadline: Option<Instant>,
) -> Instant {
    let times = match priority {
        Priority::Interactive => INTERACTIVE_SLOWDOWN,
        Priority::Batch => BATCH_SLOWDOWN,
    };
    let patience = alone.checked_mul(times).and_then(|patience| arrival.checked_add(patience));
    match (patience, deadline) {
        (Some(patience), Some(deadline)) => patience.min(deadline),
        (Some(only), None) | (None, Some(only)) => only,
        // Beyond the clock, so after everything else.
        (None, None) => arrival + Duration::from_secs(1 << 30),
    }
}

/// A run that could take a step.
#[derive(Clone, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) size: Size,
    pub(super) due: Instant,
}

/// The tenants' clocks.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Seconds of the device's time, by tenant with work.
    clocks: HashMap<Tenant, f64>,
}

impl Turns {
    /// The runs to advance together next, as places in `candidates`; empty only if there are none. `max_batch` tells how
    /// many runs of a size can be.
    pub(super) fn next(
        &mut self,
        candidates: &[Candidate<'_>],
        max_batch: impl Fn(Size) -> usize,
    ) -> Vec<usize> {
        self.follow(candidates);
        let order = |i: &usize| {
            let candidate = &candidates[*i];
            (self.clock(candidate.tenant), candidate.due)
        };
        let before = |a: &usize, b: &usize| {
            let ((clock_a, due_a), (clock_b, due_b)) = (order(a), order(b));
            clock_a.total_cmp(&clock_b).then(due_a.cmp(&due_b)).then(a.cmp(b))
        };
        let Some(leader) = (0..candidates.len()).min_by(before) else { return Vec::new() };
        let size = candidates[leader].size;
        let mut chosen: Vec<usize> = (0..candidates.len()).filter(|i| candidates[*i].size == size).collect();
        chosen.sort_by(before);
        chosen.truncate(max_batch(size).max(1));
        chosen
    }

    /// The device has worked `time` on runs of these tenants, each of so many parts of the work.
    pub(super) fn spent<'a>(
        &mut self,
        time: Duration,
        shares: impl Iterator<Item = (&'a Tenant, u32)> + Clone,
    ) {
        let total: u32 = shares.clone().map(|(_, parts)| parts.max(1)).sum();
        let part = time.as_secs_f64() / f64::from(total.max(1));
        for (tenant, parts) in shares {
            if let Some(clock) = self.clocks.get_mut(tenant) {
                *clock += part * f64::from(parts.max(1));
            }
        }
    }

    /// Forgets tenants without work. One that comes anew begins where the furthest behind is: idling saves no time up.
    fn follow(&mut self, candidates: &[Candidate<'_>]) {
        if self.clocks.keys().any(|tenant| candidates.iter().all(|c| c.tenant != tenant)) {
            self.clocks.retain(|tenant, _| candidates.iter().any(|c| c.tenant == tenant));
        }
        let least = self.clocks.values().copied().min_by(f64::total_cmp).unwrap_or(0.0);
        for candidate in candidates {
            if !self.clocks.contains_key(candidate.tenant) {
                self.clocks.insert(candidate.tenant.clone(), least);
            }
        }
    }

    fn clock(&self, tenant: &Tenant) -> f64 {
        self.clocks.get(tenant).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod load;

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Size = Size::new(64, 64);
    const LARGE: Size = Size::new(128, 128);

    fn tenant(name: &str) -> Tenant {
        name.parse().unwrap()
    }

    fn after(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn what_is_due_first_leads_and_its_size_joins() {
        let (one, start) = (tenant("one"), Instant::now());
        let candidate = |size, due| Candidate { tenant: &one, size, due: after(start, due) };
        let candidates =
            [candidate(SMALL, 40), candidate(LARGE, 10), candidate(SMALL, 20), candidate(LARGE, 30)];
        let mut turns = Turns::default();
        assert_eq!(turns.next(&candidates, |_| 8), [1, 3]);
        assert_eq!(turns.next(&candidates, |_| 1), [1]);
        assert_eq!(turns.next(&candidates[2..3], |_| 8), [0]);
        assert_eq!(turns.next(&[candidates[0].clone(), candidates[2].clone()], |_| 8), [1, 0]);
        assert!(turns.next(&[], |_| 8).is_empty());
    }

    #[test]
    fn tenants_share_the_device_whatever_each_asks_for() {
        let (flood, modest, start) = (tenant("flood"), tenant("modest"), Instant::now());
        let mut candidates: Vec<_> =
            (0..50).map(|i| Candidate { tenant: &flood, size: SMALL, due: after(start, i) }).collect();
        candidates.push(Candidate { tenant: &modest, size: LARGE, due: after(start, 1000) });
        let mut turns = Turns::default();
        let mut spent = [0, 0];
        for _ in 0..100 {
            let chosen = turns.next(&candidates, |_| 4);
            let is_modest = chosen == [50];
            spent[usize::from(is_modest)] += 1;
            let shares = chosen.iter().map(|i| (candidates[*i].tenant, 2));
            turns.spent(Duration::from_millis(10), shares);
        }
        assert_eq!(spent, [50, 50]);
    }

    #[test]
    fn who_was_idle_gets_no_more_than_a_share() {
        let (one, late, start) = (tenant("one"), tenant("late"), Instant::now());
        let of = |tenant| Candidate { tenant, size: SMALL, due: start };
        let mut turns = Turns::default();
        for _ in 0..100 {
            assert_eq!(turns.next(&[of(&one)], |_| 1), [0]);
            turns.spent(Duration::from_secs(1), [(&one, 1)].into_iter());
        }
        let mut led = 0;
        for _ in 0..10 {
            let both = [of(&one), of(&late)];
            let chosen = turns.next(&both, |_| 1)[0];
            led += chosen;
            turns.spent(Duration::from_secs(1), [(both[chosen].tenant, 1)].into_iter());
        }
        assert_eq!(led, 5);
    }

    #[test]
    fn a_run_is_due_at_its_deadline_or_when_it_has_been_patient() {
        let (start, alone) = (Instant::now(), Duration::from_millis(100));
        let in_ms = |milliseconds| Some(after(start, milliseconds));
        let due = |priority, deadline| due(start, alone, priority, deadline);
        assert_eq!(Some(due(Priority::Interactive, None)), in_ms(1000));
        assert_eq!(Some(due(Priority::Interactive, in_ms(200))), in_ms(200));
        assert_eq!(Some(due(Priority::Interactive, in_ms(9000))), in_ms(1000));
        assert_eq!(Some(due(Priority::Batch, in_ms(90_000))), in_ms(10_000));
    }
}

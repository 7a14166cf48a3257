//! Whose turn it is: which runs take the next step, together.
//!
//! Tenants have equal shares of the device's time, as long as they have work (start-time fair queueing: each has a
//! clock that runs while the device works for it, and the one whose clock is furthest behind leads). Among one tenant's
//! runs the one that is due first leads. A tenant that has asked for little of late goes before all others and shares its
//! steps with none of them, for a full batch takes three times as long as a run alone: so another's flood is not felt by
//! it. That is bounded, by its own use and for all together, so it costs the others an eighth of the time at most. A run is due at its deadline, or earlier, when a few times as long has passed
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

/// What was used is forgotten within so much of the device's time.
const MEMORY: Duration = Duration::from_secs(120);
/// Who has used less than this part of an equal share has asked for little; and for this part of the device's time such
/// tenants go first.
const LITTLE: f64 = 1.0 / 8.0;
/// Seconds of use that count for nothing.
const FORGOTTEN: f64 = 1e-3;

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
    /// Seconds of it within [`MEMORY`], by tenant.
    used: HashMap<Tenant, f64>,
    /// The same in which some went before others because they have used little.
    went_first: f64,
    /// Whether that is so of the turn that was chosen last.
    goes_first: bool,
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
        let of_little: Vec<bool> = candidates.iter().map(|c| self.has_used_little(c.tenant)).collect();
        let are_some = of_little.contains(&true) && of_little.contains(&false);
        self.goes_first = are_some && self.went_first < LITTLE * MEMORY.as_secs_f64();
        let may_go = |i: &usize| !self.goes_first || of_little[*i];
        let order = |i: &usize| {
            let candidate = &candidates[*i];
            (self.clock(candidate.tenant), candidate.due)
        };
        let before = |a: &usize, b: &usize| {
            let ((clock_a, due_a), (clock_b, due_b)) = (order(a), order(b));
            clock_a.total_cmp(&clock_b).then(due_a.cmp(&due_b)).then(a.cmp(b))
        };
        let Some(leader) = (0..candidates.len()).filter(may_go).min_by(before) else { return Vec::new() };
        let size = candidates[leader].size;
        let joins = |i: &usize| candidates[*i].size == size && may_go(i);
        let mut chosen: Vec<usize> = (0..candidates.len()).filter(joins).collect();
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
        let time = time.as_secs_f64();
        let part = time / f64::from(total.max(1));
        let kept = (-time / MEMORY.as_secs_f64()).exp();
        self.went_first = self.went_first * kept + if self.goes_first { time } else { 0.0 };
        self.used.retain(|_, used| {
            *used *= kept;
            *used > FORGOTTEN
        });
        for (tenant, parts) in shares {
            let time = part * f64::from(parts.max(1));
            if let Some(clock) = self.clocks.get_mut(tenant) {
                *clock += time;
            }
            match self.used.get_mut(tenant) {
                Some(used) => *used += time,
                None => drop(self.used.insert(tenant.clone(), time)),
            }
        }
    }

    /// Of late, of those that have used the device at all.
    fn has_used_little(&self, tenant: &Tenant) -> bool {
        let Some(used) = self.used.get(tenant) else { return true };
        let share = self.used.values().sum::<f64>() / self.used.len() as f64;
        *used < LITTLE * share
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
        turns.spent(Duration::from_secs(100), [(&flood, 1), (&modest, 1)].into_iter());
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
    fn who_has_used_little_goes_first_and_alone_until_it_is_little_no_more() {
        let (flood, modest, start) = (tenant("flood"), tenant("modest"), Instant::now());
        let mut candidates = vec![Candidate { tenant: &flood, size: SMALL, due: start }; 4];
        candidates.push(Candidate { tenant: &modest, size: SMALL, due: after(start, 1000) });
        candidates.push(Candidate { tenant: &modest, size: SMALL, due: after(start, 2000) });
        let mut turns = Turns::default();
        for _ in 0..1000 {
            turns.next(&candidates[..4], |_| 4);
            turns.spent(Duration::from_secs(1), [(&flood, 1)].into_iter());
        }
        let mut alone = 0;
        while turns.next(&candidates, |_| 4) == [4, 5] {
            turns.spent(Duration::from_secs(1), [(&modest, 2)].into_iter());
            alone += 1;
        }
        // An eighth of the half of two minutes.
        assert!((6..=8).contains(&alone), "{alone}");
        // Two minutes and more later it is little again.
        for _ in 0..500 {
            turns.next(&candidates[..4], |_| 4);
            turns.spent(Duration::from_secs(1), [(&flood, 1)].into_iter());
        }
        assert_eq!(turns.next(&candidates, |_| 4), [4, 5]);
    }

    #[test]
    fn ever_new_tenants_do_not_keep_one_out_that_was_there_before() {
        let (old, start) = (tenant("old"), Instant::now());
        let mut turns = Turns::default();
        let mut led = 0;
        for i in 0..2000 {
            let new = tenant(&format!("new-{i}"));
            let of = |tenant| Candidate { tenant, size: SMALL, due: start };
            let both = [of(&old), of(&new)];
            // As many as fit would go together; here each is a turn of its own.
            let chosen = turns.next(&both, |_| 1)[0];
            if i >= 1000 {
                led += chosen;
            }
            turns.spent(Duration::from_secs(1), [(both[chosen].tenant, 1)].into_iter());
        }
        assert!((100..=150).contains(&led), "{led} of 1000");
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

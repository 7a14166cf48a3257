//! Whose turn it is: which runs take the next step, together.
//!
//! Tenants have equal shares of the device's time, as long as they have work (start-time fair queueing: each has a
//! clock that runs while the device works for it, and the one whose clock is furthest behind leads). Among one tenant's
//! runs the one that is due first leads. A run is due at its deadline, or earlier, when a few times as long has passed as it
//! would take alone: so what hurries goes first, and without deadlines short and long runs are slowed down alike. Whatever
//! leads, other runs of its size join it, in the same order, for a batch costs less than its parts.
//!
//! A tenant that has asked for little of late goes before all others and shares its steps with none of them, for a full
//! batch takes three times as long as a run alone: so another's flood is not felt by it. That is bounded, by what it asks
//! for and for all such tenants together, so it costs the others [`FIRST_SHARE`] of the time at most, and little at one go.

use sdxl_core::{FIRST_SHARE, Priority, Size, Tenant};
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

/// What was asked for is forgotten within so many turns: of a denoiser some fifty pictures, one at a time, on whatever
/// device.
const MEMORY: f64 = 2000.0;
/// Who has asked for less than this part of an equal share has asked for little: so much less that a few pictures by
/// chance make no difference.
const LITTLE: f64 = 1.0 / 4.0;
/// Those who have do not go first for longer than so many turns take, at one go: a few pictures.
const BURST: f64 = 48.0;
/// The part of all that counts for nothing.
const FORGOTTEN: f64 = 1e-4;

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
    /// Work that was done within [`MEMORY`], by tenant.
    asked: HashMap<Tenant, f64>,
    /// Seconds of the device's time in it, and turns.
    worked: [f64; 2],
    /// Seconds for which those who have asked for little may go before others now (a token bucket).
    credit: f64,
    /// Whether one does in the turn that was chosen last.
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
        let little = LITTLE * self.equal_share();
        let is_little = |tenant: &Tenant| self.asked.get(tenant).is_none_or(|asked| *asked < little);
        let of_little: Vec<bool> = candidates.iter().map(|candidate| is_little(candidate.tenant)).collect();
        let are_some = of_little.contains(&true) && of_little.contains(&false);
        self.goes_first = are_some && self.credit > 0.0;
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

    /// The device has worked for these tenants in one turn: so many units of work of each, which took so long.
    pub(super) fn spent<'a>(&mut self, shares: impl Iterator<Item = (&'a Tenant, u64, Duration)> + Clone) {
        let time: f64 = shares.clone().map(|(_, _, time)| time.as_secs_f64()).sum();
        let kept = (-1.0 / MEMORY).exp();
        let [worked, turns] = self.worked;
        self.worked = [worked * kept + time, turns * kept + 1.0];
        let most = BURST * self.worked[0] / self.worked[1];
        let taken = if self.goes_first { time } else { 0.0 };
        self.credit = (self.credit + FIRST_SHARE * time - taken).min(most);
        self.asked.values_mut().for_each(|asked| *asked *= kept);
        for (tenant, units, time) in shares {
            self.pay(tenant, units, time);
        }
        let all: f64 = self.asked.values().sum();
        let has_work = |tenant: &Tenant| self.clocks.contains_key(tenant);
        self.asked.retain(|tenant, asked| has_work(tenant) || *asked > FORGOTTEN * all);
    }

    /// So much was done for this tenant.
    pub(super) fn pay(&mut self, tenant: &Tenant, units: u64, time: Duration) {
        if let Some(clock) = self.clocks.get_mut(tenant) {
            *clock += time.as_secs_f64();
        }
        #[expect(clippy::cast_precision_loss, reason = "what is beyond 52 bits does not matter")]
        let units = units.max(1) as f64;
        match self.asked.get_mut(tenant) {
            Some(asked) => *asked += units,
            None => drop(self.asked.insert(tenant.clone(), units)),
        }
    }

    /// Of what was asked for, of those that have asked for anything at all.
    fn equal_share(&self) -> f64 {
        self.asked.values().sum::<f64>() / self.asked.len().max(1) as f64
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

    /// Seconds of the device's time, from when it last came.
    pub(super) fn clock(&self, tenant: &Tenant) -> f64 {
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

    impl Turns {
        /// One turn's time, shared by units of work.
        pub(super) fn worked<'a>(
            &mut self,
            time: Duration,
            shares: impl Iterator<Item = (&'a Tenant, u64)> + Clone,
        ) {
            let total: u64 = shares.clone().map(|(_, units)| units).sum();
            self.spent(
                shares.map(|(tenant, units)| (tenant, units, time.mul_f64(units as f64 / total as f64))),
            );
        }
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
        turns.worked(Duration::from_secs(100), [(&flood, 1), (&modest, 1)].into_iter());
        let mut spent = [0, 0];
        for _ in 0..100 {
            let chosen = turns.next(&candidates, |_| 4);
            let is_modest = chosen == [50];
            spent[usize::from(is_modest)] += 1;
            let shares = chosen.iter().map(|i| (candidates[*i].tenant, 2));
            turns.worked(Duration::from_millis(10), shares);
        }
        assert_eq!(spent, [50, 50]);
    }

    #[test]
    fn who_was_idle_gets_no_more_than_a_share() {
        let (one, late, start) = (tenant("one"), tenant("late"), Instant::now());
        let of = |tenant| Candidate { tenant, size: SMALL, due: start };
        let mut turns = Turns::default();
        for only in [&late, &one] {
            for _ in 0..100 {
                assert_eq!(turns.next(&[of(only)], |_| 1), [0]);
                turns.worked(Duration::from_secs(1), [(only, 1)].into_iter());
            }
        }
        let mut led = 0;
        for _ in 0..10 {
            let both = [of(&one), of(&late)];
            let chosen = turns.next(&both, |_| 1)[0];
            led += chosen;
            turns.worked(Duration::from_secs(1), [(both[chosen].tenant, 1)].into_iter());
        }
        assert_eq!(led, 5);
    }

    #[test]
    fn who_has_asked_for_little_goes_first_and_alone_until_it_is_little_no_more() {
        let (flood, modest, start) = (tenant("flood"), tenant("modest"), Instant::now());
        let mut candidates = vec![Candidate { tenant: &flood, size: SMALL, due: start }; 4];
        candidates.push(Candidate { tenant: &modest, size: SMALL, due: after(start, 1000) });
        candidates.push(Candidate { tenant: &modest, size: SMALL, due: after(start, 2000) });
        let mut turns = Turns::default();
        for _ in 0..1000 {
            turns.next(&candidates[..4], |_| 4);
            turns.worked(Duration::from_secs(1), [(&flood, 1)].into_iter());
        }
        let mut alone = 0;
        while turns.next(&candidates, |_| 4) == [4, 5] {
            turns.worked(Duration::from_millis(100), [(&modest, 2)].into_iter());
            alone += 1;
        }
        // Of the flood's thousand units 787 are remembered. Half of all is an equal share, and a quarter of that is an eighth of
        // all: two units a turn come to it after 57 turns.
        assert!((55..=58).contains(&alone), "{alone}");
        // Many turns later it is little again.
        for _ in 0..1000 {
            turns.next(&candidates[..4], |_| 4);
            turns.worked(Duration::from_secs(1), [(&flood, 1)].into_iter());
        }
        assert_eq!(turns.next(&candidates, |_| 4), [4, 5]);
    }

    #[test]
    fn work_that_is_small_beside_the_floods_adds_up_all_the_same() {
        let (flood, modest, start) = (tenant("flood"), tenant("modest"), Instant::now());
        let of = |tenant| Candidate { tenant, size: SMALL, due: start };
        let candidates = [of(&flood), of(&modest)];
        let mut turns = Turns::default();
        for _ in 0..4000 {
            turns.next(&candidates[..1], |_| 1);
            turns.worked(Duration::from_secs(1), [(&flood, 100_000)].into_iter());
        }
        // A step of it is less than what counts for nothing.
        let before = turns.asked[&flood];
        turns.next(&candidates, |_| 1);
        turns.worked(Duration::from_millis(1), [(&modest, 1)].into_iter());
        assert!(1.0 < FORGOTTEN * before && turns.asked[&modest] > 0.0);
        for _ in 0..1000 {
            turns.next(&candidates, |_| 1);
            turns.worked(Duration::from_millis(1), [(&modest, 1)].into_iter());
        }
        assert!(turns.asked[&modest] > 500.0, "{}", turns.asked[&modest]);
    }

    #[test]
    fn those_who_ask_for_little_do_not_hold_up_the_rest_for_long_at_one_go() {
        let (flood, start) = (tenant("flood"), Instant::now());
        let mut turns = Turns::default();
        let of = |tenant| Candidate { tenant, size: SMALL, due: start };
        for _ in 0..1000 {
            turns.next(&[of(&flood)], |_| 4);
            turns.worked(Duration::from_secs(3), [(&flood, 4)].into_iter());
        }
        // A hundred of them at once, each with a picture of 20 steps.
        let new: Vec<_> = (0..100).map(|i| tenant(&format!("new-{i}"))).collect();
        let mut candidates = vec![of(&flood)];
        candidates.extend(new.iter().map(of));
        let mut waited = 0;
        while turns.next(&candidates, |_| 1) != [0] {
            let chosen = turns.next(&candidates, |_| 1)[0];
            turns.worked(Duration::from_secs(1), [(candidates[chosen].tenant, 1)].into_iter());
            waited += 1;
        }
        // As long as 48 of the flood's turns, and an eighth more for what they earn meanwhile.
        assert!((144..=166).contains(&waited), "{waited} s");
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
            turns.worked(Duration::from_secs(1), [(both[chosen].tenant, 1)].into_iter());
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

//! Which requests are taken: only those that can be done in time, by what was promised already and by how fast the stages
//! are seen to be; and never so many of one tenant that another's find no room.
//!
//! Tenants share each stage in equal parts, so a request waits for others of its own tenant, and for as much of every
//! other tenant's work at most. Of `x` units of a tenant's work, its new ones among them, the last is begun after
//! `sum over tenants of min(their work, x)` units in all: that over the stage's speed is how long it waits there.
//!
//! The stages work side by side, so the waits do not add up: a picture goes on at a stage once it has left the one before
//! and that stage's own wait is over, whichever is later. How long it is at work there is learnt from pictures that are: a
//! step that four share takes longer than one of its own, though the four are done sooner.
//!
//! Where there is more than one tenant, a part of each stage's time is promised to nobody: those who ask for little go before
//! all others in it ([`FIRST_SHARE`]), and none can say when they will.

use crate::placement::Fleets;
use sdxl_core::{FIRST_SHARE, Plan, StageKind, Tenant};
use sdxl_runtime::Deadline;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// For so long it is remembered that there is more than one tenant.
const OF_LATE: Duration = Duration::from_secs(600);

/// The stages, in a request's order.
const STAGES: [StageKind; 4] =
    [StageKind::TextEncoder, StageKind::BaseUnet, StageKind::Refiner, StageKind::Vae];

fn place(stage: StageKind) -> usize {
    STAGES.iter().position(|known| *known == stage).unwrap_or(0)
}

/// Work of each stage in its own unit: texts; evaluations of a denoiser times latent pixels; latent pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Work {
    units: [u64; 4],
    /// Of one picture; the texts are everyone's.
    of_one: [u64; 4],
    /// How long a picture is at work at each stage, where that is known.
    at_work: [Duration; 4],
}

impl Work {
    /// All that a plan asks for.
    pub(crate) fn of(plan: &Plan, latent_pixels: u64, fleets: &Fleets) -> Self {
        let pictures = plan.seeds.len() as u64;
        let texts = plan.texts.len() as u64;
        let base = plan.base.whole_work(latent_pixels);
        let refiner = plan.refiner.as_ref().map_or(0, |plan| plan.whole_work(latent_pixels));
        let of_one = [texts, base, refiner, latent_pixels];
        let units = [texts, pictures * base, pictures * refiner, pictures * latent_pixels];
        let at_work = [
            fleets.text_encoder.at_work(texts),
            fleets.base_unet.at_work(base),
            fleets.refiner.as_ref().map(|fleet| fleet.at_work(refiner)).unwrap_or_default(),
            fleets.vae.at_work(latent_pixels),
        ];
        Self { units, of_one, at_work }
    }
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It would be done after its deadline.
    Late {
        /// After so long.
        done_in: Duration,
        /// When it may be tried again with some hope.
        retry_after: Duration,
    },
    /// Its tenant has as many at work as it may.
    Crowded {
        /// So many.
        at_work: usize,
    },
}

/// What was promised and is not yet done. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Requests at work at most.
    slots: usize,
    promised: Mutex<HashMap<Tenant, Promised>>,
    turns: Mutex<Turns>,
}

/// Whether tenants take turns.
#[derive(Debug, Default)]
struct Turns {
    last: Option<Tenant>,
    /// When another asked than before.
    changed: Option<Instant>,
}

impl Turns {
    /// `tenant` asks; whether more than one does, of late.
    fn are_taken(&mut self, tenant: &Tenant) -> bool {
        let is_other = self.last.as_ref() != Some(tenant);
        if is_other && self.last.replace(tenant.clone()).is_some() {
            self.changed = Some(Instant::now());
        }
        self.changed.is_some_and(|changed| changed.elapsed() < OF_LATE)
    }
}

/// To one tenant.
#[derive(Clone, Copy, Debug, Default)]
struct Promised {
    requests: usize,
    units: [u64; 4],
}

impl Admission {
    pub(crate) fn new(slots: usize) -> Self {
        Self(Arc::new(Shared { slots, promised: Mutex::default(), turns: Mutex::default() }))
    }

    /// Takes a request on, or says why not. `speeds` are each stage's units a second over all replicas, as far as known.
    ///
    /// # Errors
    /// [`Refusal`]
    pub(crate) fn take(
        &self,
        tenant: &Tenant,
        work: Work,
        deadline: Option<Deadline>,
        speeds: [Option<f64>; 4],
    ) -> Result<Promise, Refusal> {
        let reserve = if self.0.turns().are_taken(tenant) { FIRST_SHARE } else { 0.0 };
        let mut promised = self.0.lock();
        let own = promised.get(tenant).copied().unwrap_or_default();
        let at_work: usize = promised.values().map(|promised| promised.requests).sum();
        // Of the free places one tenant gets half at most, and so leaves room for others however many there are
        // (dynamic thresholds, Choudhury and Hahne 1998).
        if own.requests >= self.0.slots.saturating_sub(at_work) {
            return Err(Refusal::Crowded { at_work: own.requests });
        }
        if let Some(deadline) = deadline {
            let done_in = done_in(&promised, tenant, work, speeds).as_secs_f64() / (1.0 - reserve);
            let done_in = Duration::try_from_secs_f64(done_in).unwrap_or(Duration::MAX);
            let left = deadline.remaining();
            if done_in > left {
                return Err(Refusal::Late { done_in, retry_after: done_in - left });
            }
        }
        let entry = promised.entry(tenant.clone()).or_default();
        entry.requests += 1;
        for (sum, units) in entry.units.iter_mut().zip(work.units) {
            *sum += units;
        }
        let left = work.units.map(AtomicU64::new);
        Ok(Promise { shared: Arc::clone(&self.0), tenant: tenant.clone(), left })
    }

    /// Units of a stage's work that are promised and not done.
    pub(crate) fn outstanding(&self, stage: StageKind) -> u64 {
        self.0.lock().values().map(|promised| promised.units[place(stage)]).sum()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<Tenant, Promised>> {
        // Nothing that holds it can leave it half changed.
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When `work` would be done, were it taken on now.
fn done_in(
    promised: &HashMap<Tenant, Promised>,
    tenant: &Tenant,
    work: Work,
    speeds: [Option<f64>; 4],
) -> Duration {
    let mut done = Duration::ZERO;
    for (stage, speed) in speeds.into_iter().enumerate() {
        let own = work.units[stage];
        if own == 0 {
            continue;
        }
        if let Some(speed) = speed.filter(|speed| *speed > 0.0) {
            let before = promised.get(tenant).map_or(0, |promised| promised.units[stage]);
            let others = promised.iter().filter(|(other, _)| *other != tenant);
            let ahead: u64 = others.map(|(_, other)| other.units[stage].min(before + own)).sum();
            // Its last picture waits for its others too.
            let wait = before + ahead + own.saturating_sub(work.of_one[stage]);
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let wait = Duration::try_from_secs_f64(wait as f64 / speed).unwrap_or(Duration::MAX);
            done = done.max(wait);
        }
        done = done.saturating_add(work.at_work[stage]);
    }
    done
}

/// A request that was taken on; what is left of its work counts until it is done or this is dropped.
#[derive(Debug)]
pub(crate) struct Promise {
    shared: Arc<Shared>,
    tenant: Tenant,
    left: [AtomicU64; 4],
}

impl Promise {
    /// So much of a stage's work is done.
    pub(crate) fn done(&self, stage: StageKind, units: u64) {
        let stage = place(stage);
        let take = |left: u64| Some(left.saturating_sub(units));
        let before = self.left[stage].fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap_or(0);
        self.give_back(stage, before.min(units), &mut self.shared.lock());
    }

    fn give_back(&self, stage: usize, units: u64, promised: &mut HashMap<Tenant, Promised>) {
        if let Some(promised) = promised.get_mut(&self.tenant) {
            promised.units[stage] = promised.units[stage].saturating_sub(units);
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut promised = self.shared.lock();
        for stage in 0..STAGES.len() {
            self.give_back(stage, self.left[stage].load(Ordering::Relaxed), &mut promised);
        }
        if let Some(entry) = promised.get_mut(&self.tenant) {
            entry.requests -= 1;
            if entry.requests == 0 {
                promised.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Tenant {
        name.parse().unwrap()
    }

    /// Ten units a second on the base, nothing known of the others.
    const SPEEDS: [Option<f64>; 4] = [None, Some(10.0), None, None];

    fn base(units: u64) -> Work {
        let at_work = [0, 1, 0, 0].map(Duration::from_secs);
        let units = [1, units, 0, 3];
        Work { units, of_one: units, at_work }
    }

    fn within(seconds: u64) -> Option<Deadline> {
        Deadline::after(Duration::from_secs(seconds))
    }

    #[test]
    fn what_would_be_late_is_refused_and_what_is_done_makes_room() {
        let admission = Admission::new(100);
        let one = tenant("one");
        let first = admission.take(&one, base(100), within(5), SPEEDS).unwrap();
        // Ten seconds for what was promised, and one for itself.
        let refused = admission.take(&one, base(10), within(10), SPEEDS).unwrap_err();
        let Refusal::Late { done_in, retry_after } = refused else { panic!("{refused:?}") };
        assert_eq!(done_in, Duration::from_secs(11));
        assert!((Duration::from_millis(900)..Duration::from_millis(1100)).contains(&retry_after));
        assert!(admission.take(&one, base(10), None, SPEEDS).is_ok(), "without a deadline there is no late");
        first.done(StageKind::BaseUnet, 20);
        assert!(admission.take(&one, base(10), within(10), SPEEDS).is_ok());
        drop(first);
        assert_eq!(admission.outstanding(StageKind::BaseUnet), 0);
        assert!(admission.0.lock().is_empty());
    }

    #[test]
    fn a_tenant_waits_for_no_more_of_anothers_work_than_of_its_own() {
        let admission = Admission::new(10_000);
        let (flood, modest) = (tenant("flood"), tenant("modest"));
        let _flood: Vec<_> =
            (0..100).map(|_| admission.take(&flood, base(100), None, SPEEDS).unwrap()).collect();
        assert!(admission.take(&flood, base(100), within(60), SPEEDS).is_err());
        // A hundred of its own beside as many of the other's.
        let refused = admission.take(&modest, base(100), within(5), SPEEDS).unwrap_err();
        let Refusal::Late { done_in, .. } = refused else { panic!("{refused:?}") };
        // Eleven seconds of seven eighths of the time, as there are two of them.
        assert_eq!(done_in, Duration::from_secs(11).div_f64(1.0 - FIRST_SHARE));
        assert!(admission.take(&modest, base(100), within(12), SPEEDS).is_err());
        assert!(admission.take(&modest, base(100), within(13), SPEEDS).is_ok());
    }

    #[test]
    fn what_would_take_for_ever_is_refused() {
        let admission = Admission::new(100);
        let speeds = [None, Some(f64::MIN_POSITIVE), None, None];
        for tenant in [tenant("one"), tenant("other")] {
            let _held = admission.take(&tenant, base(10), None, speeds).unwrap();
            let refused = admission.take(&tenant, base(10), within(5), speeds).unwrap_err();
            assert!(matches!(refused, Refusal::Late { done_in: Duration::MAX, .. }), "{refused:?}");
        }
    }

    #[test]
    fn where_there_is_one_tenant_nothing_is_kept_back() {
        let mut turns = Turns::default();
        let (one, other) = (tenant("one"), tenant("other"));
        assert!(!turns.are_taken(&one) && !turns.are_taken(&one));
        assert!(turns.are_taken(&other) && turns.are_taken(&other));
        turns.changed = Instant::now().checked_sub(OF_LATE);
        assert!(!turns.are_taken(&other));
        assert!(turns.are_taken(&one));
    }

    #[test]
    fn waits_of_stages_that_work_side_by_side_do_not_add_up() {
        let admission = Admission::new(100);
        let one = tenant("one");
        let speeds = [None, Some(10.0), Some(10.0), Some(1.0)];
        let at_work = [0, 2, 3, 1].map(Duration::from_secs);
        let work = |pictures: u64| {
            let of_one = [1, 5, 8, 1];
            Work { units: [1, 5 * pictures, 8 * pictures, pictures], of_one, at_work }
        };
        // 50 and 80 units before it: 5 s until its base begins, 8 s until its refiner does, and then 10 s until its VAE.
        let _first = admission.take(&one, work(10), None, speeds).unwrap();
        let done_in = |work: Work| match admission.take(&one, work, within(0), speeds).unwrap_err() {
            Refusal::Late { done_in, .. } => done_in.as_millis(),
            refusal @ Refusal::Crowded { .. } => panic!("{refusal:?}"),
        };
        assert_eq!(done_in(work(1)), 12_000);
        // Its last picture waits for its other three: 10.4 s until its refiner begins.
        assert_eq!(done_in(work(4)), 14_400);
    }

    #[test]
    fn one_tenant_leaves_room_for_others() {
        let admission = Admission::new(100);
        let take = |name: &str| admission.take(&tenant(name), base(1), None, SPEEDS);
        let mut held = Vec::new();
        while let Ok(promise) = take("flood") {
            held.push(promise);
        }
        assert_eq!(held.len(), 50);
        assert_eq!(take("flood").unwrap_err(), Refusal::Crowded { at_work: 50 });
        let mut others = 0;
        while let Ok(promise) = take("other") {
            held.push(promise);
            others += 1;
        }
        assert_eq!(others, 25);
        assert!(take("third").is_ok());
    }

    #[test]
    fn more_cannot_be_done_than_was_promised() {
        let admission = Admission::new(100);
        let (one, other) = (tenant("one"), tenant("other"));
        let first = admission.take(&one, base(10), None, SPEEDS).unwrap();
        let _second = admission.take(&other, base(7), None, SPEEDS).unwrap();
        first.done(StageKind::BaseUnet, 1000);
        first.done(StageKind::BaseUnet, 1000);
        assert_eq!(admission.outstanding(StageKind::BaseUnet), 7);
        assert_eq!(admission.outstanding(StageKind::Vae), 6);
    }
}

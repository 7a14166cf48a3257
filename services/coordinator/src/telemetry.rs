//! What is read of the coordinator whenever somebody asks for its metrics.

use crate::{
    admission::Admission,
    cache::EmbeddingCache,
    placement::{Census, Fleet, Fleets},
    store::Store,
};
use sdxl_core::StageKind;
use sdxl_runtime::metrics::catalogue;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Seconds that one replica of `fleet` would have to work for all that is promised of its stage; `None` before any was seen
/// at work.
pub(crate) fn outstanding_seconds(
    admission: &Admission,
    fleet: Option<&Fleet>,
    stage: StageKind,
) -> Option<f64> {
    let outstanding = admission.outstanding(stage);
    if outstanding == 0 {
        return Some(0.0);
    }
    let speed = fleet.and_then(Fleet::usual_speed).filter(|speed| *speed > 0.0)?;
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    Some(outstanding as f64 / speed)
}

/// Has all of it read. What is said of fleets ends with them.
pub(crate) fn observe(
    fleets: &Arc<Fleets>,
    admission: &Admission,
    cache: &EmbeddingCache,
    store: Option<&Store>,
) {
    let (followed, admission) = (Arc::downgrade(fleets), admission.clone());
    catalogue::OUTSTANDING.observe(move |emit| {
        let Some(fleets) = followed.upgrade() else { return };
        for fleet in fleets.iter() {
            if let Some(seconds) = outstanding_seconds(&admission, Some(fleet), fleet.stage()) {
                emit.value(seconds, [fleet.stage().name().into()]);
            }
        }
    });
    let followed = Arc::downgrade(fleets);
    catalogue::REPLICAS.observe(move |emit| {
        let Some(fleets) = followed.upgrade() else { return };
        for fleet in fleets.iter() {
            let Census { ready, other, down } = fleet.census();
            for (state, count) in [("ready", ready), ("other", other), ("down", down)] {
                emit.value(number(count), [fleet.stage().name().into(), state.into()]);
            }
        }
    });
    let cache = cache.clone();
    catalogue::CACHE_LOOKUPS.observe(move |emit| {
        let figures = cache.figures();
        let all = [("hit", &figures.hits), ("shared_hit", &figures.shared_hits), ("miss", &figures.misses)];
        for (result, count) in all {
            emit.value(counted(count), [result.into()]);
        }
    });
    if let Some(up) = store.map(Store::up) {
        catalogue::REDIS_UP.observe(move |emit| emit.value(f64::from(u8::from(up.borrow().is_up)), []));
    }
    begin(fleets);
}

/// What has not happened yet is there as 0, so that its first time is seen as a change.
fn begin(fleets: &Fleets) {
    for kind in ["call", "job"] {
        for outcome in ["ok", "invalid", "refused", "deadline", "cancelled", "failed"] {
            catalogue::REQUESTS.add(0, [kind.into(), outcome.into()]);
        }
    }
    catalogue::PICTURES.add(0, []);
    for state in ["succeeded", "failed", "cancelled"] {
        catalogue::JOBS.add(0, [state.into()]);
    }
    for stage in fleets.iter().map(|fleet| fleet.stage().name()) {
        catalogue::RESUMES.add(0, [stage.into()]);
        catalogue::EJECTIONS.add(0, [stage.into()]);
        catalogue::STEPS_REPEATED.add(0, [stage.into()]);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a float holds whole numbers up to 2^53")]
fn number(count: usize) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "a float holds whole numbers up to 2^53")]
fn counted(count: &AtomicU64) -> f64 {
    count.load(Ordering::Relaxed) as f64
}

//! Whether the cluster can serve: the model that its stages make together, and the health that follows from it.

use crate::{
    cluster::ModelState,
    placement::{FleetStatus, Fleets},
};
use futures::future::select_all;
use sdxl_core::StageKind;
use sdxl_runtime::{Health, Shutdown};
use tokio::{sync::watch, task::JoinSet};
use tracing::{error, info, warn};

/// What is known of the model, kept up to date until this is dropped.
#[derive(Debug)]
pub(crate) struct Readiness {
    model: watch::Receiver<ModelState>,
    _following: JoinSet<()>,
}

impl Readiness {
    /// Follows `fleets` and tells `health`, until `shutdown`. Must be called in a tokio runtime.
    #[must_use]
    pub(crate) fn start(fleets: &Fleets, health: Health, shutdown: Shutdown) -> Self {
        let fleets: Vec<_> = fleets.iter().map(|fleet| (fleet.stage(), fleet.status())).collect();
        let waiting = ModelState::Waiting(fleets.iter().map(|(stage, _)| *stage).collect());
        let (sender, model) = watch::channel(waiting);
        let mut following = JoinSet::new();
        following.spawn(async move {
            tokio::select! {
                () = follow(fleets, sender, &health) => {}
                () = shutdown.triggered() => {}
            }
            // A report that was under way must not outlive the shutdown's.
            health.set_not_serving().await;
            std::future::pending::<()>().await;
        });
        Self { model, _following: following }
    }

    /// The model, now and later.
    #[must_use]
    pub(crate) fn model(&self) -> watch::Receiver<ModelState> {
        self.model.clone()
    }
}

async fn follow(
    mut fleets: Vec<(StageKind, watch::Receiver<FleetStatus>)>,
    model: watch::Sender<ModelState>,
    health: &Health,
) {
    let mut said: Option<String> = None;
    loop {
        let statuses: Vec<_> =
            fleets.iter_mut().map(|(stage, status)| (*stage, status.borrow_and_update().clone())).collect();
        let state = ModelState::new(&statuses);
        let obstacle = obstacle(&state, &statuses);
        if model.send_if_modified(|last| replace(last, &state)) {
            warn_of_a_useless_refiner(&state);
        }
        // After the model is there: who sees SERVING may ask at once.
        let line = obstacle.clone().unwrap_or_else(|| "ready".to_owned());
        // Nothing is said twice in a row.
        if said.as_ref() != Some(&line) {
            match (&state, &obstacle) {
                (ModelState::Contradiction(_), _) => {
                    health.set_lasting_obstacle(line.clone()).await;
                    error!("not ready: {line}");
                }
                (_, Some(_)) => {
                    health.set_obstacle(line.clone()).await;
                    info!("not ready: {line}");
                }
                (_, None) => {
                    health.set_serving().await;
                    info!("ready");
                }
            }
            said = Some(line);
        }
        let changes = fleets.iter_mut().map(|(_, status)| Box::pin(status.changed()));
        if select_all(changes).await.0.is_err() {
            return; // the fleets are gone, and with them the coordinator
        }
    }
}

fn replace(last: &mut ModelState, state: &ModelState) -> bool {
    let changed = last != state;
    if changed {
        *last = state.clone();
    }
    changed
}

/// Why the cluster cannot serve, if it cannot.
fn obstacle(state: &ModelState, statuses: &[(StageKind, FleetStatus)]) -> Option<String> {
    if let ModelState::Contradiction(line) = state {
        return Some(line.clone());
    }
    let without: Vec<_> =
        statuses.iter().filter(|(_, status)| status.ready == 0).map(|(stage, _)| stage.name()).collect();
    (!without.is_empty()).then(|| format!("no replica of {} is ready", without.join(", ")))
}

fn warn_of_a_useless_refiner(state: &ModelState) {
    if let ModelState::Known(cluster) = state
        && cluster.info.refiner.is_none()
        && cluster.stages.iter().any(|info| info.stage == StageKind::Refiner)
    {
        warn!("the refiner is not used: the text-encoder serves no conditioner for it");
    }
}

//! All replicas of one stage.

use super::{
    info::StageInfo,
    probe,
    replica::{Lease, Replica},
    source::{Address, Endpoints, Source},
};
use kube::Client;
use sdxl_core::StageKind;
use sdxl_runtime::{metrics::catalogue, tls::ClientTls};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tracing::{info, warn};

/// A replica of another zone is taken where it is done this much sooner.
const ZONE_COST: f64 = 1.1;

/// Where the coordinator is, and how replicas are reached from there.
#[derive(Clone, Debug, Default)]
pub struct Near {
    /// As Kubernetes names zones.
    pub zone: Option<String>,
    /// How long connecting to a replica may take.
    pub connect_timeout: Duration,
    /// Where connections are over TLS.
    pub tls: Option<ClientTls>,
}

/// The replicas of a stage, followed in the background until this is dropped.
#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    _following: JoinSet<()>,
}

/// What a fleet can do at the moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FleetStatus {
    /// What its replicas say of themselves, those that work together; the last known where all are lost.
    pub info: Option<Arc<StageInfo>>,
    /// Replicas that take work.
    pub ready: usize,
}

/// How many replicas there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// They take work.
    pub ready: usize,
    /// They are healthy, but serve another revision or number format than the others of their stage.
    pub other: usize,
    /// They cannot be reached, or say that they do not serve.
    pub down: usize,
}

impl Fleet {
    /// Starts to follow the replicas that `source` gives. Must be called in a tokio runtime.
    #[must_use]
    pub fn start(stage: StageKind, source: Source, kubernetes: Option<Client>, near: Near) -> Self {
        let shared = Arc::new(Shared::new(stage, near.zone.clone()));
        let mut following = JoinSet::new();
        let found = source.start(stage, kubernetes);
        following.spawn(follow(Arc::clone(&shared), found, near));
        Self { shared, _following: following }
    }

    /// Its stage.
    #[must_use]
    pub fn stage(&self) -> StageKind {
        self.shared.stage
    }

    /// What it can do, now and later.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<FleetStatus> {
        self.shared.status.subscribe()
    }

    /// Gives `work` to the ready replica that will be done with it first, of those that are not in `avoided`; `None` where
    /// there is none. Among equals they take turns. All are compared, however many there are: that takes microseconds, and
    /// with the better of two random ones (Mitzenmacher 2001) some of a busy fleet wait while others fill their batches. One in
    /// the coordinator's own zone is preferred until it is busier.
    #[must_use]
    pub fn pick(&self, work: u64, avoided: &[Arc<Replica>]) -> Option<Lease> {
        self.shared.pick(work, avoided)
    }

    /// How many replicas are known, by whether they take work.
    #[must_use]
    pub fn census(&self) -> Census {
        let members = self.shared.lock();
        let count = |is: fn(&Member) -> bool| members.list.iter().filter(|member| is(member)).count();
        Census {
            ready: count(|member| member.serves),
            other: count(|member| member.up.is_some() && !member.serves),
            down: count(|member| member.up.is_none()),
        }
    }

    /// Gives `replica` no work until it has answered anew, because `reason`.
    pub fn eject(&self, replica: &Replica, reason: &str) {
        if self.shared.lost(replica, reason) {
            replica.eject();
        }
    }

    /// Units of work a second over all replicas that take work, once some were seen at it.
    #[must_use]
    pub fn speed(&self) -> Option<f64> {
        self.shared.speed()
    }

    /// Units of work a second of one replica, once some were seen at it.
    #[must_use]
    pub fn usual_speed(&self) -> Option<f64> {
        mean_speed(&self.shared.lock().list)
    }

    /// How long so many units of one request's work take once a replica is at them, together with others if that is usual
    /// at present; nothing where that is not known.
    #[must_use]
    pub fn at_work(&self, work: u64) -> Duration {
        let unit = mean(self.shared.lock().list.iter().filter_map(|m| m.replica.unit())).unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        Duration::try_from_secs_f64(work as f64 * unit).unwrap_or_default()
    }

    /// Waits for a replica that takes work, or for `limit`, whichever comes first.
    pub async fn wait(&self, limit: Duration) {
        let mut status = self.status();
        let _ = timeout(limit, status.wait_for(|status| status.ready > 0)).await;
    }
}

/// What the fleet and the tasks that follow its replicas share.
#[derive(Debug)]
pub(super) struct Shared {
    stage: StageKind,
    zone: Option<String>,
    members: Mutex<Members>,
    status: watch::Sender<FleetStatus>,
}

#[derive(Debug, Default)]
struct Members {
    list: Vec<Member>,
    /// What the replicas that take work have in common: the first that was ready sets it, and another may once none of
    /// that revision is left, as after an upgrade.
    adopted: Option<Arc<StageInfo>>,
    /// Where the search for the least loaded begins.
    turn: usize,
}

#[derive(Debug)]
struct Member {
    replica: Arc<Replica>,
    /// While it is healthy.
    up: Option<Arc<StageInfo>>,
    /// Whether it takes work: it is up, and computes as the others do.
    serves: bool,
    /// Why it takes no work although it is up: said once.
    complaint: Option<String>,
}

impl Member {
    fn complain(&mut self, stage: StageKind, complaint: String) {
        if self.complaint.as_ref() != Some(&complaint) {
            warn!(%stage, replica = %self.replica.address(), "replica is not used: {complaint}");
            self.complaint = Some(complaint);
        }
    }
}

impl Shared {
    fn new(stage: StageKind, zone: Option<String>) -> Self {
        Self { stage, zone, members: Mutex::default(), status: watch::Sender::default() }
    }

    pub(super) fn stage(&self) -> StageKind {
        self.stage
    }

    fn pick(&self, work: u64, avoided: &[Arc<Replica>]) -> Option<Lease> {
        let mut members = self.lock();
        let adopted = members.adopted.clone()?;
        let takes_work =
            |m: &Member| m.serves && !avoided.iter().any(|avoided| Arc::ptr_eq(avoided, &m.replica));
        let count = members.list.len();
        let usual = mean_speed(&members.list);
        let turn = members.turn;
        let order = |i: usize| {
            let replica = &members.list[i].replica;
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let seconds = (replica.outstanding() + work) as f64 / replica.speed().or(usual).unwrap_or(1.0);
            let seconds = if self.is_far(replica) { seconds * ZONE_COST } else { seconds };
            (seconds, (i + count - turn % count) % count)
        };
        let (index, _) = (0..count)
            .filter(|i| takes_work(&members.list[*i]))
            .map(|i| (i, order(i)))
            .min_by(|(_, a), (_, b)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))?;
        let replica = Arc::clone(&members.list[index].replica);
        members.turn = index + 1;
        // Counted before the lock is let go, so that two requests never both see the same one idle.
        Some(Lease::new(replica, adopted.revision.as_str().into(), work))
    }

    /// Whether the replica is known to be in another zone than the coordinator.
    fn is_far(&self, replica: &Replica) -> bool {
        self.zone.as_deref().zip(replica.zone()).is_some_and(|(own, its)| own != its)
    }

    fn speed(&self) -> Option<f64> {
        let members = self.lock();
        let usual = mean_speed(&members.list)?;
        members.adopted.as_ref()?;
        let up = members.list.iter().filter(|m| m.serves);
        Some(up.map(|m| m.replica.speed().unwrap_or(usual)).sum())
    }

    /// The replica is healthy and says this of itself.
    pub(super) fn up(&self, replica: &Replica, said: StageInfo) {
        self.change(replica, |member, stage| {
            if member.up.is_none() {
                info!(%stage, replica = %replica.address(), revision = said.revision, "replica is ready");
            }
            member.up = Some(Arc::new(said));
        });
    }

    /// The replica cannot be reached or takes no work; whether it did until now.
    pub(super) fn down(&self, replica: &Replica, reason: &str) -> bool {
        let mut was_up = false;
        self.change(replica, |member, stage| {
            was_up = member.up.take().is_some();
            if was_up {
                info!(%stage, replica = %replica.address(), "replica is gone: {reason}");
            }
        });
        was_up
    }

    /// The replica was lost, or hangs, as a call to it or whoever follows its health has noticed; whether nobody had before.
    pub(super) fn lost(&self, replica: &Replica, reason: &str) -> bool {
        let is_first = self.down(replica, reason);
        if is_first {
            catalogue::EJECTIONS.add(1, [self.stage.name().into()]);
        }
        is_first
    }

    /// The replica is healthy, but not one of this stage.
    pub(super) fn refuse(&self, replica: &Replica, complaint: String) {
        self.change(replica, |member, stage| {
            member.up = None;
            member.complain(stage, complaint);
        });
    }

    fn change(&self, replica: &Replica, change: impl FnOnce(&mut Member, StageKind)) {
        let mut members = self.lock();
        if let Some(member) = members.list.iter_mut().find(|m| std::ptr::eq(&*m.replica, replica)) {
            change(member, self.stage);
            self.settle(&mut members);
        }
    }

    /// Which revision is served, and by how many.
    fn settle(&self, members: &mut Members) {
        let serves = |m: &Member, a: &StageInfo| m.up.as_ref().is_some_and(|i| i.computes_as(a));
        let kept = members.adopted.as_ref().is_some_and(|a| members.list.iter().any(|m| serves(m, a)));
        if !kept && let Some(first) = members.list.iter().find_map(|m| m.up.clone()) {
            members.adopted = Some(first);
        }
        let mut ready = 0;
        for member in &mut members.list {
            member.serves = members.adopted.as_ref().is_some_and(|adopted| serves(member, adopted));
        }
        if let Some(adopted) = &members.adopted {
            for member in &mut members.list {
                let Some(info) = &member.up else { continue };
                if member.serves {
                    ready += 1;
                    member.complaint = None;
                } else {
                    let complaint = format!(
                        "it serves revision {} in {}, the others of its stage {} in {}",
                        info.revision,
                        info.dtype.as_str_name(),
                        adopted.revision,
                        adopted.dtype.as_str_name()
                    );
                    member.complain(self.stage, complaint);
                }
            }
        }
        let status = FleetStatus { info: members.adopted.clone(), ready };
        self.status.send_if_modified(|last| {
            let changed = *last != status;
            *last = status;
            changed
        });
    }

    fn join(&self, replica: Arc<Replica>) {
        self.lock().list.push(Member { replica, up: None, serves: false, complaint: None });
    }

    fn leave(&self, address: &Address) {
        let mut members = self.lock();
        members.list.retain(|m| m.replica.address() != address);
        self.settle(&mut members);
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        // Nothing that holds it can leave the members half changed.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a replica is thought to do that has not been seen at work.
fn mean_speed(members: &[Member]) -> Option<f64> {
    mean(members.iter().filter_map(|m| m.replica.speed()))
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0.0, 0.0), |(count, sum), value| (count + 1.0, sum + value));
    (count > 0.0).then(|| sum / count)
}

/// Keeps one probe running for each address of the source.
async fn follow(shared: Arc<Shared>, mut source: Endpoints, near: Near) {
    let mut probes = JoinSet::new();
    let mut running: HashMap<Address, AbortHandle> = HashMap::new();
    loop {
        let wanted = source.current();
        running.retain(|address, probe| {
            let stays = wanted.iter().any(|endpoint| endpoint.address == *address);
            if !stays {
                probe.abort();
                shared.leave(address);
                info!(stage = %shared.stage, replica = %address, "replica was removed");
            }
            stays
        });
        for endpoint in wanted {
            let address = endpoint.address.clone();
            if running.contains_key(&address) {
                continue;
            }
            match Replica::new(endpoint, near.connect_timeout, near.tls.as_ref()).map(Arc::new) {
                Ok(replica) => {
                    shared.join(Arc::clone(&replica));
                    running.insert(address, probes.spawn(probe::run(Arc::clone(&shared), replica)));
                }
                Err(error) => warn!(stage = %shared.stage, replica = %address, "not an address: {error}"),
            }
        }
        source.changed().await;
    }
}

#[cfg(test)]
mod tests;

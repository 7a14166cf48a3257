//! One replica, the work that was given to it, and how fast it does it.

use super::source::{Address, Endpoint as Found};
use sdxl_runtime::{body::PrefixFirstChannel, server::MAX_FRAME, tls::ClientTls};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use tonic::transport::{Channel, Endpoint};

/// Between two HTTP/2 pings, and for how long an answer is waited for, before a silent peer counts as dead. A process
/// that is killed closes its sockets and is noticed at once; this is for machines that vanish.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Embeddings and latents of one request fit into a stream's window, so that they need no second round trip.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Weight of a new time in the running means of those before it.
const NEWEST: f64 = 0.1;
/// A replica hangs that has not ended a step within so many times its usual step, or this, if that is more.
const HANGING_STEPS: f64 = 8.0;
const SHORTEST_HANG: Duration = Duration::from_secs(2);

/// A replica of a stage.
#[derive(Debug)]
pub struct Replica {
    address: Address,
    zone: Option<String>,
    channel: Channel,
    outstanding: AtomicU64,
    pace: Mutex<Pace>,
    ejected: Notify,
}

/// What was seen of a replica at work.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// When it last told of a step or an end.
    heard: Instant,
    /// Seconds of a step of its device, or of a whole job of a stage without steps.
    step: Option<f64>,
    /// Work a second, in the stage's own unit.
    speed: Option<f64>,
    /// Seconds that a unit of one request's work takes: where others share its steps, the more the slower.
    unit: Option<f64>,
}

impl Replica {
    /// The replica at an address, over TLS where that is given, which is connected to when it is first called, and again after a connection broke.
    ///
    /// # Errors
    /// Where the address makes no URI.
    pub fn new(
        found: Found,
        connect_timeout: Duration,
        tls: Option<&ClientTls>,
    ) -> Result<Self, tonic::transport::Error> {
        let Found { address, zone } = found;
        let endpoint = Endpoint::from_shared(address.url())?
            .connect_timeout(connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME);
        let channel = match tls {
            Some(tls) => tls.connect_lazy(&endpoint),
            None => endpoint.connect_lazy(),
        };
        let pace = Pace { heard: Instant::now(), step: None, speed: None, unit: None };
        Ok(Self {
            address,
            zone,
            channel,
            outstanding: AtomicU64::new(0),
            pace: Mutex::new(pace),
            ejected: Notify::new(),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Its zone, where that is known.
    #[must_use]
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// For a client of one of its services; cheap.
    #[must_use]
    pub fn channel(&self) -> PrefixFirstChannel<Channel> {
        PrefixFirstChannel::new(self.channel.clone())
    }

    /// Work that was given to it and is not done, in the stage's own unit.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// It has told of something just now.
    pub fn heard(&self) {
        self.pace().heard = Instant::now();
    }

    /// Its device has done `own` work of a request in a step of `time`, and so much `together` with that of others. The request's
    /// steps are `whole` work where nothing of them comes from a cache.
    pub fn stepped(&self, own: u64, together: u64, whole: u64, time: Duration) {
        let seconds = time.as_secs_f64();
        let mut pace = self.pace();
        pace.heard = Instant::now();
        if seconds > 0.0 {
            let mean = |old: Option<f64>, new: f64, weight: f64| {
                Some(old.map_or(new, |old| old + NEWEST * weight * (new - old)))
            };
            #[expect(clippy::cast_precision_loss, reason = "a mean of many")]
            let [own, together, whole] = [own.max(1), together.max(1), whole.max(1)].map(|work| work as f64);
            // A step that comes from a cache says as much less of a whole one as there is less of it.
            let part = (together / whole).min(1.0);
            pace.step = mean(pace.step, seconds / part, part);
            pace.speed = mean(pace.speed, together / seconds, part);
            pace.unit = mean(pace.unit, seconds / own, (own / whole).min(1.0));
        }
    }

    /// When it last told of anything.
    #[must_use]
    pub fn last_heard(&self) -> Instant {
        self.pace().heard
    }

    /// Work a second, once it was seen at work.
    #[must_use]
    pub fn speed(&self) -> Option<f64> {
        self.pace().speed
    }

    /// Seconds that a unit of one request's work takes, once it was seen at work.
    pub(super) fn unit(&self) -> Option<f64> {
        self.pace().unit
    }

    /// How long its device may go without ending a step before it counts as hanging; `None` before it was seen at work.
    #[must_use]
    pub fn longest_step(&self) -> Option<Duration> {
        let step = self.pace().step?;
        Some(Duration::try_from_secs_f64(HANGING_STEPS * step).ok()?.max(SHORTEST_HANG))
    }

    /// Asks whoever follows its health to begin anew: what it said last is no longer believed.
    pub(super) fn eject(&self) {
        self.ejected.notify_one();
    }

    /// Waits until it is ejected.
    pub(super) async fn ejected(&self) {
        self.ejected.notified().await;
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        // Nothing that holds it can leave it half changed.
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A unit of work on a replica, counted as outstanding until it is done or dropped.
#[derive(Debug)]
pub struct Lease {
    replica: Arc<Replica>,
    revision: Arc<str>,
    left: u64,
}

impl Lease {
    pub(super) fn new(replica: Arc<Replica>, revision: Arc<str>, work: u64) -> Self {
        replica.outstanding.fetch_add(work, Ordering::Relaxed);
        Self { replica, revision, left: work }
    }

    /// Of the model that the replica serves.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The replica.
    #[must_use]
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// Gives back a part of the work that is done.
    pub fn done(&mut self, work: u64) {
        let work = work.min(self.left);
        self.left -= work;
        self.replica.outstanding.fetch_sub(work, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.done(self.left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Found {
        "127.0.0.1:1".parse::<Address>().unwrap().into()
    }

    #[tokio::test]
    async fn a_replica_is_known_by_its_steps() {
        let replica = Replica::new(here(), Duration::from_secs(1), None).unwrap();
        assert_eq!((replica.speed(), replica.longest_step()), (None, None));
        replica.stepped(25, 100, 25, Duration::from_secs(1));
        assert_eq!((replica.speed(), replica.longest_step()), (Some(100.0), Some(Duration::from_secs(8))));
        // A step without a time says nothing.
        replica.stepped(25, 100, 25, Duration::ZERO);
        assert_eq!((replica.speed(), replica.unit()), (Some(100.0), Some(0.04)));
        for _ in 0..200 {
            replica.stepped(1, 1, 1, Duration::from_millis(10));
        }
        assert_eq!(replica.longest_step(), Some(SHORTEST_HANG));
    }

    #[tokio::test]
    async fn steps_from_a_cache_hardly_change_what_is_known_of_whole_ones() {
        let replica = Replica::new(here(), Duration::from_secs(1), None).unwrap();
        // 1.5 % of the work, in far more than that of the time.
        for _ in 0..20 {
            replica.stepped(1000, 1000, 1000, Duration::from_secs(10));
            for _ in 0..19 {
                replica.stepped(15, 15, 1000, Duration::from_secs(1));
            }
        }
        let (longest, before) = (replica.longest_step().unwrap().as_secs_f64(), replica.unit().unwrap());
        assert!((80.0..240.0).contains(&longest), "{longest} s for eight steps of 10");
        assert!((70.0..100.0).contains(&replica.speed().unwrap()), "{:?} of 100", replica.speed());
        assert!((0.01..0.03).contains(&before), "{before} for 0.01");
        // Beside another's whole step it takes that one's time.
        replica.stepped(15, 1015, 1000, Duration::from_secs(10));
        assert!(replica.unit().unwrap() < 1.2 * before, "{:?}", replica.unit());
    }

    #[tokio::test]
    async fn work_is_outstanding_until_it_is_done_or_dropped() {
        let replica = Arc::new(Replica::new(here(), Duration::from_secs(1), None).unwrap());
        let mut lease = Lease::new(Arc::clone(&replica), "r".into(), 10);
        let other = Lease::new(Arc::clone(&replica), "r".into(), 5);
        assert_eq!(replica.outstanding(), 15);
        lease.done(4);
        assert_eq!(replica.outstanding(), 11);
        lease.done(100);
        assert_eq!(replica.outstanding(), 5, "never more than was taken");
        drop((lease, other));
        assert_eq!(replica.outstanding(), 0);
    }
}

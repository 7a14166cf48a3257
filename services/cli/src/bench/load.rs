//! The loop that sends requests when they are due and takes their ends as they come. It waits for neither: in an open
//! loop an answer that is late delays no request.

use super::{
    baseline::Baseline,
    call::{Connections, Outcome, Planned, Sample},
    progress::Progress,
    work::{Arrivals, Mix},
};
use std::{
    future::Future,
    pin::pin,
    time::{Duration, Instant},
};
use tokio::{
    task::{JoinError, JoinSet},
    time::{self, MissedTickBehavior},
};

/// How often a person is told.
const REDRAW: Duration = Duration::from_millis(500);
/// How long a place of a closed loop stays empty after a failure: a cluster that refuses is not hammered.
const PAUSE: Duration = Duration::from_millis(100);

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// So many a second, of which at most so many are in flight.
    Open { rate: f64, max_in_flight: usize },
    /// So many at a time.
    Closed { concurrency: usize },
}

/// What is left out at the beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum WarmUp {
    /// What is sent within this time.
    Time(Duration),
    /// So many requests.
    Requests(u64),
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    pub(super) pace: Pace,
    pub(super) warm_up: WarmUp,
    /// After the warm-up.
    pub(super) duration: Option<Duration>,
    /// After the warm-up.
    pub(super) requests: Option<u64>,
}

/// What came of a load. Times are from its start.
#[derive(Debug)]
pub(super) struct Run {
    /// Every request that ended, those of the warm-up too.
    pub(super) samples: Vec<Sample>,
    /// When the measured time began.
    pub(super) from: Duration,
    /// When it ended.
    pub(super) to: Duration,
    /// When the last request had been sent, or could have been.
    pub(super) sent_until: Duration,
    /// Requests of the measured time that had not ended when a person ended it all.
    pub(super) unfinished: u64,
    /// Whether a person ended it.
    pub(super) interrupted: bool,
}

impl Run {
    /// The measured time in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.to.saturating_sub(self.from).as_secs_f64()
    }
}

/// When the next request is sent.
enum Next {
    At(Duration),
    /// When another has ended.
    WhenFree,
    Never,
}

/// A load at work.
pub(super) struct Driver<'a> {
    load: Load,
    mix: &'a Mix,
    baseline: &'a Baseline,
    connections: Connections,
    started: Instant,
    /// Of an open loop: the times to come, and the next of them.
    arrivals: Option<(Arrivals, Duration)>,
    /// Requests in flight and, as `None`, places of a closed loop that pause.
    running: JoinSet<Option<Sample>>,
    samples: Vec<Sample>,
    /// Requests that have come, and how many of them are measured.
    arrived: u64,
    measured: u64,
    /// When the measured time begins, as soon as that is known.
    from: Option<Duration>,
}

impl<'a> Driver<'a> {
    /// Starts the clock.
    pub(super) fn new(load: Load, mix: &'a Mix, baseline: &'a Baseline, connections: Connections) -> Self {
        let arrivals = match load.pace {
            Pace::Open { rate, .. } => {
                let mut arrivals = Arrivals::new(mix.seed, rate);
                let first = arrivals.next();
                Some((arrivals, first))
            }
            Pace::Closed { .. } => None,
        };
        let from = match load.warm_up {
            WarmUp::Time(time) => Some(time),
            WarmUp::Requests(0) => Some(Duration::ZERO),
            WarmUp::Requests(_) => None,
        };
        Self {
            load,
            mix,
            baseline,
            connections,
            started: Instant::now(),
            arrivals,
            running: JoinSet::new(),
            samples: Vec::new(),
            arrived: 0,
            measured: 0,
            from,
        }
    }

    /// Sends all requests and waits for their ends, or until `stop`.
    pub(super) async fn run(mut self, progress: &mut Progress, stop: impl Future<Output = ()>) -> Run {
        let mut stop = pin!(stop);
        let mut redraw = time::interval(REDRAW);
        redraw.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next = self.next();
            let due = match next {
                Next::At(at) => Some(at),
                Next::WhenFree => None,
                Next::Never if self.running.is_empty() => return self.end(false),
                Next::Never => None,
            };
            let at = time::Instant::from_std(self.started + due.unwrap_or_default());
            tokio::select! {
                () = &mut stop => return self.end(true),
                () = time::sleep_until(at), if due.is_some() => self.arrive(due.unwrap_or_default()),
                Some(ended) = self.running.join_next() => self.take(ended, progress),
                _ = redraw.tick() => progress.show(self.started.elapsed(), self.running.len()),
            }
        }
    }

    fn next(&self) -> Next {
        if self.load.requests.is_some_and(|requests| self.measured >= requests) {
            return Next::Never;
        }
        let now = self.started.elapsed();
        let at = match (self.load.pace, &self.arrivals) {
            (Pace::Open { .. }, Some((_, at))) => *at,
            _ => now,
        };
        if self.closes().is_some_and(|end| at >= end) {
            return Next::Never;
        }
        match self.load.pace {
            Pace::Closed { concurrency } if self.running.len() >= concurrency => Next::WhenFree,
            _ => Next::At(at),
        }
    }

    /// When `--duration` ends, if that is known.
    fn closes(&self) -> Option<Duration> {
        Some(self.from? + self.load.duration?)
    }

    /// A request is due that was planned for `at`.
    fn arrive(&mut self, at: Duration) {
        if let Some((arrivals, next)) = &mut self.arrivals {
            *next = arrivals.next();
        }
        let index = self.arrived;
        self.arrived += 1;
        let measured = match self.load.warm_up {
            WarmUp::Time(time) => at >= time,
            WarmUp::Requests(requests) => index >= requests,
        };
        if measured {
            self.measured += 1;
            self.from.get_or_insert(at);
        }
        let planned = Planned { work: self.mix.draw(index, self.baseline), measured, at };
        match self.load.pace {
            Pace::Open { max_in_flight, .. } if self.running.len() >= max_in_flight => {
                let (work, lag) = (planned.work, self.started.elapsed().saturating_sub(at));
                let (latency, outcome) = (lag, Outcome::Dropped);
                self.samples.push(Sample { work, measured, planned: at, lag, latency, outcome });
            }
            _ => {
                let ended = self.connections.send(planned, self.started);
                self.running.spawn(async { Some(ended.await) });
            }
        }
    }

    fn take(&mut self, ended: Result<Option<Sample>, JoinError>, progress: &mut Progress) {
        // A task fails only by a panic of ours, which has been printed; its request counts as unfinished.
        let Ok(Some(sample)) = ended else { return };
        let answered = matches!(sample.outcome, Outcome::Answered { .. });
        if !answered && matches!(self.load.pace, Pace::Closed { .. }) {
            self.running.spawn(async {
                time::sleep(PAUSE).await;
                None
            });
        }
        progress.count(&sample);
        self.samples.push(sample);
    }

    fn end(self, interrupted: bool) -> Run {
        let now = self.started.elapsed();
        let counted = self.samples.iter().filter(|sample| sample.measured).count() as u64;
        let last = |of: fn(&Sample) -> Duration| self.samples.iter().map(of).max().unwrap_or_default();
        let whole = self.load.requests.is_some_and(|requests| self.measured >= requests);
        let closes = self.closes().filter(|_| !whole);
        let last_sent = last(|sample| sample.planned + sample.lag);
        let (to, sent_until) = match closes {
            Some(end) if !interrupted || end <= now => (end, last_sent.max(end)),
            None if !interrupted => (last(Sample::ended), last_sent),
            _ => (now, now),
        };
        Run {
            from: self.from.unwrap_or(to).min(to),
            to,
            sent_until,
            unfinished: self.measured.saturating_sub(counted),
            interrupted,
            samples: self.samples,
        }
    }
}

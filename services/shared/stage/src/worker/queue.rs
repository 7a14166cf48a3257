//! The queue between callers and the device thread. Its depth counts only requests that someone still waits for.

use super::{EventOf, Load, Phase, told::RunSpan};
use crate::{engine::Engine, error::StageError};
use sdxl_core::{Priority, Tenant};
use sdxl_runtime::{Deadline, Terms};
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};

/// A request that waits.
pub(super) struct Job<E: Engine> {
    pub(super) request: E::Request,
    pub(super) events: mpsc::UnboundedSender<Result<EventOf<E>, StageError>>,
    pub(super) terms: Terms,
    pub(super) submitted: Instant,
    pub(super) span: RunSpan,
}

impl<E: Engine> Job<E> {
    /// The earliest deadline goes first, then what hurries, then what came first.
    fn order(&self) -> (bool, Option<Deadline>, Priority, Instant) {
        (self.terms.deadline.is_none(), self.terms.deadline, self.terms.priority, self.submitted)
    }
}

/// Requests that wait, and what the worker is about.
pub(super) struct Queue<E: Engine> {
    depth: usize,
    /// Changes of it are made under the lock of `waiting`.
    load: watch::Sender<Load>,
    waiting: Mutex<Waiting<E>>,
    changed: Condvar,
}

struct Waiting<E: Engine> {
    jobs: VecDeque<Job<E>>,
    /// When all work has to be done, once the queue is drained.
    end: Option<Instant>,
}

impl<E: Engine> fmt::Debug for Queue<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("depth", &self.depth).field("load", &*self.load.borrow()).finish()
    }
}

impl<E: Engine> Queue<E> {
    pub(super) fn new(depth: usize) -> Self {
        Self {
            depth,
            load: watch::Sender::new(Load {
                phase: Phase::Loading,
                queued: 0,
                active: 0,
                progress: Instant::now(),
                busy: Duration::ZERO,
            }),
            waiting: Mutex::new(Waiting { jobs: VecDeque::new(), end: None }),
            changed: Condvar::new(),
        }
    }

    pub(super) fn load(&self) -> watch::Receiver<Load> {
        self.load.subscribe()
    }

    pub(super) fn push(&self, job: Job<E>) -> Result<(), StageError> {
        let jobs = &mut self.lock().jobs;
        match self.phase() {
            Phase::Ready => {}
            Phase::Loading => return Err(StageError::Loading),
            Phase::Draining | Phase::Ended => return Err(StageError::Draining),
            Phase::Failed => return Err(StageError::Stopped),
        }
        if jobs.len() >= self.depth {
            jobs.retain(is_wanted);
        }
        if jobs.len() >= self.depth {
            let full = StageError::Enqueue { queued: jobs.len() };
            let Some(place) = crowded_out_by(jobs, &job.terms.tenant) else { return Err(full) };
            if let Some(job) = jobs.remove(place) {
                let _ = job.events.send(Err(full));
            }
        }
        jobs.push_back(job);
        self.counted(jobs);
        self.changed.notify_one();
        Ok(())
    }

    /// The next request to begin, if there is one: of the tenant with the least active, which `active` counts. Without
    /// `room` only tenants that have nothing active. It counts as active from now on.
    pub(super) fn pop(&self, active: impl Fn(&Tenant) -> usize, room: bool) -> Option<Job<E>> {
        let jobs = &mut self.lock().jobs;
        let busy = |job: &Job<E>| active(&job.terms.tenant);
        let (place, _) = jobs
            .iter()
            .enumerate()
            .filter(|(_, job)| room || busy(job) == 0)
            .min_by_key(|(_, job)| (busy(job), job.order()))?;
        let job = jobs.remove(place)?;
        self.load.send_modify(|load| {
            if load.active == 0 {
                load.progress = Instant::now();
            }
            (load.queued, load.active) = (jobs.len(), load.active + 1);
        });
        Some(job)
    }

    /// Drops what nobody waits for any more.
    pub(super) fn sweep(&self) {
        let jobs = &mut self.lock().jobs;
        jobs.retain(is_wanted);
        self.counted(jobs);
    }

    /// Turns away all that waits.
    pub(super) fn turn_away(&self) {
        let jobs = &mut self.lock().jobs;
        for job in jobs.drain(..) {
            let _ = job.events.send(Err(StageError::Draining));
        }
        self.counted(jobs);
    }

    /// Waits for a request; `false` where none will come.
    pub(super) fn wait(&self) -> bool {
        let mut waiting = self.lock();
        while waiting.jobs.is_empty() {
            if self.phase() == Phase::Draining {
                return false;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// When all work has to be done, if it is known.
    pub(super) fn end_of_draining(&self) -> Option<Instant> {
        self.lock().end
    }

    pub(super) fn set_active(&self, active: usize) {
        self.load.send_if_modified(|load| std::mem::replace(&mut load.active, active) != active);
    }

    /// The device has done a piece of work that took `time`. Nobody is woken for it.
    pub(super) fn progressed(&self, time: Duration) {
        self.load.send_if_modified(|load| {
            load.progress = Instant::now();
            load.busy += time;
            false
        });
    }

    pub(super) fn ready(&self) {
        let _waiting = self.lock();
        if self.phase() == Phase::Loading {
            self.load.send_modify(|load| load.phase = Phase::Ready);
        }
    }

    pub(super) fn drain(&self, end: Option<Instant>) {
        let mut waiting = self.lock();
        waiting.end = end;
        if matches!(self.phase(), Phase::Loading | Phase::Ready) {
            self.load.send_modify(|load| load.phase = Phase::Draining);
        }
        self.changed.notify_all();
    }

    pub(super) fn end(&self) {
        let _waiting = self.lock();
        self.load.send_modify(|load| load.phase = Phase::Ended);
    }

    /// Turns away everyone, from now on too.
    pub(super) fn fail(&self) {
        let jobs = &mut self.lock().jobs;
        for job in jobs.drain(..) {
            let _ = job.events.send(Err(StageError::Stopped));
        }
        self.load.send_modify(|load| *load = Load { phase: Phase::Failed, queued: 0, active: 0, ..*load });
    }

    fn phase(&self) -> Phase {
        self.load.borrow().phase
    }

    fn counted(&self, jobs: &VecDeque<Job<E>>) {
        self.load.send_if_modified(|load| std::mem::replace(&mut load.queued, jobs.len()) != jobs.len());
    }

    /// Nothing panics under the lock, and each change under it is whole by itself.
    fn lock(&self) -> MutexGuard<'_, Waiting<E>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether someone waits for it in time; who waits too long is told.
fn is_wanted<E: Engine>(job: &Job<E>) -> bool {
    if job.terms.deadline.is_some_and(Deadline::passed) {
        let _ = job.events.send(Err(StageError::Deadline { steps_done: 0 }));
        return false;
    }
    !job.events.is_closed()
}

/// In a full queue, the request that gives its place to one of `tenant`: the last of the tenant that has the most, if that
/// has the more by two. So nobody's thousand requests keep another's first one out.
fn crowded_out_by<E: Engine>(jobs: &VecDeque<Job<E>>, tenant: &Tenant) -> Option<usize> {
    let mut counts: HashMap<&Tenant, usize> = HashMap::new();
    for job in jobs {
        *counts.entry(&job.terms.tenant).or_default() += 1;
    }
    let own = counts.get(tenant).copied().unwrap_or(0);
    let (most, count) = counts.into_iter().max_by_key(|(tenant, count)| (*count, *tenant))?;
    if count < own + 2 {
        return None;
    }
    let of_most = jobs.iter().enumerate().filter(|(_, job)| job.terms.tenant == *most);
    of_most.max_by_key(|(_, job)| job.order()).map(|(place, _)| place)
}

//! The queue between callers and the device thread. Its depth counts only requests that someone still waits for.

use super::{EventOf, Load, Phase};
use crate::{engine::Engine, error::StageError};
use sdxl_runtime::Deadline;
use std::{
    collections::VecDeque,
    fmt,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};
use tokio::sync::{mpsc, watch};
use tracing::Span;

/// A request that waits.
pub(super) struct Job<E: Engine> {
    pub(super) request: E::Request,
    pub(super) events: mpsc::UnboundedSender<Result<EventOf<E>, StageError>>,
    pub(super) deadline: Option<Deadline>,
    pub(super) submitted: Instant,
    pub(super) span: Span,
}

/// Requests that wait, and what the worker is about.
pub(super) struct Queue<E: Engine> {
    depth: usize,
    /// Changes of it are made under the lock of `jobs`.
    load: watch::Sender<Load>,
    jobs: Mutex<VecDeque<Job<E>>>,
    changed: Condvar,
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
            load: watch::Sender::new(Load { phase: Phase::Loading, queued: 0, active: 0 }),
            jobs: Mutex::new(VecDeque::new()),
            changed: Condvar::new(),
        }
    }

    pub(super) fn load(&self) -> watch::Receiver<Load> {
        self.load.subscribe()
    }

    pub(super) fn push(&self, job: Job<E>) -> Result<(), StageError> {
        let mut jobs = self.lock();
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
            return Err(StageError::Enqueue { queued: jobs.len() });
        }
        jobs.push_back(job);
        self.counted(&jobs);
        self.changed.notify_one();
        Ok(())
    }

    /// The request that has waited longest. It counts as active from now on.
    pub(super) fn pop(&self) -> Option<Job<E>> {
        let mut jobs = self.lock();
        let job = jobs.pop_front()?;
        self.load.send_modify(|load| (load.queued, load.active) = (jobs.len(), load.active + 1));
        Some(job)
    }

    /// Drops what nobody waits for any more.
    pub(super) fn sweep(&self) {
        let mut jobs = self.lock();
        jobs.retain(is_wanted);
        self.counted(&jobs);
    }

    /// Waits for a request; `false` where none will come.
    pub(super) fn wait(&self) -> bool {
        let mut jobs = self.lock();
        while jobs.is_empty() {
            if self.phase() == Phase::Draining {
                return false;
            }
            jobs = self.changed.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    pub(super) fn set_active(&self, active: usize) {
        self.load.send_if_modified(|load| std::mem::replace(&mut load.active, active) != active);
    }

    pub(super) fn ready(&self) {
        let _jobs = self.lock();
        if self.phase() == Phase::Loading {
            self.load.send_modify(|load| load.phase = Phase::Ready);
        }
    }

    pub(super) fn drain(&self) {
        let _jobs = self.lock();
        if matches!(self.phase(), Phase::Loading | Phase::Ready) {
            self.load.send_modify(|load| load.phase = Phase::Draining);
        }
        self.changed.notify_all();
    }

    pub(super) fn end(&self) {
        let _jobs = self.lock();
        self.load.send_modify(|load| load.phase = Phase::Ended);
    }

    /// Turns away everyone, from now on too.
    pub(super) fn fail(&self) {
        let mut jobs = self.lock();
        for job in jobs.drain(..) {
            let _ = job.events.send(Err(StageError::Stopped));
        }
        self.load.send_modify(|load| *load = Load { phase: Phase::Failed, queued: 0, active: 0 });
    }

    fn phase(&self) -> Phase {
        self.load.borrow().phase
    }

    fn counted(&self, jobs: &VecDeque<Job<E>>) {
        self.load.send_if_modified(|load| std::mem::replace(&mut load.queued, jobs.len()) != jobs.len());
    }

    /// Nothing panics under the lock, and each change under it is whole by itself.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Job<E>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether someone waits for it in time; who waits too long is told.
fn is_wanted<E: Engine>(job: &Job<E>) -> bool {
    if job.deadline.is_some_and(Deadline::passed) {
        let _ = job.events.send(Err(StageError::Deadline { steps_done: 0 }));
        return false;
    }
    !job.events.is_closed()
}

//! When a unit of work was sent, how long it had waited for that, and what became of it where it was sent before.

use super::hop::Spent;
use sdxl_proto::{
    convert,
    v1::{AttemptEnd, StageAttempt, StageTiming},
};
use std::time::{Duration, Instant};

/// The times of one unit of work, over all replicas that it is on.
#[derive(Debug)]
pub(super) struct Times {
    /// When its request arrived, from which offsets count.
    arrived: Instant,
    /// Since when it wants a replica.
    ready: Instant,
    sent: Instant,
    lost: Vec<StageAttempt>,
}

impl Times {
    /// Of work that wants a replica from now on, for a request that has arrived at `arrived`.
    pub(super) fn new(arrived: Instant) -> Self {
        let now = Instant::now();
        Self { arrived, ready: now, sent: now, lost: Vec::new() }
    }

    /// It is sent to a replica now. One that refuses it has not ended its wait.
    pub(super) fn sent(&mut self) {
        self.sent = Instant::now();
    }

    /// Since it was sent last.
    pub(super) fn total(&self) -> Duration {
        self.sent.elapsed()
    }

    /// `replica`, to which it was sent last, has lost it after telling of `told`.
    pub(super) fn lost(&mut self, replica: String, told: Spent, end: AttemptEnd) {
        let (offset, wait) = self.before();
        self.lost.push(StageAttempt {
            replica,
            start_time_offset: Some(convert::duration(offset)),
            wait_time: Some(convert::duration(wait)),
            queue_time: told.queue_time,
            run_time: told.run_time,
            total_time: Some(convert::duration(self.total())),
            steps: told.steps,
            end: end.into(),
        });
        self.ready = Instant::now();
    }

    /// What a timing says of all this, once the replica that it was sent to last has done it.
    pub(super) fn timing(&self) -> StageTiming {
        let (offset, wait) = self.before();
        StageTiming {
            total_time: Some(convert::duration(self.total())),
            resumes: u32::try_from(self.lost.len()).unwrap_or(u32::MAX),
            start_time_offset: Some(convert::duration(offset)),
            wait_time: Some(convert::duration(wait)),
            lost_attempts: self.lost.clone(),
            ..StageTiming::default()
        }
    }

    /// From the request's arrival to the last sending, and how much of it was a wait for a replica.
    fn before(&self) -> (Duration, Duration) {
        (self.sent.saturating_duration_since(self.arrived), self.sent.saturating_duration_since(self.ready))
    }
}

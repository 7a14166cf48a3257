//! One request: sent, timed, and what came of it.

use super::work::Work;
use crate::connection::Connection;
use sdxl_core::StageKind;
use sdxl_proto::{
    MAX_MESSAGE_BYTES,
    convert::{duration_or_zero, stage_kind},
    status::connection_broke,
    v1,
};
use sdxl_runtime::{Deadline, Terms};
use std::{
    future::Future,
    time::{Duration, Instant},
};
use tonic::{Code, Request, Status};

type Client = v1::image_generation_service_client::ImageGenerationServiceClient<Connection>;

/// How long after the deadline the cluster's own word on it is waited for.
const GRACE: Duration = Duration::from_secs(1);

/// What one stage took for one unit of work, in seconds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Timing {
    pub(super) stage: StageKind,
    /// `None` for what all pictures share.
    pub(super) image_index: Option<u32>,
    pub(super) queue: f64,
    pub(super) run: f64,
    pub(super) total: f64,
    /// 0 for stages that have none.
    pub(super) steps: u32,
}

/// How a request ended.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// With so many pictures.
    Answered { pictures: u32, timings: Vec<Timing> },
    /// With an error of the cluster's, or of the way to it.
    Failed { code: Code, message: String },
    /// Given up.
    NoAnswer,
    /// Never sent, because too many were in flight.
    Dropped,
}

/// A request that has ended. Times are from the load's start.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) work: Work,
    /// Whether it came after the warm-up.
    pub(super) measured: bool,
    /// When it was to be sent.
    pub(super) planned: Duration,
    /// How much later it was sent.
    pub(super) lag: Duration,
    /// From `planned` to its end.
    pub(super) latency: Duration,
    pub(super) outcome: Outcome,
}

impl Sample {
    /// Whether all pictures came, before the deadline where there was one.
    pub(super) fn in_time(&self) -> bool {
        matches!(self.outcome, Outcome::Answered { .. })
            && self.work.deadline.is_none_or(|deadline| self.latency <= deadline)
    }

    /// When it ended.
    pub(super) fn ended(&self) -> Duration {
        self.planned + self.latency
    }

    /// Stages' times; none where there was no answer.
    pub(super) fn timings(&self) -> &[Timing] {
        match &self.outcome {
            Outcome::Answered { timings, .. } => timings,
            _ => &[],
        }
    }
}

/// A request at its place in the load.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) work: Work,
    pub(super) measured: bool,
    /// From the load's start.
    pub(super) at: Duration,
}

/// The connections that requests go over by turns.
#[derive(Clone, Debug)]
pub(super) struct Connections {
    clients: Vec<Client>,
    turn: usize,
    timeout: Duration,
}

impl Connections {
    /// Requests over `channels`, of which there is at least one, are given up after `timeout`.
    pub(super) fn new(channels: Vec<Connection>, timeout: Duration) -> Self {
        let client = |channel| Client::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self { clients: channels.into_iter().map(client).collect(), turn: 0, timeout }
    }

    /// Sends a request of the load that began at `started`.
    ///
    /// `Generate` and not `GenerateStream`: with one message a request the client takes the least of a machine that it
    /// shares with the cluster, and the answer counts when it is whole.
    pub(super) fn send(
        &mut self,
        planned: Planned,
        started: Instant,
    ) -> impl Future<Output = Sample> + Send + 'static {
        self.turn = (self.turn + 1) % self.clients.len();
        let mut client = self.clients[self.turn].clone();
        let timeout = self.timeout;
        async move {
            let Planned { work, measured, at } = planned;
            let due = started + at;
            let lag = due.elapsed();
            let left = work.deadline.map(|deadline| deadline.saturating_sub(lag));
            let mut request = Request::new(work.message());
            let deadline = left.and_then(Deadline::after);
            Terms { deadline, tenant: work.tenant.clone(), ..Terms::default() }.apply(&mut request);
            let patience = left.map_or(timeout, |left| timeout.min(left + GRACE));
            let answer = tokio::time::timeout(patience, client.generate(request)).await;
            let latency = due.elapsed();
            let late = deadline.is_some_and(Deadline::passed);
            let outcome = match answer {
                Ok(Ok(answer)) => answered(answer.into_inner()),
                Ok(Err(status)) => failed(&status, late),
                Err(_) if late => failed(&Status::deadline_exceeded("no word from the cluster"), late),
                Err(_) => Outcome::NoAnswer,
            };
            Sample { work, measured, planned: at, lag, latency, outcome }
        }
    }
}

fn answered(answer: v1::GenerateResponse) -> Outcome {
    let seconds = |time| duration_or_zero(time).as_secs_f64();
    let timing = |timing: v1::StageTiming| {
        let stage = v1::Stage::try_from(timing.stage).ok().and_then(stage_kind)?;
        Some(Timing {
            stage,
            image_index: timing.image_index,
            queue: seconds(timing.queue_time),
            run: seconds(timing.run_time),
            total: seconds(timing.total_time),
            steps: timing.steps,
        })
    };
    Outcome::Answered {
        pictures: u32::try_from(answer.images.len()).unwrap_or(u32::MAX),
        timings: answer.timings.into_iter().filter_map(timing).collect(),
    }
}

/// tonic ends a call at its deadline with CANCELLED, and has several codes for a connection that broke.
fn failed(status: &Status, late: bool) -> Outcome {
    let code = match status.code() {
        Code::Cancelled if late => Code::DeadlineExceeded,
        _ if connection_broke(status) => Code::Unavailable,
        code => code,
    };
    Outcome::Failed { code, message: status.message().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(status: &Status, late: bool) -> Code {
        match failed(status, late) {
            Outcome::Failed { code, .. } => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_clients_own_errors_have_the_codes_that_they_mean() {
        let broken = Status::from_error(Box::new(std::io::Error::other("broken pipe")));
        assert_eq!(code(&broken, false), Code::Unavailable);
        assert_eq!(code(&Status::cancelled("Timeout expired"), true), Code::DeadlineExceeded);
        assert_eq!(code(&Status::cancelled("by the cluster"), false), Code::Cancelled);
        assert_eq!(code(&Status::resource_exhausted("full"), true), Code::ResourceExhausted);
    }
}

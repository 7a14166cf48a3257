//! One call to one replica: placing it, handing deadline and trace on, and making sense of how it ended.

use super::error::GenerateError;
use crate::placement::{Fleet, Lease, Replica};
use sdxl_core::ErrorClass;
use sdxl_proto::{
    convert,
    status::{class_of, connection_broke, retry_after},
    v1,
};
use sdxl_runtime::{Deadline, propagation};
use std::{error::Error, sync::Arc, time::Duration, time::Instant};
use tonic::{ConnectError, Status};
use tracing::{Span, warn};

/// Hops end by the caller's deadline, but their timers and ours do not run out at the very same moment.
const SAME_MOMENT: Duration = Duration::from_millis(10);

/// `message` with the deadline and the current span's trace.
pub(super) fn request<T>(message: T, deadline: Option<Deadline>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(deadline) = deadline {
        deadline.apply(&mut request);
    }
    propagation::inject(&mut request);
    request
}

/// How a call failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// With a status, of the replica or of the connection.
    Status {
        /// As tonic gives it.
        status: Status,
        /// Whether the replica had begun to work by then.
        begun: bool,
    },
    /// With an answer that makes no sense.
    Reply(String),
}

impl Fault {
    /// The replica answered with `status` in place of beginning.
    pub(super) fn refused(status: Status) -> Self {
        Self::Status { status, begun: false }
    }
}

/// The search for a replica that takes a unit of work: each is asked once, the least loaded first.
#[derive(Debug)]
pub(super) struct Placing<'a> {
    fleet: &'a Fleet,
    work: u64,
    deadline: Option<Deadline>,
    tried: Vec<Arc<Replica>>,
    last: Option<GenerateError>,
    sent: Instant,
}

impl<'a> Placing<'a> {
    pub(super) fn new(fleet: &'a Fleet, work: u64, deadline: Option<Deadline>) -> Self {
        Self { fleet, work, deadline, tried: Vec::new(), last: None, sent: Instant::now() }
    }

    /// The next replica to ask; its address is noted in the current span.
    ///
    /// # Errors
    /// No replica is ready, or why the last one refused.
    pub(super) fn next(&mut self) -> Result<Lease, GenerateError> {
        let Some(lease) = self.fleet.pick(self.work, &self.tried) else {
            return Err(self.last.take().unwrap_or(GenerateError::NoReplica { stage: self.fleet.stage() }));
        };
        self.tried.push(Arc::clone(lease.replica()));
        self.sent = Instant::now();
        Span::current().record("replica", lease.replica().address().to_string());
        Ok(lease)
    }

    /// Takes note of how the call on `replica` failed; `Ok` if another replica may be asked because this one has done
    /// nothing.
    ///
    /// # Errors
    /// What the caller is told.
    pub(super) fn failed(&mut self, replica: &Replica, fault: Fault) -> Result<(), GenerateError> {
        let stage = self.fleet.stage();
        let address = replica.address().clone();
        let (status, begun) = match fault {
            Fault::Reply(problem) => return Err(GenerateError::Reply { stage, replica: address, problem }),
            Fault::Status { status, begun } => (status, begun),
        };
        let lost = connection_broke(&status);
        let class = class_of(&status);
        // What was never sent, or answered by refusing it, can be asked of another.
        let untouched = if lost { never_sent(&status) } else { !begun };
        let error = match class {
            ErrorClass::DeadlineExceeded | ErrorClass::Cancelled if self.at_deadline() => {
                GenerateError::Stage {
                    stage,
                    replica: address,
                    class: ErrorClass::DeadlineExceeded,
                    message: "the deadline passed while it was at work".to_owned(),
                }
            }
            _ if lost => GenerateError::Lost { stage, replica: address, message: innermost(&status) },
            ErrorClass::Overloaded if untouched => {
                GenerateError::Full { stage, retry_after: retry_after(&status) }
            }
            _ => GenerateError::Stage {
                stage,
                replica: address,
                class: to_caller(class),
                message: status.message().to_owned(),
            },
        };
        if untouched && matches!(class, ErrorClass::Overloaded | ErrorClass::Unavailable) {
            warn!(%stage, replica = %replica.address(), "replica refused: {}", status.message());
            // "full" is what the caller can act on, whatever the others said.
            if !matches!(self.last, Some(GenerateError::Full { .. })) {
                self.last = Some(error);
            }
            return Ok(());
        }
        Err(error)
    }

    /// A timing for a response, of the last replica asked.
    pub(super) fn timing(&self, image_index: Option<u32>, spent: &Spent) -> v1::StageTiming {
        v1::StageTiming {
            stage: v1::Stage::from(self.fleet.stage()).into(),
            image_index,
            replica: self.tried.last().map(|r| r.address().to_string()).unwrap_or_default(),
            queue_time: spent.queue_time,
            run_time: spent.run_time,
            total_time: Some(convert::duration(self.sent.elapsed())),
            steps: spent.steps,
        }
    }

    fn at_deadline(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline.remaining() < SAME_MOMENT)
    }
}

/// What a replica says of its own time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) queue_time: Option<prost_types::Duration>,
    pub(super) run_time: Option<prost_types::Duration>,
    pub(super) steps: u32,
}

/// What a stage's error is to the public caller, whose request was found right: a stage that finds its own request
/// wrong was asked wrongly by us. We never cancel a call and then read its status, so that CANCELLED is the replica's
/// giving up.
fn to_caller(class: ErrorClass) -> ErrorClass {
    match class {
        ErrorClass::InvalidRequest | ErrorClass::NotFound => ErrorClass::Internal,
        ErrorClass::Cancelled => ErrorClass::Unavailable,
        class => class,
    }
}

/// Whether there was no connection to send the request on.
fn never_sent(status: &Status) -> bool {
    chain(status).any(|cause| cause.is::<ConnectError>())
}

fn innermost(status: &Status) -> String {
    chain(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}

fn chain(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |cause: &&(dyn Error + 'static)| {
        <dyn Error + 'static>::source(*cause)
    })
}

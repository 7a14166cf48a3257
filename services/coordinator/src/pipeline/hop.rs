//! One call to one replica: placing it, handing its terms and trace on, making sense of how it ended, and of what to do
//! then.

use super::{Pipeline, error::GenerateError, times::Times, watch};
use crate::placement::{Fleet, Fleets, Lease, Replica};
use sdxl_core::ErrorClass;
use sdxl_proto::{
    convert,
    status::{class_of, connection_broke, retry_after},
    v1::{self, AttemptEnd},
};
use sdxl_runtime::{
    Terms,
    metrics::catalogue,
    propagation::{self, SpanRef},
    rpc,
};
use std::{error::Error, sync::Arc, time::Duration, time::Instant};
use tokio::time::sleep;
use tonic::{ConnectError, Status};
use tower::retry::budget::Budget;
use tracing::{Instrument, Span, field::Empty, info, info_span, warn};

/// Losses in a row without getting on, after which a unit of work is given up: it may be what kills its replicas.
const MAX_LOSSES: u32 = 5;
/// Between two rounds of asking replicas that refuse.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Hops end by the caller's deadline, but their timers and ours do not run out at the very same moment.
const SAME_MOMENT: Duration = Duration::from_millis(10);

/// `message` with the request's terms and the current span's trace.
pub(super) fn request<T>(message: T, terms: &Terms) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    terms.apply(&mut request);
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
    /// Not at all: the replica hangs.
    Hangs(String),
}

impl Fault {
    /// The replica answered with `status` in place of beginning.
    pub(super) fn refused(status: Status) -> Self {
        Self::Status { status, begun: false }
    }

    /// Says in a call's span how it failed.
    fn note(&self, span: &Span) {
        let (kind, message) = match self {
            Self::Status { status, .. } if connection_broke(status) => ("connection", innermost(status)),
            Self::Status { status, .. } => (rpc::status_name(status.code()), status.message().to_owned()),
            Self::Reply(problem) => ("reply", problem.clone()),
            Self::Hangs(how) => ("hangs", how.clone()),
        };
        span.record("otel.status_code", "ERROR");
        span.record("error.type", kind);
        span.record("error.message", message);
    }
}

/// The answer of a call without events, unless `replica` hangs.
pub(super) async fn answer<T>(
    replica: &Replica,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Fault> {
    tokio::select! {
        answer = call => answer.map(tonic::Response::into_inner).map_err(Fault::refused),
        how = watch::hanging(replica) => Err(Fault::Hangs(how)),
    }
}

/// The search for a replica that does a unit of work, the one first that is likely to be done with it first; and for
/// another, should that one refuse it or be lost.
#[derive(Debug)]
pub(super) struct Placing<'a> {
    fleets: &'a Fleets,
    fleet: &'a Fleet,
    work: u64,
    terms: &'a Terms,
    /// How long to wait where no replica takes work; nothing is waited for before anything is done for the request.
    patience: Option<Duration>,
    waiting_since: Option<Instant>,
    /// Those that refused since the last wait.
    refused: Vec<Arc<Replica>>,
    address: String,
    last: Option<GenerateError>,
    /// Losses since it last got on.
    losses: u32,
    times: Times,
    /// What the replica at work has told of its time so far.
    told: Spent,
    /// The call before, for the one that replaces it.
    before: Option<SpanRef>,
    calls: u32,
}

impl<'a> Placing<'a> {
    /// For a unit of `work` on a fleet; `is_begun` where the request would be a loss by now.
    pub(super) fn new(pipeline: Pipeline<'a>, fleet: &'a Fleet, work: u64, is_begun: bool) -> Self {
        pipeline.fleets.retries.deposit();
        Self {
            fleets: pipeline.fleets,
            fleet,
            work,
            terms: pipeline.terms,
            patience: is_begun.then_some(pipeline.patience),
            waiting_since: None,
            refused: Vec::new(),
            address: String::new(),
            last: None,
            losses: 0,
            times: Times::new(pipeline.arrived),
            told: Spent::default(),
            before: None,
            calls: 0,
        }
    }

    /// Awaits a call to `replica` in a span of its own, which is linked to the one that it replaces.
    pub(super) async fn call<T>(
        &mut self,
        method: &'static str,
        replica: &Replica,
        call: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        self.calls += 1;
        let address = replica.address();
        let span = info_span!(
            "hop",
            otel.name = method,
            otel.kind = "client",
            otel.status_code = Empty,
            rpc.system.name = "grpc",
            rpc.method = method,
            server.address = address.host(),
            server.port = address.port(),
            stage = %self.fleet.stage(),
            attempt = self.calls,
            resumed_at = Empty,
            "error.type" = Empty,
            "error.message" = Empty,
        );
        if let Some(before) = self.before.replace(SpanRef::of(&span)) {
            propagation::link(&span, &before, "replaces");
        }
        let result = call.instrument(span.clone()).await;
        if let Err(fault) = &result {
            fault.note(&span);
        }
        result
    }

    /// The next replica to ask; its address is noted in the current span.
    ///
    /// # Errors
    /// No replica is ready, or why the last one refused, after waiting where that is due.
    pub(super) async fn next(&mut self) -> Result<Lease, GenerateError> {
        let lease = match self.fleet.pick(self.work, &self.refused) {
            Some(lease) => lease,
            None => {
                let span = info_span!("wait for a replica", stage = %self.fleet.stage());
                self.wait().instrument(span).await?
            }
        };
        self.times.sent();
        self.told = Spent::default();
        self.address = lease.replica().address().to_string();
        Span::current().record("replica", &self.address);
        Ok(lease)
    }

    async fn wait(&mut self) -> Result<Lease, GenerateError> {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(lease) = self.fleet.pick(self.work, &self.refused) {
                return Ok(lease);
            }
            let since = *self.waiting_since.get_or_insert_with(Instant::now);
            let left = self.patience.unwrap_or_default().saturating_sub(since.elapsed());
            if left.is_zero() {
                let none = GenerateError::NoReplica { stage: self.fleet.stage() };
                return Err(self.last.take().unwrap_or(none));
            }
            if self.refused.is_empty() {
                self.fleet.wait(left).await;
            } else {
                // Those that refused may take it now.
                sleep(pause.min(left)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                self.refused.clear();
            }
        }
    }

    /// The replica has told of so much before its call failed.
    pub(super) fn told(&mut self, told: Spent) {
        self.told = told;
    }

    /// The work got on: there is less to lose, and as much patience as before.
    pub(super) fn got_on(&mut self, work_left: u64) {
        self.work = work_left;
        self.losses = 0;
        self.waiting_since = None;
    }

    /// Takes note of how the call on `replica` failed; `Ok` if another replica may be asked.
    ///
    /// # Errors
    /// What the caller is told.
    pub(super) fn failed(
        &mut self,
        replica: &Arc<Replica>,
        fault: Fault,
        patience: Duration,
    ) -> Result<(), GenerateError> {
        let stage = self.fleet.stage();
        let address = replica.address().clone();
        let (status, begun) = match fault {
            Fault::Reply(problem) => return Err(GenerateError::Reply { stage, replica: address, problem }),
            Fault::Hangs(how) => {
                self.fleet.eject(replica, &how);
                let lost = GenerateError::Lost { stage, replica: address, message: how };
                return self.lost(lost, AttemptEnd::Hung, patience);
            }
            Fault::Status { status, begun } => (status, begun),
        };
        let broke = connection_broke(&status);
        let class = class_of(&status);
        if matches!(class, ErrorClass::DeadlineExceeded | ErrorClass::Cancelled) && self.at_deadline() {
            return Err(GenerateError::Stage {
                stage,
                replica: address,
                class: ErrorClass::DeadlineExceeded,
                message: "the deadline passed while it was at work".to_owned(),
            });
        }
        if broke {
            let message = innermost(&status);
            self.fleet.eject(replica, &message);
            let lost = GenerateError::Lost { stage, replica: address, message };
            if never_sent(&status) {
                self.last = Some(lost);
                return Ok(());
            }
            return self.lost(lost, AttemptEnd::Died, patience);
        }
        let message = status.message().to_owned();
        match class {
            // It says itself that it does not do it, or no further.
            ErrorClass::Unavailable | ErrorClass::Cancelled if begun => {
                self.refused.push(Arc::clone(replica));
                let lost = GenerateError::Lost { stage, replica: address, message };
                self.lost(lost, AttemptEnd::Stopped, patience)
            }
            ErrorClass::Overloaded | ErrorClass::Unavailable if !begun => {
                warn!(%stage, replica = %address, "replica refused: {message}");
                self.refused.push(Arc::clone(replica));
                let error = match class {
                    ErrorClass::Overloaded => {
                        GenerateError::Full { stage, retry_after: retry_after(&status) }
                    }
                    _ => GenerateError::Stage { stage, replica: address, class, message },
                };
                // "full" is what the caller can act on, whatever the others said.
                if !matches!(self.last, Some(GenerateError::Full { .. })) {
                    self.last = Some(error);
                }
                Ok(())
            }
            _ => Err(GenerateError::Stage { stage, replica: address, class: to_caller(class), message }),
        }
    }

    /// Work was lost: it is done again elsewhere, if that was not so all the time and there is budget for it.
    fn lost(
        &mut self,
        lost: GenerateError,
        end: AttemptEnd,
        patience: Duration,
    ) -> Result<(), GenerateError> {
        self.losses += 1;
        self.patience = Some(patience);
        if self.losses > MAX_LOSSES {
            return Err(lost);
        }
        if !self.fleets.retries.withdraw() {
            return Err(GenerateError::RetriesSpent(Box::new(lost)));
        }
        info!(stage = %self.fleet.stage(), "going on elsewhere: {lost}");
        self.times.lost(self.address.clone(), self.told, end);
        catalogue::RESUMES.add(1, [self.fleet.stage().name().into()]);
        self.last = Some(lost);
        Ok(())
    }

    /// A timing for a response, of the last replica asked.
    pub(super) fn timing(&self, image_index: Option<u32>, spent: &Spent) -> v1::StageTiming {
        let stage = self.fleet.stage().name();
        let queued = convert::duration_or_zero(spent.queue_time).as_secs_f64();
        catalogue::STAGE_DURATION.record_in(
            &Span::current(),
            self.times.total().as_secs_f64(),
            [stage.into()],
        );
        catalogue::STAGE_QUEUE.record(queued, [stage.into()]);
        if spent.steps_repeated > 0 {
            catalogue::STEPS_REPEATED.add(spent.steps_repeated.into(), [stage.into()]);
        }
        v1::StageTiming {
            stage: v1::Stage::from(self.fleet.stage()).into(),
            image_index,
            replica: self.address.clone(),
            queue_time: spent.queue_time,
            run_time: spent.run_time,
            steps: spent.steps,
            steps_repeated: spent.steps_repeated,
            ..self.times.timing()
        }
    }

    fn at_deadline(&self) -> bool {
        self.terms.deadline.is_some_and(|deadline| deadline.remaining() < SAME_MOMENT)
    }
}

/// What a replica says of its own time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) queue_time: Option<prost_types::Duration>,
    pub(super) run_time: Option<prost_types::Duration>,
    pub(super) steps: u32,
    pub(super) steps_repeated: u32,
}

impl Spent {
    /// In seconds on the device, for the replica's pace.
    pub(super) fn on_device(&self) -> Duration {
        convert::duration_or_zero(self.run_time)
    }

    /// One more step, of `time` on the device.
    pub(super) fn step(&mut self, time: Duration) {
        self.steps += 1;
        self.run_time = Some(convert::duration(self.on_device().saturating_add(time)));
    }
}

/// What a stage's error is to the public caller, whose request was found right: a stage that finds its own request
/// wrong was asked wrongly by us. We never cancel a call and then read its status, so that CANCELLED is the replica's
/// giving up.
fn to_caller(class: ErrorClass) -> ErrorClass {
    match class {
        ErrorClass::InvalidRequest
        | ErrorClass::NotFound
        | ErrorClass::Unauthenticated
        | ErrorClass::PermissionDenied => ErrorClass::Internal,
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

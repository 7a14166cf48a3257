//! Takes jobs up and does them.

use super::{
    Shared,
    ledger::{Ledger, SILENT, Taken},
    record::End,
};
use crate::{
    pipeline::{Events, GenerateError, Item, Kept},
    service::{Arrival, Kind},
    store::StoreError,
};
use sdxl_core::{Classify, ErrorClass, Violations};
use sdxl_proto::{
    status::{code_of, status},
    v1::{self, JobState, generate_stream_response::Event},
};
use sdxl_runtime::{metrics::catalogue, propagation};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::Code;
use tracing::{Instrument, Span, field::Empty, info, info_span, warn};

/// Between two looks into the queue where there was nothing. Waiting inside Redis would hold up its connection.
const POLL: Duration = Duration::from_millis(200);
/// Between two tries where Redis or the stages are gone.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause where stages are waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// At least as often an owner says that it is at work, and notices that it is not any more.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Takes jobs up, as many at a time as are allowed.
pub(super) async fn run(shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(shared.settings.concurrency));
    let mut running = JoinSet::new();
    let Some(ledger) = &shared.ledger else { return };
    let tidying = ledger.clone();
    let mut beside = JoinSet::new();
    beside.spawn(async move {
        loop {
            sleep(tidying.lease * SILENT).await;
            tidying.tidy().await;
        }
    });
    loop {
        let Some((taken, place)) = next(&shared, ledger, &places).await else { break };
        let span = span(&taken);
        let shared = Arc::clone(&shared);
        let work = async move {
            one(&shared, taken).await;
            drop(place);
        };
        running.spawn(Box::pin(work.instrument(span)));
        while running.try_join_next().is_some() {}
    }
    while running.join_next().await.is_some() {}
    ledger.leave().await;
}

/// The span of a job for as long as this coordinator has it, in the trace of whoever submitted it.
fn span(taken: &Taken) -> Span {
    let span = info_span!(
        parent: None,
        "job",
        job = taken.id,
        attempt = taken.stalled,
        pictures = Empty,
        outcome = Empty,
        otel.status_code = Empty,
    );
    if let Some(kept) = taken.record.spec().ok().and_then(|spec| spec.traceparent) {
        propagation::go_on(&kept, &span);
    }
    span
}

type Place = tokio::sync::OwnedSemaphorePermit;

/// The next job, once there is one, a place for it, and stages to do it; `None` at the shutdown. What is under way at
/// Redis then is waited for, so that no job is taken up by nobody.
async fn next(shared: &Shared, ledger: &Ledger, places: &Arc<Semaphore>) -> Option<(Taken, Place)> {
    let place = until(shared, Arc::clone(places).acquire_owned()).await?.ok()?;
    let mut up = ledger.store.up();
    loop {
        until(shared, up.wait_for(|up| up.is_up)).await?.ok()?;
        let pause = if !shared.generation.is_ready() {
            PAUSE
        } else {
            match ledger.take().await {
                Ok(Some(taken)) => return Some((taken, place)),
                Ok(None) => POLL,
                Err(error) => {
                    warn!("no job was taken up: {error}");
                    PAUSE
                }
            }
        };
        drop(until(shared, timeout(pause, shared.submitted.notified())).await?);
    }
}

/// `None` if the shutdown comes first.
async fn until<T>(shared: &Shared, wait: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        waited = wait => Some(waited),
        () = shared.shutdown.triggered() => None,
    }
}

/// Does a job to its end, unless it becomes another's.
async fn one(shared: &Shared, mut taken: Taken) {
    let Some(ledger) = &shared.ledger else { return };
    let kept = Kept::new(std::mem::take(&mut taken.pieces));
    let (state, end) = tokio::select! {
        ended = Box::pin(work(shared, &taken, &kept)) => ended,
        () = keep_up(ledger, &taken, &kept) => {
            info!("job is not ours any more: it was cancelled, or another took it up");
            return;
        }
        () = shared.shutdown.triggered() => {
            // What is there by now need not be done again.
            let _ = ledger.save(&taken, &kept.unsaved()).await;
            ledger.release(&taken).await;
            return;
        }
    };
    tokio::select! {
        () = finish(ledger, &taken, &kept, state, &end) => {}
        () = shared.shutdown.triggered() => ledger.release(&taken).await,
    }
}

/// Saves what is to be saved and says that the job is being done, until it is not for us to do any more.
async fn keep_up(ledger: &Ledger, taken: &Taken, kept: &Kept) {
    let heartbeat = HEARTBEAT.min(ledger.lease / 3);
    let mut complaint = Complaint::default();
    loop {
        let _ = timeout(heartbeat, kept.changed()).await;
        let unsaved = kept.unsaved();
        match ledger.save(taken, &unsaved).await {
            Ok(true) => kept.saved(&unsaved),
            Ok(false) => return,
            // The work goes on, and is saved once that can be.
            Err(error) => {
                complaint.say(&error, "work of a job cannot be saved");
                sleep(PAUSE.min(heartbeat)).await;
            }
        }
    }
}

/// Says what is wrong once, and nothing of a Redis that is gone: that is said elsewhere.
#[derive(Default)]
struct Complaint(Option<String>);

impl Complaint {
    fn say(&mut self, error: &StoreError, what: &str) {
        let line = error.to_string();
        if !matches!(error, StoreError::Gone) && self.0.as_ref() != Some(&line) {
            warn!("{what}: {line}");
            self.0 = Some(line);
        }
    }
}

/// Writes down how the job ended, however long that takes, unless it is another's by then.
async fn finish(ledger: &Ledger, taken: &Taken, kept: &Kept, state: JobState, end: &End) {
    let mut complaint = Complaint::default();
    loop {
        let unsaved = kept.unsaved();
        let ended = match ledger.save(taken, &unsaved).await {
            Ok(true) => ledger.end(taken, state, end).await,
            other => other,
        };
        match ended {
            Ok(true) => {
                let error = end.error.as_ref().map(|error| error.message.as_str());
                catalogue::JOBS.add(1, [word(state).into()]);
                return info!(state = state.as_str_name(), error, "job ended");
            }
            Ok(false) => return info!("job was ended by another"),
            Err(error) => {
                complaint.say(&error, "how a job ended cannot be written down");
                sleep(PAUSE).await;
            }
        }
    }
}

/// How a job ended, as a label.
fn word(state: JobState) -> &'static str {
    match state {
        JobState::Succeeded => "succeeded",
        JobState::Cancelled => "cancelled",
        _ => "failed",
    }
}

/// Does the work, again where it may go better the next time.
async fn work(shared: &Shared, taken: &Taken, kept: &Kept) -> (JobState, End) {
    let spec = match taken.record.spec() {
        Ok(spec) => spec,
        Err(problem) => {
            warn!("a job in Redis is dropped: {problem}");
            let why = format!("its record cannot be read: {problem}");
            return (JobState::Failed, End::failed(Code::DataLoss, why));
        }
    };
    if taken.stalled > shared.settings.attempts {
        let why = format!("it was taken up {} times in a row without getting on", shared.settings.attempts);
        return (JobState::Failed, End::failed(Code::Aborted, why));
    }
    let (mut failures, mut refusals, mut furthest) = (0_u32, 0_u32, kept.progress());
    loop {
        let request = spec.request.clone().unwrap_or_default();
        let terms = spec.terms(taken.tenant.clone());
        if terms.deadline.is_some_and(sdxl_runtime::Deadline::passed) {
            let end = End::failed(Code::DeadlineExceeded, "its deadline passed before it was done");
            return (JobState::Failed, end);
        }
        let error = match attempt(shared, terms, request, kept).await {
            Ok(summary) => {
                return (JobState::Succeeded, End { summary: Some(summary), error: None });
            }
            Err(error) => error,
        };
        // What got on counts anew.
        let progress = kept.progress();
        if progress > furthest {
            (failures, refusals, furthest) = (0, 0, progress);
        }
        let pause = match (&error, error.class()) {
            // Nothing was tried, or stages are being exchanged.
            (
                GenerateError::Starting(_)
                | GenerateError::NoReplica { .. }
                | GenerateError::Contradiction(_),
                _,
            ) => {
                refusals += 1;
                (PAUSE * refusals).min(LONGEST_WAIT)
            }
            (_, ErrorClass::Overloaded) => {
                refusals += 1;
                error.retry_after().unwrap_or(PAUSE * refusals).clamp(PAUSE, LONGEST_PAUSE)
            }
            (_, ErrorClass::Unavailable | ErrorClass::Internal)
                if failures + 1 < shared.settings.attempts =>
            {
                failures += 1;
                warn!("job failed and is tried again: {error}");
                (PAUSE * 2_u32.saturating_pow(failures)).min(LONGEST_PAUSE)
            }
            (_, class) => {
                let message = status(&error).message().to_owned();
                return (JobState::Failed, End::failed(code_of(class), message));
            }
        };
        sleep(pause).await;
    }
}

async fn attempt(
    shared: &Shared,
    terms: sdxl_runtime::Terms,
    request: v1::GenerateRequest,
    kept: &Kept,
) -> Result<v1::GenerateSummary, GenerateError> {
    let arrival = Arrival::now(Kind::Job);
    let mut accepted =
        shared.generation.accept_on(arrival, terms, request, Violations::default(), None).await?;
    let (events, receiver) = Events::channel(accepted.plan.steps());
    // The sender goes with the work, so that its end is the receiver's.
    let work = Box::pin(async { accepted.run_kept(&{ events }, Some(kept)).await });
    let (summary, ()) = tokio::join!(work, follow(receiver, kept));
    summary
}

/// Notes how far each picture is. The pictures themselves are kept by then.
async fn follow(mut events: mpsc::Receiver<Item>, kept: &Kept) {
    while let Some(item) = events.recv().await {
        if let Ok(v1::GenerateStreamResponse { event: Some(Event::Progress(progress)) }) = item
            && let Some(index) = progress.image_index
        {
            kept.steps(index, progress.steps_done);
        }
    }
}

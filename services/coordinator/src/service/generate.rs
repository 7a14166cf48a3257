//! `ImageGenerationService`.

use super::{
    MAX_PICTURES_BYTES, known,
    record::{Arrival, Kind, Record},
};
use crate::{
    access::Caller,
    admission::{Admission, Promise, Work},
    cache::EmbeddingCache,
    cluster::{Cluster, ModelState},
    once::Once,
    pipeline::{Events, GenerateError, Item, Kept, Lookups, Outcome, Pipeline, latent_pixels},
    placement::Fleets,
    quota::{Accounts, Charge, Mode},
};
use futures::Stream;
use sdxl_core::{Classify, ErrorClass, Plan, Violations};
use sdxl_proto::{
    convert,
    status::status,
    v1::{self, generate_stream_response::Event, image_generation_service_server::ImageGenerationService},
};
use sdxl_runtime::{Deadline, Terms, propagation, telemetry};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tonic::{Request, Response, Status};
use tracing::{Instrument, Span, field::Empty, info_span, warn};

/// Requests to pictures.
#[derive(Clone, Debug)]
pub(crate) struct Generation {
    fleets: Arc<Fleets>,
    model: watch::Receiver<ModelState>,
    pub(crate) admission: Admission,
    pub(crate) accounts: Accounts,
    pub(crate) cache: EmbeddingCache,
    pub(super) once: Once,
    settings: Settings,
}

/// How requests are served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// At the same time.
    pub(crate) max_requests: usize,
    /// Steps from one checkpoint to the next.
    pub(crate) checkpoint_interval: u32,
    /// How long work that was begun waits where no replica takes it.
    pub(crate) patience: Duration,
}

impl Generation {
    pub(crate) fn new(
        fleets: Arc<Fleets>,
        model: watch::Receiver<ModelState>,
        cache: EmbeddingCache,
        once: Once,
        accounts: Accounts,
        settings: Settings,
    ) -> Self {
        let admission = Admission::new(settings.max_requests);
        Self { fleets, model, admission, accounts, cache, once, settings }
    }

    /// Makes a plan of the request, or says in its log line why there is none.
    pub(super) async fn accept(
        &self,
        arrival: Arrival,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Accepted, GenerateError> {
        let mut violations = Violations::default();
        let terms = Terms::from_metadata(request.metadata()).unwrap_or_else(|wrong| {
            violations.push(&wrong.field, wrong.description);
            Terms { deadline: Deadline::from_metadata(request.metadata()), ..Terms::default() }
        });
        let caller = request.extensions().get::<Caller>().cloned();
        self.accept_on(arrival, terms, request.into_inner(), violations, caller.as_ref()).await
    }

    /// The same on terms that do not come with it. Without a caller it is nobody's to pay for, or paid for already.
    pub(crate) async fn accept_on(
        &self,
        arrival: Arrival,
        terms: Terms,
        request: v1::GenerateRequest,
        violations: Violations,
        caller: Option<&Caller>,
    ) -> Result<Accepted, GenerateError> {
        if telemetry::detail().prompts {
            let span = Span::current();
            propagation::attribute(&span, "sdxl.prompt", request.prompt.clone());
            if let Some(negative) = request.negative_prompt.clone() {
                propagation::attribute(&span, "sdxl.negative_prompt", negative);
            }
        }
        let mut record = Record::start(arrival.kind, terms.deadline);
        match self.plan(terms, request, violations, caller).instrument(info_span!("admit")).await {
            Ok((plan, terms, cluster, promise, charge)) => {
                record.planned(&plan);
                let (fleets, cache, settings) = (Arc::clone(&self.fleets), self.cache.clone(), self.settings);
                let (arrived, admission_time) = (arrival.at, arrival.at.elapsed());
                Ok(Accepted {
                    fleets,
                    cache,
                    settings,
                    cluster,
                    plan,
                    terms,
                    record,
                    promise,
                    charge,
                    arrived,
                    admission_time,
                })
            }
            Err(error) => {
                record.failed(&error);
                Err(error)
            }
        }
    }

    /// The plan of a request that is not to be done now.
    pub(crate) fn plan_only(
        &self,
        request: v1::GenerateRequest,
        mut violations: Violations,
    ) -> Result<Plan, GenerateError> {
        let cluster = known(&self.model)?;
        let request = convert::generate_request(request, &mut violations);
        Ok(Plan::new(&request, &cluster.info, violations, rand::random)?)
    }

    /// Whether each needed stage has a replica that takes work.
    pub(crate) fn is_ready(&self) -> bool {
        known(&self.model).is_ok() && self.fleets.iter().all(|fleet| fleet.status().borrow().ready > 0)
    }

    async fn plan(
        &self,
        terms: Terms,
        request: v1::GenerateRequest,
        mut violations: Violations,
        caller: Option<&Caller>,
    ) -> Result<(Plan, Terms, Arc<Cluster>, Promise, Charge), GenerateError> {
        let cluster = known(&self.model)?;
        let request = convert::generate_request(request, &mut violations);
        let plan = Plan::new(&request, &cluster.info, violations, rand::random)?;
        let mut charge = self.accounts.charge(caller, &plan, Mode::Now).await?;
        let work = Work::of(&plan, latent_pixels(&plan, &cluster.info), &self.fleets);
        match self.admission.take(&terms.tenant, work, terms.deadline, self.fleets.speeds()) {
            Ok(promise) => {
                Ok((plan, Terms { priority: request.priority, ..terms }, cluster, promise, charge))
            }
            Err(refusal) => {
                charge.give_back().await;
                Err(refusal.into())
            }
        }
    }
}

/// A request with its plan.
#[derive(Debug)]
pub(crate) struct Accepted {
    fleets: Arc<Fleets>,
    cache: EmbeddingCache,
    cluster: Arc<Cluster>,
    pub(crate) plan: Plan,
    terms: Terms,
    settings: Settings,
    pub(super) record: Record,
    promise: Promise,
    charge: Charge,
    arrived: Instant,
    admission_time: Duration,
}

impl Accepted {
    /// The pictures come out as events, the rest is returned.
    pub(super) async fn run(&mut self, events: &Events) -> Result<v1::GenerateSummary, GenerateError> {
        self.run_kept(events, None).await
    }

    /// The same with its work kept, and gone on with where it was begun before.
    pub(crate) async fn run_kept(
        &mut self,
        events: &Events,
        kept: Option<&Kept>,
    ) -> Result<v1::GenerateSummary, GenerateError> {
        if let Some(kept) = kept {
            let dropped = kept.begin(&self.cluster.computation());
            if dropped > 0 {
                warn!(
                    "{dropped} pieces of kept work are dropped: they are of another model, or another number format"
                );
            }
        }
        let pipeline = Pipeline {
            fleets: &self.fleets,
            cache: &self.cache,
            model: &self.cluster.info,
            plan: &self.plan,
            terms: &self.terms,
            promise: &self.promise,
            checkpoint_interval: self.settings.checkpoint_interval,
            patience: self.settings.patience,
            kept,
            events,
            arrived: self.arrived,
        };
        let outcome = match pipeline.run().await {
            Ok(outcome) => outcome,
            Err(error) => {
                self.record.failed(&error);
                // What the cluster did not do is not paid for; work that the caller gave up is.
                if let ErrorClass::Overloaded | ErrorClass::Unavailable | ErrorClass::Internal = error.class()
                {
                    self.charge.give_back().await;
                }
                return Err(error);
            }
        };
        self.record.done(&outcome);
        let request_timing = Some(self.timing(&outcome));
        let Outcome { timings, warnings, .. } = outcome;
        let trace_id = propagation::trace_id(&Span::current());
        Ok(v1::GenerateSummary { timings, trace_id, warnings, request_timing })
    }

    /// Of the request as a whole, at its end.
    fn timing(&self, outcome: &Outcome) -> v1::RequestTiming {
        let Lookups { hits, misses } = outcome.cache;
        let count = |texts: usize| u32::try_from(texts).unwrap_or(u32::MAX);
        v1::RequestTiming {
            total_time: Some(convert::duration(self.arrived.elapsed())),
            admission_time: Some(convert::duration(self.admission_time)),
            texts_time_offset: Some(convert::duration(outcome.texts_after)),
            texts: count(hits + misses),
            texts_from_cache: count(hits),
        }
    }
}

/// The span of a request, from its being read to its last picture.
fn request_span() -> Span {
    info_span!("generate", pictures = Empty, outcome = Empty, otel.status_code = Empty,)
}

#[tonic::async_trait]
impl ImageGenerationService for Generation {
    type GenerateStreamStream = EventStream;

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<v1::GenerateResponse>, Status> {
        let (arrival, span) = (Arrival::now(Kind::Call), request_span());
        if let Some(identified) = self.identified(arrival, &request) {
            span.in_scope(|| identified.check())?;
            return identified.unary().instrument(span).await;
        }
        async {
            let mut accepted = self.accept(arrival, request).await.map_err(|error| status(&error))?;
            Span::current().record("pictures", accepted.plan.seeds.len());
            let pictures = accepted.plan.seeds.len();
            let (events, receiver) = Events::of_pictures(accepted.plan.steps());
            // The sender goes with the work, so that its end is the receiver's.
            let work = Box::pin(async { accepted.run(&{ events }).await });
            let result = tokio::try_join!(work, collect(receiver, pictures, None));
            let (summary, images) = result.map_err(|error| {
                accepted.record.failed(&error);
                status(&error)
            })?;
            Ok(Response::new(response(images, summary)))
        }
        .instrument(span)
        .await
    }

    async fn generate_stream(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<EventStream>, Status> {
        let (arrival, span) = (Arrival::now(Kind::Call), request_span());
        if let Some(identified) = self.identified(arrival, &request) {
            span.in_scope(|| identified.check())?;
            return Ok(Response::new(identified.stream(span)));
        }
        let mut accepted =
            self.accept(arrival, request).instrument(span.clone()).await.map_err(|error| status(&error))?;
        span.record("pictures", accepted.plan.seeds.len());
        let (events, receiver) = Events::channel(accepted.plan.steps());
        let mut work = JoinSet::new();
        let task = async move {
            let told = match accepted.run(&events).await {
                Ok(summary) => events.summary(summary).await,
                Err(error) => events.error(status(&error)).await,
            };
            // Told or not: nobody is left to hear of it.
            drop(told);
        };
        work.spawn(Box::pin(task.instrument(span)));
        Ok(Response::new(EventStream { receiver, _work: work }))
    }
}

/// All in one answer.
pub(super) fn response(images: Vec<v1::Image>, summary: v1::GenerateSummary) -> v1::GenerateResponse {
    let v1::GenerateSummary { timings, trace_id, warnings, request_timing } = summary;
    v1::GenerateResponse { images, timings, trace_id, warnings, request_timing }
}

/// The pictures among the events, in the order of their seeds.
///
/// All of them go on to `live`, for as long as that listens.
pub(super) async fn collect(
    mut events: mpsc::Receiver<Item>,
    pictures: usize,
    live: Option<mpsc::Sender<Item>>,
) -> Result<Vec<v1::Image>, GenerateError> {
    let limit = MAX_PICTURES_BYTES;
    let mut images = vec![v1::Image::default(); pictures];
    let mut bytes = 0;
    while let Some(item) = events.recv().await {
        if let Some(live) = &live {
            let is_progress =
                matches!(&item, Ok(v1::GenerateStreamResponse { event: Some(Event::Progress(_)) }));
            // Progress is left out for a slow reader, so that there is always room for the pictures; whether any reader is
            // left is seen elsewhere.
            if !is_progress || live.capacity() > pictures {
                let _ = live.try_send(item.clone());
            }
        }
        let Ok(v1::GenerateStreamResponse {
            event: Some(Event::Image(v1::GeneratedImage { image_index, image })),
        }) = item
        else {
            continue;
        };
        let image = image.unwrap_or_default();
        bytes += image.data.len();
        if bytes > limit {
            return Err(GenerateError::TooLarge { limit });
        }
        if let Some(place) = usize::try_from(image_index).ok().and_then(|index| images.get_mut(index)) {
            *place = image;
        }
    }
    Ok(images)
}

/// A request's events. When the caller goes away this is dropped, and with it the work.
#[derive(Debug)]
pub(crate) struct EventStream {
    pub(super) receiver: mpsc::Receiver<Item>,
    pub(super) _work: JoinSet<()>,
}

impl Stream for EventStream {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        self.receiver.poll_recv(cx)
    }
}

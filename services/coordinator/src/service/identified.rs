//! Requests with a `request_id`, which several callers may wait for.

use super::{
    generate::{EventStream, Generation, collect, response},
    record::{Arrival, Record},
};
use crate::{
    access::Caller,
    once::Identity,
    pipeline::{Events, Item, message},
};
use sdxl_core::Violations;
use sdxl_proto::{
    status::status,
    v1::{self, generate_stream_response::Event},
};
use sdxl_runtime::{Deadline, Terms};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::{Request, Response, Status, metadata::MetadataMap};
use tracing::{Instrument, Span, info};

/// Events that wait for a slow reader.
const CAPACITY: usize = 1024;

/// Such a request, and whose it is.
#[derive(Clone)]
pub(super) struct Identified {
    generation: Generation,
    identity: Identity,
    request: v1::GenerateRequest,
    metadata: MetadataMap,
    caller: Option<Caller>,
    deadline: Option<Deadline>,
    arrival: Arrival,
}

impl Generation {
    /// `None` where the request has no id, or metadata that are refused anyway.
    pub(super) fn identified(
        &self,
        arrival: Arrival,
        request: &Request<v1::GenerateRequest>,
    ) -> Option<Identified> {
        let terms = Terms::from_metadata(request.metadata()).ok()?;
        Some(Identified {
            generation: self.clone(),
            identity: Identity::of(&terms.tenant, request.get_ref())?,
            request: request.get_ref().clone(),
            metadata: request.metadata().clone(),
            caller: request.extensions().get().cloned(),
            deadline: terms.deadline,
            arrival,
        })
    }
}

impl Identified {
    /// A request that is wrong is refused before its id means anything.
    pub(super) fn check(&self) -> Result<(), Status> {
        let checked = self.generation.plan_only(self.request.clone(), Violations::default());
        checked.map(drop).map_err(|error| {
            Record::start(self.arrival.kind, self.deadline).failed(&error);
            status(&error)
        })
    }

    pub(super) async fn unary(self) -> Result<Response<v1::GenerateResponse>, Status> {
        self.answer(None).await.0.map(Response::new)
    }

    /// Whoever is first gets progress and pictures as they come, the others the pictures once all are done.
    pub(super) fn stream(self, span: Span) -> EventStream {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        let mut work = JoinSet::new();
        let deadline = self.deadline;
        let task = async move {
            let answer = self.answer(Some(sender.clone()));
            let (answer, was_live) = match deadline {
                None => answer.await,
                Some(deadline) => {
                    tokio::time::timeout_at(deadline.instant().into(), answer).await.unwrap_or_else(|_| {
                        (
                            Err(Status::deadline_exceeded("the deadline passed while another was at work")),
                            true,
                        )
                    })
                }
            };
            // Nobody is left to hear of it where this fails.
            drop(tell(&sender, answer, was_live).await);
        };
        work.spawn(Box::pin(task.instrument(span)));
        EventStream { receiver, _work: work }
    }

    /// The answer, and whether its pictures went to `live`.
    async fn answer(self, live: Option<mpsc::Sender<Item>>) -> (Result<v1::GenerateResponse, Status>, bool) {
        let (once, identity) = (self.generation.once.clone(), self.identity.clone());
        let has_live = live.is_some();
        let span = Span::current();
        let work = move |seed| self.clone().work(seed, live.clone()).instrument(span.clone());
        let (answer, is_ours) = Box::pin(once.answer(&identity, work)).await;
        if !is_ours {
            let code = answer.as_ref().map_or_else(Status::code, |_| tonic::Code::Ok);
            info!(?code, "request was joined or done before");
        }
        (answer, is_ours && has_live)
    }

    /// Has it done as any other request.
    async fn work(self, seed: u64, live: Option<mpsc::Sender<Item>>) -> Result<v1::GenerateResponse, Status> {
        let mut request = Request::new(v1::GenerateRequest { seed: Some(seed), ..self.request });
        *request.metadata_mut() = self.metadata;
        if let Some(caller) = self.caller {
            request.extensions_mut().insert(caller);
        }
        if let Some(deadline) = self.deadline {
            deadline.apply(&mut request); // it may have waited
        }
        let mut accepted =
            self.generation.accept(self.arrival, request).await.map_err(|error| status(&error))?;
        let pictures = accepted.plan.seeds.len();
        Span::current().record("pictures", pictures);
        let channel = if live.is_some() { Events::channel } else { Events::of_pictures };
        let (events, receiver) = channel(accepted.plan.steps());
        let work = Box::pin(async { accepted.run(&{ events }).await });
        let result = tokio::try_join!(work, collect(receiver, pictures, live));
        let (summary, images) = result.map_err(|error| {
            accepted.record.failed(&error);
            status(&error)
        })?;
        Ok(response(images, summary))
    }
}

/// Sends what is left to say.
async fn tell(
    sender: &mpsc::Sender<Item>,
    answer: Result<v1::GenerateResponse, Status>,
    was_live: bool,
) -> Result<(), mpsc::error::SendError<Item>> {
    let v1::GenerateResponse { images, timings, trace_id, warnings, request_timing } = match answer {
        Ok(response) => response,
        Err(error) => return sender.send(Err(error)).await,
    };
    if !was_live {
        for (image_index, image) in (0_u32..).zip(images) {
            let image = v1::GeneratedImage { image_index, image: Some(image) };
            sender.send(Ok(message(Event::Image(image)))).await?;
        }
    }
    let summary = v1::GenerateSummary { timings, trace_id, warnings, request_timing };
    sender.send(Ok(message(Event::Summary(summary)))).await
}

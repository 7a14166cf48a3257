//! What happens to each call before it reaches its service: a span of the caller's trace, the caller's deadline, and
//! refusal once the server is draining. Calls are counted until the last byte of their answer, so that draining knows
//! when it is done. `/healthz` and `/metrics` are answered here, before anything that speaks gRPC.

use crate::{
    body::PrefixFirst,
    deadline::Deadline,
    health::{self, Health},
    metrics::{self, catalogue},
    propagation, rpc,
    shutdown::Shutdown,
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use std::{
    borrow::Cow,
    collections::HashSet,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument, Span, debug, field, info, info_span};

/// tonic ends a call at its deadline with CANCELLED; we come first by this much, so that it is DEADLINE_EXCEEDED.
const EARLIER: Duration = Duration::from_millis(2);

/// What methods are called that are not served here.
const OTHER: &str = "other";

/// Services that are asked all the time, by whoever places and scales work: without a trace of the caller's such calls have none,
/// and their lines are for debugging.
const ASKED_ALL_THE_TIME: [&str; 2] = ["sdxl.v1.StageService", "externalscaler.ExternalScaler"];

/// Wraps services in what this module's head describes.
#[derive(Clone, Debug)]
pub(crate) struct CallLayer {
    health: Health,
    shutdown: Shutdown,
    running: Arc<watch::Sender<usize>>,
    /// `SERVICE/METHOD` of all that may be served here.
    methods: Arc<HashSet<String>>,
}

impl CallLayer {
    /// `descriptors` are encoded file descriptor sets, of which the methods are known by name in metrics and traces.
    pub(crate) fn new(health: Health, shutdown: Shutdown, descriptors: &[&[u8]]) -> Self {
        let methods = Arc::new(descriptors.iter().flat_map(|set| methods(set)).collect());
        Self { health, shutdown, running: Arc::new(watch::Sender::new(0)), methods }
    }

    /// Waits until no call is running.
    pub(crate) async fn idle(&self) {
        // Fails only if the sender is gone, and self holds it.
        let _ = self.running.subscribe().wait_for(|n| *n == 0).await;
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CallService { inner, layer: self.clone() }
    }
}

/// A service in its wrapping.
#[derive(Clone, Debug)]
pub(crate) struct CallService<S> {
    inner: S,
    layer: CallLayer,
}

impl<S> Service<Request<Body>> for CallService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() == health::PATH {
            return Box::pin(std::future::ready(Ok(self.layer.health.page())));
        }
        if request.uri().path() == metrics::PATH {
            return Box::pin(std::future::ready(Ok(metrics::page(request.headers()))));
        }
        // Health and reflection are asked for all the time, by design without end, and also while draining.
        if request.uri().path().starts_with("/grpc.") {
            return Box::pin(self.inner.call(request));
        }
        // Counted before the question, so that nobody sees 0 after the shutdown and then a call that got through.
        let record = Record::new(&self.layer, &request);
        if self.layer.shutdown.is_triggered() {
            let refusal = Status::unavailable("this server is shutting down; ask another").into_http();
            return Box::pin(async move { Ok(record.follow(refusal)) });
        }
        let deadline = Deadline::from_headers(request.headers());
        let span = record.span.clone();
        let request = record.count(request);
        let answer = self.inner.call(request);
        Box::pin(
            async move {
                let answer = match deadline {
                    None => answer.await,
                    Some(deadline) => {
                        let left = deadline.remaining().saturating_sub(EARLIER);
                        match tokio::time::timeout(left, answer).await {
                            Ok(answer) => answer,
                            Err(_) => Ok(Status::deadline_exceeded(
                                "the deadline passed before the answer was ready",
                            )
                            .into_http()),
                        }
                    }
                };
                answer.map(|response| record.follow(response))
            }
            .instrument(span),
        )
    }
}

/// A running call: counted, measured, and logged at its end.
struct Record {
    running: Arc<watch::Sender<usize>>,
    span: Span,
    /// Service and method; none of those that are not known.
    method: Option<String>,
    started: Instant,
    status: Option<Code>,
    received: Arc<AtomicU64>,
    sent: u64,
}

impl Record {
    fn new(layer: &CallLayer, request: &Request<Body>) -> Self {
        let path = request.uri().path().trim_start_matches('/');
        let (service, _) = path.split_once('/').unwrap_or((path, ""));
        // Names that callers make up have no bound.
        let is_known = layer.methods.contains(path);
        layer.running.send_modify(|n| *n += 1);
        Self {
            running: Arc::clone(&layer.running),
            span: span(if is_known { path } else { OTHER }, service, request.headers()),
            method: is_known.then(|| path.to_owned()),
            started: Instant::now(),
            status: None,
            received: Arc::default(),
            sent: 0,
        }
    }

    /// The same request, whose bytes are counted as they come.
    fn count(&self, request: Request<Body>) -> Request<Body> {
        let received = Arc::clone(&self.received);
        request.map(|inner| Body::new(CountedBody { inner, received }))
    }

    /// Goes on with the answer's body.
    fn follow(mut self, response: Response<Body>) -> Response<Body> {
        self.read_status(response.headers());
        let (head, inner) = response.into_parts();
        Response::from_parts(head, Body::new(PrefixFirst::new(RecordedBody { inner, record: self })))
    }

    fn read_status(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(Status::GRPC_STATUS) {
            self.status = Some(Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // A call that ends without a status is one whose caller has gone.
        let code = self.status.unwrap_or(Code::Cancelled);
        let elapsed = self.started.elapsed();
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        if self.span.is_disabled() {
            debug!(status = ?code, method = self.method, elapsed_ms, "done");
        } else {
            self.span.record("rpc.response.status_code", rpc::status_name(code));
            if rpc::is_error(code) {
                self.span.record("otel.status_code", "ERROR");
                self.span.record("error.type", rpc::status_name(code));
            }
            self.span.in_scope(|| info!(status = ?code, elapsed_ms, "done"));
        }
        self.measure(code, elapsed);
        self.running.send_modify(|n| *n -= 1);
    }
}

impl Record {
    fn measure(&mut self, code: Code, elapsed: Duration) {
        let method = self.method.take().filter(|_| code != Code::Unimplemented);
        let method: Cow<'static, str> = method.map_or(OTHER.into(), Cow::Owned);
        let received = self.received.load(Ordering::Relaxed);
        let labels = [method.clone(), rpc::status_name(code).into()];
        catalogue::CALL_DURATION.record_in(&self.span, elapsed.as_secs_f64(), labels);
        catalogue::HOP_IO.add(received, [method.clone(), "received".into()]);
        catalogue::HOP_IO.add(self.sent, [method, "sent".into()]);
    }
}

/// `SERVICE/METHOD` of an encoded file descriptor set.
fn methods(descriptors: &[u8]) -> Vec<String> {
    let files = FileDescriptorSet::decode(descriptors).unwrap_or_default().file;
    let of_file = |file: FileDescriptorProto| {
        let package = file.package().to_owned();
        file.service.into_iter().flat_map(move |service| {
            let name = format!("{package}.{}", service.name());
            service.method.into_iter().map(move |method| format!("{name}/{}", method.name()))
        })
    };
    files.into_iter().flat_map(of_file).collect()
}

/// A call's span, in the caller's trace.
fn span(path: &str, service: &str, headers: &HeaderMap) -> Span {
    if ASKED_ALL_THE_TIME.contains(&service) && !propagation::has_trace(headers) {
        return Span::none();
    }
    let span = info_span!(
        "call",
        otel.name = path,
        otel.kind = "server",
        otel.status_code = field::Empty,
        rpc.system.name = "grpc",
        rpc.method = path,
        rpc.response.status_code = field::Empty,
        "error.type" = field::Empty,
        trace_id = field::Empty,
    );
    propagation::accept(headers, &span);
    span.record("trace_id", propagation::trace_id(&span));
    span
}

/// A request's body, whose bytes are counted.
struct CountedBody {
    inner: Body,
    received: Arc<AtomicU64>,
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        self.received.fetch_add(data_length(&polled), Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Bytes of data in what has just come.
fn data_length(polled: &Poll<Option<Result<Frame<Bytes>, Status>>>) -> u64 {
    match polled {
        Poll::Ready(Some(Ok(frame))) => frame.data_ref().map_or(0, |data| data.len() as u64),
        _ => 0,
    }
}

struct RecordedBody {
    inner: Body,
    record: Record,
}

impl http_body::Body for RecordedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let _entered = this.record.span.clone().entered();
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        this.record.sent += data_length(&polled);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            this.record.read_status(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

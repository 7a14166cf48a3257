//! Serving: a bound listener, services, and an orderly end.

use crate::{
    args::ServerArgs,
    call::CallLayer,
    health::Health,
    shutdown::Shutdown,
    tls::{self, ServerTls, TlsError},
};
use std::{
    future::Future,
    io::{self, Write},
    net::SocketAddr,
    pin::Pin,
    time::Duration,
};
use thiserror::Error;
use tokio::{net::TcpListener, time::timeout};
use tonic::{
    service::Routes,
    transport::server::{Router, Server as Transport, TcpIncoming},
};
use tonic_health::{
    pb::{self, health_server::HealthServer},
    server::HealthService,
};
use tonic_reflection::server::Builder as Reflection;
use tower::layer::util::{Identity, Stack};
use tracing::{info, warn};

/// Between two HTTP/2 pings on a connection, and for how long an answer is waited for.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Embeddings and latents of one request fit into a stream's window, so that they need no second round trip.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// The largest HTTP/2 frame that is taken, for clients to take as well: each frame is a call of the system on either side,
/// and in those of 16 KiB that HTTP/2 begins with, one picture's latents are sixteen.
pub const MAX_FRAME: u32 = 512 * 1024;
/// Calls at the same time on one connection; further ones wait with their caller. Above what a stage takes on, so that
/// it refuses what is too much, and that is heard at once.
const MAX_STREAMS: u32 = 1024;
/// For connections to close once all calls are answered. Health watches would keep them open forever.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Why a server cannot serve.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The address is taken, not ours, or not allowed.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The listener does not know its own address.
    #[error("the listener has no address: {0}")]
    Address(io::Error),
    /// The certificates or keys are not as they should be.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The compiled descriptors are not descriptors.
    #[error("cannot set up reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// Accepting connections failed.
    #[error("serving failed")]
    Serve(#[from] tonic::transport::Error),
}

/// What a server is made of, beside its services.
#[derive(Debug)]
pub struct Server {
    /// Where calls come in.
    pub listener: Listener,
    /// Served as `grpc.health.v1`; its services are those that reflection lists.
    pub health: Health,
    /// Encoded file descriptor sets of the services, for reflection.
    pub descriptors: &'static [&'static [u8]],
    /// How long running calls may take to finish after `shutdown`.
    pub drain_timeout: Duration,
    /// When to stop.
    pub shutdown: Shutdown,
}

/// Where calls come in: an address, TLS if that is wanted, and perhaps an address beside it for health alone.
#[derive(Debug)]
pub struct Listener {
    calls: TcpListener,
    tls: Option<ServerTls>,
    health: Option<TcpListener>,
}

impl Listener {
    /// The address for calls.
    ///
    /// # Errors
    /// Where the system does not know it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.calls.local_addr()
    }
}

/// One without TLS.
impl From<TcpListener> for Listener {
    fn from(calls: TcpListener) -> Self {
        Self { calls, tls: None, health: None }
    }
}

/// Reads what TLS needs and binds the addresses; port 0 takes a free one.
///
/// # Errors
/// [`ServerError::Tls`] or [`ServerError::Bind`], which name the flag and the file or the address.
pub async fn listen<const PORT: u16>(args: &ServerArgs<PORT>) -> Result<Listener, ServerError> {
    let tls = ServerTls::new(&args.tls)?;
    let health = match args.health_listen {
        Some(address) => Some(bind(address).await?.calls),
        None => None,
    };
    Ok(Listener { tls, health, ..bind(args.listen).await? })
}

/// Binds `address`, without TLS; port 0 takes a free one.
///
/// # Errors
/// [`ServerError::Bind`], which names the address.
pub async fn bind(address: SocketAddr) -> Result<Listener, ServerError> {
    let listener = TcpListener::bind(address).await;
    listener.map(Listener::from).map_err(|source| ServerError::Bind { address, source })
}

/// Serves `routes`, health (also at `/healthz` over HTTP/1.1) and reflection until `server.shutdown`, then drains: health
/// says NOT_SERVING, new calls get UNAVAILABLE, running calls finish, or are given up after `drain_timeout`.
///
/// Prints `listening http://ADDR` (`https` with TLS) on standard output first; nothing else ever goes there. Each call has a span in the
/// caller's trace and ends with DEADLINE_EXCEEDED if its answer has not begun by the caller's deadline (streams have
/// to heed it by themselves after that).
///
/// # Errors
/// [`ServerError`], where serving cannot begin or the listener breaks.
pub async fn serve(server: Server, routes: Routes) -> Result<(), ServerError> {
    let Server { listener, health, descriptors, drain_timeout, shutdown } = server;
    let address = listener.local_addr().map_err(ServerError::Address)?;
    let health_service = HealthServer::new(HealthService::from_health_reporter(health.reporter()));
    let routes = routes
        .add_service(health_service.clone())
        .add_service(reflection(&health, descriptors).build_v1()?)
        .add_service(reflection(&health, descriptors).build_v1alpha()?);
    let calls = CallLayer::new(health.clone(), shutdown.clone(), descriptors);
    let close = Shutdown::new();
    let has_tls = listener.tls.is_some();
    let called = run(router(routes, &calls), listener.calls, listener.tls, &close);
    let probed = listener.health.map(|listener| {
        announce_health(&listener);
        run(router(Routes::new(health_service), &calls), listener, None, &close)
    });
    let mut serving = Box::pin(async move {
        match probed {
            Some(probed) => tokio::try_join!(called, probed).map(|((), ())| ()),
            None => called.await,
        }
    });
    announce(address, has_tls);

    tokio::select! {
        ended = &mut serving => return ended.map_err(ServerError::Serve),
        () = shutdown.triggered() => {}
    }
    health.set_not_serving().await;
    info!("draining for at most {drain_timeout:?}");
    tokio::select! {
        ended = &mut serving => return ended.map_err(ServerError::Serve),
        drained = timeout(drain_timeout, calls.idle()) => match drained {
            Ok(()) => info!("drained"),
            Err(_) => warn!("running calls did not finish within {drain_timeout:?} and are given up"),
        }
    }
    close.trigger();
    match timeout(CLOSE_TIMEOUT, serving).await {
        Ok(ended) => ended.map_err(ServerError::Serve),
        Err(_) => Ok(()),
    }
}

type Running = Pin<Box<dyn Future<Output = Result<(), tonic::transport::Error>> + Send>>;

/// `routes` behind what every call goes through.
fn router(routes: Routes, calls: &CallLayer) -> Router<Stack<CallLayer, Identity>> {
    Transport::builder()
        .accept_http1(true) // for /healthz
        .max_concurrent_streams(Some(MAX_STREAMS))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .layer(calls.clone())
        .add_routes(routes)
}

/// Serves on `listener` until `close`.
fn run(
    router: Router<Stack<CallLayer, Identity>>,
    listener: TcpListener,
    tls: Option<ServerTls>,
    close: &Shutdown,
) -> Running {
    let close = close.triggered();
    match tls {
        Some(tls) => Box::pin(router.serve_with_incoming_shutdown(tls::incoming(listener, tls), close)),
        None => {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            Box::pin(router.serve_with_incoming_shutdown(incoming, close))
        }
    }
}

/// Reflection of what is really served here, not of all that the descriptors describe.
fn reflection(health: &Health, descriptors: &'static [&'static [u8]]) -> Reflection<'static> {
    let mut builder = Reflection::configure()
        .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
        .with_service_name("grpc.health.v1.Health")
        .with_service_name("grpc.reflection.v1.ServerReflection")
        .with_service_name("grpc.reflection.v1alpha.ServerReflection");
    for set in descriptors {
        builder = builder.register_encoded_file_descriptor_set(set);
    }
    for service in health.services() {
        builder = builder.with_service_name(*service);
    }
    builder
}

fn announce(address: SocketAddr, has_tls: bool) {
    let scheme = if has_tls { "https" } else { "http" };
    let mut out = io::stdout().lock();
    // A parent that does not listen any more is no reason not to serve.
    let _ = writeln!(out, "listening {scheme}://{address}").and_then(|()| out.flush());
    info!("listening on {scheme}://{address}");
}

fn announce_health(listener: &TcpListener) {
    if let Ok(address) = listener.local_addr() {
        info!("health on http://{address}");
    }
}

#[cfg(test)]
mod tests;

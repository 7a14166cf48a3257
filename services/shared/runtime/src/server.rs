//! Serving: a bound listener, services, and an orderly end.

use crate::{call::CallLayer, health::Health, shutdown::Shutdown};
use std::{
    io::{self, Write},
    net::SocketAddr,
    time::Duration,
};
use thiserror::Error;
use tokio::{net::TcpListener, time::timeout};
use tonic::{
    service::Routes,
    transport::server::{Server as Transport, TcpIncoming},
};
use tonic_health::{
    pb::{self, health_server::HealthServer},
    server::HealthService,
};
use tonic_reflection::server::Builder as Reflection;
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
    pub listener: TcpListener,
    /// Served as `grpc.health.v1`; its services are those that reflection lists.
    pub health: Health,
    /// Encoded file descriptor sets of the services, for reflection.
    pub descriptors: &'static [&'static [u8]],
    /// How long running calls may take to finish after `shutdown`.
    pub drain_timeout: Duration,
    /// When to stop.
    pub shutdown: Shutdown,
}

/// Binds `address`; port 0 takes a free one.
///
/// # Errors
/// [`ServerError::Bind`], which names the address.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Bind { address, source })
}

/// Serves `routes`, health (also at `/healthz` over HTTP/1.1) and reflection until `server.shutdown`, then drains: health says NOT_SERVING, new calls get
/// UNAVAILABLE, running calls finish, or are given up after `drain_timeout`.
///
/// Prints `listening http://ADDR` on standard output first; nothing else ever goes there. Each call has a span in the
/// caller's trace and ends with DEADLINE_EXCEEDED if its answer has not begun by the caller's deadline (streams have
/// to heed it by themselves after that).
///
/// # Errors
/// [`ServerError`], where serving cannot begin or the listener breaks.
pub async fn serve(server: Server, routes: Routes) -> Result<(), ServerError> {
    let Server { listener, health, descriptors, drain_timeout, shutdown } = server;
    let address = listener.local_addr().map_err(ServerError::Address)?;
    let routes = routes
        .add_service(HealthServer::new(HealthService::from_health_reporter(health.reporter())))
        .add_service(reflection(&health, descriptors).build_v1()?)
        .add_service(reflection(&health, descriptors).build_v1alpha()?);
    let calls = CallLayer::new(health.clone(), shutdown.clone());
    let close = Shutdown::new();
    let mut serving = Box::pin(
        Transport::builder()
            .accept_http1(true) // for /healthz
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .layer(calls.clone())
            .add_routes(routes)
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                close.triggered(),
            ),
    );
    announce(address);

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

fn announce(address: SocketAddr) {
    let mut out = io::stdout().lock();
    // A parent that does not listen any more is no reason not to serve.
    let _ = writeln!(out, "listening http://{address}").and_then(|()| out.flush());
    info!("listening on http://{address}");
}

#[cfg(test)]
mod tests;

//! What goes wrong with TLS on the side that calls, said in the log. By TLS 1.3 a caller's handshake is over before the server
//! has looked at its certificate: that it is not let in is what it reads first.

use super::quiet::Quiet;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;
use tracing::warn;

/// Servers that were not reached because of certificates. Clones share the silence between two lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Troubles {
    server: Arc<str>,
    quiet: Arc<Quiet>,
}

impl Troubles {
    /// Those with a server.
    pub(super) fn with(&self, server: String) -> Self {
        Self { server: server.into(), quiet: Arc::clone(&self.quiet) }
    }

    /// Tells of `error` if TLS is the reason for it, and not the network.
    pub(super) fn notice(&self, error: &io::Error) {
        if let Some(reason) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            let server = &self.server;
            self.quiet.tell(|others| warn!(%server, "there is no connection by TLS: {reason}{others}"));
        }
    }
}

/// A connection of which it is said why TLS ended it.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TlsStream<TcpStream>,
    troubles: Troubles,
}

impl Watched {
    pub(super) fn new(stream: TlsStream<TcpStream>, troubles: Troubles) -> Self {
        Self { stream, troubles }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        Poll::Ready(read.inspect_err(|error| self.troubles.notice(error)))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

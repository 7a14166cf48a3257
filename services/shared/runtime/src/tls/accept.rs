//! Connections that are let in: accepted one after another, their handshakes side by side.

use super::{ServerTls, quiet::Quiet};
use rustls::{CertificateError, Error, InvalidMessage};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::Stream;
use tracing::warn;

/// For a caller to be done with its handshake.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at the same time; further callers wait in the system's queue.
pub(super) const HANDSHAKES: usize = 256;
/// After a failure of the system, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// The connections whose callers were let in. Nobody else is once this is dropped.
pub(crate) struct Incoming {
    accepted: mpsc::Receiver<TlsStream<TcpStream>>,
    _accepting: JoinSet<()>,
}

/// Lets callers of `listener` in. Must be called in a tokio runtime.
pub(crate) fn incoming(listener: TcpListener, tls: ServerTls) -> Incoming {
    let (sender, accepted) = mpsc::channel(HANDSHAKES);
    let mut accepting = JoinSet::new();
    accepting.spawn(accept(listener, tls, sender));
    Incoming { accepted, _accepting: accepting }
}

impl Stream for Incoming {
    type Item = io::Result<TlsStream<TcpStream>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.accepted.poll_recv(cx).map(|accepted| accepted.map(Ok))
    }
}

async fn accept(listener: TcpListener, tls: ServerTls, accepted: mpsc::Sender<TlsStream<TcpStream>>) {
    let _following = tls.follow();
    let under_way = Arc::new(Semaphore::new(HANDSHAKES));
    let refusals = Arc::new(Quiet::default());
    let mut handshakes = JoinSet::new();
    loop {
        // Before the connection, so that no more are held than are worked on.
        let Ok(permit) = Arc::clone(&under_way).acquire_owned().await else { return };
        while handshakes.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((tcp, peer)) => {
                let acceptor = TlsAcceptor::from(tls.current());
                let (accepted, refusals) = (accepted.clone(), Arc::clone(&refusals));
                handshakes.spawn(async move {
                    let _permit = permit;
                    match handshake(&acceptor, tcp).await {
                        // Nobody takes it while the server ends.
                        Ok(Some(connection)) => drop(accepted.send(connection).await),
                        Ok(None) => {}
                        Err(why) => refusals.tell(|others| {
                            warn!(peer = %peer.ip(), "a caller was not let in: {}{others}", reason(&why));
                        }),
                    }
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                warn!("cannot accept connections: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

/// The caller has gone before it was let in.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// `None` for a caller that goes without a word, as those do that only look whether anybody listens.
async fn handshake(
    acceptor: &TlsAcceptor,
    tcp: TcpStream,
) -> Result<Option<TlsStream<TcpStream>>, io::Error> {
    let shaken = timeout(HANDSHAKE, async {
        tcp.set_nodelay(true)?;
        if tcp.peek(&mut [0]).await? == 0 {
            return Ok(None);
        }
        acceptor.accept(tcp).await.map(Some)
    });
    shaken.await.unwrap_or_else(|_| {
        let slow = format!("its handshake was not done within {HANDSHAKE:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, slow))
    })
}

/// In words of ours what happens by a wrong configuration, in the library's the rest.
fn reason(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => "it does not speak TLS".to_owned(),
        Some(Error::NoCertificatesPresented) => "it showed no certificate".to_owned(),
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "its certificate is of no authority in --tls-client-ca".to_owned()
        }
        Some(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
            "its certificate is for no name in --tls-client-name".to_owned()
        }
        _ => error.to_string(),
    }
}

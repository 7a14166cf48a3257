//! The side of a connection that calls.

use super::{
    TlsError,
    follow::Followed,
    pem::{Contents, PemFiles},
    provider,
    watched::{Troubles, Watched},
};
use http::{Uri, uri::Scheme};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::{ClientConfig, RootCertStore, client::Resumption};
use rustls_pki_types::ServerName;
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::{BoxError, Service};

/// What a client shows, and whom it takes for the server that it asked for.
#[derive(Clone, Debug)]
pub struct ClientTls {
    followed: Arc<Followed<ClientConfig>>,
    /// The name that servers' certificates must be for; that of the address where there is none.
    name: Option<ServerName<'static>>,
    troubles: Troubles,
}

impl ClientTls {
    /// Reads `files`. Without authorities among them those of the system are trusted. Certificates must be for `name`,
    /// which `name_flag` gave, or else for the host that is called.
    ///
    /// # Errors
    /// [`TlsError`], one line that names the flag and the file.
    pub fn new(files: PemFiles, name: Option<&str>, name_flag: &'static str) -> Result<Self, TlsError> {
        let name = name.map(|name| {
            ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name {
                flag: name_flag,
                value: name.to_owned(),
                allowed: "a DNS name or an IP address",
            })
        });
        let name = name.transpose()?;
        Ok(Self { followed: Arc::new(Followed::new(files, build)?), name, troubles: Troubles::default() })
    }

    /// Reads the files again when they change, until what it returns is dropped. Must be called in a tokio runtime.
    #[must_use = "nothing is read again once it is dropped"]
    pub fn follow(&self) -> JoinSet<()> {
        Arc::clone(&self.followed).follow()
    }

    /// A channel to `endpoint`, as its `connect_lazy` makes one, but over TLS. The time for connecting includes the
    /// handshake.
    #[must_use]
    pub fn connect_lazy(&self, endpoint: &Endpoint) -> Channel {
        with_https(endpoint).connect_with_connector_lazy(self.connector())
    }

    /// The same at once.
    ///
    /// # Errors
    /// Where nobody can be reached there, or it is not who was asked for.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
        with_https(endpoint).connect_with_connector(self.connector()).await
    }

    /// For the next connection.
    pub(super) fn config(&self) -> Arc<ClientConfig> {
        self.followed.current()
    }

    fn connector(&self) -> Connector {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        Connector { tcp, tls: self.clone() }
    }

    /// The name that the certificate of the server at `uri` must be for.
    fn name_of(&self, uri: &Uri) -> Result<ServerName<'static>, io::Error> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let host = uri.host().unwrap_or_default();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(bare.to_owned());
        name.map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("no certificate can be for {host:?}"))
        })
    }
}

/// Requests say `https`, whatever the address was written as.
fn with_https(endpoint: &Endpoint) -> Endpoint {
    let mut parts = endpoint.uri().clone().into_parts();
    parts.scheme = Some(Scheme::HTTPS);
    match Uri::from_parts(parts) {
        Ok(origin) => endpoint.clone().origin(origin),
        // Only of an address without a host, to which no connection comes about.
        Err(_) => endpoint.clone(),
    }
}

fn build(files: &PemFiles, contents: &Contents) -> Result<ClientConfig, TlsError> {
    let roots = match files.roots(contents)? {
        Some(roots) => roots,
        None => Arc::new(system_roots()?),
    };
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots);
    let mut config = match files.identity(contents)? {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    // One that is broken does not take the others away.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(TlsError::NoSystemRoots { flag: "tls-ca" });
    }
    Ok(roots)
}

/// Makes connections over TLS, each by the certificates of its moment.
#[derive(Clone, Debug)]
struct Connector {
    tcp: HttpConnector,
    tls: ClientTls,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Watched>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(BoxError::from)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let name = self.tls.name_of(&uri);
        let troubles = self.tls.troubles.with(uri.authority().map(ToString::to_string).unwrap_or_default());
        let (tls, connecting) = (self.tls.clone(), self.tcp.call(uri));
        Box::pin(async move {
            let tcp: TcpStream = connecting.await?.into_inner();
            let connected = TlsConnector::from(tls.config()).connect(name?, tcp).await;
            let stream = connected.inspect_err(|error| troubles.notice(error))?;
            Ok(TokioIo::new(Watched::new(stream, troubles)))
        })
    }
}

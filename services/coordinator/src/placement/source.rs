//! Where replicas are found.

use super::kubernetes::{self, ServiceName};
use kube::Client;
use sdxl_core::StageKind;
use std::{fmt, io, str::FromStr, time::Duration};
use tokio::{net::lookup_host, sync::watch, time::sleep};
use tonic::transport::Uri;
use tracing::warn;

/// Where a replica listens, as `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(String);

impl Address {
    /// The address as an origin for HTTP/2 without TLS.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.0)
    }

    /// The host without its port.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.rsplit_once(':').map_or(self.0.as_str(), |(host, _)| host)
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.0.rsplit_once(':').and_then(|(_, port)| port.parse().ok())
    }
}

impl Address {
    /// Of a host's name or address, which may be one of IPv6; `None` for what is neither.
    pub(super) fn of(host: &str, port: u16) -> Option<Self> {
        let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        text.parse().ok()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Address {
    type Err = &'static str;

    /// Takes `host:port`, with or without `http://`.
    fn from_str(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        if scheme == "https" {
            return Err("--stage-tls-ca asks for TLS, and not https://");
        }
        if scheme != "http" {
            return Err("only http:// is served");
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let uri: Uri = format!("http://{authority}").parse().map_err(|_| "it is not HOST:PORT")?;
        let parsed = uri.authority().filter(|a| a.as_str() == authority && !authority.contains('@'));
        match parsed {
            Some(parsed) if parsed.host().is_empty() => Err("it needs a host, as HOST:PORT"),
            Some(parsed) if parsed.port_u16().is_none_or(|port| port == 0) => {
                Err("it needs a port, as HOST:PORT")
            }
            Some(_) => Ok(Self(authority.to_owned())),
            None => Err("it is not HOST:PORT"),
        }
    }
}

/// A replica's address, and in which zone it is, where that is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Address,
    /// As Kubernetes names zones; traffic between them is slower and is paid for.
    pub zone: Option<String>,
}

impl From<Address> for Endpoint {
    fn from(address: Address) -> Self {
        Self { address, zone: None }
    }
}

/// A name that stands for all replicas of a stage, as a headless Service of Kubernetes has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsName {
    host: String,
    port: u16,
}

impl DnsName {
    /// `dns:host:port`, or `dns:///host:port` as gRPC writes it; `None` for what begins otherwise.
    #[must_use]
    pub fn parse(text: &str) -> Option<Result<Self, &'static str>> {
        let rest = text.trim().strip_prefix("dns:")?;
        let authority = rest.strip_prefix("///").unwrap_or(rest);
        Some(authority.parse::<Address>().and_then(|address| {
            let (host, port) = address.0.rsplit_once(':').ok_or("it needs a port, as dns:HOST:PORT")?;
            let port = port.parse().map_err(|_| "it needs a port, as dns:HOST:PORT")?;
            Ok(Self { host: host.to_owned(), port })
        }))
    }

    /// All addresses behind the name, in order.
    async fn resolve(&self) -> io::Result<Vec<Endpoint>> {
        // An IPv6 address stands in brackets, which the resolver does not know.
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let found = lookup_host((host, self.port)).await?;
        let mut endpoints: Vec<_> =
            found.map(|address| Endpoint::from(Address(address.to_string()))).collect();
        endpoints.sort();
        endpoints.dedup();
        Ok(endpoints)
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dns:{}:{}", self.host, self.port)
    }
}

/// Where the replicas of a stage are found.
#[derive(Clone, Debug)]
pub enum Source {
    /// Whoever holds the other end of the channel changes them; nobody for a fixed list.
    Watch(watch::Receiver<Vec<Endpoint>>),
    /// A name that is resolved again and again.
    Dns {
        /// The name.
        name: DnsName,
        /// From one answer to the next question.
        interval: Duration,
    },
    /// A Service of Kubernetes, whose endpoints are watched.
    Kubernetes(ServiceName),
}

impl Source {
    /// These replicas for ever.
    #[must_use]
    pub fn fixed(addresses: Vec<Address>) -> Self {
        Self::Watch(watch::channel(addresses.into_iter().map(Endpoint::from).collect()).1)
    }

    /// Begins to look. Must be called in a tokio runtime; ends when what it gives is dropped.
    ///
    /// A Service of Kubernetes needs a client of it; without one it has no endpoints.
    pub(super) fn start(self, stage: StageKind, kubernetes: Option<Client>) -> Endpoints {
        let (sender, endpoints) = watch::channel(Vec::new());
        match (self, kubernetes) {
            (Self::Watch(endpoints), _) => return Endpoints(endpoints),
            (Self::Dns { name, interval }, _) => drop(tokio::spawn(follow(stage, name, interval, sender))),
            (Self::Kubernetes(service), Some(client)) => {
                tokio::spawn(kubernetes::follow(stage, client, service, sender));
            }
            (Self::Kubernetes(_), None) => {}
        }
        Endpoints(endpoints)
    }
}

/// Resolves `name` for as long as someone listens. An answer that fails changes nothing: replicas that are gone are
/// noticed by their health.
async fn follow(stage: StageKind, name: DnsName, interval: Duration, sender: watch::Sender<Vec<Endpoint>>) {
    let mut complaint = None;
    loop {
        match name.resolve().await {
            Ok(found) => {
                complaint = None;
                sender.send_if_modified(|addresses| {
                    let changed = *addresses != found;
                    *addresses = found;
                    changed
                });
            }
            Err(error) => {
                let line = error.to_string();
                if complaint.as_ref() != Some(&line) {
                    warn!(%stage, "{name} cannot be resolved, the last answer stands: {line}");
                    complaint = Some(line);
                }
            }
        }
        tokio::select! {
            () = sleep(interval) => {}
            () = sender.closed() => return,
        }
    }
}

/// The replicas that a stage has at the moment, and every change of them.
#[derive(Clone, Debug)]
pub(super) struct Endpoints(watch::Receiver<Vec<Endpoint>>);

impl Endpoints {
    /// The replicas of this moment.
    #[must_use]
    pub(super) fn current(&mut self) -> Vec<Endpoint> {
        self.0.borrow_and_update().clone()
    }

    /// Waits for a change since [`Endpoints::current`]; for ever if there can be none.
    pub(super) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_addresses_with_and_without_a_scheme() {
        for (text, address) in [
            ("127.0.0.1:50051", "127.0.0.1:50051"),
            ("http://vae-0.vae:50054", "vae-0.vae:50054"),
            ("http://[::1]:1/", "[::1]:1"),
            (" host:65535 ", "host:65535"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), address);
        }
    }

    #[test]
    fn refuses_what_is_no_address() {
        for text in
            ["", "host", "host:", ":80", "host:0", "host:99999", "https://a:1", "a:1/path", "u@a:1", "a b:1"]
        {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_dns_name_is_known_by_its_scheme() {
        let parsed = |text: &str| DnsName::parse(text).map(|name| name.map(|name| name.to_string()));
        assert_eq!(
            parsed("dns:base-unet.sdxl.svc:50052"),
            Some(Ok("dns:base-unet.sdxl.svc:50052".to_owned()))
        );
        assert_eq!(parsed("dns:///vae:1"), Some(Ok("dns:vae:1".to_owned())));
        assert_eq!(parsed("base-unet:50052"), None);
        assert!(matches!(parsed("dns:base-unet"), Some(Err(_))));
    }

    #[tokio::test]
    async fn a_name_stands_for_what_it_resolves_to() {
        let name = DnsName::parse("dns:127.0.0.1:4711").unwrap().unwrap();
        let mut found = Source::Dns { name, interval: Duration::from_secs(60) }.start(StageKind::Vae, None);
        found.changed().await;
        assert_eq!(found.current()[0].address, "127.0.0.1:4711".parse().unwrap());
    }

    #[tokio::test]
    async fn a_name_without_an_answer_changes_nothing() {
        let (sender, mut receiver) =
            watch::channel(vec![Endpoint::from("127.0.0.1:1".parse::<Address>().unwrap())]);
        let name = DnsName::parse("dns:no-such-name.invalid:1").unwrap().unwrap();
        let following = tokio::spawn(follow(StageKind::Vae, name, Duration::from_millis(1), sender));
        sleep(Duration::from_millis(100)).await;
        assert!(!receiver.has_changed().unwrap());
        assert_eq!(receiver.borrow_and_update().len(), 1);
        drop(receiver);
        following.await.unwrap();
    }
}

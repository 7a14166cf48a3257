//! Replicas as Kubernetes knows them: the EndpointSlices of a Service, watched.

use super::source::{Address, Endpoint};
use backon::ExponentialBuilder;
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, ExponentialBackoff, watcher},
    },
};
use sdxl_core::StageKind;
use std::{collections::BTreeMap, fmt, pin::pin, str::FromStr, time::Duration};
use tokio::sync::watch;
use tracing::{info, warn};

/// Between two tries to reach an API server that is away: what changes meanwhile is to be known soon after its return.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// What ties a slice to its Service.
const LABEL: &str = "kubernetes.io/service-name";

/// A Service whose endpoints are the replicas of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    name: String,
    /// The coordinator's own where there is none.
    namespace: Option<String>,
    port: Port,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Port {
    Number(u16),
    Name(String),
}

impl ServiceName {
    /// `kubernetes:SERVICE[.NAMESPACE]:PORT`, with the port's number or its name; `None` for what begins otherwise.
    #[must_use]
    pub fn parse(text: &str) -> Option<Result<Self, &'static str>> {
        let rest = text.trim().strip_prefix("kubernetes:")?;
        Some(rest.strip_prefix("///").unwrap_or(rest).parse())
    }
}

impl FromStr for ServiceName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let (service, port) =
            text.rsplit_once(':').ok_or("it needs a port, as kubernetes:SERVICE[.NAMESPACE]:PORT")?;
        let (name, namespace) = match service.split_once('.') {
            Some((name, namespace)) => (name, Some(namespace)),
            None => (service, None),
        };
        if ![Some(name), namespace].into_iter().flatten().all(is_label) {
            return Err(
                "Services and namespaces are named in small letters, digits and dashes, by at most 63",
            );
        }
        let port = match port.parse() {
            Ok(0) => return Err("port 0 is none"),
            Ok(number) => Port::Number(number),
            Err(_) if is_label(port) && port.bytes().any(|b| b.is_ascii_lowercase()) => {
                Port::Name(port.to_owned())
            }
            Err(_) => return Err("it needs a port, as kubernetes:SERVICE[.NAMESPACE]:PORT"),
        };
        Ok(Self { name: name.to_owned(), namespace: namespace.map(str::to_owned), port })
    }
}

/// A label of DNS (RFC 1123), of which these names consist.
fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kubernetes:{}", self.name)?;
        if let Some(namespace) = &self.namespace {
            write!(f, ".{namespace}")?;
        }
        match &self.port {
            Port::Number(number) => write!(f, ":{number}"),
            Port::Name(name) => write!(f, ":{name}"),
        }
    }
}

/// Tells `sender` of the Service's endpoints for as long as someone listens. While the API server is away the last that
/// was known stands: replicas that are gone are noticed by their health.
pub(super) async fn follow(
    stage: StageKind,
    client: Client,
    service: ServiceName,
    sender: watch::Sender<Vec<Endpoint>>,
) {
    let namespace = service.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let api: Api<EndpointSlice> = Api::namespaced(client, &namespace);
    let config = watcher::Config::default().labels(&format!("{LABEL}={}", service.name));
    let pauses = ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times();
    let mut events = pin!(watcher(api, config).backoff(ExponentialBackoff::from(pauses)));
    let mut slices = Slices::default();
    let mut complaint = None;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = sender.closed() => return,
        };
        match event {
            Some(Ok(event)) => {
                if slices.take(event) {
                    if complaint.take().is_some() {
                        info!(%stage, "{service} can be watched again");
                    }
                    let endpoints = slices.endpoints(&service.port);
                    sender.send_if_modified(|last| {
                        let changed = *last != endpoints;
                        *last = endpoints;
                        changed
                    });
                }
            }
            Some(Err(error)) => {
                let line = why(&error);
                if complaint.as_ref() != Some(&line) {
                    warn!(%stage, "{service} cannot be watched, what was known stands: {line}");
                    complaint = Some(line);
                }
            }
            // A watcher goes on for ever.
            None => return,
        }
    }
}

/// In the API server's own words, where they are its.
fn why(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// A Service's slices by name, and those of a list that is not complete yet.
#[derive(Debug, Default)]
struct Slices {
    known: BTreeMap<String, EndpointSlice>,
    listed: BTreeMap<String, EndpointSlice>,
}

impl Slices {
    /// Whether the endpoints may be others now.
    fn take(&mut self, event: Event<EndpointSlice>) -> bool {
        match event {
            Event::Init => {
                self.listed.clear();
                false
            }
            Event::InitApply(slice) => {
                self.listed.insert(slice.name_any(), slice);
                false
            }
            Event::InitDone => {
                self.known = std::mem::take(&mut self.listed);
                true
            }
            Event::Apply(slice) => {
                self.known.insert(slice.name_any(), slice);
                true
            }
            Event::Delete(slice) => self.known.remove(&slice.name_any()).is_some(),
        }
    }

    /// Those that are ready and are not about to end, in order. One may stand in two slices for a while.
    fn endpoints(&self, port: &Port) -> Vec<Endpoint> {
        let mut endpoints: Vec<_> = self.known.values().flat_map(|slice| of_slice(slice, port)).collect();
        endpoints.sort();
        endpoints.dedup_by(|a, b| a.address == b.address);
        endpoints
    }
}

fn of_slice<'a>(slice: &'a EndpointSlice, port: &'a Port) -> impl Iterator<Item = Endpoint> + 'a {
    let number = slice.ports.iter().flatten().find_map(|offered| {
        let number = offered.port.and_then(|number| u16::try_from(number).ok())?;
        let is_it = match port {
            Port::Number(wanted) => number == *wanted,
            Port::Name(wanted) => offered.name.as_deref() == Some(wanted),
        };
        is_it.then_some(number)
    });
    slice.endpoints.iter().filter_map(move |endpoint| {
        let conditions = endpoint.conditions.as_ref();
        // What is not said means ready, and not terminating.
        let is_ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let ends = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
        // All addresses of an endpoint are the same replica.
        let host = endpoint.addresses.first().filter(|_| is_ready && !ends)?;
        Some(Endpoint { address: Address::of(host, number?)?, zone: endpoint.zone.clone() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_known_by_its_scheme() {
        let parsed = |text: &str| ServiceName::parse(text).map(|name| name.map(|name| name.to_string()));
        for (text, same) in [
            ("kubernetes:base-unet:50052", "kubernetes:base-unet:50052"),
            (" kubernetes:///base-unet.sdxl:grpc", "kubernetes:base-unet.sdxl:grpc"),
        ] {
            assert_eq!(parsed(text), Some(Ok(same.to_owned())));
        }
        assert_eq!(parsed("dns:base-unet:50052"), None);
        for text in
            ["", "vae", ":1", "vae:", "vae:0", "vae:70000", "Vae:1", "vae.:1", "vae.a.b:1", "-:1", "vae:g_"]
        {
            let wrong = parsed(&format!("kubernetes:{text}"));
            assert!(matches!(wrong, Some(Err(_))), "{text:?}: {wrong:?}");
        }
    }

    fn slice(name: &str, endpoints: &serde_json::Value) -> EndpointSlice {
        serde_json::from_value(serde_json::json!({
            "metadata": { "name": name },
            "addressType": "IPv4",
            "ports": [{ "name": "metrics", "port": 9090 }, { "name": "grpc", "port": 50052 }],
            "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn found(slices: &Slices) -> Vec<String> {
        slices.endpoints(&Port::Name("grpc".into())).iter().map(|e| e.address.to_string()).collect()
    }

    #[test]
    fn only_what_is_ready_and_stays_takes_work() {
        let mut slices = Slices::default();
        let endpoints = serde_json::json!([
            { "addresses": ["10.0.0.3"], "conditions": {}, "zone": "a" },
            { "addresses": ["10.0.0.1", "10.0.1.1"], "conditions": { "ready": true } },
            { "addresses": ["10.0.0.2"], "conditions": { "ready": false } },
            { "addresses": ["10.0.0.4"], "conditions": { "ready": true, "terminating": true } },
        ]);
        assert!(slices.take(Event::Apply(slice("one", &endpoints))));
        assert_eq!(found(&slices), ["10.0.0.1:50052", "10.0.0.3:50052"]);
        let by_number = slices.endpoints(&Port::Number(50052));
        assert_eq!(by_number[1].zone.as_deref(), Some("a"));
        assert!(
            slices.endpoints(&Port::Number(1)).is_empty()
                && slices.endpoints(&Port::Name("x".into())).is_empty()
        );
    }

    #[test]
    fn slices_add_up_and_a_list_takes_their_place_once_it_is_complete() {
        let mut slices = Slices::default();
        let one = |host: &str| serde_json::json!([{ "addresses": [host] }]);
        slices.take(Event::Apply(slice("one", &one("10.0.0.1"))));
        slices.take(Event::Apply(slice("two", &one("10.0.0.2"))));
        slices.take(Event::Apply(slice("same", &one("10.0.0.2"))));
        assert_eq!(found(&slices), ["10.0.0.1:50052", "10.0.0.2:50052"]);
        assert!(!slices.take(Event::Init));
        assert!(!slices.take(Event::InitApply(slice("three", &one("10.0.0.3")))));
        assert_eq!(found(&slices).len(), 2, "until then the last that was known stands");
        assert!(slices.take(Event::InitDone));
        assert_eq!(found(&slices), ["10.0.0.3:50052"]);
        assert!(slices.take(Event::Delete(slice("three", &one("10.0.0.3")))));
        assert!(found(&slices).is_empty());
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets() {
        let mut slices = Slices::default();
        slices.take(Event::Apply(slice("one", &serde_json::json!([{ "addresses": ["fd00::1"] }]))));
        assert_eq!(found(&slices), ["[fd00::1]:50052"]);
    }
}

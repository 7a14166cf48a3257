//! Where replicas are found.

use std::{fmt, str::FromStr};
use tokio::sync::watch;
use tonic::transport::Uri;

/// Where a replica listens, as `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(String);

impl Address {
    /// The address as an origin for HTTP/2 without TLS.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.0)
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

/// The replicas that a stage has at the moment. Whoever holds the other end of the channel (nobody for a fixed list;
/// DNS or Kubernetes) changes them.
#[derive(Clone, Debug)]
pub struct Source(watch::Receiver<Vec<Address>>);

impl Source {
    /// The replicas that `current` holds, now and later.
    #[must_use]
    pub fn new(current: watch::Receiver<Vec<Address>>) -> Self {
        Self(current)
    }

    /// These replicas for ever.
    #[must_use]
    pub fn fixed(addresses: Vec<Address>) -> Self {
        Self(watch::channel(addresses).1)
    }

    /// The replicas of this moment.
    #[must_use]
    pub fn current(&mut self) -> Vec<Address> {
        self.0.borrow_and_update().clone()
    }

    /// Waits for a change since [`Source::current`]; for ever if there can be none.
    pub async fn changed(&mut self) {
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
}

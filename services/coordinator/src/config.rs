//! What the command line means, checked.

use crate::{
    access::{AccessArgsError, AccessConfig},
    args::Args,
    keep::{Keep, KeepError},
    placement::{Address, DnsName, ServiceName, Source},
};
use sdxl_core::StageKind;
use sdxl_runtime::tls::{ClientTls, TlsError};
use std::time::Duration;
use thiserror::Error;

/// A coordinator's settings. Every stage that a request needs has a source of replicas.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of the text-encoder stage.
    pub text_encoder: Source,
    /// Of the base-unet stage.
    pub base_unet: Source,
    /// Of the refiner stage; `None` for a cluster that has none.
    pub refiner: Option<Source>,
    /// Of the vae stage.
    pub vae: Source,
    /// The zone that the coordinator is in, as Kubernetes names zones; replicas there are preferred.
    pub zone: Option<String>,
    /// How long connecting to a replica may take.
    pub connect_timeout: Duration,
    /// How replicas are connected to over TLS; `None` for connections without.
    pub stage_tls: Option<ClientTls>,
    /// Requests at work at the same time.
    pub max_requests: usize,
    /// Steps from one checkpoint of a picture to the next.
    pub checkpoint_interval: u32,
    /// How long work that was begun waits where no replica takes it.
    pub patience: Duration,
    /// Retries that are always allowed, a second.
    pub retries_per_second: u32,
    /// Retries allowed beside those, as a share of all calls to stages.
    pub retry_ratio: f32,
    /// What outlives a request.
    pub keep: Keep,
    /// Who may call.
    pub access: AccessConfig,
    /// How long running requests may take to finish once the coordinator is told to stop.
    pub drain_timeout: Duration,
}

/// Why the command line makes no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// One of the addresses is none.
    #[error("--{flag}: {value:?} is not an address: {problem}")]
    Address {
        /// The flag without its dashes.
        flag: &'static str,
        /// What stands there.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An address stands twice.
    #[error("--{flag}: {address} stands there twice")]
    Twice {
        /// The flag without its dashes.
        flag: &'static str,
        /// The address.
        address: Address,
    },
    /// A stage that every request needs has no replica.
    #[error("--{flag}: at least one address is needed, as HOST:PORT")]
    Missing {
        /// The flag without its dashes.
        flag: &'static str,
    },
    /// The time for connecting is zero.
    #[error("--connect-timeout: 0 seconds are too short to connect in")]
    ConnectTimeout,
    /// The time between two questions is zero.
    #[error("--dns-interval: 0 seconds would ask without end")]
    DnsInterval,
    /// The share of retries is none.
    #[error("--retry-ratio: {0} is not in 0..=10")]
    RetryRatio(String),
    /// There can be no TLS to the stages as it was asked for.
    #[error(transparent)]
    StageTls(#[from] TlsError),
    /// What is to be kept makes no sense.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// It makes no sense who may call.
    #[error(transparent)]
    Access(#[from] AccessArgsError),
}

impl TryFrom<&Args> for Config {
    type Error = ConfigError;

    fn try_from(args: &Args) -> Result<Self, ConfigError> {
        if args.connect_timeout.is_zero() {
            return Err(ConfigError::ConnectTimeout);
        }
        if args.dns_interval.is_zero() {
            return Err(ConfigError::DnsInterval);
        }
        if !(0.0..=10.0).contains(&args.retry_ratio) {
            return Err(ConfigError::RetryRatio(args.retry_ratio.to_string()));
        }
        Ok(Self {
            text_encoder: needed(StageKind::TextEncoder, &args.text_encoder, args.dns_interval)?,
            base_unet: needed(StageKind::BaseUnet, &args.base_unet, args.dns_interval)?,
            refiner: listed(StageKind::Refiner, &args.refiner, args.dns_interval)?,
            vae: needed(StageKind::Vae, &args.vae, args.dns_interval)?,
            // An environment variable that is set to nothing is no zone.
            zone: args.zone.as_deref().map(str::trim).filter(|zone| !zone.is_empty()).map(str::to_owned),
            connect_timeout: args.connect_timeout,
            stage_tls: args.stage_tls.read()?,
            max_requests: usize::try_from(args.max_requests).unwrap_or(usize::MAX),
            checkpoint_interval: args.checkpoint_interval,
            patience: args.patience,
            retries_per_second: args.retries_per_second,
            retry_ratio: args.retry_ratio,
            keep: Keep::try_from(&args.keep)?,
            access: args.access.checked(args.server.listen)?,
            drain_timeout: args.server.drain_timeout,
        })
    }
}

impl Config {
    /// Whether replicas are found by asking Kubernetes.
    #[must_use]
    pub fn uses_kubernetes(&self) -> bool {
        [&self.text_encoder, &self.base_unet, &self.vae]
            .into_iter()
            .chain(&self.refiner)
            .any(|source| matches!(source, Source::Kubernetes(_)))
    }
}

fn needed(stage: StageKind, values: &[String], dns: Duration) -> Result<Source, ConfigError> {
    listed(stage, values, dns)?.ok_or(ConfigError::Missing { flag: stage.name() })
}

/// `None` for an empty list. Stages are flags by their names.
fn listed(stage: StageKind, values: &[String], dns: Duration) -> Result<Option<Source>, ConfigError> {
    let flag = stage.name();
    let mut addresses: Vec<Address> = Vec::new();
    // An environment variable that is set to nothing is one empty value.
    let values: Vec<_> = values.iter().filter(|value| !value.trim().is_empty()).collect();
    for value in &values {
        let dns = || Some(DnsName::parse(value)?.map(|name| Source::Dns { name, interval: dns }));
        let kubernetes = || Some(ServiceName::parse(value)?.map(Source::Kubernetes));
        let Some(source) = dns().or_else(kubernetes) else { continue };
        let wrong = |problem| ConfigError::Address { flag, value: (*value).clone(), problem };
        let source = source.map_err(wrong)?;
        if values.len() > 1 {
            return Err(wrong("a name for all replicas stands alone"));
        }
        return Ok(Some(source));
    }
    for value in values {
        let address: Address =
            value.parse().map_err(|problem| ConfigError::Address { flag, value: value.clone(), problem })?;
        if addresses.contains(&address) {
            return Err(ConfigError::Twice { flag, address });
        }
        addresses.push(address);
    }
    Ok((!addresses.is_empty()).then(|| Source::fixed(addresses)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    const NEEDED: [&str; 7] = ["x", "--text-encoder", "t:1", "--base-unet", "b:1,c:2", "--vae", "v:1"];

    fn config(more: &[&str]) -> Result<Config, String> {
        let args = Args::try_parse_from(NEEDED.iter().chain(more)).unwrap();
        Config::try_from(&args).map_err(|e| e.to_string())
    }

    #[test]
    fn a_refiner_may_be_left_out_or_set_to_nothing() {
        assert!(config(&[]).unwrap().refiner.is_none());
        assert!(config(&["--refiner", ""]).unwrap().refiner.is_none());
        let refiner = config(&["--refiner", "r:1"]).unwrap().refiner.unwrap();
        assert!(matches!(refiner, Source::Watch(addresses) if addresses.borrow().len() == 1));
    }

    #[test]
    fn a_name_that_is_resolved_stands_alone() {
        let refiner = config(&["--refiner", "dns:refiner.sdxl.svc:50053"]).unwrap().refiner.unwrap();
        assert!(matches!(refiner, Source::Dns { interval, .. } if interval == Duration::from_secs(5)));
        assert_eq!(
            config(&["--refiner", "r:1,dns:refiner:1"]).unwrap_err(),
            "--refiner: \"dns:refiner:1\" is not an address: a name for all replicas stands alone"
        );
        assert_eq!(
            config(&["--dns-interval", "0"]).unwrap_err(),
            "--dns-interval: 0 seconds would ask without end"
        );
    }

    #[test]
    fn a_service_of_kubernetes_is_watched() {
        let found = config(&["--refiner", "kubernetes:refiner:grpc", "--zone", " "]).unwrap();
        assert!(matches!(found.refiner, Some(Source::Kubernetes(_))) && found.uses_kubernetes());
        assert!(found.zone.is_none() && !config(&[]).unwrap().uses_kubernetes());
        assert_eq!(
            config(&["--refiner", "kubernetes:Refiner:1"]).unwrap_err(),
            "--refiner: \"kubernetes:Refiner:1\" is not an address: Services and namespaces are named in small letters, \
             digits and dashes, by at most 63"
        );
    }

    #[test]
    fn what_is_wrong_is_one_line_that_names_the_flag() {
        assert_eq!(
            config(&["--refiner", "r:1,nonsense"]).unwrap_err(),
            "--refiner: \"nonsense\" is not an address: it needs a port, as HOST:PORT"
        );
        assert_eq!(
            config(&["--vae", "http://v:1/"]).unwrap_err(),
            "--vae: v:1 stands there twice",
            "with and without http:// is the same address"
        );
        assert_eq!(
            config(&["--connect-timeout", "0"]).unwrap_err(),
            "--connect-timeout: 0 seconds are too short to connect in"
        );
        assert_eq!(
            config(&["--stage-tls-name", "stage.sdxl.svc"]).unwrap_err(),
            "--stage-tls-name needs --stage-tls-ca beside it"
        );
        assert_eq!(
            config(&["--stage-tls-ca", "/none.pem"]).unwrap_err(),
            "--stage-tls-ca: /none.pem: cannot be read: No such file or directory (os error 2)"
        );
        assert_eq!(config(&["--retry-ratio", "NaN"]).unwrap_err(), "--retry-ratio: NaN is not in 0..=10");
        let args = Args::try_parse_from(["x", "--text-encoder", "t:1", "--vae", "v:1"]).unwrap();
        let error = Config::try_from(&args).unwrap_err();
        assert_eq!(error, ConfigError::Missing { flag: "base-unet" });
    }
}

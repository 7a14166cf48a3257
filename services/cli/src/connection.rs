//! The way to a cluster, and what its errors mean to a person.

use crate::{
    failure::Failure,
    generate::flag_of,
    key::{Bearer, KEY_VARIABLE},
};
use anyhow::anyhow;
use clap::Args;
use sdxl_core::{ErrorClass, FieldViolation, Priority, Tenant};
use sdxl_proto::{status::class_of, v1};
use sdxl_runtime::tls::{ClientTls, PemFile, PemFiles, TlsError};
use std::{path::PathBuf, time::Duration};
use tonic::{
    Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A cluster that vanishes from the network is noticed within two of them.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The way to a cluster, on which each call shows the key.
pub(crate) type Connection = InterceptedService<Channel, Bearer>;

/// Which cluster is asked, and with which key.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct EndpointArgs {
    /// The cluster's address
    #[arg(
        long,
        env = "SDXL_ENDPOINT",
        value_name = "URL",
        default_value = "http://127.0.0.1:50051",
        value_parser = url
    )]
    pub(crate) endpoint: String,

    /// File that holds the key to show to the cluster, or a JWT; without it the variable SDXL_KEY holds it, which is no
    /// flag, so that no list of processes shows it
    #[arg(long, env = "SDXL_KEY_FILE", value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,

    /// Certificates of authorities, in PEM, of which the cluster's must be; the system's if not given. For https:// alone
    #[arg(long, env = "SDXL_TLS_CA", value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// The certificate to show to the cluster and those between it and its authority, in PEM
    #[arg(long, env = "SDXL_TLS_CERT", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The private key of --tls-cert, in PEM
    #[arg(long, env = "SDXL_TLS_KEY", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
}

/// On whose behalf it is asked.
#[derive(Args, Clone, Debug)]
pub(crate) struct TenantArgs {
    /// On whose behalf the request is made; tenants share a busy cluster in equal parts
    #[arg(long, env = "SDXL_TENANT", value_name = "NAME", value_parser = tenant)]
    pub(crate) tenant: Option<Tenant>,
}

/// A tenant's name.
pub(crate) fn tenant(text: &str) -> Result<Tenant, String> {
    text.parse().map_err(|violation: FieldViolation| violation.description)
}

/// A priority as requests have it.
pub(crate) fn wire_priority(priority: Priority) -> v1::Priority {
    match priority {
        Priority::Interactive => v1::Priority::Interactive,
        Priority::Batch => v1::Priority::Batch,
    }
}

/// An address with or without `http://`.
fn url(text: &str) -> Result<String, String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let parsed: tonic::transport::Uri = url.parse().map_err(|e| format!("{e}; such as http://host:50051"))?;
    match (parsed.scheme_str(), parsed.host()) {
        (Some("http" | "https"), Some(_)) => Ok(url),
        _ => Err("not an address such as http://host:50051".to_owned()),
    }
}

impl EndpointArgs {
    /// Connects, within a few seconds.
    pub(crate) async fn connect(&self) -> Result<Connection, Failure> {
        let bearer = Bearer::find(self.key_file.as_deref())?;
        let endpoint = Endpoint::from_shared(self.endpoint.clone())
            .map_err(|e| Failure::bad_input(format!("--endpoint: {e}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE);
        let connected = match self.tls()? {
            Some(tls) => tls.connect(&endpoint).await,
            None => endpoint.connect().await,
        };
        let channel = connected.map_err(|error| {
            let cause = root_cause(&error);
            Failure::from(anyhow!(
                "no cluster can be reached at {} ({cause}); start one with `sdxl up`, or name another with --endpoint",
                self.endpoint
            ))
        })?;
        Ok(InterceptedService::new(channel, bearer))
    }

    /// For an address with https://.
    fn tls(&self) -> Result<Option<ClientTls>, Failure> {
        let files = PemFiles {
            ca: PemFile::given("tls-ca", self.tls_ca.as_ref()),
            cert: PemFile::given("tls-cert", self.tls_cert.as_ref()),
            key: PemFile::given("tls-key", self.tls_key.as_ref()),
        };
        let alone = |given, missing| Failure::bad_input(TlsError::Alone { given, missing }.to_string());
        match (&files.cert, &files.key) {
            (Some(_), None) => return Err(alone("tls-cert", "tls-key")),
            (None, Some(_)) => return Err(alone("tls-key", "tls-cert")),
            _ => {}
        }
        if self.endpoint.starts_with("https://") {
            let tls = ClientTls::new(files, None, "endpoint");
            return tls.map(Some).map_err(|error| Failure::bad_input(error.to_string()));
        }
        match files.ca.or(files.cert) {
            None => Ok(None),
            Some(file) => Err(Failure::bad_input(format!(
                "--{} is of no use to --endpoint {}, which is without TLS; https:// is with it",
                file.flag, self.endpoint
            ))),
        }
    }

    /// What `status`, which the cluster answered, means to the person at the command line.
    pub(crate) fn explain(&self, status: &Status) -> Failure {
        // Where the connection broke, as it does for a certificate that is not accepted, the cause says more.
        let broken = std::error::Error::source(status).map(root_cause);
        let message = broken.as_deref().unwrap_or_else(|| status.message());
        match class_of(status) {
            ErrorClass::InvalidRequest => Failure::BadInput(violations(status)),
            ErrorClass::FailedPrecondition if message.starts_with("refiner") => Failure::bad_input(format!(
                "{message} (--refiner-split, --refiner-strength); `sdxl up --refiner DIR` starts a cluster with one"
            )),
            ErrorClass::Unavailable => anyhow!(
                "the cluster at {} cannot serve this now: {message}; `sdxl model` tells what is ready, `sdxl up` \
                 starts a cluster here",
                self.endpoint
            )
            .into(),
            ErrorClass::Overloaded => {
                anyhow!("the cluster at {} is full: {message}; try again later", self.endpoint).into()
            }
            ErrorClass::Unauthenticated => anyhow!(
                "the cluster at {} does not let us in: {message}; --key-file FILE or the variable {KEY_VARIABLE} holds \
                 the key",
                self.endpoint
            )
            .into(),
            ErrorClass::DeadlineExceeded => anyhow!("not done within --timeout: {message}").into(),
            _ => anyhow!("{}: {message}", status.code()).into(),
        }
    }
}

/// One line for each wrong field, with its flag in front.
fn violations(status: &Status) -> Vec<String> {
    let fields = status.get_details_bad_request().map(|b| b.field_violations).unwrap_or_default();
    if fields.is_empty() {
        return vec![status.message().to_owned()];
    }
    fields.into_iter().map(|v| format!("{}: {}", flag_of(&v.field), v.description)).collect()
}

/// The innermost error: "Connection refused" rather than "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdxl_core::PlanError;

    fn endpoint() -> EndpointArgs {
        EndpointArgs { endpoint: "http://127.0.0.1:1".to_owned(), ..EndpointArgs::default() }
    }

    fn text(failure: &Failure) -> String {
        match failure {
            Failure::BadInput(lines) => lines.join("\n"),
            Failure::Failed(error) => error.to_string(),
            Failure::Interrupted => String::new(),
        }
    }

    #[test]
    fn addresses_are_checked_before_use() {
        assert_eq!(url("127.0.0.1:5"), Ok("http://127.0.0.1:5".to_owned()));
        assert_eq!(url("http://host:5"), Ok("http://host:5".to_owned()));
        assert_eq!(url("https://host"), Ok("https://host".to_owned()));
        for wrong in ["http://", "", "ftp://host", "a b"] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_tls_misses_is_one_line_with_its_flag() {
        let with = |endpoint: &str, ca: Option<&str>, cert: Option<&str>, key: Option<&str>| {
            let path = |path: Option<&str>| path.map(PathBuf::from);
            let endpoint = endpoint.to_owned();
            let args = EndpointArgs {
                endpoint,
                tls_ca: path(ca),
                tls_cert: path(cert),
                tls_key: path(key),
                ..EndpointArgs::default()
            };
            args.tls().map(|tls| tls.is_some()).map_err(|failure| text(&failure))
        };
        assert_eq!(with("http://host:5", None, None, None), Ok(false));
        let cases = [
            (with("https://host:5", None, Some("c"), None), "--tls-cert needs --tls-key beside it"),
            (with("https://host:5", None, None, Some("k")), "--tls-key needs --tls-cert beside it"),
            (
                with("https://host:5", Some("/none.pem"), None, None),
                "--tls-ca: /none.pem: cannot be read: No such file or directory (os error 2)",
            ),
            (
                with("http://host:5", Some("ca"), None, None),
                "--tls-ca is of no use to --endpoint http://host:5, which is without TLS; https:// is with it",
            ),
        ];
        for (said, expected) in cases {
            assert_eq!(said.unwrap_err(), expected);
        }
    }

    #[test]
    fn each_wrong_field_has_a_line_with_its_flag() {
        let violation = |field: &str, description: &str| FieldViolation {
            field: field.to_owned(),
            description: description.to_owned(),
        };
        let status = sdxl_proto::status::status(&PlanError::Invalid(vec![
            violation("width", "100 is not a multiple of 8 in 64..=2048"),
            violation("refiner.strength", "2 is not between 0 and 1, both excluded"),
        ]));
        let failure = endpoint().explain(&status);
        assert_eq!(failure.code(), 2);
        assert_eq!(
            text(&failure),
            "--width: 100 is not a multiple of 8 in 64..=2048\n\
             --refiner-strength: 2 is not between 0 and 1, both excluded"
        );
        let bare = endpoint().explain(&Status::invalid_argument("no details"));
        assert_eq!(text(&bare), "no details");
    }

    #[test]
    fn a_cluster_that_cannot_serve_is_named_with_the_way_out() {
        let failure = endpoint().explain(&Status::unavailable("vae: no replica is ready"));
        assert_eq!(failure.code(), 1);
        for part in ["http://127.0.0.1:1", "vae: no replica is ready", "sdxl up"] {
            assert!(text(&failure).contains(part), "{part}");
        }
        let failure = endpoint().explain(&sdxl_proto::status::status(&PlanError::NoRefiner));
        assert_eq!(failure.code(), 2);
        assert!(text(&failure).contains("--refiner-split"), "{failure:?}");
    }

    #[tokio::test]
    async fn an_endpoint_without_a_cluster_says_how_to_start_one() {
        // A port that was free a moment ago.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let args = EndpointArgs { endpoint: address.clone(), ..EndpointArgs::default() };
        let failure = args.connect().await.unwrap_err();
        assert_eq!(failure.code(), 1);
        for part in [address.as_str(), "refused", "sdxl up", "--endpoint"] {
            assert!(text(&failure).contains(part), "{part}: {}", text(&failure));
        }
    }
}

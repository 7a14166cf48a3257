//! What a server shows, and whom it accepts.

use super::{
    TlsError,
    follow::Followed,
    pem::{Contents, PemFile, PemFiles},
    provider,
};
use crate::args::TlsArgs;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, DnsName, UnixTime};
use std::sync::Arc;
use tokio::task::JoinSet;

/// The side of a connection that is called.
#[derive(Clone, Debug)]
pub struct ServerTls(Arc<Followed<ServerConfig>>);

impl ServerTls {
    /// Reads the files that `args` names; `None` where it names none, for a server without TLS.
    ///
    /// # Errors
    /// [`TlsError`], one line that names the flag and the file.
    pub fn new(args: &TlsArgs) -> Result<Option<Self>, TlsError> {
        let names = args.tls_client_name.iter().map(|name| name.trim()).filter(|name| !name.is_empty());
        let names: Arc<[CallerName]> = names.map(CallerName::parse).collect::<Result<_, _>>()?;
        let files = PemFiles {
            cert: PemFile::given("tls-cert", args.tls_cert.as_ref()),
            key: PemFile::given("tls-key", args.tls_key.as_ref()),
            ca: PemFile::given("tls-client-ca", args.tls_client_ca.as_ref()),
        };
        let alone = |given, missing| Err(TlsError::Alone { given, missing });
        match (&files.cert, &files.key, &files.ca) {
            (Some(_), None, _) => alone("tls-cert", "tls-key"),
            (None, Some(_), _) => alone("tls-key", "tls-cert"),
            (None, None, Some(_)) => alone("tls-client-ca", "tls-cert"),
            (_, _, None) if !names.is_empty() => alone("tls-client-name", "tls-client-ca"),
            (None, None, None) => Ok(None),
            (Some(_), Some(_), _) => {
                let build = move |files: &PemFiles, contents: &Contents| build(files, contents, &names);
                Ok(Some(Self(Arc::new(Followed::new(files, build)?))))
            }
        }
    }

    /// Reads the files again when they change, until what it returns is dropped. Must be called in a tokio runtime.
    pub(crate) fn follow(&self) -> JoinSet<()> {
        Arc::clone(&self.0).follow()
    }

    /// For the next connection.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.0.current()
    }
}

fn build(files: &PemFiles, contents: &Contents, names: &Arc<[CallerName]>) -> Result<ServerConfig, TlsError> {
    let identity =
        files.identity(contents)?.ok_or(TlsError::Alone { given: "tls-cert", missing: "tls-key" })?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match files.roots(contents)? {
        None => builder.with_no_client_auth(),
        Some(roots) => builder.with_client_cert_verifier(Arc::new(Callers::new(roots, Arc::clone(names))?)),
    };
    let mut config = builder.with_cert_resolver(identity);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()]; // the latter for /healthz
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// One of the names that a caller's certificate may be for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum CallerName {
    Dns(String),
    Uri(String),
}

impl CallerName {
    fn parse(text: &str) -> Result<Self, TlsError> {
        let is_uri = text.contains("://") && text.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some());
        if is_uri {
            return Ok(Self::Uri(text.to_owned()));
        }
        match DnsName::try_from(text) {
            Ok(name) => Ok(Self::Dns(name.as_ref().to_ascii_lowercase())),
            Err(_) => Err(TlsError::Name {
                flag: "tls-client-name",
                value: text.to_owned(),
                allowed: "a DNS name or a URI, such as coordinator.sdxl.svc or spiffe://cluster/coordinator",
            }),
        }
    }

    /// Letter for letter: a certificate for `*.sdxl.svc` is not for `coordinator.sdxl.svc`.
    fn is_of(&self, certificate: &webpki::EndEntityCert<'_>) -> bool {
        match self {
            Self::Dns(name) => certificate.valid_dns_names().any(|other| other.eq_ignore_ascii_case(name)),
            Self::Uri(uri) => certificate.valid_uri_names().any(|other| other == uri),
        }
    }
}

/// Accepts callers with a certificate of one of the authorities, and with one of the names where there are any.
#[derive(Debug)]
struct Callers {
    authorities: Arc<dyn ClientCertVerifier>,
    names: Arc<[CallerName]>,
}

impl Callers {
    fn new(roots: Arc<RootCertStore>, names: Arc<[CallerName]>) -> Result<Self, TlsError> {
        let authorities = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| TlsError::Setup(error.to_string()))?;
        Ok(Self { authorities, names })
    }
}

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.authorities.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.authorities.verify_client_cert(end_entity, intermediates, now)?;
        let certificate =
            webpki::EndEntityCert::try_from(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        if self.names.is_empty() || self.names.iter().any(|name| name.is_of(&certificate)) {
            return Ok(verified);
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_names_or_uris() {
        let parse = |text| CallerName::parse(text).map_err(|error| error.to_string());
        assert_eq!(parse("Coordinator.sdxl.svc"), Ok(CallerName::Dns("coordinator.sdxl.svc".to_owned())));
        let uri = "spiffe://cluster.local/ns/sdxl/sa/coordinator";
        assert_eq!(parse(uri), Ok(CallerName::Uri(uri.to_owned())));
        for wrong in ["a b", "10.0.0.1", "*.sdxl.svc", "spiffe://", "-"] {
            let error = parse(wrong).unwrap_err();
            assert!(error.starts_with(&format!("--tls-client-name: {wrong:?} is not a DNS name")), "{error}");
        }
    }
}

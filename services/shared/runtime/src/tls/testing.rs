//! Certificates for tests, which are made as they run.

use super::{ClientTls, PemFile, PemFiles};
use crate::args::TlsArgs;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Makes certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Its own certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for a DNS name, or a URI, and its key.
    pub(crate) fn issue(&self, name: &str) -> (String, String) {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        let name = name.to_owned();
        params.subject_alt_names = vec![match name.contains("://") {
            true => SanType::URI(name.try_into().unwrap()),
            false => SanType::DnsName(name.try_into().unwrap()),
        }];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A folder with `cert.pem`, `key.pem` and `ca.pem`.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    /// A certificate of `authority` for `name`; the other side's must be of `trusted`.
    pub(crate) fn new(authority: &Authority, name: &str, trusted: &Authority) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.renew(authority, name);
        fs::write(folder.path("ca.pem"), trusted.pem()).unwrap();
        folder
    }

    /// Another certificate and key in the same files.
    pub(crate) fn renew(&self, authority: &Authority, name: &str) {
        let (cert, key) = authority.issue(name);
        fs::write(self.path("cert.pem"), cert).unwrap();
        fs::write(self.path("key.pem"), key).unwrap();
    }

    pub(crate) fn path(&self, file: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(file)
    }

    /// As a server is told of it.
    pub(crate) fn server(&self, names: &[&str]) -> TlsArgs {
        TlsArgs {
            tls_cert: Some(self.path("cert.pem")),
            tls_key: Some(self.path("key.pem")),
            tls_client_ca: Some(self.path("ca.pem")),
            tls_client_name: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    /// As a client is told of it; with a certificate or without.
    pub(crate) fn client(&self, shows: bool, name: &str) -> ClientTls {
        let file = |flag, file| PemFile::given(flag, Some(&self.path(file)));
        let shown = |flag, name| file(flag, name).filter(|_| shows);
        let files = PemFiles {
            ca: file("tls-ca", "ca.pem"),
            cert: shown("tls-cert", "cert.pem"),
            key: shown("tls-key", "key.pem"),
        };
        ClientTls::new(files, Some(name), "tls-name").unwrap()
    }
}

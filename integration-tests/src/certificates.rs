//! Certificates that are made as a test runs, in files as servers read them.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use sdxl_runtime::tls::{ClientTls, PemFile, PemFiles};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Makes certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// One by that name.
    ///
    /// # Panics
    /// Where the library cannot make one.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let (key, mut params) = (KeyPair::generate().expect("a key"), CertificateParams::default());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Its own certificate.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }
}

/// A certificate, its key and the authorities that the other side's may be of, in a folder that goes when it is dropped.
#[derive(Debug)]
pub struct Identity(tempfile::TempDir);

impl Identity {
    /// A certificate of `authority` for a DNS name; the other side's must be of one of `trusted`.
    ///
    /// # Panics
    /// Where the files cannot be written.
    #[must_use]
    pub fn new(authority: &Authority, name: &str, trusted: &[&Authority]) -> Self {
        let identity = Self(tempfile::tempdir().expect("a folder for certificates"));
        identity.renew(authority, name);
        let bundle: String = trusted.iter().map(|authority| authority.pem()).collect();
        fs::write(identity.file("ca.pem"), bundle).expect("a file");
        identity
    }

    /// Another certificate and key in the same files; what is in the certificate.
    ///
    /// # Panics
    /// Where the files cannot be written.
    pub fn renew(&self, authority: &Authority, name: &str) -> Vec<u8> {
        let (key, mut params) = (KeyPair::generate().expect("a key"), CertificateParams::default());
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().expect("a name"))];
        let cert = params.signed_by(&key, &authority.issuer).expect("a certificate");
        fs::write(self.file("cert.pem"), cert.pem()).expect("a file");
        fs::write(self.file("key.pem"), key.serialize_pem()).expect("a file");
        cert.der().to_vec()
    }

    /// `cert.pem`, `key.pem` or `ca.pem`.
    #[must_use]
    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    /// The flags of a binary for the three files: `--PREFIXcert`, `--PREFIXkey` and the one that is named for the
    /// authorities.
    #[must_use]
    pub fn flags(&self, prefix: &str, ca: &str) -> Vec<String> {
        let file = |name: &str| self.file(name).display().to_string();
        let cert = [format!("--{prefix}cert"), file("cert.pem")];
        let key = [format!("--{prefix}key"), file("key.pem")];
        [cert, key, [ca.to_owned(), file("ca.pem")]].concat()
    }

    /// What a client makes of it that asks for a server by `name`. Without a certificate of its own where it `shows` none.
    ///
    /// # Panics
    /// Where the files are none.
    #[must_use]
    pub fn client(&self, shows: bool, name: &str) -> ClientTls {
        let file = |flag, name| PemFile::given(flag, Some(&self.file(name)));
        let shown = |flag, name| file(flag, name).filter(|_| shows);
        let (cert, key) = (shown("tls-cert", "cert.pem"), shown("tls-key", "key.pem"));
        let files = PemFiles { cert, key, ca: file("tls-ca", "ca.pem") };
        ClientTls::new(files, Some(name), "tls-name").expect("certificates")
    }
}

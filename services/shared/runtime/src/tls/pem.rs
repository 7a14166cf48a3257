//! What is in the files.

use super::{TlsError, provider};
use rustls::{
    RootCertStore,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use std::{fmt, fs, path::PathBuf, sync::Arc};

/// A file in PEM, and the flag that named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemFile {
    /// Without its dashes.
    pub flag: &'static str,
    /// Where the file is.
    pub path: PathBuf,
}

impl PemFile {
    /// Of a flag that may be left out.
    #[must_use]
    pub fn given(flag: &'static str, path: Option<&PathBuf>) -> Option<Self> {
        path.map(|path| Self { flag, path: path.clone() })
    }

    fn read(&self) -> Result<Vec<u8>, TlsError> {
        fs::read(&self.path)
            .map_err(|error| TlsError::Read { file: self.clone(), problem: error.to_string() })
    }

    fn wrong(&self, problem: impl Into<String>) -> TlsError {
        TlsError::Content { file: self.clone(), problem: problem.into() }
    }

    fn certificates(&self, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(content).collect();
        let found = found.map_err(|error| self.wrong(problem(&error)))?;
        if found.is_empty() {
            return Err(self.wrong("there is no certificate in it, in PEM"));
        }
        Ok(found)
    }
}

impl fmt::Display for PemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}: {}", self.flag, self.path.display())
    }
}

/// The files of one side of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PemFiles {
    /// The certificate that is shown, and then those between it and its authority; goes with a key.
    pub cert: Option<PemFile>,
    /// Its private key.
    pub key: Option<PemFile>,
    /// The authorities that the other side's certificate may be of.
    pub ca: Option<PemFile>,
}

/// What the files hold; nothing of a file that is not there. No Debug: a key is among it.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

impl PemFiles {
    pub(super) fn read(&self) -> Result<Contents, TlsError> {
        let read = |file: &Option<PemFile>| file.as_ref().map_or_else(|| Ok(Vec::new()), PemFile::read);
        Ok(Contents { cert: read(&self.cert)?, key: read(&self.key)?, ca: read(&self.ca)? })
    }

    /// The certificate and its key, where they are given.
    pub(super) fn identity(&self, contents: &Contents) -> Result<Option<Arc<SingleCertAndKey>>, TlsError> {
        let (Some(cert), Some(key)) = (&self.cert, &self.key) else { return Ok(None) };
        let chain = cert.certificates(&contents.cert)?;
        // The form is checked apart from the key: each has its own file.
        webpki::EndEntityCert::try_from(&chain[0])
            .map_err(|error| cert.wrong(format!("the first certificate in it is none: {error}")))?;
        let der = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|error| {
            key.wrong(match error {
                pem::Error::NoItemsFound => "there is no private key in it, in PEM".to_owned(),
                other => problem(&other),
            })
        })?;
        let certified = CertifiedKey::from_der(chain, der, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsError::Mismatch { key: key.clone(), cert: cert.clone() },
            _ => key.wrong("the private key in it is of a kind that is not served, or broken"),
        })?;
        Ok(Some(Arc::new(SingleCertAndKey::from(certified))))
    }

    /// The authorities, where they are given.
    pub(super) fn roots(&self, contents: &Contents) -> Result<Option<Arc<RootCertStore>>, TlsError> {
        let Some(ca) = &self.ca else { return Ok(None) };
        let mut roots = RootCertStore::empty();
        for certificate in ca.certificates(&contents.ca)? {
            roots.add(certificate).map_err(|error| ca.wrong(format!("not an authority's: {error}")))?;
        }
        Ok(Some(Arc::new(roots)))
    }
}

/// In words of its kind alone: the library's own quote what they stumbled over, which may be a part of a key.
fn problem(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "it is cut off: an END line is missing",
        pem::Error::IllegalSectionStart { .. } => "one of its BEGIN lines is none",
        pem::Error::Base64Decode(_) => "what is between BEGIN and END is not base64",
        _ => "it is not PEM",
    }
    .to_owned()
}

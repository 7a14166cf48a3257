//! TLS on every hop: what servers show and ask for, and how they are connected to. Keys and certificates are files in
//! PEM, which are read again when they change; new connections use the new ones, those that are open go on.
//!
//! rustls does the work, with ring. Sessions are not resumed: connections live for long, and each new one is to be
//! checked against the certificates of its day.

mod accept;
mod client;
mod follow;
mod pem;
mod quiet;
mod server;
mod watched;

pub(crate) use accept::incoming;
pub use client::ClientTls;
pub use pem::{PemFile, PemFiles};
pub use server::ServerTls;

use rustls::crypto::CryptoProvider;
use std::sync::Arc;
use thiserror::Error;

/// Why there can be no TLS as it was asked for: one line that names the flag, and the file if it is about one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TlsError {
    /// Flags go together of which one is missing.
    #[error("--{given} needs --{missing} beside it")]
    Alone {
        /// The flag that is there, without its dashes.
        given: &'static str,
        /// The flag that is not.
        missing: &'static str,
    },
    /// The file cannot be read.
    #[error("{file}: cannot be read: {problem}")]
    Read {
        /// Which file.
        file: PemFile,
        /// What the system said.
        problem: String,
    },
    /// The file is not what it should be.
    #[error("{file}: {problem}")]
    Content {
        /// Which file.
        file: PemFile,
        /// What is wrong with it, without a word of what it holds.
        problem: String,
    },
    /// The key is another certificate's.
    #[error("{key}: it is not the key of the certificate in {cert}")]
    Mismatch {
        /// The file with the key.
        key: PemFile,
        /// The file with the certificate.
        cert: PemFile,
    },
    /// A name is none.
    #[error("--{flag}: {value:?} is not {allowed}")]
    Name {
        /// The flag without its dashes.
        flag: &'static str,
        /// What stands there.
        value: String,
        /// What may.
        allowed: &'static str,
    },
    /// The system's own authorities cannot be found.
    #[error("the system has no certificates of authorities that can be read; name a file with --{flag}")]
    NoSystemRoots {
        /// The flag without its dashes.
        flag: &'static str,
    },
    /// The library will not have it.
    #[error("cannot set up TLS: {0}")]
    Setup(String),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self::Setup(error.to_string())
    }
}

/// Named at each use: a process may have other users of rustls, with another default.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

//! Why nobody may call, or a caller may not. No message repeats what a caller showed.

use sdxl_core::{Classify, ErrorClass};
use std::{io, path::PathBuf};
use thiserror::Error;

/// Why a call is refused before its service hears of it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum AccessError {
    /// No key was shown.
    #[error("this cluster is called with a key: send it as \"authorization: Bearer KEY\"")]
    Missing,
    /// What was shown is no key.
    #[error("the metadata \"authorization\" are not one \"Bearer KEY\"")]
    Malformed,
    /// Nobody knows it.
    #[error("this key or token is not valid here")]
    Unknown,
    /// The token's signature is right, and it says what it must not.
    #[error("this token is not valid here: {0}")]
    Token(&'static str),
    /// The caller names a tenant, and shows another's key.
    #[error("the metadata \"sdxl-tenant\" name another tenant than the key: leave them out")]
    OtherTenant,
}

impl Classify for AccessError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Missing | Self::Malformed | Self::Unknown | Self::Token(_) => ErrorClass::Unauthenticated,
            Self::OtherTenant => ErrorClass::PermissionDenied,
        }
    }
}

/// Why it cannot be told who may call.
#[derive(Debug, Error)]
#[error("--{flag} {}: {error}", .file.display())]
pub(crate) struct UnreadableFile {
    pub(super) flag: &'static str,
    pub(super) file: PathBuf,
    pub(super) error: FileError,
}

/// What is wrong with a file. It repeats nothing that may be a key.
#[derive(Debug, Error)]
pub(super) enum FileError {
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("it is not UTF-8")]
    Text,
    #[error("line {line}: {problem}")]
    Toml { line: usize, problem: String },
    #[error("it has neither a [[keys]] entry nor a [jwt] table")]
    Empty,
    #[error("it has no [[keys]] entry, and there is no --jwt-keys")]
    Nobody,
    #[error("key {key:?}: {problem}")]
    Key { key: String, problem: String },
    #[error("it is no JWKS: line {line}, column {column}")]
    Jwks { line: usize, column: usize },
    #[error("it has no key that verifies RS256 (of 2048 bits or more), ES256 or EdDSA")]
    NoVerifier,
}

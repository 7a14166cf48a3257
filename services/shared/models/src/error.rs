//! What can go wrong in loading and running the networks. Every message is one line that names the file, and the
//! tensor or key in it.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use sdxl_core::{Classify, ErrorClass};
use thiserror::Error;

/// An error of this crate.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A file or folder that exists could not be read.
    #[error("{}: cannot be read: {source}", path.display())]
    OpenFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that the checkpoint must have is not there.
    #[error("{}: no such file; expected {expected}", path.display())]
    MissingFile {
        /// Where it was looked for.
        path: PathBuf,
        /// What it should have been.
        expected: String,
    },
    /// A JSON file does not parse, or a value in it has the wrong type.
    #[error("{}: not valid: {why}", path.display())]
    ParseConfig {
        /// The file.
        path: PathBuf,
        /// The parser's complaint, with line and column.
        why: String,
    },
    /// Settings that cannot all be true, or that do not fit the weights.
    #[error("{}: {key}: {why}", path.display())]
    ContradictingConfig {
        /// The config file.
        path: PathBuf,
        /// The key at fault.
        key: String,
        /// What it contradicts.
        why: String,
    },
    /// A setting that changes the result and is not implemented.
    #[error("{}: {key} = {value} is not supported; supported: {supported}", path.display())]
    UnsupportedConfig {
        /// The config file.
        path: PathBuf,
        /// The JSON key.
        key: String,
        /// Its value.
        value: String,
        /// What is.
        supported: String,
    },
    /// A safetensors file is shorter or longer than its header says.
    #[error("{}: truncated: {found} bytes where its header asks for {expected}", path.display())]
    TruncatedFile {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// The length that its header describes.
        expected: u64,
    },
    /// A safetensors file whose header makes no sense.
    #[error("{}: not a safetensors file: {why}", path.display())]
    InvalidSafetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with the header.
        why: String,
    },
    /// A tensor that the network needs is in none of the component's files.
    #[error("{}: tensor {tensor} is missing", path.display())]
    MissingTensor {
        /// The weights file, or the folder if there are several.
        path: PathBuf,
        /// The tensor's full name.
        tensor: String,
    },
    /// A tensor whose shape does not fit the component's config.
    #[error("{}: tensor {tensor} has shape {found:?}, its config.json asks for {expected:?}", path.display())]
    MisshapenTensor {
        /// The weights file.
        path: PathBuf,
        /// The tensor's full name.
        tensor: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// The shape that the network needs.
        expected: Vec<usize>,
    },
    /// A tensor stored as a type that weights cannot have.
    #[error("{}: tensor {tensor} is stored as {found}; supported: F16, BF16, F32, F64", path.display())]
    UnsupportedTensorType {
        /// The weights file.
        path: PathBuf,
        /// The tensor's full name.
        tensor: String,
        /// Its stored type.
        found: String,
    },
    /// A tensor holds NaN or infinity, or a number that the type computed in does not hold.
    #[error("{}: tensor {tensor} holds a number that is not finite in {dtype}", path.display())]
    NonFiniteTensor {
        /// The weights file.
        path: PathBuf,
        /// The tensor's full name.
        tensor: String,
        /// The type computed in.
        dtype: &'static str,
    },
    /// A tokenizer's files do not make a tokenizer, or a text cannot be tokenized.
    #[error("{}: tokenizer: {why}", path.display())]
    Tokenize {
        /// The tokenizer's folder or file.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// `clip_skip` asks for a layer that the encoder does not have.
    #[error("clip_skip {clip_skip} is not in 0..={max}: the text encoder has {num_hidden_layers} layers")]
    ClipSkip {
        /// What was asked for.
        clip_skip: usize,
        /// The greatest value allowed.
        max: usize,
        /// Layers of the shallowest encoder.
        num_hidden_layers: usize,
    },
    /// A tensor given to a network does not have the shape that it takes.
    #[error("{what} has shape {found:?}, expected {expected}")]
    InvalidInput {
        /// Which argument.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape wanted.
        expected: String,
    },
    /// A result holds NaN or infinity.
    #[error("{what} is not finite{}", AtStep(*step))]
    NonFinite {
        /// Which tensor.
        what: &'static str,
        /// After which step of the schedule, counted from 0.
        step: Option<usize>,
    },
    /// A tensor operation failed.
    #[error("computing failed: {0}")]
    Compute(candle_core::Error),
}

struct AtStep(Option<usize>);

impl fmt::Display for AtStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |step| write!(f, " after step {step}"))
    }
}

impl ModelError {
    /// An I/O error at `path`, told apart by whether the file is there at all.
    pub(crate) fn reading(path: &Path, expected: &str) -> impl FnOnce(io::Error) -> Self {
        let (path, expected) = (path.to_owned(), expected.to_owned());
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Self::MissingFile { path, expected },
            _ => Self::OpenFile { path, source },
        }
    }

    /// A setting of `path` that is not implemented.
    #[must_use]
    pub fn unsupported(path: &Path, key: &str, value: impl fmt::Display, supported: &str) -> Self {
        let (path, key, value) = (path.to_owned(), key.to_owned(), value.to_string());
        Self::UnsupportedConfig { path, key, value, supported: supported.to_owned() }
    }

    /// A setting of `path` that contradicts another.
    #[must_use]
    pub fn contradicting(path: &Path, key: &str, why: impl Into<String>) -> Self {
        Self::ContradictingConfig { path: path.to_owned(), key: key.to_owned(), why: why.into() }
    }
}

impl Classify for ModelError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::ClipSkip { .. } | Self::InvalidInput { .. } => ErrorClass::InvalidRequest,
            Self::MissingFile { .. } => ErrorClass::NotFound,
            Self::OpenFile { .. }
            | Self::ParseConfig { .. }
            | Self::ContradictingConfig { .. }
            | Self::UnsupportedConfig { .. }
            | Self::TruncatedFile { .. }
            | Self::InvalidSafetensors { .. }
            | Self::MissingTensor { .. }
            | Self::MisshapenTensor { .. }
            | Self::UnsupportedTensorType { .. }
            | Self::NonFiniteTensor { .. } => ErrorClass::FailedPrecondition,
            Self::Tokenize { .. } | Self::NonFinite { .. } | Self::Compute(_) => ErrorClass::Internal,
        }
    }
}

/// Networks are built by code that knows only candle's error type, so a fault of a weights file crosses it as the
/// source of an I/O error, and comes out here as it went in.
impl From<ModelError> for candle_core::Error {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Compute(inner) => inner,
            other => Self::Io(io::Error::other(other)),
        }
    }
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        use candle_core::Error as E;
        match error {
            E::WithBacktrace { inner, .. } | E::Context { inner, .. } | E::WithPath { inner, .. } => {
                (*inner).into()
            }
            E::Io(e) if e.get_ref().is_some_and(|inner| inner.is::<Self>()) => match e.downcast::<Self>() {
                Ok(ours) => ours,
                Err(e) => Self::Compute(E::Io(e)),
            },
            other => Self::Compute(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_errors_pass_through_candle_unharmed() {
        let ours = ModelError::MissingTensor { path: "a/b.safetensors".into(), tensor: "x.weight".into() };
        let line = ours.to_string();
        let candle: candle_core::Error = ours.into();
        let back = ModelError::from(candle.with_path("elsewhere").bt());
        assert_eq!(back.to_string(), line);
        assert!(matches!(back, ModelError::MissingTensor { .. }));
    }

    #[test]
    fn candles_own_errors_stay_on_one_line() {
        let backtraced = candle_core::Error::Msg("no".into());
        let backtraced = candle_core::Error::WithBacktrace {
            inner: Box::new(backtraced),
            backtrace: Box::new(std::backtrace::Backtrace::force_capture()),
        };
        assert_eq!(ModelError::from(backtraced).to_string(), "computing failed: no");
    }

    #[test]
    fn a_step_is_named_where_there_is_one() {
        assert_eq!(
            ModelError::NonFinite { what: "latents", step: Some(3) }.to_string(),
            "latents is not finite after step 3"
        );
        assert_eq!(ModelError::NonFinite { what: "image", step: None }.to_string(), "image is not finite");
    }
}

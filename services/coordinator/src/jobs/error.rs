//! Why a call about a job fails.

use crate::{pipeline::GenerateError, store::StoreError};
use sdxl_core::{Classify, ErrorClass, FieldViolation};
use std::time::Duration;
use thiserror::Error;

/// When there may be room for another job.
const FULL: Duration = Duration::from_secs(5);

/// Why a call about a job fails.
#[derive(Debug, Error)]
pub(crate) enum JobError {
    /// The coordinator was given no Redis.
    #[error("this cluster keeps no jobs: it has no Redis")]
    NoRedis,
    /// Redis does not do what it should.
    #[error("jobs cannot be reached")]
    Store(#[from] StoreError),
    /// There is no such job of this tenant.
    #[error("job {0:?} does not exist, or ended too long ago")]
    NotFound(String),
    /// Another job has the request's id.
    #[error("request.request_id: another job of this tenant was given this id before")]
    OtherJob,
    /// So many jobs are open as may be, or the tenant has as many as it leaves free.
    #[error("of {0} jobs that may be open at a time no tenant may have more than it leaves free")]
    Full(usize),
    /// Fields are wrong.
    #[error("{}", sdxl_core::error::sentence(.0))]
    Invalid(Vec<FieldViolation>),
    /// The request makes no plan, for reasons other than its fields.
    #[error(transparent)]
    Generate(GenerateError),
    /// A picture that was done is gone or spoilt.
    #[error("picture {0} of the job was lost from Redis")]
    Lost(u32),
    /// The pictures do not fit into one answer.
    #[error("the pictures take more than {limit} bytes, the most in one answer; use WatchJob")]
    TooLarge {
        /// In bytes.
        limit: usize,
    },
    /// The coordinator is stopping.
    #[error("this coordinator is shutting down; ask another")]
    Stopping,
}

impl From<GenerateError> for JobError {
    /// Fields are named as the job's caller wrote them.
    fn from(error: GenerateError) -> Self {
        let violations = error.violations();
        if violations.is_empty() {
            return Self::Generate(error);
        }
        let inside =
            |v: &FieldViolation| FieldViolation { field: format!("request.{}", v.field), ..v.clone() };
        Self::Invalid(violations.iter().map(inside).collect())
    }
}

impl Classify for JobError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::NoRedis | Self::TooLarge { .. } => ErrorClass::FailedPrecondition,
            Self::Store(error) => error.class(),
            Self::NotFound(_) => ErrorClass::NotFound,
            Self::OtherJob => ErrorClass::AlreadyExists,
            Self::Full(_) => ErrorClass::Overloaded,
            Self::Invalid(_) => ErrorClass::InvalidRequest,
            Self::Generate(error) => error.class(),
            Self::Lost(_) => ErrorClass::Internal,
            Self::Stopping => ErrorClass::Unavailable,
        }
    }

    fn violations(&self) -> &[FieldViolation] {
        match self {
            Self::Invalid(violations) => violations,
            _ => &[],
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Full(_) => Some(FULL),
            Self::Generate(error) => error.retry_after(),
            _ => None,
        }
    }
}

//! Why a request fails.

use crate::{admission::Refusal, placement::Address, quota::QuotaError};
use sdxl_core::{Classify, ErrorClass, FieldViolation, PlanError, StageKind};
use std::time::Duration;
use thiserror::Error;

/// Why there are no pictures.
#[derive(Debug, Error)]
pub enum GenerateError {
    /// The request makes no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Of these stages no replica has ever been ready.
    #[error("the cluster is starting: no replica of {} has been ready yet", names(.0))]
    Starting(Vec<StageKind>),
    /// The stages do not fit together.
    #[error("{0}")]
    Contradiction(String),
    /// The coordinator does as much for this tenant as it may.
    #[error("{0} requests of this tenant are at work, as many as there is room for; others may come yet")]
    Crowded(usize),
    /// The tenant's quotas do not allow it.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// The request would be late.
    #[error("the cluster is busy: this would be done in {:.1} s, after its deadline", .done_in.as_secs_f64())]
    Late {
        /// From now.
        done_in: Duration,
        /// From now.
        retry_after: Duration,
    },
    /// No replica takes work.
    #[error("{stage}: no replica is ready")]
    NoReplica {
        /// Of this stage.
        stage: StageKind,
    },
    /// Every replica refused.
    #[error("{stage}: every replica is full")]
    Full {
        /// Of this stage.
        stage: StageKind,
        /// What the last of them said about when to try again.
        retry_after: Option<Duration>,
    },
    /// A replica answered with an error.
    #[error("{stage} at {replica}: {message}")]
    Stage {
        /// Its stage.
        stage: StageKind,
        /// Where it listens.
        replica: Address,
        /// What the error is to the caller.
        class: ErrorClass,
        /// What it said.
        message: String,
    },
    /// A replica was lost while it was at work, or could not be reached.
    #[error("{stage} at {replica} was lost: {message}")]
    Lost {
        /// Its stage.
        stage: StageKind,
        /// Where it listened.
        replica: Address,
        /// What the connection said.
        message: String,
    },
    /// A replica was lost, and as many requests have begun anew of late as may.
    #[error("{0}; the cluster's budget for retries is spent")]
    RetriesSpent(Box<GenerateError>),
    /// A replica's answer makes no sense.
    #[error("{stage} at {replica} answered what makes no sense: {problem}")]
    Reply {
        /// Its stage.
        stage: StageKind,
        /// Where it listens.
        replica: Address,
        /// The field and what is wrong with it.
        problem: String,
    },
    /// The caller's deadline passed.
    #[error("the deadline passed after {steps_done} of {steps_total} steps")]
    Deadline {
        /// Denoising steps done, over all pictures.
        steps_done: u32,
        /// Of so many.
        steps_total: u32,
    },
    /// The caller went away.
    #[error("the caller has gone")]
    CallerGone,
    /// Another request was given the same `request_id`.
    #[error("request_id: another request of this tenant was given this id before")]
    OtherRequest,
    /// The pictures do not fit into one answer.
    #[error(
        "the pictures take more than {limit} bytes, the most in one answer; ask for fewer, or use GenerateStream"
    )]
    TooLarge {
        /// In bytes.
        limit: usize,
    },
}

/// When a tenant that has much at work may ask for more.
const CROWDED: Duration = Duration::from_secs(1);

impl From<Refusal> for GenerateError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Late { done_in, retry_after } => Self::Late { done_in, retry_after },
            Refusal::Crowded { at_work } => Self::Crowded(at_work),
        }
    }
}

fn names(stages: &[StageKind]) -> String {
    stages.iter().map(|stage| stage.name()).collect::<Vec<_>>().join(", ")
}

impl Classify for GenerateError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Plan(error) => error.class(),
            Self::Quota(error) => error.class(),
            Self::Starting(_) | Self::NoReplica { .. } | Self::Lost { .. } | Self::RetriesSpent(_) => {
                ErrorClass::Unavailable
            }
            Self::Contradiction(_) | Self::TooLarge { .. } => ErrorClass::FailedPrecondition,
            Self::Crowded(_) | Self::Late { .. } | Self::Full { .. } => ErrorClass::Overloaded,
            Self::Stage { class, .. } => *class,
            Self::Reply { .. } => ErrorClass::Internal,
            Self::Deadline { .. } => ErrorClass::DeadlineExceeded,
            Self::OtherRequest => ErrorClass::AlreadyExists,
            Self::CallerGone => ErrorClass::Cancelled,
        }
    }

    fn violations(&self) -> &[FieldViolation] {
        match self {
            Self::Plan(error) => error.violations(),
            Self::Quota(error) => error.violations(),
            _ => &[],
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Full { retry_after, .. } => *retry_after,
            Self::Quota(error) => error.retry_after(),
            Self::Late { retry_after, .. } => Some(*retry_after),
            Self::Crowded(_) => Some(CROWDED),
            _ => None,
        }
    }
}

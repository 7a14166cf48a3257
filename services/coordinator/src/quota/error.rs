//! Why a tenant's quotas do not allow a request.

use super::{IN_FLIGHT, Quotas, Refusal};
use sdxl_core::{Classify, ErrorClass, FieldViolation};
use std::{fmt, num::NonZeroU32, time::Duration};
use thiserror::Error;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// Requests a minute.
    Requests,
    /// Pictures x pixels x steps a minute.
    PixelSteps,
    /// Pictures at the same time.
    Pictures,
}

/// Why a tenant's quotas do not allow a request.
#[derive(Debug, Error)]
pub enum QuotaError {
    /// Not now.
    #[error("this tenant's quota of {limit} {quota} is used up")]
    Exhausted {
        /// Which.
        quota: Quota,
        /// Of so much.
        limit: u32,
        /// Then there is enough of it again, if nobody else of the tenant comes first. Of pictures in flight it is a guess.
        retry_after: Duration,
    },
    /// Not ever.
    #[error("{}: {}", .0[0].field, .0[0].description)]
    TooLarge([FieldViolation; 1]),
}

impl QuotaError {
    pub(super) fn new(refusal: Refusal, quotas: &Quotas) -> Self {
        let limit = match refusal.quota {
            Quota::Requests => quotas.requests_per_minute,
            Quota::PixelSteps => quotas.pixel_steps_per_minute,
            Quota::Pictures => quotas.max_pictures_in_flight,
        };
        let retry_after = if refusal.quota == Quota::Pictures { IN_FLIGHT } else { refusal.wait };
        Self::Exhausted { quota: refusal.quota, limit: limit.map_or(0, NonZeroU32::get), retry_after }
    }

    pub(super) fn too_large(quota: Quota, asked: u64, limit: u32) -> Self {
        let description = match quota {
            Quota::PixelSteps => format!(
                "pictures x pixels x steps are {asked} million, more than this tenant's whole quota of {limit} {quota}"
            ),
            _ => format!("{asked} are more than this tenant's whole quota of {limit} {quota}"),
        };
        Self::TooLarge([FieldViolation { field: "num_images".to_owned(), description }])
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "requests a minute",
            Self::PixelSteps => "million pixel-steps a minute",
            Self::Pictures => "pictures in flight",
        })
    }
}

impl Classify for QuotaError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Exhausted { .. } => ErrorClass::Overloaded,
            Self::TooLarge(_) => ErrorClass::InvalidRequest,
        }
    }

    fn violations(&self) -> &[FieldViolation] {
        match self {
            Self::Exhausted { .. } => &[],
            Self::TooLarge(violations) => violations,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Exhausted { retry_after, .. } => Some(*retry_after),
            Self::TooLarge(_) => None,
        }
    }
}

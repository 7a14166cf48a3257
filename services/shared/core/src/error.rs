//! What can go wrong, in the few classes that a caller can act on.

use std::{fmt::Display, time::Duration};

/// The closed list of error classes. Every library error maps to one; only `sdxl-proto` turns one into a gRPC status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The request can never be served as it is.
    InvalidRequest,
    /// What was named does not exist.
    NotFound,
    /// Something else has the name that was given.
    AlreadyExists,
    /// The caller did not show who it is.
    Unauthenticated,
    /// The caller is known, and may not do this.
    PermissionDenied,
    /// The request is right, but not on this cluster.
    FailedPrecondition,
    /// A queue is full; the same request may be served later.
    Overloaded,
    /// The caller's deadline passed.
    DeadlineExceeded,
    /// The caller went away.
    Cancelled,
    /// A server that is needed cannot be reached or is not ready.
    Unavailable,
    /// A fault of ours.
    Internal,
}

/// One wrong field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field's path in the request, as `refiner.denoising_split`.
    pub field: String,
    /// Its value and what is allowed.
    pub description: String,
}

/// All wrong fields in one line.
#[must_use]
pub fn sentence(violations: &[FieldViolation]) -> String {
    let parts: Vec<_> = violations.iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
    parts.join("; ")
}

/// An error that knows its class.
pub trait Classify {
    /// Which class the error belongs to.
    fn class(&self) -> ErrorClass;

    /// The wrong fields, for [`ErrorClass::InvalidRequest`].
    fn violations(&self) -> &[FieldViolation] {
        &[]
    }

    /// When to try again, for [`ErrorClass::Overloaded`].
    fn retry_after(&self) -> Option<Duration> {
        None
    }
}

/// Collects wrong fields, so that a caller learns of all at once.
#[derive(Debug, Default)]
pub struct Violations(Vec<FieldViolation>);

impl Violations {
    /// Notes that `field` holds `value` where `allowed` is allowed.
    pub fn add(&mut self, field: &str, value: impl Display, allowed: impl Display) {
        self.0.push(FieldViolation {
            field: field.to_owned(),
            description: format!("{value} is not {allowed}"),
        });
    }

    /// Notes a violation whose description stands for itself.
    pub fn push(&mut self, field: &str, description: impl Into<String>) {
        self.0.push(FieldViolation { field: field.to_owned(), description: description.into() });
    }

    /// Whether nothing was noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was noted, in order.
    #[must_use]
    pub fn into_vec(self) -> Vec<FieldViolation> {
        self.0
    }
}

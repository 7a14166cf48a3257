//! Errors to gRPC status and back. No other place makes a status out of an error.

use sdxl_core::{Classify, ErrorClass};
use std::{error::Error, time::Duration};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The status of `error`: its class's code, its message with those of its sources, and `google.rpc` details (a
/// `BadRequest` with the wrong fields, a `RetryInfo` where it is known when to try again).
pub fn status<E: Error + Classify + ?Sized>(error: &E) -> Status {
    let mut details = ErrorDetails::new();
    for violation in error.violations() {
        details.add_bad_request_violation(violation.field.clone(), violation.description.clone());
    }
    if let Some(delay) = error.retry_after() {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code_of(error.class()), message_of(error), details)
}

/// The error's own message followed by those of its sources that it does not already contain.
fn message_of<E: Error + ?Sized>(error: &E) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        source = cause.source();
    }
    message
}

/// The code of a class.
#[must_use]
pub fn code_of(class: ErrorClass) -> Code {
    match class {
        ErrorClass::InvalidRequest => Code::InvalidArgument,
        ErrorClass::NotFound => Code::NotFound,
        ErrorClass::AlreadyExists => Code::AlreadyExists,
        ErrorClass::Unauthenticated => Code::Unauthenticated,
        ErrorClass::PermissionDenied => Code::PermissionDenied,
        ErrorClass::FailedPrecondition => Code::FailedPrecondition,
        ErrorClass::Overloaded => Code::ResourceExhausted,
        ErrorClass::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorClass::Cancelled => Code::Cancelled,
        ErrorClass::Unavailable => Code::Unavailable,
        ErrorClass::Internal => Code::Internal,
    }
}

/// The class of a status that a call to another server ended with.
///
/// A status read off the wire has no source. One that has was made on this side, because the connection could not be
/// made or broke, which tonic reports under several codes: that is [`ErrorClass::Unavailable`], unless it was tonic's
/// own timer, which it reports as CANCELLED.
#[must_use]
pub fn class_of(status: &Status) -> ErrorClass {
    if connection_broke(status) {
        return ErrorClass::Unavailable;
    }
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => ErrorClass::InvalidRequest,
        Code::NotFound => ErrorClass::NotFound,
        Code::AlreadyExists => ErrorClass::AlreadyExists,
        Code::Unauthenticated => ErrorClass::Unauthenticated,
        Code::PermissionDenied => ErrorClass::PermissionDenied,
        Code::FailedPrecondition => ErrorClass::FailedPrecondition,
        Code::ResourceExhausted => ErrorClass::Overloaded,
        Code::DeadlineExceeded => ErrorClass::DeadlineExceeded,
        Code::Cancelled if status.source().is_some() => ErrorClass::DeadlineExceeded,
        Code::Cancelled => ErrorClass::Cancelled,
        Code::Unavailable => ErrorClass::Unavailable,
        _ => ErrorClass::Internal,
    }
}

/// Whether `status` was made on this side of the wire because the connection could not be made or broke.
#[must_use]
pub fn connection_broke(status: &Status) -> bool {
    let mut cause = status.source();
    let broke = cause.is_some();
    while let Some(error) = cause {
        if error.is::<tonic::TimeoutExpired>() {
            return false;
        }
        cause = error.source();
    }
    broke
}

/// When a status says to try again, if it does.
#[must_use]
pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdxl_core::{FieldViolation, PlanError};

    const CLASSES: [ErrorClass; 11] = [
        ErrorClass::InvalidRequest,
        ErrorClass::NotFound,
        ErrorClass::AlreadyExists,
        ErrorClass::Unauthenticated,
        ErrorClass::PermissionDenied,
        ErrorClass::FailedPrecondition,
        ErrorClass::Overloaded,
        ErrorClass::DeadlineExceeded,
        ErrorClass::Cancelled,
        ErrorClass::Unavailable,
        ErrorClass::Internal,
    ];

    #[test]
    fn every_class_survives_the_wire() {
        for class in CLASSES {
            assert_eq!(class_of(&Status::new(code_of(class), "text")), class);
        }
    }

    #[test]
    fn a_status_made_on_this_side_is_a_lost_connection() {
        let broken = Status::from_error(Box::new(std::io::Error::other("broken pipe")));
        assert_eq!((broken.code(), class_of(&broken)), (Code::Unknown, ErrorClass::Unavailable));
    }

    #[test]
    fn wrong_fields_travel_as_a_bad_request() {
        let violation = FieldViolation { field: "width".into(), description: "7 is not allowed".into() };
        let status = status(&PlanError::Invalid(vec![violation]));
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "width: 7 is not allowed"));
        let details = status.get_details_bad_request().unwrap();
        assert_eq!(details.field_violations[0].field, "width");
        assert_eq!(details.field_violations[0].description, "7 is not allowed");
    }
}

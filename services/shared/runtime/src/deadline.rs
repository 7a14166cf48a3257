//! Deadlines, as gRPC hands them on: each hop tells the next how much time is left.

use http::HeaderMap;
use std::time::{Duration, Instant};
use tonic::metadata::MetadataMap;

const GRPC_TIMEOUT: &str = "grpc-timeout";
/// The protocol has at most eight digits of hours.
const LONGEST: Duration = Duration::from_secs(99_999_999 * 3600);

/// A point in time after which nobody waits for the answer any more.
///
/// tonic's own clients and servers end a call whose `grpc-timeout` has run out with CANCELLED ("Timeout expired"), not
/// with DEADLINE_EXCEEDED, and only until the response's headers are there. Servers made by [`crate::server::serve`]
/// answer DEADLINE_EXCEEDED. Whoever calls with a deadline has to take CANCELLED for DEADLINE_EXCEEDED once
/// [`Deadline::passed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline that is `timeout` from now; `None` where that is beyond the clock.
    #[must_use]
    pub fn after(timeout: Duration) -> Option<Self> {
        Instant::now().checked_add(timeout).map(Self)
    }

    /// The caller's deadline, from the `grpc-timeout` of a request that has just arrived; `None` where it has none or
    /// one that breaks the protocol.
    #[must_use]
    pub fn from_metadata(metadata: &MetadataMap) -> Option<Self> {
        metadata.get(GRPC_TIMEOUT).and_then(|v| v.to_str().ok()).and_then(parse).and_then(Self::after)
    }

    /// The same of an HTTP request's headers.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        headers.get(GRPC_TIMEOUT).and_then(|v| v.to_str().ok()).and_then(parse).and_then(Self::after)
    }

    /// The point in time itself.
    #[must_use]
    pub fn instant(self) -> Instant {
        self.0
    }

    /// What is left; zero once it has passed.
    #[must_use]
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn passed(self) -> bool {
        self.remaining().is_zero()
    }

    /// Hands what is left on to the server that `request` goes to.
    pub fn apply<T>(self, request: &mut tonic::Request<T>) {
        request.set_timeout(self.remaining().min(LONGEST));
    }
}

/// At most eight digits and a unit, as the gRPC protocol has it.
fn parse(text: &str) -> Option<Duration> {
    let (unit_at, _) = text.char_indices().next_back()?;
    let (digits, unit) = text.split_at(unit_at);
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_the_protocol_allows_and_nothing_else() {
        assert_eq!(parse("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("7u"), Some(Duration::from_micros(7)));
        for wrong in ["", "S", "5", "-5S", "+5S", "5.0S", "123456789S", "5s", "5 S", "5ü"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_is_left_goes_with_the_next_request() {
        let deadline = Deadline::after(Duration::from_secs(60)).unwrap();
        let mut request = tonic::Request::new(());
        deadline.apply(&mut request);
        let handed_on = Deadline::from_metadata(request.metadata()).unwrap();
        assert!(handed_on.remaining() <= Duration::from_secs(60));
        assert!(handed_on.remaining() > Duration::from_secs(59));
        assert!(!handed_on.passed());
    }

    #[test]
    fn a_deadline_that_has_passed_leaves_nothing() {
        let deadline = Deadline::after(Duration::ZERO).unwrap();
        assert!(deadline.passed());
        let mut request = tonic::Request::new(());
        deadline.apply(&mut request);
        assert!(Deadline::from_metadata(request.metadata()).unwrap().passed());
    }
}

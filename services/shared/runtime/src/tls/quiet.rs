//! Log lines that tell of many things at once: whoever knocks all the time does not fill the log.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Between two lines.
const QUIET: Duration = Duration::from_secs(5);

/// Things of a kind of which one line tells at a time.
#[derive(Debug, Default)]
pub(super) struct Quiet(Mutex<Untold>);

#[derive(Debug, Default)]
struct Untold {
    told: Option<Instant>,
    count: u64,
}

impl Quiet {
    /// Has `tell` write a line where it is time for one. It is given what is to be said of those that had none.
    pub(super) fn tell(&self, tell: impl FnOnce(String)) {
        match self.count(Instant::now()) {
            Some(0) => tell(String::new()),
            Some(others) => tell(format!("; {others} more before it")),
            None => {}
        }
    }

    /// Where it is time for a line: how many had none.
    fn count(&self, now: Instant) -> Option<u64> {
        let mut untold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if untold.told.is_some_and(|told| now.saturating_duration_since(told) < QUIET) {
            untold.count += 1;
            return None;
        }
        untold.told = Some(now);
        Some(std::mem::take(&mut untold.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_one_line_tells() {
        let (quiet, start) = (Quiet::default(), Instant::now());
        assert_eq!(quiet.count(start), Some(0));
        for _ in 0..7 {
            assert_eq!(quiet.count(start + QUIET / 2), None);
        }
        assert_eq!(quiet.count(start + QUIET), Some(7));
        assert_eq!(quiet.count(start + QUIET * 3), Some(0));
    }
}

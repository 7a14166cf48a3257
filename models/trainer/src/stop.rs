//! When to stop before the end: a signal, or the time is used.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use signal_hook::{consts::signal, flag};

use crate::TrainError;

/// Asked between two steps. Clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

/// Why a run stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// SIGINT or SIGTERM.
    Asked,
    /// The time given is used.
    OutOfTime,
}

impl Stop {
    /// Stops at SIGINT and SIGTERM; at the second, the process ends at once.
    ///
    /// # Errors
    /// The signals cannot be caught.
    pub fn on_signals() -> Result<Self, TrainError> {
        let stop = Self::default();
        for signal in [signal::SIGINT, signal::SIGTERM] {
            // In this order: the first signal finds the flag down, and raises it.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop.asked))
                .and_then(|_| flag::register(signal, Arc::clone(&stop.asked)))
                .map_err(|e| TrainError::StartUp { what: "catch signals", why: e.to_string() })?;
        }
        Ok(stop)
    }

    /// Stops as well when `minutes` have gone by from now.
    #[must_use]
    pub fn within(mut self, minutes: Option<f64>) -> Self {
        let budget = minutes.and_then(|minutes| Duration::try_from_secs_f64(60.0 * minutes).ok());
        self.deadline = budget.and_then(|budget| Instant::now().checked_add(budget));
        self
    }

    /// Asks to stop.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Whether to stop now, and why.
    #[must_use]
    pub fn reason(&self) -> Option<StopReason> {
        if self.asked.load(Ordering::Relaxed) {
            return Some(StopReason::Asked);
        }
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline).then_some(StopReason::OutOfTime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_and_the_time_each_stop() {
        assert_eq!(Stop::default().within(Some(1e6)).reason(), None);
        assert_eq!(Stop::default().within(None).reason(), None);
        assert_eq!(Stop::default().within(Some(0.0)).reason(), Some(StopReason::OutOfTime));
        let stop = Stop::on_signals().unwrap();
        assert_eq!(stop.reason(), None);
        signal_hook::low_level::raise(signal::SIGTERM).unwrap();
        assert_eq!(stop.clone().reason(), Some(StopReason::Asked));
    }
}

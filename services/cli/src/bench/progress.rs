//! A line that tells how the load stands, on a terminal; nothing elsewhere.

use super::{
    call::{Outcome, Sample},
    quantiles,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// The line, and what it is made of.
pub(super) struct Progress {
    line: ProgressBar,
    answered: Vec<f64>,
    others: u64,
}

impl Progress {
    /// Drawn where `visible` and standard error is a terminal.
    pub(super) fn new(visible: bool) -> Self {
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let line = ProgressBar::with_draw_target(None, target);
        // A wrong template, which this is not, would give indicatif's own style.
        let style = ProgressStyle::with_template("{spinner} {msg}");
        Self {
            line: line.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner())),
            answered: Vec::new(),
            others: 0,
        }
    }

    /// Something else than the load goes on.
    pub(super) fn say(&self, what: &'static str) {
        self.line.set_message(what);
        self.line.tick();
    }

    /// A request has ended.
    pub(super) fn count(&mut self, sample: &Sample) {
        match sample.outcome {
            Outcome::Answered { .. } => self.answered.push(sample.latency.as_secs_f64()),
            _ => self.others += 1,
        }
    }

    /// Draws the line anew.
    pub(super) fn show(&mut self, elapsed: Duration, in_flight: usize) {
        if !self.line.is_hidden() {
            let text = self.text(elapsed, in_flight);
            self.line.set_message(text);
            self.line.tick();
        }
    }

    fn text(&mut self, elapsed: Duration, in_flight: usize) -> String {
        let (done, seconds) = (self.answered.len(), elapsed.as_secs_f64());
        let rate = done as f64 / seconds.max(f64::MIN_POSITIVE);
        let p95 = quantiles::p95(&mut self.answered).map(|p95| format!(", p95 {p95:.2} s"));
        let others = self.others;
        format!(
            "{seconds:.0} s: {done} done, {others} failed, {in_flight} in flight, {rate:.2} requests/s{}",
            p95.unwrap_or_default()
        )
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        self.line.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_how_the_load_stands() {
        let mut progress = Progress::new(false);
        assert_eq!(progress.text(Duration::ZERO, 3), "0 s: 0 done, 0 failed, 3 in flight, 0.00 requests/s");
        progress.answered = vec![1.0, 4.0];
        progress.others = 1;
        assert_eq!(
            progress.text(Duration::from_secs(4), 2),
            "4 s: 2 done, 1 failed, 2 in flight, 0.50 requests/s, p95 4.00 s"
        );
    }
}

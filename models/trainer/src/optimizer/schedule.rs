//! The learning rate over the steps.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// What the learning rate does after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// It stays.
    #[default]
    Constant,
    /// It falls along half a cosine to a tenth.
    Cosine,
}

/// The learning rate as a function of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub learning_rate: f64,
    /// Steps in which it rises to there.
    pub warmup: u64,
    /// What it does then.
    pub decay: Decay,
    /// The step at which a decay ends.
    pub steps: u64,
    /// Where it starts over, if it does.
    pub restart: Option<Restart>,
}

/// A schedule's new start: the same warm-up and decay once more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Restart {
    /// The last step before it.
    pub after: u64,
    /// The highest rate from then on.
    pub learning_rate: f64,
    /// Steps from there to the end of a decay.
    pub steps: u64,
}

impl Schedule {
    /// The rate of `step`, counted from 1.
    #[must_use]
    pub fn learning_rate(&self, step: u64) -> f64 {
        if let Some(Restart { after, learning_rate, steps }) = self.restart
            && step > after
        {
            return Self { learning_rate, steps, restart: None, ..*self }.learning_rate(step - after);
        }
        if step < self.warmup {
            return self.learning_rate * step as f64 / self.warmup as f64;
        }
        match self.decay {
            Decay::Constant => self.learning_rate,
            Decay::Cosine => {
                let falling = self.steps.saturating_sub(self.warmup).max(1) as f64;
                let done = ((step - self.warmup) as f64 / falling).min(1.0);
                self.learning_rate * (0.1 + 0.45 * (1.0 + (PI * done).cos()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_then_stays_or_falls_to_a_tenth() {
        let mut schedule =
            Schedule { learning_rate: 2.0, warmup: 4, decay: Decay::Constant, steps: 24, restart: None };
        let rates = |schedule: Schedule| [1, 3, 4, 14, 24, 30].map(|step| schedule.learning_rate(step));
        assert_eq!(rates(schedule), [0.5, 1.5, 2.0, 2.0, 2.0, 2.0]);
        schedule.decay = Decay::Cosine;
        for (rate, expected) in rates(schedule).into_iter().zip([0.5, 1.5, 2.0, 1.1, 0.2, 0.2]) {
            assert!((rate - expected).abs() < 1e-12, "{rate} {expected}");
        }
        schedule.warmup = 0;
        assert!(schedule.learning_rate(1) < 2.0);
    }

    #[test]
    fn a_restart_cuts_it_off_and_begins_anew() {
        let whole =
            Schedule { learning_rate: 2.0, warmup: 4, decay: Decay::Cosine, steps: 24, restart: None };
        let restart = Restart { after: 14, learning_rate: 1.0, steps: 24 };
        let cut = Schedule { restart: Some(restart), ..whole };
        assert!((1..=14).all(|step| cut.learning_rate(step) == whole.learning_rate(step)));
        assert!((1..=24).all(|step| cut.learning_rate(14 + step) == 0.5 * whole.learning_rate(step)));
    }
}

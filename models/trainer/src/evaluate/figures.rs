//! Numbers with how far they can be trusted.

use std::fmt;

use rand::RngExt;
use serde::Serialize;

use crate::random;

/// Of the normal distribution, for 95 %.
const Z: f64 = 1.959_964;
/// Times that a sample is drawn anew.
const RESAMPLES: usize = 2000;

/// A number with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// The interval's ends.
    pub interval: [f64; 2],
    /// How many observations it is of.
    pub count: usize,
}

impl Estimate {
    /// The share of `right` in `count`, with Wilson's interval.
    #[must_use]
    pub fn share(right: usize, count: usize) -> Self {
        if count == 0 {
            return Self { value: f64::NAN, interval: [0.0, 1.0], count };
        }
        let n = count as f64;
        let p = right as f64 / n;
        let middle = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let reach = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        Self { value: p, interval: [(middle - reach).max(0.0), (middle + reach).min(1.0)], count }
    }

    /// The mean of `values`, with the bootstrap's interval.
    #[must_use]
    pub fn mean(values: &[f64]) -> Self {
        Self::bootstrap(values.len(), |picked| picked.map(|i| values[i]).sum::<f64>() / values.len() as f64)
    }

    /// Any statistic of `count` observations, given by their places: drawn again and again with replacement, it lies
    /// within the interval 95 times of 100.
    #[must_use]
    pub fn bootstrap(count: usize, statistic: impl Fn(&mut dyn Iterator<Item = usize>) -> f64) -> Self {
        let value = statistic(&mut (0..count));
        if count == 0 {
            return Self { value, interval: [f64::NAN; 2], count };
        }
        let mut rng = random::stream(0, "bootstrap", 0, count as u64);
        let again = |_| statistic(&mut (0..count).map(|_| rng.random_range(0..count)));
        // A sample may happen to have nothing to tell, as a slope of one place.
        let mut values: Vec<f64> = (0..RESAMPLES).map(again).filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().saturating_sub(1);
        let at = |share: f64| values.get(((share * values.len() as f64) as usize).min(last)).copied();
        let at = |share| at(share).unwrap_or(f64::NAN);
        Self { value, interval: [at(0.025), at(0.975)], count }
    }

    /// The sum of `values` as a share of the sum of `wholes`, pair by pair, with the bootstrap's interval.
    #[must_use]
    pub fn ratio(values: &[f64], wholes: &[f64]) -> Self {
        Self::bootstrap(values.len(), |picked| {
            let (value, whole) = picked.fold((0.0, 0.0), |(v, w), i| (v + values[i], w + wholes[i]));
            value / whole
        })
    }

    /// As `98.3 % (96.7 to 99.1)`.
    #[must_use]
    pub fn percent(&self) -> String {
        let [low, high] = self.interval.map(|v| 100.0 * v);
        format!("{:.1} % ({low:.1} to {high:.1})", 100.0 * self.value)
    }
}

/// As `1.234 (1.200 to 1.270)`, by the digits asked for.
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(3);
        let [low, high] = self.interval;
        write!(f, "{:.digits$} ({low:.digits$} to {high:.digits$})", self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_wilsons_interval() {
        // Worked examples: 95 of 100 and 100 of 100 (Brown, Cai and DasGupta 2001 for the form).
        let near = |estimate: Estimate, expected: [f64; 2]| {
            estimate.interval.iter().zip(expected).all(|(got, wanted)| (got - wanted).abs() < 5e-4)
        };
        assert!(near(Estimate::share(95, 100), [0.8882, 0.9785]));
        assert!(near(Estimate::share(100, 100), [0.9630, 1.0]));
        assert!(near(Estimate::share(0, 10), [0.0, 0.2775]));
        assert_eq!(Estimate::share(95, 100).percent(), "95.0 % (88.8 to 97.8)");
    }

    #[test]
    fn the_bootstrap_agrees_with_the_normal_interval() {
        let values: Vec<f64> =
            random::normal(&mut random::stream(1, "values", 0, 0), 400).into_iter().map(f64::from).collect();
        let mean = Estimate::mean(&values);
        let half = 0.5 * (mean.interval[1] - mean.interval[0]);
        assert!((half - Z / 20.0).abs() < 0.015, "{half}");
        assert!(mean.interval[0] < mean.value && mean.value < mean.interval[1]);
        assert_eq!(
            format!("{:.1}", Estimate { value: 1.0, interval: [0.5, 2.0], count: 3 }),
            "1.0 (0.5 to 2.0)"
        );
    }
}

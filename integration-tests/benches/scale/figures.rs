//! Figures beside their targets.

/// What a figure has to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// It only explains the others.
    None,
}

/// A table of figures, and whether each meets its target.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<(String, f64, &'static str, Target)>);

impl Figures {
    pub(crate) fn add(&mut self, what: impl Into<String>, value: f64, unit: &'static str, target: Target) {
        self.0.push((what.into(), value, unit, target));
    }

    /// Prints all of them; `true` if none misses its target.
    pub(crate) fn print(&self) -> bool {
        println!("\n| figure | measured | target | |\n| --- | --- | --- | --- |");
        let mut met = true;
        for (what, value, unit, target) in &self.0 {
            let (wanted, meets) = match target {
                // Written so that a figure that is no number misses.
                Target::AtMost(most) => (format!("at most {most} {unit}"), Some(value <= most)),
                Target::AtLeast(least) => (format!("at least {least} {unit}"), Some(value >= least)),
                Target::None => (String::new(), None),
            };
            let verdict = meets.map_or("", |meets| if meets { "met" } else { "MISSED" });
            println!("| {what} | {value:.2} {unit} | {wanted} | {verdict} |");
            met &= meets.unwrap_or(true);
        }
        met
    }
}

/// The value that a share of all does not exceed, by the nearest rank; no number where there are none.
pub(crate) fn quantile(values: impl Iterator<Item = f64>, share: f64) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil().max(1.0) as usize;
    values.get(rank - 1).copied().unwrap_or(f64::NAN)
}

pub(crate) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<_> = values.collect();
    values.iter().sum::<f64>() / values.len() as f64
}

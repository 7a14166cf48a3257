//! What a timeline comes to.

use super::numbers::time;
use crate::generate::report::{Report, TimingReport};
use sdxl_core::StageKind;

/// Clocks of two machines run so much apart, at most.
const DRIFT: f64 = 0.01;

/// A stage's times over all pictures and attempts.
#[derive(Default)]
struct Sum {
    calls: u64,
    waited: f64,
    worked: f64,
    rest: f64,
    lost: f64,
    steps: u64,
    again: u64,
}

impl Sum {
    fn add(&mut self, timing: &TimingReport) {
        for lost in &timing.lost_attempts {
            let (queue, run) = (lost.queue_time_s.unwrap_or(0.0), lost.run_time_s.unwrap_or(0.0));
            self.calls += 1;
            self.waited += lost.wait_time_s.unwrap_or(0.0) + queue;
            self.worked += run;
            self.lost += (lost.total_time_s - queue - run).max(0.0);
        }
        let (queue, run) = (timing.queue_time_s, timing.run_time_s);
        self.calls += 1;
        self.waited += timing.wait_time_s.unwrap_or(0.0) + queue;
        self.worked += run;
        self.rest += (timing.total_time_s - queue - run).max(0.0);
        self.steps += u64::from(timing.steps) + u64::from(timing.steps_repeated);
        self.again += u64::from(timing.steps_repeated);
    }

    /// With the time that was lost, where any was.
    fn line(&self, stage: &str, has_lost: bool) -> String {
        let Self { calls, waited, worked, rest, lost, steps, again } = self;
        let [waited, worked, rest, lost] = [waited, worked, rest, lost].map(|seconds| time(*seconds));
        let steps = match (steps, again) {
            (0, _) => String::new(),
            (_, 0) => steps.to_string(),
            _ => format!("{steps}, {again} of them again"),
        };
        let lost = if has_lost { format!("{lost:>10}") } else { String::new() };
        format!("{stage:<12}{calls:>6}{waited:>10}{worked:>10}{rest:>10}{lost}  {steps}")
    }
}

/// A line for each stage that was asked for something. Pictures go side by side, so that a sum may be more than the whole.
pub(super) fn by_stage(report: &Report) -> Vec<String> {
    let names = StageKind::ALL.into_iter().map(StageKind::name).chain(["unknown"]);
    let sums = names.filter_map(|stage| {
        let mut sum = Sum::default();
        report.timings.iter().filter(|timing| timing.stage == stage).for_each(|timing| sum.add(timing));
        (sum.calls > 0).then_some((stage, sum))
    });
    let sums: Vec<_> = sums.collect();
    if sums.is_empty() {
        return Vec::new();
    }
    let has_lost = sums.iter().any(|(_, sum)| sum.lost > 0.0);
    let lost = if has_lost { format!("{:>10}", "lost") } else { String::new() };
    let (calls, waited, worked, rest) = ("calls", "waited", "worked", "rest");
    let mut lines = vec![String::new()];
    lines.push(format!("{:<12}{calls:>6}{waited:>10}{worked:>10}{rest:>10}{lost}  steps", "sums"));
    lines.extend(sums.iter().map(|(stage, sum)| sum.line(stage, has_lost)));
    lines
}

/// The time that it took, there and here; `between` is what no stage had of it, where that is known.
pub(super) fn whole(report: &Report, between: Option<f64>) -> Vec<String> {
    let here = report.elapsed_s;
    let Some(whole) = &report.request_timing else {
        return vec![format!("{} here; the cluster does not say how long it had it", time(here))];
    };
    let there = whole.total_time_s;
    let between = between.map(|seconds| format!(", of which {} at no stage", time(seconds)));
    let mut lines = vec![format!("{} at the coordinator{}", time(there), between.unwrap_or_default())];
    lines.push(match here - there {
        // No clock is so wrong: the work was begun before this call.
        less if less < -(DRIFT * here) => format!(
            "{} here: the pictures had been asked for before, and the timeline is that of their making",
            time(here)
        ),
        more => format!("{} here, of which {} for connecting, the way and files", time(here), time(more)),
    });
    if whole.texts > 0 {
        lines.push(format!("{} of {} texts from the cache", whole.texts_from_cache, whole.texts));
    }
    lines
}

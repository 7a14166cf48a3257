//! The chart's alerts and dashboard: what they ask for is there, each alert fires when it should and not before, by promtool and
//! by a real Prometheus over a real cluster, and operators are told what to do about each.

mod cases;
mod chart;
mod counters;
mod fires;
mod live;
mod queries;
mod said;

use std::time::Duration;

pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

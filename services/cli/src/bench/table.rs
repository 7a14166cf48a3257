//! The figures as tables for people.

use super::{
    quantiles::Quantiles,
    report::{Group, Report},
};
use std::fmt::Write;

/// The name of the tenant that has none.
const UNNAMED: &str = "(unnamed)";

/// All tables, with an empty line between two.
pub(super) fn tables(report: &Report) -> String {
    let parts = [
        head(report),
        outcomes(report),
        times(report),
        stages(report),
        groups("size", &report.by_size),
        groups("tenant", if distinct(&report.by_tenant) { &report.by_tenant } else { &[] }),
        groups("priority", if report.by_priority.len() > 1 { &report.by_priority } else { &[] }),
    ];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn head(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<13}{value}");
    };
    line("cluster", format!("{}, model {}", report.endpoint, report.model));
    line("load", load(report));
    let requests = &report.requests;
    let mut counts = format!("{} arrived", requests.arrived);
    let others = [
        (requests.dropped, "dropped"),
        (requests.no_answer, "without an answer"),
        (requests.unfinished, "unfinished"),
    ];
    for (count, what) in others.into_iter().filter(|(count, _)| *count > 0) {
        let _ = write!(counts, ", {count} {what}");
    }
    line("requests", counts);
    let throughput = &report.throughput;
    line(
        "throughput",
        format!(
            "{:.3} pictures/s, {:.2} steps/s, {:.3} requests/s",
            throughput.pictures_per_s, throughput.steps_per_s, throughput.requests_per_s
        ),
    );
    let share = report.goodput.share.map(|share| format!(", {} of the pictures asked for", percent(share)));
    let goodput = report.goodput.pictures_per_s;
    line("goodput", format!("{goodput:.3} pictures/s in time{}", share.unwrap_or_default()));
    let texts = &report.text_encoder;
    line("text-encoder", format!("{} calls for {} answered requests", texts.calls, texts.requests));
    text
}

fn load(report: &Report) -> String {
    let load = &report.load;
    let mut text = match (load.requested_rate, load.concurrency) {
        (Some(rate), _) => format!("open loop, {rate} requests/s"),
        (None, concurrency) => format!("closed loop, {} at a time", concurrency.unwrap_or_default()),
    };
    if let Some(rate) = load.achieved_rate {
        let _ = write!(text, ", {rate:.3}/s sent");
    }
    let _ = write!(text, "; {:.1} s measured", report.measured_s);
    if let Some(time) = load.warm_up_s.filter(|time| *time > 0.0) {
        let _ = write!(text, " after {time:.1} s of warm-up");
    }
    if let Some(requests) = load.warm_up_requests {
        let _ = write!(text, " after {requests} requests of warm-up");
    }
    let _ = write!(text, "; seed {}", report.seed);
    if report.interrupted {
        text.push_str("; interrupted");
    }
    text
}

fn outcomes(report: &Report) -> String {
    let mut text = format!("{:<21}{:>9}\n", "outcome", "requests");
    for (code, count) in &report.outcomes {
        let message = report.messages.get(code).map(|m| format!("  {}", first_line(m))).unwrap_or_default();
        let _ = writeln!(text, "{code:<21}{count:>9}{message}");
    }
    text
}

fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default()
}

/// A row for each time; those without values are left out.
fn times(report: &Report) -> String {
    let mut rows = vec![
        ("latency".to_owned(), report.latency_s),
        ("time to refusal".to_owned(), report.time_to_refusal_s),
        ("lag of the client".to_owned(), report.lag_s),
    ];
    for stage in &report.stages {
        for (what, value) in [("queue", stage.queue_s), ("run", stage.run_s), ("total", stage.total_s)] {
            rows.push((format!("{} {what}", stage.stage), value));
        }
    }
    rows.retain(|(_, value)| value.is_some());
    if let Some(slowdown) = report.slowdown {
        rows.push(("slowdown (times)".to_owned(), Some(slowdown)));
    }
    let mut text = format!("{:<21}{:>9}", "seconds", "count");
    for name in ["mean", "p50", "p95", "p99", "max"] {
        let _ = write!(text, "{name:>9}");
    }
    text.push('\n');
    for (name, value) in rows {
        if let Some(Quantiles { count, mean, p50, p95, p99, max }) = value {
            let _ = write!(text, "{name:<21}{count:>9}");
            for value in [mean, p50, p95, p99, max] {
                let _ = write!(text, "{value:>9.3}");
            }
            text.push('\n');
        }
    }
    text
}

fn stages(report: &Report) -> String {
    let mut text = format!("{:<21}{:>9}{:>9}{:>13}\n", "stage", "replicas", "calls", "utilisation");
    for stage in &report.stages {
        let utilisation = stage.utilisation.map_or("-".to_owned(), percent);
        let _ = writeln!(text, "{:<21}{:>9}{:>9}{utilisation:>13}", stage.stage, stage.replicas, stage.calls);
    }
    text
}

/// A row for each group; nothing without groups.
fn groups(what: &str, groups: &[Group]) -> String {
    if groups.is_empty() {
        return String::new();
    }
    let mut text = format!("{what:<21}{:>9}{:>9}{:>9}{:>9}", "requests", "OK", "refused", "in time");
    let _ = writeln!(text, "{:>9}{:>9}{:>9}{:>14}", "p50", "p95", "p99", "slowdown p95");
    for group in groups {
        let name = if group.name.is_empty() { UNNAMED } else { &group.name };
        let Group { requests, answered, refused, .. } = group;
        let in_time = percent(group.in_time);
        let _ = write!(text, "{name:<21}{requests:>9}{answered:>9}{refused:>9}{in_time:>9}");
        let latency = group.latency_s.map(|l| [l.p50, l.p95, l.p99]);
        for place in 0..3 {
            let _ = write!(text, "{:>9}", number(latency.map(|values| values[place])));
        }
        let _ = writeln!(text, "{:>14}", number(group.slowdown.map(|s| s.p95)));
    }
    text
}

/// Whether there is more than the tenant without a name.
fn distinct(tenants: &[Group]) -> bool {
    tenants.iter().any(|group| !group.name.is_empty())
}

fn number(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.3}"))
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

//! Every metric there is. `docs/metrics.md` says the same to people; a test compares them.
//!
//! Names are nouns from the whole to the part, with dots between, `sdxl.` first; what a semantic convention of OpenTelemetry
//! names has the name from there. A counter is named for what it counts, in the plural, or `io` for bytes; a histogram ends
//! in `duration` where it is of time. Units are seconds and bytes, never parts or multiples.

use super::{
    exemplars::Exemplars,
    instrument::{Counter, Gauge, Histogram, Kind, Metric},
};

/// Of what takes from a millisecond to some minutes.
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0,
    320.0,
];
/// Of numbers of pictures.
const PICTURES_TOGETHER: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// Of `target_info`, which is not measured.
pub(super) const TARGET_HELP: &str = "What the process says of itself.";

macro_rules! instruments {
    ($list:ident: $type:ident, $kind:expr;
     $($name:ident $otel:literal $unit:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $name: $type = {
                static METRIC: Metric =
                    Metric { name: $otel, unit: $unit, help: $help, labels: &[$($label),*], kind: $kind };
                $type::new(&METRIC)
            };
        )*
        static $list: &[&$type] = &[$(&$name),*];
    };
}

instruments! { COUNTERS: Counter, Kind::Counter;
    REQUESTS "sdxl.requests" "{request}" ["kind", "outcome"]
        "Requests that ended, by whether they were called for or a job's and by how they ended.";
    PICTURES "sdxl.pictures" "{picture}" []
        "Pictures of requests that ended well.";
    RESUMES "sdxl.resumes" "{resume}" ["stage"]
        "Units of work that went on at another replica after a loss.";
    STEPS_REPEATED "sdxl.steps.repeated" "{step}" ["stage"]
        "Denoising steps that were done again after a loss, of those that the coordinator had heard of.";
    EJECTIONS "sdxl.replica.ejections" "{ejection}" ["stage"]
        "Replicas that were taken out because they were lost or hung.";
    CACHE_LOOKUPS "sdxl.cache.lookups" "{text}" ["result"]
        "Texts that were looked up in the cache of embeddings, by where they were found.";
    HOP_IO "sdxl.hop.io" "By" ["rpc.method", "direction"]
        "Bytes of calls to this server, received with requests and sent with answers.";
    JOBS "sdxl.jobs" "{job}" ["state"]
        "Jobs that this coordinator ended, by how.";
    RUNS "sdxl.runs" "{run}" ["stage", "outcome"]
        "Runs on the device that ended, by how.";
    DEVICE_BUSY "sdxl.device.busy" "s" ["stage"]
        "Time for which the device has worked.";
}

instruments! { GAUGES: Gauge, Kind::Gauge;
    OUTSTANDING "sdxl.stage.outstanding" "s" ["stage"]
        "How long one replica would have to work for all that is promised and not done.";
    REPLICAS "sdxl.stage.replicas" "{replica}" ["stage", "state"]
        "Replicas that are known, by whether they take work.";
    REDIS_UP "sdxl.redis.up" "1" []
        "Whether Redis is there.";
    DEVICE_RUNS "sdxl.device.runs" "{run}" ["stage", "state"]
        "Runs that wait for the device or are at work on it.";
    DEVICE_MEMORY "sdxl.device.memory" "By" ["stage", "device"]
        "Memory in use on the device, where that is known: for the CPU, the process's.";
    PROCESS_MEMORY "process.memory.usage" "By" []
        "Memory that the process holds.";
}

instruments! { HISTOGRAMS: Histogram, Kind::Histogram(SECONDS);
    REQUEST_DURATION "sdxl.request.duration" "s" ["kind", "outcome"]
        "From a request's arrival to its end.";
    STAGE_DURATION "sdxl.stage.duration" "s" ["stage"]
        "From the last sending of a unit of work to a replica to its result.";
    STAGE_QUEUE "sdxl.stage.queue.duration" "s" ["stage"]
        "How long a unit of work waited at its replica before it was begun.";
    STEP_DURATION "sdxl.step.duration" "s" ["stage", "size", "batch"]
        "One step of the device, by the pictures' size (height x width) and how many took it together.";
    CALL_DURATION "rpc.server.call.duration" "s" ["rpc.method", "rpc.response.status_code"]
        "From a call's arrival to the last byte of its answer.";
    REDIS_DURATION "db.client.operation.duration" "s" ["db.operation.name", "outcome"]
        "From a question to Redis to its answer.";
}

instruments! { NUMBERS: Histogram, Kind::Histogram(PICTURES_TOGETHER);
    STEP_BATCH "sdxl.step.batch" "{picture}" ["stage"]
        "Pictures that took a step together.";
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    let counters = COUNTERS.iter().map(|counter| counter.metric());
    let gauges = GAUGES.iter().map(|gauge| gauge.metric());
    let histograms = HISTOGRAMS.iter().chain(NUMBERS).map(|histogram| histogram.metric());
    counters.chain(gauges).chain(histograms)
}

/// The one of this name.
pub(super) fn named(name: &str) -> Option<&'static Metric> {
    all().find(|metric| metric.name == name)
}

/// The examples of a histogram.
pub(super) fn exemplars(metric: &Metric) -> Option<&'static Exemplars> {
    let histogram = HISTOGRAMS.iter().chain(NUMBERS).find(|h| h.metric().name == metric.name);
    histogram.map(|histogram| histogram.exemplars())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The rows of the tables in `docs/metrics.md`: OTLP's name, Prometheus's, kind, labels and what it is.
    fn documented() -> BTreeSet<[String; 5]> {
        let text = include_str!("../../../../../docs/metrics.md");
        let rows = text.lines().filter(|line| line.starts_with("| `") || line.starts_with("| | `"));
        rows.map(|row| {
            let cells: Vec<_> =
                row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
            cells.try_into().unwrap_or_else(|_| panic!("five cells: {row}"))
        })
        .collect()
    }

    #[test]
    fn what_is_documented_is_what_there_is() {
        let there = all().map(|metric| {
            let total = if metric.kind == Kind::Counter { "_total" } else { "" };
            [
                metric.name.to_owned(),
                format!("{}{total}", metric.exposed_name()),
                metric.kind.name().to_owned(),
                metric.labels.join(", "),
                metric.help.to_owned(),
            ]
        });
        let target = ["", "target_info", "gauge", "", TARGET_HELP].map(str::to_owned);
        let there: BTreeSet<_> = there.chain([target]).collect();
        let documented = documented();
        let missing: Vec<_> = there.difference(&documented).collect();
        let unknown: Vec<_> = documented.difference(&there).collect();
        assert!(
            missing.is_empty() && unknown.is_empty(),
            "not documented: {missing:#?}\nnot there: {unknown:#?}"
        );
    }

    #[test]
    fn names_and_units_keep_to_the_grammar() {
        for metric in all() {
            let Metric { name, unit, kind, labels, help } = metric;
            let is_word =
                |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            let convention = ["rpc.", "db.", "process."].iter().any(|prefix| name.starts_with(prefix));
            assert!(name.starts_with("sdxl.") || convention, "{name}");
            assert!(name.split('.').all(is_word), "{name}");
            assert!(labels.iter().all(|label| label.split('.').all(is_word)), "{name}: {labels:?}");
            let counts = unit.starts_with('{') && unit.ends_with('}');
            assert!(matches!(*unit, "s" | "By" | "1") || counts, "{name}: {unit}");
            let is_time = matches!(kind, Kind::Histogram(_)) && *unit == "s";
            assert_eq!(name.ends_with(".duration"), is_time, "{name}");
            assert!(help.ends_with('.') && !help.contains('|'), "{name}: {help}");
            assert!(!labels.contains(&"tenant"), "{name}: there is no bound to tenants");
        }
        let names: BTreeSet<_> = all().map(|metric| metric.name).collect();
        assert_eq!(names.len(), all().count(), "a name twice");
    }
}

//! What `docs/metrics.md` says that there is at `/metrics`.

use std::collections::BTreeSet;

/// A row of its tables.
#[derive(Clone, Debug)]
pub struct Documented {
    /// The metric's name at `/metrics`.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Its labels there.
    pub labels: Vec<String>,
}

/// The page.
pub const METRICS: &str = include_str!("../../docs/metrics.md");

/// Where the page lists a label's values: the label, whose it is if it is not everyone's, and the words with which the list
/// begins. It goes on to the next `;` or full stop.
const LISTS: [(&str, &[&str], &str); 9] = [
    ("stage", &[], "`stage` is "),
    ("outcome", &["sdxl_requests_total", "sdxl_request_duration_seconds"], "`outcome` of a request is "),
    ("kind", &["sdxl_requests_total", "sdxl_request_duration_seconds"], "`kind` is "),
    ("state", &["sdxl_stage_replicas"], "`state` of a replica is "),
    ("state", &["sdxl_jobs_total"], "that of a job is "),
    ("result", &["sdxl_cache_lookups_total"], "`result` of a look-up is "),
    ("outcome", &["db_client_operation_duration_seconds"], "`outcome` of a question to Redis is "),
    ("outcome", &["sdxl_runs_total"], "`outcome` of a run is "),
    ("state", &["sdxl_device_runs"], "`state` of a run is "),
];

impl Documented {
    /// All of them.
    #[must_use]
    pub fn all() -> Vec<Self> {
        METRICS.lines().filter_map(Self::read).collect()
    }

    fn read(row: &str) -> Option<Self> {
        let cells: Vec<_> = row.strip_prefix('|')?.split('|').map(str::trim).collect();
        let [_, name, kind, labels, ..] = cells[..] else { return None };
        let quoted = |text: &str| Some(text.strip_prefix('`')?.strip_suffix('`')?.to_owned());
        let labels = labels.split(", ").filter_map(quoted).map(|label| label.replace('.', "_"));
        Some(Self { name: quoted(name)?, kind: kind.to_owned(), labels: labels.collect() })
    }

    /// The values that a label of this metric may have; `None` where the page does not list them.
    ///
    /// # Panics
    /// Where the page has other words than those that are looked for, and none that is a value after them.
    #[must_use]
    pub fn values(&self, label: &str) -> Option<BTreeSet<String>> {
        let is_it = |(of, whose, _): &&(&str, &[&str], &str)| {
            *of == label && (whose.is_empty() || whose.contains(&self.name.as_str()))
        };
        let (_, _, begins) = LISTS.iter().find(is_it)?;
        let page = METRICS.split_whitespace().collect::<Vec<_>>().join(" ");
        let (_, list) = page.split_once(begins).unwrap_or_else(|| panic!("the page has no {begins:?}"));
        let list = list.split([';', '.']).next().unwrap_or_default();
        let values: BTreeSet<_> = list.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(values.len() > 1, "no values after {begins:?}: {list}");
        Some(values)
    }

    /// Whether this metric has a series of that name: a histogram has three.
    #[must_use]
    pub fn has(&self, series: &str) -> bool {
        match self.kind.as_str() {
            "histogram" => series
                .strip_prefix(self.name.as_str())
                .is_some_and(|part| matches!(part, "_bucket" | "_sum" | "_count")),
            _ => series == self.name,
        }
    }
}

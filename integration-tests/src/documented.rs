//! What `docs/metrics.md` says that there is at `/metrics`.

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

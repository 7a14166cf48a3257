//! Figures of each side, and what they are held against.

use std::fmt;

/// What a figure has to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    /// No number misses every target.
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {most:.2}"),
            Self::AtLeast(least) => write!(f, "≥ {least:.2}"),
        }
    }
}

/// One figure as each side has it; no number where it could not be measured.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    what: String,
    sides: [f64; 3],
    /// Whether ours over theirs means something.
    ratios: bool,
    /// What is held against the target, and what it is called where it is not the ratio to PyTorch.
    held: Option<(f64, &'static str, Target)>,
}

impl Row {
    /// A figure of ours, of PyTorch's and of OpenVINO's, of which less is better.
    pub(crate) fn new(what: impl Into<String>, sides: [f64; 3]) -> Self {
        Self { what: what.into(), sides, ratios: true, held: None }
    }

    /// The same where a ratio would say nothing.
    pub(crate) fn plain(what: impl Into<String>, sides: [f64; 3]) -> Self {
        Self { ratios: false, ..Self::new(what, sides) }
    }

    /// Our time is to be at most this share of PyTorch's.
    pub(crate) fn of_pytorch(self, most: f64) -> Self {
        let ratio = self.sides[0] / self.sides[1];
        self.held(ratio, "", Target::AtMost(most))
    }

    /// `value`, which is called `name`, is to meet `target`.
    pub(crate) fn held(mut self, value: f64, name: &'static str, target: Target) -> Self {
        self.held = Some((value, name, target));
        self
    }

    fn is_met(&self) -> bool {
        self.held.is_none_or(|(value, _, target)| target.is_met(value))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [ours, torch, openvino] = self.sides;
        write!(f, "| {} | {} | {} | {} |", self.what, number(ours), number(torch), number(openvino))?;
        for theirs in [torch, openvino] {
            write!(f, " {} |", if self.ratios { number(ours / theirs) } else { String::new() })?;
        }
        let Some((value, name, target)) = self.held else { return f.write_str(" | |") };
        let verdict = if self.is_met() { "met" } else { "missed" };
        match name {
            "" => write!(f, " {target} | {verdict} |"),
            name => write!(f, " {name}: {}, {target} | {verdict} |", number(value)),
        }
    }
}

/// What a part has measured.
pub(crate) type Tables = Vec<Box<dyn Section>>;

/// A part of a part's page.
pub(crate) trait Section: fmt::Display {
    /// Whether no figure misses its target.
    fn met(&self) -> bool {
        true
    }
}

/// Rows under one heading, with what could not be measured and why.
#[derive(Debug)]
pub(crate) struct Table {
    heading: String,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Table {
    pub(crate) fn new(heading: impl Into<String>) -> Self {
        Self { heading: heading.into(), rows: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

impl Section for Table {
    fn met(&self) -> bool {
        self.rows.iter().all(Row::is_met)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.heading)?;
        writeln!(f, "| | sdxl | PyTorch | OpenVINO | of PyTorch | of OpenVINO | target | |")?;
        writeln!(f, "| --- | --- | --- | --- | --- | --- | --- | --- |")?;
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        for note in &self.notes {
            writeln!(f, "\n{note}")?;
        }
        Ok(())
    }
}

/// Three digits or so; nothing for what is no number.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => String::new(),
        0.0 => "0".to_owned(),
        size if size < 0.01 => format!("{value:.1e}"),
        size if size < 1.0 => format!("{value:.3}"),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

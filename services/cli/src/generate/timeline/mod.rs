//! A request's own timeline as lines for a terminal: what was at work on it when, what it waited for, and how much of its
//! time nothing tells of. All of it is drawn from the answer alone.
//!
//! Within a bar the order is wait, queue, work, rest: a replica tells how long each took and not when, and on a busy one
//! work and others' turns take turns.

mod bar;
mod numbers;
mod rows;
#[cfg(test)]
mod tests;
mod totals;

use super::report::Report;
use bar::{Kind, Scale};
use numbers::{plain, time};
use rows::Row;

/// Terminals that are narrower or wider, or say so, are drawn for as if they had so many columns.
const FEWEST_COLUMNS: usize = 32;
const MOST_COLUMNS: usize = 1000;
/// A shorter bar leaves its figures to a line of their own.
const SHORTEST_BAR: usize = 20;
/// More rows than 16 pictures have are no answer of ours.
const MOST_ROWS: usize = 200;
/// Between two columns.
const GAP: &str = "  ";

/// How it is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Style {
    /// How wide lines may be.
    pub(super) columns: usize,
    /// Whether characters beyond ASCII are understood.
    pub(super) unicode: bool,
    pub(super) colour: bool,
}

/// Draws `report`'s timeline, with what sums it up.
pub(super) fn draw(report: &Report, style: Style) -> String {
    let style = Style { columns: style.columns.clamp(FEWEST_COLUMNS, MOST_COLUMNS), ..style };
    let mut rows = rows::of(report);
    let between = rows.last().filter(|row| row.label == "coordinator").map(|row| row.time);
    let left_out = rows.len().saturating_sub(MOST_ROWS);
    rows.truncate(MOST_ROWS);
    let ends = rows.iter().flat_map(|row| &row.spans).map(|span| span.end);
    let whole = ends.fold(report.request_timing.as_ref().map_or(0.0, |whole| whole.total_time_s), f64::max);
    let table = Table::new(&rows, style);
    let scale = Scale { whole, cells: table.bar };
    let mut lines = vec![table.head(scale)];
    for row in &rows {
        lines.extend(table.lines(row, scale));
    }
    if left_out > 0 {
        lines.push(format!("and {left_out} rows more"));
    }
    if rows.iter().any(|row| !row.is_placed) {
        lines.push("The cluster does not say when this work began: each bar begins at the left.".to_owned());
    }
    lines.extend(bar::legend(&rows, scale, style));
    lines.extend(totals::by_stage(report));
    lines.push(String::new());
    lines.extend(totals::whole(report, between));
    if !report.trace_id.is_empty() {
        lines.push(format!("trace {}", plain(&report.trace_id)));
    }
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

/// The columns, as wide as what is in them; the bars have what is left.
struct Table {
    label: usize,
    bar: usize,
    steps: usize,
    replica: usize,
    /// Whether figures have lines of their own.
    is_narrow: bool,
    style: Style,
}

/// Of a time, as `58.1 ms`.
const TIME: usize = 8;

impl Table {
    fn new(rows: &[Row], style: Style) -> Self {
        let widest = |text: fn(&Row) -> &str| rows.iter().map(|row| text(row).len()).max().unwrap_or(0);
        let (label, steps) = (widest(|row| &row.label), widest(|row| &row.steps));
        let (replica, before) = (widest(|row| &row.replica), label + GAP.len());
        let figures = [TIME, steps, replica].into_iter().filter(|width| *width > 0);
        let figures: usize = figures.map(|width| GAP.len() + width).sum();
        let left = style.columns.saturating_sub(before + figures);
        let is_narrow = left < SHORTEST_BAR;
        let beside_time = style.columns.saturating_sub(before + GAP.len() + TIME);
        let bar = if is_narrow { beside_time.max(1) } else { left };
        Self { label, bar, steps, replica, is_narrow, style }
    }

    /// The scale, and what is in the columns after it.
    fn head(&self, scale: Scale) -> String {
        let (label, bar) = (self.label, scale.ticks());
        if self.is_narrow {
            return format!("{:label$}{GAP}{bar}{GAP}{:>TIME$}", "", "time");
        }
        let row = Row {
            steps: if self.steps > 0 { "steps".to_owned() } else { String::new() },
            replica: if self.replica > 0 { "replica".to_owned() } else { String::new() },
            ..Row::default()
        };
        format!("{:label$}{GAP}{bar}{GAP}{:>TIME$}{}", "", "time", self.figures(&row))
    }

    fn lines(&self, row: &Row, scale: Scale) -> Vec<String> {
        let label = self.label;
        let bar = bar::draw(&row.spans, scale, self.style);
        let line = format!("{:label$}{GAP}{bar}{GAP}{:>TIME$}", row.label, time(row.time));
        if !self.is_narrow {
            return vec![line + &self.figures(row)];
        }
        let figures = [&row.steps, &row.replica].into_iter().filter(|text| !text.is_empty());
        let figures: Vec<_> = figures.map(String::as_str).collect();
        let below = format!("{:label$}{GAP}{}", "", figures.join(GAP));
        if figures.is_empty() { vec![line] } else { vec![line, below] }
    }

    /// Columns that no row needs are left out.
    fn figures(&self, row: &Row) -> String {
        let columns = [(&row.steps, self.steps), (&row.replica, self.replica)];
        let columns = columns.into_iter().filter(|(_, width)| *width > 0);
        columns.map(|(text, width)| format!("{GAP}{text:width$}")).collect()
    }
}

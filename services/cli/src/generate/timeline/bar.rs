//! Bars and their scale, in cells of a terminal.

use super::{
    Style,
    numbers::tick,
    rows::{Row, Span},
};

/// What was the matter for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It waited for a replica that takes it.
    Wait,
    /// It waited at the replica.
    Queue,
    /// The device worked on it.
    Work,
    /// It was at the stage, and neither waited nor was worked on.
    Rest,
    /// Until it was known that the replica would not end it.
    Lost,
    /// Nothing tells of it but the coordinator's clock.
    Coordinator,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Work, Self::Queue, Self::Wait, Self::Rest, Self::Lost, Self::Coordinator];

    fn glyph(self, unicode: bool) -> char {
        let (beyond, ascii) = match self {
            Self::Work => ('█', '#'),
            Self::Queue => ('░', '-'),
            Self::Wait => ('·', '.'),
            Self::Rest => ('╌', '~'),
            Self::Lost => ('╳', 'x'),
            Self::Coordinator => ('▒', '='),
        };
        if unicode { beyond } else { ascii }
    }

    /// Select Graphic Rendition (ECMA-48).
    fn colour(self) -> &'static str {
        match self {
            Self::Work => "32",
            Self::Queue => "33",
            Self::Wait => "35",
            Self::Rest => "36",
            Self::Lost => "31",
            Self::Coordinator => "34",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Work => "on the device",
            Self::Queue => "in the replica's queue",
            Self::Wait => "waiting for a replica",
            Self::Rest => "the way there and back, others' turns",
            Self::Lost => "lost, until that was known",
            Self::Coordinator => "at no stage",
        }
    }
}

/// So many seconds on so many cells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    pub(super) whole: f64,
    pub(super) cells: usize,
}

/// Cells from one point of the scale to the next, at least.
const TICK_CELLS: f64 = 8.0;

impl Scale {
    /// Where a time is, in cells.
    fn place(self, seconds: f64) -> f64 {
        if self.whole > 0.0 { (seconds / self.whole).clamp(0.0, 1.0) * self.cells as f64 } else { 0.0 }
    }

    /// Points of it as text that is as long as the bars.
    pub(super) fn ticks(self) -> String {
        let step = self.step();
        let mut text = String::new();
        for index in 0..=self.cells {
            let seconds = index as f64 * step;
            let place = self.place(seconds) as usize;
            let word = tick(seconds, step);
            let is_new = index == 0 || (seconds <= self.whole && place > text.len());
            if !is_new || place + word.len() > self.cells {
                break;
            }
            text = format!("{text:place$}{word}");
        }
        format!("{text:width$}", width = self.cells)
    }

    /// 1, 2 or 5 times a power of ten.
    fn step(self) -> f64 {
        let least = self.whole * TICK_CELLS / self.cells as f64;
        if least <= 0.0 {
            return 1.0;
        }
        let power = 10_f64.powf(least.log10().floor());
        [1.0, 2.0, 5.0].into_iter().map(|n| n * power).find(|step| *step >= least).unwrap_or(10.0 * power)
    }
}

/// The bar of `spans`, each at its place.
pub(super) fn draw(spans: &[Span], scale: Scale, style: Style) -> String {
    let mut bar = String::new();
    let mut last = None;
    for cell in cells(spans, scale) {
        if style.colour && cell != last {
            bar.push_str(if last.is_some() { "\u{1b}[0m" } else { "" });
            bar.push_str(&cell.map(|kind| format!("\u{1b}[{}m", kind.colour())).unwrap_or_default());
        }
        bar.push(cell.map_or(' ', |kind| kind.glyph(style.unicode)));
        last = cell;
    }
    bar.push_str(if style.colour && last.is_some() { "\u{1b}[0m" } else { "" });
    bar
}

/// A cell shows what takes most of it, if half of it is taken. Where that is so of none, the longest span has one.
fn cells(spans: &[Span], scale: Scale) -> Vec<Option<Kind>> {
    let mut cells = vec![Cell::default(); scale.cells];
    for span in spans {
        let (begin, end) = (scale.place(span.begin), scale.place(span.end));
        for (index, cell) in cells.iter_mut().enumerate().take(end.ceil() as usize).skip(begin as usize) {
            let taken = end.min(index as f64 + 1.0) - begin.max(index as f64);
            cell.taken += taken;
            if taken > cell.most {
                (cell.most, cell.kind) = (taken, Some(span.kind));
            }
        }
    }
    let mut kinds: Vec<_> = cells.iter().map(|cell| cell.kind.filter(|_| cell.taken >= 0.5)).collect();
    let longest = spans.iter().max_by(|a, b| (a.end - a.begin).total_cmp(&(b.end - b.begin)));
    if let Some(span) = longest.filter(|_| kinds.iter().all(Option::is_none)) {
        let place = (scale.place(span.begin) as usize).min(scale.cells.saturating_sub(1));
        if let Some(kind) = kinds.get_mut(place) {
            *kind = Some(span.kind);
        }
    }
    kinds
}

/// How much of a cell is taken, and what takes most.
#[derive(Clone, Copy, Default)]
struct Cell {
    taken: f64,
    most: f64,
    kind: Option<Kind>,
}

/// What the glyphs in the bars of `rows` mean, in as many lines as it takes.
pub(super) fn legend(rows: &[Row], scale: Scale, style: Style) -> Vec<String> {
    let seen: Vec<_> = rows.iter().flat_map(|row| cells(&row.spans, scale)).flatten().collect();
    let is_there = |kind: &Kind| seen.contains(kind);
    let mut lines: Vec<String> = Vec::new();
    let mut width = 0;
    for kind in Kind::ALL.into_iter().filter(is_there) {
        let glyph = kind.glyph(style.unicode).to_string();
        let length = 2 + kind.meaning().len();
        let glyph = if style.colour { format!("\u{1b}[{}m{glyph}\u{1b}[0m", kind.colour()) } else { glyph };
        let entry = format!("{glyph} {}", kind.meaning());
        match lines.last_mut() {
            Some(line) if width + 3 + length <= style.columns => {
                line.push_str("   ");
                line.push_str(&entry);
                width += 3 + length;
            }
            _ => {
                lines.push(entry);
                width = length;
            }
        }
    }
    lines
}

//! A row for each unit of work and each attempt at it, with its spans of time.

use super::{
    Kind,
    numbers::{plain, steps},
};
use crate::generate::report::{Report, RequestReport, TimingReport};

/// A while of one kind, in seconds from the request's arrival.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) kind: Kind,
    pub(super) begin: f64,
    pub(super) end: f64,
}

/// A line of the timeline.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    /// In ASCII, as all its texts.
    pub(super) label: String,
    pub(super) spans: Vec<Span>,
    /// In all.
    pub(super) time: f64,
    /// How many, and what became of it where that is not the usual.
    pub(super) steps: String,
    pub(super) replica: String,
    /// Whether it is known when it began.
    pub(super) is_placed: bool,
}

/// One call to one replica.
struct Call<'a> {
    label: String,
    replica: &'a str,
    offset: Option<f64>,
    wait: f64,
    queue: f64,
    run: f64,
    total: f64,
    /// What it is if it is neither waiting nor work.
    rest: Kind,
}

impl Call<'_> {
    /// What a replica says of its time is no more than what the coordinator saw of it.
    fn row(self, steps: &str, note: &str) -> Row {
        let begin = self.offset.unwrap_or(0.0);
        let end = begin + self.total;
        let queued = (begin + self.queue).min(end);
        let worked = (queued + self.run).min(end);
        let waits = (begin - self.wait).max(0.0);
        let spans = [
            (Kind::Wait, waits, begin),
            (Kind::Queue, begin, queued),
            (Kind::Work, queued, worked),
            (self.rest, worked, end),
        ];
        let spans = spans.map(|(kind, begin, end)| Span { kind, begin, end });
        let mut spans: Vec<_> = spans.into_iter().filter(|span| span.end > span.begin).collect();
        if spans.is_empty() {
            spans.push(Span { kind: Kind::Work, begin, end: begin });
        }
        Row {
            label: self.label,
            spans,
            time: self.wait + self.total,
            steps: [steps, note].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", "),
            replica: plain(self.replica),
            is_placed: self.offset.is_some(),
        }
    }
}

/// All rows: what pictures share, then picture by picture, then what no stage was at.
pub(super) fn of(report: &Report) -> Vec<Row> {
    let mut timings: Vec<&TimingReport> = report.timings.iter().collect();
    timings.sort_by_key(|timing| timing.image_index.map_or(0, |index| 1 + u64::from(index)));
    let last = timings.iter().filter_map(|timing| timing.image_index).max();
    let mut rows: Vec<Row> = Vec::new();
    let is_cached = timings.iter().all(|timing| timing.image_index.is_some());
    if let Some(whole) = report.request_timing.as_ref().filter(|whole| is_cached && whole.texts > 0) {
        rows.push(cached(whole));
    }
    for timing in timings {
        let label = label(timing, last);
        rows.extend(timing.lost_attempts.iter().map(|lost| {
            let row = Call {
                label: label.clone(),
                replica: &lost.replica,
                offset: lost.start_time_offset_s,
                wait: lost.wait_time_s.unwrap_or(0.0),
                queue: lost.queue_time_s.unwrap_or(0.0),
                run: lost.run_time_s.unwrap_or(0.0),
                total: lost.total_time_s,
                rest: Kind::Lost,
            };
            row.row(&steps(lost.steps.into(), lost.run_time_s), lost.end)
        }));
        rows.push(ended(timing, label));
    }
    if let Some(whole) = &report.request_timing
        && rows.iter().all(|row| row.is_placed)
    {
        rows.push(between(whole, &rows));
    }
    rows
}

/// By the replica that brought it to its end.
fn ended(timing: &TimingReport, label: String) -> Row {
    let again = timing.steps_repeated;
    let note = if again > 0 { format!("{again} again") } else { String::new() };
    let call = Call {
        label,
        replica: &timing.replica,
        offset: timing.start_time_offset_s,
        wait: timing.wait_time_s.unwrap_or(0.0),
        queue: timing.queue_time_s,
        run: timing.run_time_s,
        total: timing.total_time_s,
        rest: Kind::Rest,
    };
    call.row(&steps(timing.steps_of_the_last(), Some(timing.run_time_s)), &note)
}

/// As `1 base-unet`; without the picture where there is one alone. Numbers are as wide as the `last`.
fn label(timing: &TimingReport, last: Option<u32>) -> String {
    match (timing.image_index, last) {
        (Some(index), Some(last)) if last > 0 => {
            format!("{index:>width$} {}", timing.stage, width = last.to_string().len())
        }
        _ => timing.stage.to_owned(),
    }
}

/// Texts that nothing was asked for.
fn cached(whole: &RequestReport) -> Row {
    let (begin, end) = (whole.admission_time_s, whole.texts_time_offset_s.max(whole.admission_time_s));
    Row {
        label: "text-encoder".to_owned(),
        spans: vec![Span { kind: Kind::Coordinator, begin, end }],
        time: end - begin,
        steps: "from the cache".to_owned(),
        is_placed: true,
        ..Row::default()
    }
}

/// When no stage had any of it: the coordinator's own time.
fn between(whole: &RequestReport, rows: &[Row]) -> Row {
    let spans = rows.iter().flat_map(|row| &row.spans).filter(|span| span.kind != Kind::Coordinator);
    let mut taken: Vec<_> = spans.map(|span| (span.begin, span.end)).collect();
    taken.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut spans, mut reached) = (Vec::new(), 0.0_f64);
    for (begin, end) in taken.into_iter().chain([(whole.total_time_s, whole.total_time_s)]) {
        if begin > reached {
            spans.push(Span { kind: Kind::Coordinator, begin: reached, end: begin });
        }
        reached = reached.max(end);
    }
    let time = spans.iter().map(|span| span.end - span.begin).sum();
    Row { label: "coordinator".to_owned(), spans, time, is_placed: true, ..Row::default() }
}

//! How far a run is, for people: a bar where somebody watches, lines in a log where nobody does, and `loss.csv`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{TrainError, tensor_file};

/// The first line of `loss.csv`.
const COLUMNS: &str = "step,loss,lr,grad_norm,samples_per_second,seconds";
/// Losses averaged for display.
const SMOOTHING: usize = 100;

/// A step that was done.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Which, from 1.
    pub step: u64,
    /// Its loss.
    pub loss: f32,
    /// The learning rate.
    pub learning_rate: f64,
    /// The gradient's norm before clipping.
    pub grad_norm: f64,
    /// Size of the batch.
    pub samples: usize,
    /// What it took.
    pub seconds: f64,
    /// What all steps took, those before an interruption too.
    pub total_seconds: f64,
}

/// Mean of the last losses.
#[must_use]
pub fn smoothed(losses: &[f32]) -> f64 {
    let recent = &losses[losses.len().saturating_sub(SMOOTHING)..];
    recent.iter().map(|loss| f64::from(*loss)).sum::<f64>() / recent.len().max(1) as f64
}

/// Shows steps as they are done.
#[derive(Debug)]
pub struct Display {
    title: String,
    total: u64,
    every: u64,
    bar: Option<ProgressBar>,
    /// Steps, samples and seconds of this process alone: an old machine's speed says nothing.
    seen: (u64, usize, f64),
}

impl Display {
    /// For a stage called `title` of `total` steps, `done` of them already; without a terminal, a line after every
    /// `every` steps.
    #[must_use]
    pub fn new(title: &str, total: u64, done: u64, every: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len}  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(title.to_owned());
            bar.set_position(done);
            bar
        });
        Self { title: title.to_owned(), total, every, bar, seen: (0, 0, 0.0) }
    }

    /// Shows a step, given all losses so far.
    pub fn show(&mut self, record: &Record, losses: &[f32]) {
        let (steps, samples, seconds) = &mut self.seen;
        (*steps, *samples, *seconds) = (*steps + 1, *samples + record.samples, *seconds + record.seconds);
        let message = self.message(record.step, losses);
        match &self.bar {
            Some(bar) => {
                bar.set_position(record.step);
                bar.set_message(message);
            }
            None if record.step.is_multiple_of(self.every) || record.step == self.total => {
                self.say(&format!("{}/{}  {message}", record.step, self.total));
            }
            None => {}
        }
    }

    /// Says something beside the steps.
    pub fn say(&self, text: &str) {
        let line = format!("{} {text}", self.title);
        match &self.bar {
            Some(bar) => bar.println(line),
            // A closed log is no reason to stop training.
            None => drop(writeln!(io::stderr(), "{line}")),
        }
    }

    fn message(&self, step: u64, losses: &[f32]) -> String {
        let (steps, samples, seconds) = self.seen;
        let seconds = seconds.max(1e-9);
        let left = self.total.saturating_sub(step) as f64 * seconds / steps.max(1) as f64;
        let rate = samples as f64 / seconds;
        format!("loss {:.5}  {rate:.1} samples/s  ETA {}", smoothed(losses), clock(left))
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// Hours, minutes and seconds.
fn clock(seconds: f64) -> String {
    let seconds = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}h{minutes:02}m") } else { format!("{minutes}m{seconds:02}s") }
}

/// `loss.csv`: a row for each step.
#[derive(Debug)]
pub struct LossFile {
    path: PathBuf,
    file: File,
    rows: String,
}

impl LossFile {
    /// Opens the file in `folder` to go on after `step`; rows of later steps, which will be done again, are cut off.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn open(folder: &Path, step: u64) -> Result<Self, TrainError> {
        let path = folder.join("loss.csv");
        let old = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.map_err(TrainError::reading(&path))?,
        };
        let is_done = |row: &&str| {
            row.split(',').next().and_then(|number| number.parse().ok()).is_some_and(|n: u64| n <= step)
        };
        // A row that a crash cut short is not done either: it has no line end, or it is of a later step.
        let whole = old.rfind('\n').map_or("", |end| &old[..end]);
        tensor_file::replace(&path, |file| {
            writeln!(file, "{COLUMNS}")?;
            whole.lines().filter(is_done).try_for_each(|row| writeln!(file, "{row}"))
        })?;
        let file = OpenOptions::new().append(true).open(&path).map_err(TrainError::writing(&path))?;
        Ok(Self { path, file, rows: String::new() })
    }

    /// Adds a step's row, which [`Self::flush`] writes.
    pub fn add(&mut self, r: &Record) {
        let rate = r.samples as f64 / r.seconds.max(1e-9);
        let row = [
            r.step.to_string(),
            r.loss.to_string(),
            format!("{:.6e}", r.learning_rate),
            format!("{:.6e}", r.grad_norm),
            format!("{rate:.2}"),
            format!("{:.2}", r.total_seconds),
        ];
        self.rows.push_str(&row.join(","));
        self.rows.push('\n');
    }

    /// Writes what was added.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn flush(&mut self) -> Result<(), TrainError> {
        self.file.write_all(self.rows.as_bytes()).map_err(TrainError::writing(&self.path))?;
        self.rows.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> Record {
        let (loss, learning_rate, grad_norm) = (0.5 / step as f32, 1e-4, 2.0);
        Record {
            step,
            loss,
            learning_rate,
            grad_norm,
            samples: 8,
            seconds: 2.0,
            total_seconds: 2.0 * step as f64,
        }
    }

    #[test]
    fn rows_after_the_checkpoint_are_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let write = |after, steps: std::ops::RangeInclusive<u64>| {
            let mut file = LossFile::open(folder.path(), after).unwrap();
            steps.for_each(|step| file.add(&record(step)));
            file.flush().unwrap();
        };
        write(0, 1..=4);
        let path = folder.path().join("loss.csv");
        let torn = fs::read_to_string(&path).unwrap() + "1,0.";
        fs::write(&path, torn).unwrap();
        write(2, 3..=3);
        let rows = fs::read_to_string(&path).unwrap();
        let expected = "step,loss,lr,grad_norm,samples_per_second,seconds\n\
            1,0.5,1.000000e-4,2.000000e0,4.00,2.00\n\
            2,0.25,1.000000e-4,2.000000e0,4.00,4.00\n\
            3,0.16666667,1.000000e-4,2.000000e0,4.00,6.00\n";
        assert_eq!(rows, expected);
    }

    #[test]
    fn what_is_left_is_told_by_this_process_pace() {
        let mut display = Display::new("vae", 2000, 990, u64::MAX);
        display.bar = None;
        let losses: Vec<f32> = (0..1000).map(|i| if i < 900 { 9.0 } else { 0.25 }).collect();
        for step in 991..=1000 {
            display.show(&record(step), &losses);
        }
        assert_eq!(display.message(1000, &losses), "loss 0.25000  4.0 samples/s  ETA 33m20s");
        assert_eq!(clock(3.0 * 3600.0 + 61.0), "3h01m");
    }
}

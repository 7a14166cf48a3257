//! Bars that show each picture's steps, on a terminal; nothing elsewhere.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use sdxl_core::StageKind;
use sdxl_core::plan::MAX_IMAGES;
use sdxl_proto::{
    convert::stage_kind,
    v1::{GenerateProgress, Stage},
};
use std::time::{Duration, Instant};

const REDRAW: Duration = Duration::from_millis(120);

/// The bars of one request.
pub(super) struct Progress {
    bars: MultiProgress,
    pictures: Vec<Picture>,
}

struct Picture {
    bar: ProgressBar,
    rate: Rate,
}

impl Progress {
    /// A bar for each of `num_images` pictures, drawn where `visible` and standard error is a terminal.
    pub(super) fn new(num_images: u32, visible: bool) -> Self {
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bars = MultiProgress::with_draw_target(target);
        let style = style("{prefix}{spinner} {msg}");
        let pictures = (0..num_images.clamp(1, MAX_IMAGES))
            .map(|index| {
                let bar = bars.add(ProgressBar::new(0).with_style(style.clone()));
                if num_images > 1 {
                    bar.set_prefix(format!("{index:>2} "));
                }
                bar.set_message("waiting");
                bar.enable_steady_tick(REDRAW);
                Picture { bar, rate: Rate::default() }
            })
            .collect();
        Self { bars, pictures }
    }

    /// Shows what the cluster tells; what belongs to no picture is shown at all.
    pub(super) fn update(&mut self, progress: &GenerateProgress) {
        let stage = Stage::try_from(progress.stage).ok().and_then(stage_kind);
        let one = progress.image_index.and_then(|i| usize::try_from(i).ok());
        for (index, picture) in self.pictures.iter_mut().enumerate() {
            if one.is_none_or(|one| one == index) {
                picture.update(stage, progress);
            }
        }
    }

    /// Ends the bar of a picture that has arrived.
    pub(super) fn finish(&self, index: u32) {
        if let Some(picture) = usize::try_from(index).ok().and_then(|i| self.pictures.get(i)) {
            picture.bar.finish_and_clear();
        }
    }

    /// Writes something else than bars, between two drawings.
    pub(super) fn suspend(&self, write: impl FnOnce()) {
        self.bars.suspend(write);
    }

    /// Takes all bars away.
    pub(super) fn clear(&self) {
        for picture in &self.pictures {
            picture.bar.finish_and_clear();
        }
    }
}

/// A wrong template, which no caller has, would give indicatif's own style.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Picture {
    fn update(&mut self, stage: Option<StageKind>, progress: &GenerateProgress) {
        if progress.steps_total > 0 {
            if self.bar.length() != Some(progress.steps_total.into()) {
                self.bar.set_style(style("{prefix}{spinner} {bar:30} {pos:>4}/{len:<4} {msg}"));
                self.bar.set_length(progress.steps_total.into());
            }
            self.bar.set_position(progress.steps_done.into());
        }
        let name = stage.map_or("", StageKind::name);
        let denoises = matches!(stage, Some(StageKind::BaseUnet | StageKind::Refiner));
        let rate = self.rate.after(denoises.then_some(progress.steps_done), Instant::now());
        self.bar.set_message(match rate.filter(|_| denoises) {
            Some(rate) => format!("{name}  {rate:.2} steps/s"),
            None => name.to_owned(),
        });
    }
}

/// Steps per second since the first step of a denoiser was reported; its queue and the other stages do not count.
#[derive(Default)]
struct Rate {
    first: Option<(u32, Instant)>,
}

impl Rate {
    fn after(&mut self, steps: Option<u32>, now: Instant) -> Option<f64> {
        let steps = steps?;
        let (first_steps, first) = *self.first.get_or_insert((steps, now));
        let seconds = now.duration_since(first).as_secs_f64();
        (steps > first_steps && seconds > 0.0).then(|| f64::from(steps - first_steps) / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_counts_denoising_only() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        assert_eq!(rate.after(None, start), None);
        let first = start + Duration::from_secs(10);
        assert_eq!(rate.after(Some(1), first), None);
        assert_eq!(rate.after(Some(5), first + Duration::from_secs(2)), Some(2.0));
    }

    #[test]
    fn progress_moves_the_bar_it_is_about() {
        let mut progress = Progress::new(2, false);
        progress.update(&GenerateProgress {
            stage: Stage::BaseUnet.into(),
            image_index: Some(1),
            steps_done: 3,
            steps_total: 30,
            replica: String::new(),
        });
        assert_eq!((progress.pictures[1].bar.position(), progress.pictures[1].bar.length()), (3, Some(30)));
        assert_eq!(progress.pictures[0].bar.position(), 0);
        progress.update(&GenerateProgress { stage: Stage::TextEncoder.into(), ..Default::default() });
        assert!(progress.pictures.iter().all(|p| p.bar.message() == "text-encoder"));
    }
}

//! The result as one JSON object, and its parts in words.

use super::args::flag_of;
use sdxl_core::StageKind;
use sdxl_proto::{
    convert::{duration_or_zero, stage_kind},
    v1,
};
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// What `--json` prints. Times are in seconds.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// In the order of their seeds.
    pub(super) images: Vec<ImageReport>,
    /// From the request's sending to its last answer.
    pub(super) elapsed_s: f64,
    pub(super) timings: Vec<TimingReport>,
    /// `None` where the cluster does not tell it, as in results that an older one kept.
    pub(super) request_timing: Option<RequestReport>,
    warnings: Vec<WarningReport>,
    pub(super) trace_id: String,
}

/// A picture that was written.
#[derive(Debug, Serialize)]
pub(super) struct ImageReport {
    pub(super) index: u32,
    pub(super) file: String,
    pub(super) media_type: String,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) seed: u64,
}

/// A `StageTiming`. Offsets are from the request's arrival, by the coordinator's clock.
#[derive(Debug, Default, Serialize)]
pub(super) struct TimingReport {
    pub(super) stage: &'static str,
    pub(super) image_index: Option<u32>,
    pub(super) replica: String,
    pub(super) start_time_offset_s: Option<f64>,
    pub(super) wait_time_s: Option<f64>,
    pub(super) queue_time_s: f64,
    pub(super) run_time_s: f64,
    pub(super) total_time_s: f64,
    pub(super) steps: u32,
    pub(super) steps_repeated: u32,
    pub(super) lost_attempts: Vec<AttemptReport>,
}

/// What another replica did of it before.
#[derive(Debug, Default, Serialize)]
pub(super) struct AttemptReport {
    pub(super) replica: String,
    pub(super) start_time_offset_s: Option<f64>,
    pub(super) wait_time_s: Option<f64>,
    pub(super) queue_time_s: Option<f64>,
    pub(super) run_time_s: Option<f64>,
    pub(super) total_time_s: f64,
    pub(super) steps: u32,
    /// `died`, `hung` or `stopped`.
    pub(super) end: &'static str,
}

/// A `RequestTiming`.
#[derive(Debug, Default, Serialize)]
pub(super) struct RequestReport {
    pub(super) total_time_s: f64,
    pub(super) admission_time_s: f64,
    pub(super) texts_time_offset_s: f64,
    pub(super) texts: u32,
    pub(super) texts_from_cache: u32,
}

#[derive(Debug, Serialize)]
struct WarningReport {
    code: &'static str,
    field: String,
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    truncated_text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    nearest_size: Option<SizeReport>,
}

#[derive(Debug, Serialize)]
struct SizeReport {
    height: u32,
    width: u32,
}

impl Report {
    /// Takes in what the cluster says at the end.
    pub(super) fn close(&mut self, summary: v1::GenerateSummary, elapsed: Duration) {
        self.images.sort_by_key(|image| image.index);
        self.elapsed_s = elapsed.as_secs_f64();
        self.trace_id = summary.trace_id;
        self.timings = summary.timings.into_iter().map(timing).collect();
        self.request_timing = summary.request_timing.map(|whole| RequestReport {
            total_time_s: seconds(whole.total_time),
            admission_time_s: seconds(whole.admission_time),
            texts_time_offset_s: seconds(whole.texts_time_offset),
            texts: whole.texts,
            texts_from_cache: whole.texts_from_cache,
        });
        self.warnings = summary
            .warnings
            .into_iter()
            .map(|w| WarningReport {
                code: v1::WarningCode::try_from(w.code).unwrap_or_default().as_str_name(),
                field: w.field,
                message: w.message,
                truncated_text: w.truncated_text,
                nearest_size: w.nearest_size.map(|s| SizeReport { height: s.height, width: s.width }),
            })
            .collect();
    }

    /// Where the time went, as `12.3 s (base-unet 11.9 s, vae 0.3 s), trace 0af7…`; stages' times are summed over
    /// pictures.
    pub(super) fn summary(&self) -> String {
        let mut stages: BTreeMap<usize, (&str, f64)> = BTreeMap::new();
        for timing in &self.timings {
            let order = StageKind::ALL.iter().position(|s| s.name() == timing.stage).unwrap_or(usize::MAX);
            stages.entry(order).or_insert((timing.stage, 0.0)).1 += timing.run_time_s;
        }
        let stages: Vec<_> = stages.values().map(|(name, time)| format!("{name} {time:.2} s")).collect();
        format!("{:.2} s ({}), trace {}", self.elapsed_s, stages.join(", "), self.trace_id)
    }

    /// Each warning as lines for a person.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.iter().map(WarningReport::text).collect()
    }
}

impl WarningReport {
    fn text(&self) -> String {
        let mut text = format!("{}: {}", flag_of(&self.field), self.message);
        if !self.truncated_text.is_empty() && !self.message.contains(&self.truncated_text) {
            text.push_str(&format!("\n  cut off: {:?}", self.truncated_text));
        }
        if let Some(size) = &self.nearest_size {
            text.push_str(&format!("\n  nearest: --width {} --height {}", size.width, size.height));
        }
        text
    }
}

impl TimingReport {
    /// That the replica did which ended it: what others had done and lost is not among them, unless it was done again.
    pub(super) fn steps_of_the_last(&self) -> u64 {
        let lost: u64 = self.lost_attempts.iter().map(|lost| u64::from(lost.steps)).sum();
        (u64::from(self.steps) + u64::from(self.steps_repeated)).saturating_sub(lost)
    }
}

fn seconds(time: Option<prost_types::Duration>) -> f64 {
    duration_or_zero(time).as_secs_f64()
}

/// The same of what need not be there.
fn told(time: Option<prost_types::Duration>) -> Option<f64> {
    time.map(|time| seconds(Some(time)))
}

fn timing(timing: v1::StageTiming) -> TimingReport {
    TimingReport {
        stage: v1::Stage::try_from(timing.stage).ok().and_then(stage_kind).map_or("unknown", StageKind::name),
        image_index: timing.image_index,
        replica: timing.replica,
        start_time_offset_s: told(timing.start_time_offset),
        wait_time_s: told(timing.wait_time),
        queue_time_s: seconds(timing.queue_time),
        run_time_s: seconds(timing.run_time),
        total_time_s: seconds(timing.total_time),
        steps: timing.steps,
        steps_repeated: timing.steps_repeated,
        lost_attempts: timing.lost_attempts.into_iter().map(attempt).collect(),
    }
}

fn attempt(lost: v1::StageAttempt) -> AttemptReport {
    let end = match lost.end() {
        v1::AttemptEnd::Died => "died",
        v1::AttemptEnd::Hung => "hung",
        v1::AttemptEnd::Stopped => "stopped",
        v1::AttemptEnd::Unspecified => "lost",
    };
    AttemptReport {
        replica: lost.replica,
        start_time_offset_s: told(lost.start_time_offset),
        wait_time_s: told(lost.wait_time),
        queue_time_s: told(lost.queue_time),
        run_time_s: told(lost.run_time),
        total_time_s: seconds(lost.total_time),
        steps: lost.steps,
        end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report() -> Report {
        let half = Some(prost_types::Duration { seconds: 0, nanos: 500_000_000 });
        let timing = |stage: v1::Stage, image_index| v1::StageTiming {
            stage: stage.into(),
            image_index,
            run_time: half,
            steps: 4,
            ..Default::default()
        };
        let image = |index| ImageReport {
            index,
            file: format!("cat-{index}.png"),
            media_type: "image/png".into(),
            width: 64,
            height: 128,
            seed: 7 + u64::from(index),
        };
        let mut report = Report { images: vec![image(1), image(0)], ..Report::default() };
        report.close(
            v1::GenerateSummary {
                timings: vec![
                    timing(v1::Stage::Vae, Some(0)),
                    timing(v1::Stage::BaseUnet, Some(0)),
                    timing(v1::Stage::BaseUnet, Some(1)),
                ],
                trace_id: "0af7".into(),
                warnings: vec![
                    v1::Warning {
                        code: v1::WarningCode::PromptTruncated.into(),
                        field: "negative_prompt".into(),
                        message: "longer than 77 tokens".into(),
                        truncated_text: "the \"end\"".into(),
                        nearest_size: None,
                    },
                    v1::Warning {
                        code: v1::WarningCode::SizeOutsideBuckets.into(),
                        field: "width".into(),
                        message: "not trained at this size".into(),
                        nearest_size: Some(v1::Size { height: 768, width: 1344 }),
                        ..Default::default()
                    },
                ],
                request_timing: Some(v1::RequestTiming { total_time: half, texts: 2, ..Default::default() }),
            },
            Duration::from_millis(1250),
        );
        report
    }

    #[test]
    fn stages_are_summed_in_the_pipelines_order() {
        assert_eq!(report().summary(), "1.25 s (base-unet 1.00 s, vae 0.50 s), trace 0af7");
    }

    #[test]
    fn warnings_name_the_flag_and_what_was_cut_off() {
        assert_eq!(
            report().warnings(),
            [
                "--negative-prompt: longer than 77 tokens\n  cut off: \"the \\\"end\\\"\"",
                "--width: not trained at this size\n  nearest: --width 1344 --height 768",
            ]
        );
    }

    #[test]
    fn json_holds_files_in_order_with_their_seeds() {
        let json: serde_json::Value = serde_json::to_value(report()).unwrap();
        assert_eq!(json["images"][0]["file"], "cat-0.png");
        assert_eq!(json["images"][1]["seed"], 8);
        assert_eq!(json["timings"][1]["stage"], "base-unet");
        assert_eq!(json["timings"][1]["run_time_s"], 0.5);
        assert_eq!(json["warnings"][0]["truncated_text"], "the \"end\"");
        assert_eq!(json["warnings"][1]["nearest_size"]["width"], 1344);
        assert_eq!(json["trace_id"], "0af7");
        assert_eq!(json["request_timing"]["total_time_s"], 0.5);
        assert_eq!(json["request_timing"]["texts"], 2);
    }

    #[test]
    fn json_has_what_was_lost_and_tells_nothing_that_was_not_told() {
        let half = Some(prost_types::Duration { seconds: 0, nanos: 500_000_000 });
        let lost = v1::StageAttempt {
            replica: "unet-1:50062".into(),
            start_time_offset: half,
            total_time: half,
            steps: 9,
            end: v1::AttemptEnd::Hung.into(),
            ..Default::default()
        };
        let timing =
            v1::StageTiming { steps: 20, steps_repeated: 4, lost_attempts: vec![lost], ..Default::default() };
        let mut report = Report::default();
        let summary = v1::GenerateSummary { timings: vec![timing], ..Default::default() };
        report.close(summary, Duration::ZERO);
        assert_eq!(report.timings[0].steps_of_the_last(), 15);
        let json = serde_json::to_value(report).unwrap();
        let timing = &json["timings"][0];
        assert_eq!((&timing["start_time_offset_s"], &timing["steps_repeated"]), (&json!(null), &json!(4)));
        let expected = json!({
            "replica": "unet-1:50062",
            "start_time_offset_s": 0.5,
            "wait_time_s": null,
            "queue_time_s": null,
            "run_time_s": null,
            "total_time_s": 0.5,
            "steps": 9,
            "end": "hung",
        });
        assert_eq!((&timing["lost_attempts"], &json["request_timing"]), (&json!([expected]), &json!(null)));
    }
}

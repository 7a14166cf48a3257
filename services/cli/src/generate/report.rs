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
    timings: Vec<TimingReport>,
    warnings: Vec<WarningReport>,
    trace_id: String,
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

#[derive(Debug, Serialize)]
struct TimingReport {
    stage: &'static str,
    image_index: Option<u32>,
    replica: String,
    queue_time_s: f64,
    run_time_s: f64,
    total_time_s: f64,
    steps: u32,
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

fn timing(timing: v1::StageTiming) -> TimingReport {
    let seconds = |d| duration_or_zero(d).as_secs_f64();
    TimingReport {
        stage: v1::Stage::try_from(timing.stage).ok().and_then(stage_kind).map_or("unknown", StageKind::name),
        image_index: timing.image_index,
        replica: timing.replica,
        queue_time_s: seconds(timing.queue_time),
        run_time_s: seconds(timing.run_time),
        total_time_s: seconds(timing.total_time),
        steps: timing.steps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                ..Default::default()
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
    }
}

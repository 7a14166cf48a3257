//! `sdxl model` and `sdxl generate --list-sizes`: what a cluster serves.

use crate::{connection::EndpointArgs, console, failure::Failure};
use clap::Args;
use sdxl_core::StageKind;
use sdxl_proto::{
    convert::stage_kind,
    v1::{
        GetModelRequest, GetModelResponse, SchedulerKind, Size, Stage, TimestepSpacing,
        model_service_client::ModelServiceClient,
    },
};
use std::fmt::Write;

const EXAMPLES: &str = "\
Examples:
  sdxl model
  sdxl model --endpoint http://gpu-7:50051";

/// What `sdxl model` is told.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ModelArgs {
    #[command(flatten)]
    endpoint: EndpointArgs,
}

/// Prints what the cluster serves.
///
/// # Errors
/// [`Failure`] where it cannot be reached or is not ready.
pub(crate) async fn run(args: &ModelArgs) -> Result<(), Failure> {
    console::result(description(&get_model(&args.endpoint).await?).trim_end());
    Ok(())
}

/// Prints the sizes that the cluster's model was trained at.
///
/// # Errors
/// [`Failure`] where it cannot be reached or is not ready.
pub(crate) async fn list_sizes(endpoint: &EndpointArgs) -> Result<(), Failure> {
    console::result(sizes(&get_model(endpoint).await?).trim_end());
    Ok(())
}

/// What the cluster serves.
///
/// # Errors
/// [`Failure`] where it cannot be reached or is not ready.
pub(crate) async fn get_model(endpoint: &EndpointArgs) -> Result<GetModelResponse, Failure> {
    let mut client = ModelServiceClient::new(endpoint.connect().await?);
    let answer = client.get_model(GetModelRequest {}).await;
    answer.map(tonic::Response::into_inner).map_err(|status| endpoint.explain(&status))
}

/// A table of the training buckets, the default marked.
fn sizes(model: &GetModelResponse) -> String {
    let mut text = String::from("width  height  aspect ratio\n");
    let mut default_shown = false;
    for size in &model.training_buckets {
        let default = Some(size) == model.default_size.as_ref();
        default_shown |= default;
        row(&mut text, size, if default { "  default" } else { "" });
    }
    if let Some(size) = model.default_size.as_ref().filter(|_| !default_shown) {
        row(&mut text, size, "  default, not among those trained at");
    }
    text
}

fn row(text: &mut String, size: &Size, remark: &str) {
    let aspect = f64::from(size.width) / f64::from(size.height.max(1));
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{:>5}  {:>6}  {aspect:>12.2}{remark}", size.width, size.height);
}

fn description(model: &GetModelResponse) -> String {
    let mut lines = vec![("model", model.model.clone()), ("revision", model.revision.clone())];
    if let Some(size) = &model.default_size {
        lines.push(("default size", format!("width {}, height {}", size.width, size.height)));
    }
    lines.push(("default steps", model.default_num_inference_steps.to_string()));
    lines
        .push(("trained at", format!("{} sizes (sdxl generate --list-sizes)", model.training_buckets.len())));
    let kinds: Vec<_> = model.schedulers.iter().map(|kind| kind_name(*kind)).collect();
    lines.push(("schedulers", kinds.join(", ")));
    if let Some(scheduler) = &model.default_scheduler {
        let spacing = scheduler
            .timestep_spacing
            .and_then(|s| TimestepSpacing::try_from(s).ok())
            .map(|s| format!(", {} spacing", short(s.as_str_name(), "TIMESTEP_SPACING_")));
        let karras = if scheduler.use_karras_sigmas() { ", Karras sigmas" } else { "" };
        let text = format!("{}{}{karras}", kind_name(scheduler.kind), spacing.unwrap_or_default());
        lines.push(("default scheduler", text));
    }
    lines.push(("refiner", if model.has_refiner { "yes" } else { "no" }.to_owned()));
    if let Some(limits) = &model.limits {
        lines.push((
            "limits",
            format!(
                "sides {} to {} in steps of {}, {} steps, {} pictures, clip_skip {}",
                limits.min_side,
                limits.max_side,
                limits.side_multiple,
                limits.max_num_inference_steps,
                limits.max_num_images,
                limits.max_clip_skip
            ),
        ));
    }
    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<18} {value}");
    }
    text.push_str(&stages(model));
    text
}

fn stages(model: &GetModelResponse) -> String {
    let mut text = format!("\n{:<14}{:<10}{:<8}{:<8}model\n", "stage", "replicas", "device", "dtype");
    for stage in &model.stages {
        let name = Stage::try_from(stage.stage).ok().and_then(stage_kind).map_or("unknown", StageKind::name);
        let dtype = short(stage.dtype().as_str_name(), "D_TYPE_");
        let (replicas, device, model) = (stage.ready_replicas, &stage.device, &stage.model);
        let _ = writeln!(text, "{name:<14}{replicas:<10}{device:<8}{dtype:<8}{model}");
    }
    text
}

fn kind_name(kind: i32) -> String {
    let kind = SchedulerKind::try_from(kind).unwrap_or_default();
    short(kind.as_str_name(), "SCHEDULER_KIND_")
}

/// An enum value's name without its type's, in small letters.
fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdxl_proto::v1::{DType, Limits, SchedulerConfig, StageStatus};

    fn model(default: Size) -> GetModelResponse {
        GetModelResponse {
            model: "micro".into(),
            revision: "abc".into(),
            default_size: Some(default),
            default_num_inference_steps: 50,
            training_buckets: vec![Size { height: 512, width: 2048 }, Size { height: 1024, width: 1024 }],
            schedulers: vec![1, 2],
            default_scheduler: Some(SchedulerConfig {
                kind: 1,
                timestep_spacing: Some(1),
                ..Default::default()
            }),
            has_refiner: true,
            limits: Some(Limits { min_side: 64, max_side: 2048, ..Default::default() }),
            stages: vec![StageStatus {
                stage: Stage::BaseUnet.into(),
                dtype: DType::F32.into(),
                device: "cpu".into(),
                ready_replicas: 2,
                ..Default::default()
            }],
        }
    }

    #[test]
    fn the_default_size_is_marked() {
        let text = sizes(&model(Size { height: 1024, width: 1024 }));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], " 2048     512          4.00");
        assert_eq!(lines[2], " 1024    1024          1.00  default");
        assert_eq!(lines.len(), 3);
        let text = sizes(&model(Size { height: 64, width: 64 }));
        assert!(
            text.ends_with("   64      64          1.00  default, not among those trained at\n"),
            "{text}"
        );
    }

    #[test]
    fn the_model_is_told_in_words() {
        let text = description(&model(Size { height: 1024, width: 512 }));
        for part in ["width 512, height 1024", "euler, ddim", "euler, leading spacing", "sides 64 to 2048"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(text.lines().any(|l| l.split_whitespace().eq(["base-unet", "2", "cpu", "f32"])), "{text}");
    }
}

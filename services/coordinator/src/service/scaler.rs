//! `externalscaler.ExternalScaler`, by which KEDA scales each stage: on the seconds of work that are outstanding at it, for
//! one replica of the speed that its replicas are seen to have.
//!
//! A trigger's metadata are `stage` (text-encoder, base-unet, refiner or vae) and `targetSeconds`, of work that a replica may
//! have before it: the fewer, the shorter the queue and the more replicas. KEDA asks for the whole and divides by the target.

use crate::{
    admission::Admission,
    placement::{Fleet, Fleets},
    telemetry::outstanding_seconds,
};
use futures::Stream;
use sdxl_core::{Classify, ErrorClass, FieldViolation, StageKind, Violations};
use sdxl_proto::{
    externalscaler::{
        GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
        MetricValue, ScaledObjectRef, external_scaler_server::ExternalScaler,
    },
    status::status,
};
use sdxl_runtime::Shutdown;
use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};
use thiserror::Error;
use tokio::time::sleep;
use tonic::{Request, Response, Status};

/// The only metric.
const METRIC: &str = "outstanding-seconds";
const DEFAULT_TARGET: f64 = 30.0;
/// Between two looks whether a stage has become active or idle.
const POLL: Duration = Duration::from_millis(500);

/// Answers KEDA.
#[derive(Clone, Debug)]
pub(crate) struct Scaler {
    pub(crate) fleets: Arc<Fleets>,
    pub(crate) admission: Admission,
    pub(crate) shutdown: Shutdown,
}

/// What a trigger asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Trigger {
    stage: StageKind,
    target_seconds: f64,
}

/// A trigger's metadata are wrong.
#[derive(Debug, Error)]
#[error("{}", sdxl_core::error::sentence(.0))]
struct BadTrigger(Vec<FieldViolation>);

impl Classify for BadTrigger {
    fn class(&self) -> ErrorClass {
        ErrorClass::InvalidRequest
    }

    fn violations(&self) -> &[FieldViolation] {
        &self.0
    }
}

impl Trigger {
    fn new(metadata: &HashMap<String, String>) -> Result<Self, BadTrigger> {
        let mut violations = Violations::default();
        let named = metadata.get("stage").map_or("", String::as_str);
        let stage = StageKind::ALL.into_iter().find(|stage| stage.name() == named);
        if stage.is_none() {
            let names = StageKind::ALL.map(StageKind::name).join(", ");
            violations.add("scalerMetadata.stage", format!("{named:?}"), format!("one of {names}"));
        }
        let target = metadata.get("targetSeconds").map(String::as_str);
        let target_seconds = target.map_or(Some(DEFAULT_TARGET), |text| {
            text.parse().ok().filter(|seconds: &f64| (0.001..=86_400.0).contains(seconds))
        });
        if target_seconds.is_none() {
            let text = format!("{:?}", target.unwrap_or_default());
            violations.add("scalerMetadata.targetSeconds", text, "in 0.001..=86400");
        }
        match (stage, target_seconds) {
            (Some(stage), Some(target_seconds)) => Ok(Self { stage, target_seconds }),
            _ => Err(BadTrigger(violations.into_vec())),
        }
    }

    fn spec(self) -> GetMetricSpecResponse {
        GetMetricSpecResponse {
            metric_specs: vec![MetricSpec {
                metric_name: METRIC.to_owned(),
                target_size: rounded_up(self.target_seconds),
                target_size_float: self.target_seconds,
            }],
        }
    }
}

impl Scaler {
    fn fleet(&self, stage: StageKind) -> Option<&Fleet> {
        self.fleets.iter().find(|fleet| fleet.stage() == stage)
    }

    fn is_active(&self, trigger: Trigger) -> bool {
        self.admission.outstanding(trigger.stage) > 0
    }

    /// How long one replica would have to work for all that is outstanding. Before any was seen at work, what one replica
    /// is worth.
    fn seconds(&self, trigger: Trigger) -> f64 {
        let seconds = outstanding_seconds(&self.admission, self.fleet(trigger.stage), trigger.stage);
        seconds.unwrap_or(trigger.target_seconds)
    }
}

fn trigger(reference: Option<&ScaledObjectRef>) -> Result<Trigger, Status> {
    let none = HashMap::new();
    Trigger::new(reference.map_or(&none, |reference| &reference.scaler_metadata))
        .map_err(|error| status(&error))
}

#[expect(clippy::cast_possible_truncation, reason = "of some seconds; and a float's cast saturates")]
fn rounded_up(value: f64) -> i64 {
    value.ceil() as i64
}

type Told<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ExternalScaler for Scaler {
    type StreamIsActiveStream = Told<IsActiveResponse>;
    type StreamMetricSpecStream = Told<GetMetricSpecResponse>;

    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let trigger = trigger(Some(request.get_ref()))?;
        Ok(Response::new(IsActiveResponse { result: self.is_active(trigger) }))
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let trigger = trigger(Some(request.get_ref()))?;
        let scaler = self.clone();
        let told = futures::stream::unfold(None, move |said: Option<bool>| {
            let scaler = scaler.clone();
            async move {
                loop {
                    let result = scaler.is_active(trigger);
                    if said != Some(result) {
                        return Some((Ok(IsActiveResponse { result }), Some(result)));
                    }
                    tokio::select! {
                        () = sleep(POLL) => {}
                        () = scaler.shutdown.triggered() => return None,
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(told)))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        Ok(Response::new(trigger(Some(request.get_ref()))?.spec()))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let GetMetricsRequest { scaled_object_ref, metric_name } = request.into_inner();
        if !metric_name.ends_with(METRIC) {
            let mut violations = Violations::default();
            violations.add("metricName", format!("{metric_name:?}"), METRIC);
            return Err(status(&BadTrigger(violations.into_vec())));
        }
        let seconds = self.seconds(trigger(scaled_object_ref.as_ref())?);
        let value =
            MetricValue { metric_name, metric_value: rounded_up(seconds), metric_value_float: seconds };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }

    async fn stream_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamMetricSpecStream>, Status> {
        let trigger = trigger(Some(request.get_ref()))?;
        let shutdown = self.shutdown.clone();
        // It never changes.
        let told = futures::stream::unfold(true, move |is_first| {
            let shutdown = shutdown.clone();
            async move {
                if is_first {
                    return Some((Ok(trigger.spec()), false));
                }
                shutdown.triggered().await;
                None
            }
        });
        Ok(Response::new(Box::pin(told)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_names_its_stage_and_may_name_its_target() {
        let trigger = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            Trigger::new(&pairs.collect()).map_err(|error| error.to_string())
        };
        let expected = Trigger { stage: StageKind::BaseUnet, target_seconds: 30.0 };
        assert_eq!(trigger(&[("stage", "base-unet")]), Ok(expected));
        let expected = Trigger { stage: StageKind::Vae, target_seconds: 2.5 };
        assert_eq!(
            trigger(&[("stage", "vae"), ("targetSeconds", "2.5"), ("scalerAddress", "x:1")]),
            Ok(expected)
        );
        let line = trigger(&[("targetSeconds", "-1")]).unwrap_err();
        assert_eq!(
            line,
            "scalerMetadata.stage: \"\" is not one of text-encoder, base-unet, refiner, vae; \
             scalerMetadata.targetSeconds: \"-1\" is not in 0.001..=86400"
        );
    }
}

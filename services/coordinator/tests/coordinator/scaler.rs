//! What KEDA is told.

use crate::{
    cluster::{Cluster, Layout, cat},
    fake::Script,
};
use sdxl_core::StageKind;
use sdxl_proto::{
    externalscaler::{GetMetricsRequest, ScaledObjectRef, external_scaler_client::ExternalScalerClient},
    v1::GenerateRequest,
};
use std::time::Duration;
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt;

const STEP: Duration = Duration::from_millis(50);

fn client(cluster: &Cluster) -> ExternalScalerClient<Channel> {
    ExternalScalerClient::new(cluster.channel.clone())
}

fn of(stage: &str) -> ScaledObjectRef {
    let metadata = [("stage", stage), ("targetSeconds", "2")];
    ScaledObjectRef {
        name: stage.into(),
        namespace: "sdxl".into(),
        scaler_metadata: metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    }
}

async fn seconds(cluster: &Cluster, stage: &str) -> f64 {
    let spec = client(cluster).get_metric_spec(of(stage)).await.unwrap().into_inner().metric_specs.remove(0);
    assert_eq!((spec.target_size, spec.target_size_float), (2, 2.0));
    // As KEDA hands it on to the autoscaler.
    let metric_name = format!("s0-{}", spec.metric_name);
    let request = GetMetricsRequest { scaled_object_ref: Some(of(stage)), metric_name: metric_name.clone() };
    let value = client(cluster).get_metrics(request).await.unwrap().into_inner().metric_values.remove(0);
    assert_eq!(value.metric_name, metric_name);
    assert!((0..=1).contains(&(value.metric_value - value.metric_value_float.floor() as i64)));
    value.metric_value_float
}

#[tokio::test]
async fn it_is_told_how_long_one_replica_would_have_to_work() {
    let slow = Script::new(StageKind::BaseUnet).step_time(STEP);
    let cluster = Cluster::start(Layout::bases([slow])).await;
    let mut active = client(&cluster).stream_is_active(of("base-unet")).await.unwrap().into_inner();
    assert!(!active.message().await.unwrap().unwrap().result, "nothing to do");
    assert_eq!(seconds(&cluster, "base-unet").await, 0.0);

    let run = |steps: u32| {
        let mut client = cluster.client();
        let request = GenerateRequest {
            num_inference_steps: steps,
            num_images: 2,
            // The fake tells of one evaluation a step.
            guidance_scale: Some(1.0),
            ..cat()
        };
        tokio::spawn(async move { client.generate(request).await })
    };
    let first = run(20);
    assert!(active.message().await.unwrap().unwrap().result);
    first.await.unwrap().unwrap();
    assert!(!active.message().await.unwrap().unwrap().result);

    let second = run(40);
    cluster.base_unet[0].running(2).await;
    let (base, vae) = (seconds(&cluster, "base-unet").await, seconds(&cluster, "vae").await);
    // Two pictures of forty steps of 50 ms, of which a few may be done.
    assert!((1.0..=4.5).contains(&base), "{base} s");
    assert!(vae < base, "{vae} s");
    second.abort();
    cluster.base_unet[0].running(0).await;
    assert_eq!(seconds(&cluster, "base-unet").await, 0.0, "what is given up is not outstanding");
}

#[tokio::test]
async fn what_was_never_seen_at_work_counts_as_one_replicas_worth() {
    let cluster =
        Cluster::start(Layout::bases([Script::new(StageKind::BaseUnet).step_time(1000 * STEP)])).await;
    let mut client = cluster.client();
    let running = tokio::spawn(async move { client.generate(cat()).await });
    cluster.base_unet[0].running(1).await;
    assert_eq!(seconds(&cluster, "base-unet").await, 2.0);
    running.abort();
}

#[tokio::test]
async fn triggers_and_metrics_that_are_none_are_named() {
    let cluster = Cluster::start(Layout::default()).await;
    for stage in ["", "unet"] {
        let status = client(&cluster).is_active(of(stage)).await.unwrap_err();
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(
            (status.code(), violations[0].field.as_str()),
            (Code::InvalidArgument, "scalerMetadata.stage")
        );
    }
    let request = GetMetricsRequest { scaled_object_ref: Some(of("vae")), metric_name: "queue".into() };
    let status = client(&cluster).get_metrics(request).await.unwrap_err();
    assert_eq!(status.message(), "metricName: \"queue\" is not outstanding-seconds");
}

//! Wrong values.

use crate::{LEAST, complaint, helm, objects};
use integration_tests::{ApiServer, kubernetes::said};

#[test]
fn wrong_values_are_refused_with_the_name_of_the_key() {
    let Some(api) = ApiServer::shared() else { return };
    api.namespace("wrong", "privileged");
    let redis = "redis.inChart.enabled=true";
    let cases: [(&[&str], &str); 31] = [
        (
            &["stages.baseUnet.replica=3"],
            "at '/stages/baseUnet': additional properties 'replica' not allowed",
        ),
        (&["stages.unet.replicas=3"], "at '/stages': additional properties 'unet' not allowed"),
        (&["gpuPool.h200.device=cuda"], "additional properties 'gpuPool' not allowed"),
        (&["stages.vae.replicas=-1"], "at '/stages/vae/replicas': minimum: got -1, want 0"),
        (&["coordinator.replicas=two"], "at '/coordinator/replicas': got string, want integer"),
        (
            &["stages.vae.gpuPool=h100"],
            "stages.vae.gpuPool: there is no pool \"h100\" in gpuPools, which has cpu",
        ),
        (&["stageDefaults.gpuPool=h100"], "stages.textEncoder.gpuPool: there is no pool \"h100\""),
        (
            &[redis, "redis.external.url=redis://store:6379"],
            "redis: both inChart.enabled and external.url are given",
        ),
        (
            &[redis, "redis.external.secret=store"],
            "redis: both inChart.enabled and external.secret are given",
        ),
        (
            &["redis.external.url=redis://store:6379", "redis.external.secret=store"],
            "redis.external: url and secret are both given",
        ),
        (&["redis.external.url=store:6379"], "at '/redis/external/url': 'store:6379' does not match"),
        (&["weights.hostPath.path=/srv"], "not pvc.claimName and hostPath.path"),
        (&["weights.pvc.claimName="], "weights: one of pvc.claimName, hostPath.path, image.reference and"),
        (&["image.registry="], "image.registry: where the images are has to be given"),
        (&["discovery=kube"], "at '/discovery': value must be one of 'dns', 'kubernetes'"),
        (
            &["stages.vae.autoscaling.kind=keda", "stages.vae.autoscaling.minReplicas=9"],
            "stages.vae.autoscaling: minReplicas is 9 and maxReplicas 4",
        ),
        (&["stages.vae.enabled=false"], "stages.vae.enabled: every request needs it"),
        (
            &["tls.enabled=true"],
            "tls: certManager.issuerRef.name, or coordinatorSecret and stageSecret, have to be given; enabled=false",
        ),
        (
            &["stages.vae.rollout.maxSurge=0"],
            "stages.vae.rollout: maxSurge and maxUnavailable cannot both be 0",
        ),
        (&["monitoring.serviceMonitor.enabled=true"], "additional properties 'serviceMonitor' not allowed"),
        (
            &["monitoring.alerts.windows=5m"],
            "at '/monitoring/alerts': additional properties 'windows' not allowed",
        ),
        (&["monitoring.alerts.window=5"], "at '/monitoring/alerts/window': got number, want string"),
        (
            &["monitoring.podMonitor.interval=soon"],
            "at '/monitoring/podMonitor/interval': 'soon' does not match",
        ),
        (&["monitoring.alerts.window=0s"], "at '/monitoring/alerts/window': '0s' does not match"),
        (&["monitoring.alerts.for=1s1m"], "at '/monitoring/alerts/for': '1s1m' does not match"),
        (
            &["monitoring.alerts.thresholds.ejections=null"],
            "at '/monitoring/alerts/thresholds': missing property 'ejections'",
        ),
        (&["telemetry.log=inof"], "at '/telemetry/log': 'inof' does not match"),
        (
            &["telemetry.log=info\\,sdxl_stage=loud"],
            "at '/telemetry/log': 'info,sdxl_stage=loud' does not match",
        ),
        (
            &["telemetry.log=[run{stage=vae}]=debug\\,inof"],
            "at '/telemetry/log': '[run{stage=vae}]=debug,inof' does not match",
        ),
        (
            &["monitoring.alerts.thresholds.deadlineShare=5"],
            "at '/monitoring/alerts/thresholds/deadlineShare': maximum",
        ),
        (
            &["monitoring.alerts.without={SdxlRedisGon}"],
            "at '/monitoring/alerts/without/0': value must be one of",
        ),
    ];
    for (settings, named) in cases {
        let output = helm(api, "install", "wrong", &[], &[&LEAST, settings].concat());
        let complaint = complaint(&output);
        assert!(!output.status.success() && complaint.contains(named), "{settings:?}: {complaint}");
    }
    // Nothing that is said is with certificates.
    let unsaid = complaint(&helm(api, "install", "wrong", &[], &LEAST[1..]));
    assert!(
        unsaid.contains("tls: certManager.issuerRef.name, or coordinatorSecret and stageSecret"),
        "{unsaid}"
    );
    assert_eq!(objects(api, "wrong"), Vec::<String>::new());
    said(&helm(api, "install", "wrong", &[], &LEAST));
}

/// What servers take as filters, and Prometheus as times, is not refused.
#[test]
fn filters_and_times_that_are_right_are_taken() {
    let Some(api) = ApiServer::shared() else { return };
    let filters = [
        "WARN",
        "off",
        "info\\,sdxl_stage=debug",
        "sdxl_stage::worker=trace\\, warn",
        "[run{stage=vae}]=debug",
        "info\\,sdxl_stage[run{stage=vae}]=trace\\, warn",
    ];
    let filters = filters.map(|filter| format!("telemetry.log={filter}"));
    let times = ["30s", "1h30m", "500ms", "1w2d", "100ms", "0h5m"];
    let times = times.map(|time| format!("monitoring.alerts.window={time}"));
    for setting in filters.iter().chain(&times) {
        said(&helm(api, "template", "right", &[], &[&LEAST[..], &[setting]].concat()));
    }
}

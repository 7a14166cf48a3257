//! What the pods are that the chart asks for, and all else that it can be told to make.

use crate::{EXAMPLES, complaint, example, helm, text, written};
use integration_tests::{ApiServer, kubernetes::said};
use serde_json::{Value, json};
use std::{fs, io::Write, process::Output};

/// Has the server say whether it would take the pod that a Deployment's controller would make.
fn pod_is_taken(api: &ApiServer, namespace: &str, deployment: &Value) -> Output {
    let mut pod = deployment["spec"]["template"].clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = deployment["metadata"]["name"].clone();
    let file = written(&pod);
    let path = file.path().to_str().unwrap();
    api.try_kubectl(["create", "--dry-run=server", "-n", namespace, "-f", path])
}

#[test]
fn pods_are_taken_where_only_restricted_ones_are() {
    let Some(api) = ApiServer::shared() else { return };
    // What an administrator of the examples' clusters has made.
    api.kubectl(["create", "priorityclass", "sdxl-serving", "--value=1000"]);
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "nvidia",
        "metadata": {"name": "nvidia"}});
    api.kubectl(["create", "-f", written(&class).path().to_str().unwrap()]);

    for name in EXAMPLES {
        let namespace = &format!("restricted-{name}");
        api.namespace(namespace, "restricted");
        let installed = helm(api, "install", namespace, &[example(name)], &[]);
        said(&installed);
        let mut refused = Vec::new();
        for deployment in api.get(namespace, &["deployments"])["items"].as_array().unwrap() {
            let taken = pod_is_taken(api, namespace, deployment);
            if !taken.status.success() {
                refused.push(text(&deployment["metadata"]["name"]));
                assert!(complaint(&taken).contains("hostPath"), "{}", complaint(&taken));
            }
        }
        // A folder of the node is what that level forbids, as the values say.
        let stages = ["sdxl-base-unet", "sdxl-refiner", "sdxl-text-encoder", "sdxl-vae"];
        assert_eq!(refused, if name == "single-gpu" { &stages[..] } else { &[] }, "{name}");
        let warned = complaint(&installed).contains("would violate PodSecurity");
        assert_eq!(warned, name == "single-gpu", "{}", complaint(&installed));

        let hooks = said(&api.helm(["get", "hooks", "sdxl", "-n", namespace]));
        let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        file.write_all(hooks.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap();
        let made = api.kubectl(["create", "--dry-run=server", "-n", namespace, "-f", path]);
        assert!(made.contains("pod/sdxl-test created"), "{made}");
    }
}

/// What no example turns on.
const ALL: &str = r"
image: {registry: registry.example.com/sdxl, pullSecrets: [{name: registry}]}
weights: {pvc: {claimName: checkpoints}}
tls: {certManager: {issuerRef: {name: issuer}}}
auth: {secret: keys}
telemetry: {otlpEndpoint: 'http://collector.monitoring:4317'}
networkPolicy: {clients: [{podSelector: {matchLabels: {app: shop}}}]}
ingress: {enabled: true, host: sdxl.example.com}
grpcRoute: {enabled: true, parentRefs: [{name: public}]}
redis: {external: {url: 'redis://store:6379/1'}}
gpuPools:
  zoned:
    affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [
      {matchExpressions: [{key: gpu, operator: Exists}]}]}}}
stageDefaults:
  gpuPool: zoned
  extraArgs: [--queue-depth=8]
  extraEnv: [{name: RUST_BACKTRACE, value: '1'}]
  extraVolumes: [{name: more, emptyDir: {}}]
  extraVolumeMounts: [{name: more, mountPath: /more}]
  podAnnotations: {example.com/note: a}
  podLabels: {example.com/team: a}
  serviceAccountAnnotations: {example.com/role: a}
  autoscaling: {kind: keda}
stages: {refiner: {enabled: false}}
coordinator:
  nodeSelector: {kubernetes.io/arch: amd64}
  tolerations: [{operator: Exists}]
  service: {type: LoadBalancer, annotations: {example.com/internal: 'true'}}
";

#[test]
fn what_no_example_turns_on_is_taken_too() {
    let Some(api) = ApiServer::shared() else { return };
    let namespace = "all";
    api.namespace(namespace, "restricted");
    let values = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    fs::write(values.path(), ALL).unwrap();
    let files = [values.path().to_str().unwrap().to_owned()];
    let installed = helm(api, "install", namespace, &files, &[]);
    said(&installed);
    assert!(!complaint(&installed).contains("would violate"), "{}", complaint(&installed));

    let deployments = api.get(namespace, &["deployments"]);
    let deployments = deployments["items"].as_array().unwrap();
    assert_eq!(deployments.len(), 4, "no refiner");
    for deployment in deployments {
        let taken = pod_is_taken(api, namespace, deployment);
        assert!(taken.status.success(), "{}", complaint(&taken));
        // The kubelet speaks no TLS, so that health has a port without it.
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let health = &container["ports"][1];
        assert_eq!(health["name"], "health");
        assert_eq!(container["readinessProbe"]["grpc"]["port"], health["containerPort"]);
    }
    let encoder = api.get(namespace, &["deployment", "sdxl-text-encoder"]).to_string();
    assert!(encoder.contains("--base=/weights/base") && !encoder.contains("--refiner"), "{encoder}");
    let made = api.kubectl([
        "get",
        "certificates,scaledobjects,triggerauthentications,ingresses,grpcroutes",
        "-n",
        namespace,
        "-o",
        "name",
    ]);
    assert_eq!(made.lines().count(), 2 + 3 + 1 + 1 + 1, "{made}");
    let ingress = api.get(namespace, &["ingress", "sdxl-coordinator"]);
    let protocol = &ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/backend-protocol"];
    assert_eq!(protocol, "GRPCS");
    let trigger = &api.get(namespace, &["scaledobject", "sdxl-vae"])["spec"]["triggers"][0];
    let address = format!("sdxl-coordinator.{namespace}.svc:50051");
    let metadata =
        json!({"scalerAddress": address, "stage": "vae", "targetSeconds": "20", "enableTLS": "true"});
    assert_eq!(trigger["metadata"], metadata);
}

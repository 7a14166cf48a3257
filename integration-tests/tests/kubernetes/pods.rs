//! What the pods are that the chart asks for, and all else that it can be told to make.

use crate::{EXAMPLES, LEAST, complaint, example, helm, text, written};
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
monitoring: {podMonitor: {enabled: true}, alerts: {enabled: true}, dashboard: {enabled: true}}
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
        "certificates,scaledobjects,triggerauthentications,ingresses,grpcroutes,podmonitors,prometheusrules",
        "-n",
        namespace,
        "-o",
        "name",
    ]);
    assert_eq!(made.lines().count(), 2 + 3 + 1 + 1 + 1 + 1 + 1, "{made}");
    let ingress = api.get(namespace, &["ingress", "sdxl-coordinator"]);
    let protocol = &ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/backend-protocol"];
    assert_eq!(protocol, "GRPCS");
    let trigger = &api.get(namespace, &["scaledobject", "sdxl-vae"])["spec"]["triggers"][0];
    let address = format!("sdxl-coordinator.{namespace}.svc:50051");
    let metadata =
        json!({"scalerAddress": address, "stage": "vae", "targetSeconds": "20", "enableTLS": "true"});
    assert_eq!(trigger["metadata"], metadata);
}

/// A port of each of a Deployment's pods, as PodMonitors and NetworkPolicies name it.
fn has_port(deployment: &Value, name: &Value) -> bool {
    let ports = deployment["spec"]["template"]["spec"]["containers"][0]["ports"].as_array().unwrap();
    ports.iter().any(|port| port["name"] == *name)
}

#[test]
fn every_server_is_scraped_and_lets_prometheus_in() {
    let Some(api) = ApiServer::shared() else { return };
    let with = ["tls.enabled=true", "tls.coordinatorSecret=a", "tls.stageSecret=b"];
    for (namespace, tls, port) in [("scraped", &with[..0], "grpc"), ("scraped-tls", &with[..], "health")] {
        api.namespace(namespace, "restricted");
        let watched = [
            "monitoring.podMonitor.enabled=true",
            "monitoring.podMonitor.interval=15s",
            "monitoring.podMonitor.labels.release=prometheus",
            "networkPolicy.prometheusNamespace.team=watchers",
            "redis.inChart.enabled=true",
        ];
        said(&helm(api, "install", namespace, &[], &[&LEAST[..], tls, &watched].concat()));
        let monitor = api.get(namespace, &["podmonitor", "sdxl-monitoring"]);
        assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
        let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
        let [asked, path, interval] = ["port", "path", "interval"].map(|key| text(&endpoint[key]));
        assert_eq!([&asked[..], &path, &interval], [port, "/metrics", "15s"]);
        let selector = &monitor["spec"]["selector"];
        let among = &selector["matchExpressions"][0];
        assert_eq!(
            (&among["operator"], &among["key"]),
            (&json!("In"), &json!("app.kubernetes.io/component"))
        );

        let deployments = api.get(namespace, &["deployments"]);
        let (mut scraped, mut others) = (Vec::new(), Vec::new());
        for deployment in deployments["items"].as_array().unwrap() {
            let labels = deployment["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
            let has = |(label, value): (&String, &Value)| labels.get(label) == Some(value);
            let is_among =
                among["values"].as_array().unwrap().contains(&labels["app.kubernetes.io/component"]);
            let is_scraped = is_among && selector["matchLabels"].as_object().unwrap().iter().all(has);
            let name = text(&deployment["metadata"]["name"]);
            let policy = api.get(namespace, &["networkpolicy", &name]);
            let lets_in = policy["spec"]["ingress"].as_array().unwrap().iter().any(|rule| {
                let labels = &rule["from"][0]["namespaceSelector"]["matchLabels"];
                labels["team"] == "watchers" && rule["ports"] == json!([{"port": port, "protocol": "TCP"}])
            });
            assert_eq!(lets_in, is_scraped, "{policy}");
            assert!(!is_scraped || has_port(deployment, &endpoint["port"]), "{deployment}");
            if is_scraped { scraped.push(name) } else { others.push(name) }
        }
        let servers = ["sdxl-base-unet", "sdxl-coordinator", "sdxl-refiner", "sdxl-text-encoder", "sdxl-vae"];
        assert_eq!((scraped, others), (servers.map(str::to_owned).to_vec(), vec!["sdxl-redis".to_owned()]));
        let none = api.try_kubectl(["get", "prometheusrule", "sdxl-monitoring", "-n", namespace]);
        assert!(complaint(&none).contains("NotFound"), "{}", complaint(&none));
    }
}

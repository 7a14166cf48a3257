//! The chart against a real API server: every object that it makes is checked and kept by the server that would run it.
//!
//! `make tools` builds what this needs; without it the tests say so and do nothing.

use integration_tests::{
    ApiServer, Server,
    kubernetes::{chart, root, said, tools},
    process,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::{Command, Output},
    thread,
    time::Duration,
};

const EXAMPLES: [&str; 4] = ["cpu-trial", "h200-pools", "multi-zone", "single-gpu"];
const PATIENCE: Duration = Duration::from_secs(120);
/// What every release needs, for tests of other things.
const LEAST: [&str; 2] = ["image.registry=registry.example.com/sdxl", "weights.pvc.claimName=checkpoints"];

fn example(name: &str) -> String {
    chart().join("examples").join(format!("{name}.yaml")).to_str().unwrap().to_owned()
}

/// `helm COMMAND RELEASE CHART` in a namespace, with settings as `key=value`.
fn helm(api: &ApiServer, command: &str, namespace: &str, files: &[String], settings: &[&str]) -> Output {
    let mut args = vec![command.to_owned(), "sdxl".to_owned(), chart().to_str().unwrap().to_owned()];
    args.extend(["-n".to_owned(), namespace.to_owned()]);
    args.extend(files.iter().flat_map(|file| ["-f".to_owned(), file.clone()]));
    args.extend(settings.iter().flat_map(|setting| ["--set".to_owned(), (*setting).to_owned()]));
    api.helm(args)
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The images of a release's Deployments, by name.
fn images(api: &ApiServer, namespace: &str) -> BTreeMap<String, String> {
    let deployments = api.get(namespace, &["deployments"]);
    let image = |item: &Value| {
        let container = &item["spec"]["template"]["spec"]["containers"][0];
        (text(&item["metadata"]["name"]), text(&container["image"]))
    };
    deployments["items"].as_array().unwrap().iter().map(image).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}")).to_owned()
}

/// The namespaces' objects of whatever kind can be listed, but the account that each has from the start.
fn objects(api: &ApiServer, namespace: &str) -> Vec<String> {
    let kinds = api.kubectl(["api-resources", "--namespaced", "--verbs=list", "-o", "name"]);
    let kinds: Vec<_> =
        kinds.lines().filter(|kind| *kind != "events" && !kind.starts_with("events.")).collect();
    assert!(kinds.len() > 30, "kinds of objects: {kinds:?}");
    let listed = api.kubectl(["get", &kinds.join(","), "-n", namespace, "-o", "name"]);
    listed.lines().filter(|name| *name != "serviceaccount/default").map(str::to_owned).collect()
}

/// Kubernetes' own controller does this once no pod uses a claim.
fn let_go_of_claims(api: &ApiServer, namespace: &str) {
    for claim in api.get(namespace, &["persistentvolumeclaims"])["items"].as_array().unwrap() {
        assert!(claim["metadata"]["deletionTimestamp"].is_string(), "not deleted: {claim}");
        let name = text(&claim["metadata"]["name"]);
        let patch = r#"{"metadata": {"finalizers": null}}"#;
        api.kubectl(["patch", "pvc", &name, "-n", namespace, "--type=merge", "-p", patch]);
    }
}

#[test]
fn each_example_is_installed_upgraded_rolled_back_and_leaves_nothing() {
    let Some(api) = ApiServer::shared() else { return };
    for name in EXAMPLES {
        let namespace = &format!("life-{name}");
        api.namespace(namespace, "privileged");
        let values = [example(name)];
        said(&api.helm(["lint", "--strict", chart().to_str().unwrap(), "-f", &values[0]]));

        let notes = said(&helm(api, "install", namespace, &values, &[]));
        assert!(notes.contains(&format!("helm --namespace {namespace} test sdxl --logs")), "{notes}");
        let first = images(api, namespace);
        let stages = ["coordinator", "text-encoder", "base-unet", "refiner", "vae"];
        for stage in stages {
            let image = &first[&format!("sdxl-{stage}")];
            assert!(image.starts_with(&format!("registry.example.com/sdxl/sdxl-{stage}:0.1.0")), "{image}");
        }

        let password =
            || api.kubectl(["get", "secrets", "-n", namespace, "-o", "jsonpath={.items[*].data.password}"]);
        let first_password = password();
        assert_eq!(first_password.is_empty(), !["cpu-trial", "single-gpu"].contains(&name));
        said(&helm(api, "upgrade", namespace, &values, &["image.tag=0.2.0", "coordinator.drainSeconds=120"]));
        assert!(images(api, namespace)["sdxl-vae"].contains(":0.2.0"));
        let coordinator = api.get(namespace, &["deployment", "sdxl-coordinator"]);
        let pod = &coordinator["spec"]["template"]["spec"];
        assert_eq!(pod["terminationGracePeriodSeconds"], 135, "drain, preStop and ten seconds more");
        assert_eq!(password(), first_password, "Redis keeps its password");

        said(&api.helm(["rollback", "sdxl", "1", "-n", namespace]));
        assert_eq!(images(api, namespace), first);

        said(&api.helm(["uninstall", "sdxl", "-n", namespace]));
        let_go_of_claims(api, namespace);
        assert_eq!(objects(api, namespace), Vec::<String>::new(), "{name}");
    }
}

/// A file with an object, for kubectl.
fn written(object: &Value) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    file.write_all(object.to_string().as_bytes()).unwrap();
    file
}

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
tls: {enabled: true, certManager: {issuerRef: {name: issuer}}}
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
    let trigger = &api.get(namespace, &["scaledobject", "sdxl-vae"])["spec"]["triggers"][0];
    let address = format!("sdxl-coordinator.{namespace}.svc:50051");
    let metadata =
        json!({"scalerAddress": address, "stage": "vae", "targetSeconds": "20", "enableTLS": "true"});
    assert_eq!(trigger["metadata"], metadata);
}

#[test]
fn an_upgrade_does_not_undo_what_a_scaler_did() {
    let Some(api) = ApiServer::shared() else { return };
    let namespace = "scaled";
    api.namespace(namespace, "privileged");
    let replicas = || api.get(namespace, &["deployment", "sdxl-vae"])["spec"]["replicas"].clone();
    // As a scaler does it.
    let scale = |count: u32| {
        let count = format!("--replicas={count}");
        api.kubectl(["scale", "deployment/sdxl-vae", "-n", namespace, &count]);
    };
    let by_hand = [&LEAST[..], &["stages.vae.replicas=3"]].concat();
    let scaled = [&LEAST[..], &["stages.vae.autoscaling.kind=hpa"]].concat();
    said(&helm(api, "install", namespace, &[], &by_hand));
    assert_eq!(replicas(), 3);
    scale(4); // the number is not the release's any more, and stays when the release does not name it
    said(&helm(api, "upgrade", namespace, &[], &scaled));
    assert_eq!(replicas(), 4, "as operations.md says");
    scale(7);
    said(&helm(api, "upgrade", namespace, &[], &[&scaled[..], &["image.tag=0.2.0"]].concat()));
    assert_eq!(replicas(), 7);
    said(&api.helm(["rollback", "sdxl", "2", "-n", namespace]));
    assert_eq!(replicas(), 7);

    // The way back takes the number from the scaler, which has to be said.
    let back = helm(api, "upgrade", namespace, &[], &by_hand);
    assert!(complaint(&back).contains("spec.replicas"), "{}", complaint(&back));
    let forced = ["upgrade", "sdxl", "-n", namespace, "--force-conflicts", "--reuse-values", "--set"];
    let none = ["stages.vae.autoscaling.kind=none,stages.vae.replicas=3", chart().to_str().unwrap()]
        .map(str::to_owned);
    said(&api.helm(forced.map(str::to_owned).into_iter().chain(none)));
    assert_eq!(replicas(), 3);
    said(&helm(api, "upgrade", namespace, &[], &scaled));
    assert_eq!(replicas(), 1, "the number was the release's, and went with it");
}

#[test]
fn wrong_values_are_refused_with_the_name_of_the_key() {
    let Some(api) = ApiServer::shared() else { return };
    api.namespace("wrong", "privileged");
    let redis = "redis.inChart.enabled=true";
    let cases: [(&[&str], &str); 19] = [
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
            "tls.enabled: coordinatorSecret and stageSecret, or certManager.issuerRef.name",
        ),
        (
            &["stages.vae.rollout.maxSurge=0"],
            "stages.vae.rollout: maxSurge and maxUnavailable cannot both be 0",
        ),
    ];
    for (settings, named) in cases {
        let output = helm(api, "install", "wrong", &[], &[&LEAST, settings].concat());
        let complaint = complaint(&output);
        assert!(!output.status.success() && complaint.contains(named), "{settings:?}: {complaint}");
    }
    assert_eq!(objects(api, "wrong"), Vec::<String>::new());
    said(&helm(api, "install", "wrong", &[], &LEAST));
}

#[test]
fn the_coordinator_may_look_at_its_own_endpoints_and_at_nothing_else() {
    let Some(api) = ApiServer::shared() else { return };
    for namespace in ["roles", "other", "without"] {
        api.namespace(namespace, "privileged");
    }
    said(&helm(api, "install", "roles", &[], &[&LEAST[..], &["discovery=kubernetes"]].concat()));
    said(&helm(api, "install", "without", &[], &LEAST));
    let slices = |namespace: &str| format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    let ask = |account: &str, path: &str| api.kubectl_as("roles", account, &["get", "--raw", path]);

    let list = said(&ask("sdxl-coordinator", &slices("roles")));
    assert!(list.contains("EndpointSliceList"), "{list}");
    said(&ask("sdxl-coordinator", &format!("{}?watch=1&timeoutSeconds=1", slices("roles"))));

    let denied = |account: &str, path: &str| {
        let output = ask(account, path);
        let complaint = complaint(&output);
        assert!(!output.status.success() && complaint.contains("Forbidden"), "{account} {path}: {complaint}");
    };
    for kind in ["secrets", "pods", "services", "endpoints", "configmaps", "serviceaccounts"] {
        denied("sdxl-coordinator", &format!("/api/v1/namespaces/roles/{kind}"));
    }
    denied("sdxl-coordinator", &slices("other"));
    denied("sdxl-coordinator", "/apis/discovery.k8s.io/v1/endpointslices");
    denied("sdxl-coordinator", "/api/v1/nodes");
    denied("sdxl-base-unet", &slices("roles"));
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "forged"}, "endpoints": [{"addresses": ["10.0.0.9"]}]});
    let slice = written(&slice);
    let create = ["create", "-n", "roles", "-f", slice.path().to_str().unwrap()];
    let forged = api.kubectl_as("roles", "sdxl-coordinator", &create);
    assert!(complaint(&forged).contains("Forbidden"), "{}", complaint(&forged));
    api.kubectl(create); // it is not the object that is wrong

    // Where it asks DNS, it has no business there at all.
    let elsewhere = api.kubectl_as("without", "sdxl-coordinator", &["get", "--raw", &slices("without")]);
    assert!(complaint(&elsewhere).contains("Forbidden"), "{}", complaint(&elsewhere));
}

/// The flags of a component's container but where it listens, with the weights elsewhere.
fn flags(api: &ApiServer, namespace: &str, name: &str, weights: &Path) -> Vec<String> {
    let deployment = api.get(namespace, &["deployment", &format!("sdxl-{name}")]);
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["command"], json!([format!("sdxl-{name}")]));
    let flags = container["args"].as_array().unwrap().iter().map(text);
    flags
        .filter(|flag| !flag.starts_with("--listen="))
        .map(|flag| flag.replace("/weights", weights.to_str().unwrap()))
        .collect()
}

#[test]
fn the_binaries_take_what_the_chart_tells_them_and_make_the_picture_of_helm_test() {
    let Some(api) = ApiServer::shared() else { return };
    let namespace = "trial";
    api.namespace(namespace, "restricted");
    // Redis would be a pod of its own; tests of the coordinator start one.
    said(&helm(api, "install", namespace, &[example("cpu-trial")], &["redis.inChart.enabled=false"]));
    let weights = root().join("models/shapes");
    let stages = [("text-encoder", 50061), ("base-unet", 50062), ("refiner", 50063), ("vae", 50064)];
    let servers =
        stages.map(|(name, _)| Server::start(&format!("sdxl-{name}"), flags(api, namespace, name, &weights)));
    let mut coordinator = flags(api, namespace, "coordinator", &weights);
    for ((name, port), server) in stages.iter().zip(&servers) {
        let found = format!("--{name}=dns:sdxl-{name}.{namespace}.svc:{port}");
        let flag = coordinator.iter_mut().find(|flag| **flag == found);
        let flag = flag.unwrap_or_else(|| panic!("no {found}"));
        *flag = format!("--{name}={}", server.address().trim_start_matches("http://"));
    }
    let coordinator = Server::start("sdxl-coordinator", coordinator);

    let hooks = said(&api.helm([
        "template",
        "sdxl",
        chart().to_str().unwrap(),
        "-n",
        namespace,
        "-f",
        &example("cpu-trial"),
        "--show-only",
        "templates/tests/generate.yaml",
    ]));
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    file.write_all(hooks.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let list = api.kubectl(["create", "--dry-run=client", "-n", namespace, "-o", "json", "-f", path]);
    let pod: Value = serde_json::Deserializer::from_str(&list)
        .into_iter()
        .map(Result::unwrap)
        .find(|object: &Value| object["kind"] == "Pod")
        .unwrap();
    let container = &pod["spec"]["containers"][0];
    let words: Vec<_> =
        ["command", "args"].iter().flat_map(|key| container[key].as_array().unwrap()).map(text).collect();
    assert_eq!(words[0], "sdxl");
    let out = tempfile::tempdir().unwrap();
    let args = words[1..].iter().map(|word| match word.as_str() {
        "--endpoint=http://sdxl-coordinator:50051" => format!("--endpoint={}", coordinator.address()),
        word => word.replace("/tmp", out.path().to_str().unwrap()),
    });
    let picture = out.path().join("picture.png");
    // The kubelet would wait for it to be ready before `helm test` could reach it.
    while coordinator.healthz()["status"] != "SERVING" {
        thread::sleep(Duration::from_millis(50));
    }
    said(&process::run(process::command("sdxl", args), PATIENCE));
    assert_eq!(&fs::read(picture).unwrap()[1..4], b"PNG");
}

/// Serves `body` to whoever asks, with what it was asked.
fn web(body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
        }
    });
    format!("http://{address}")
}

#[test]
fn weights_are_downloaded_once_and_only_with_the_right_checksum() {
    let Some(api) = ApiServer::shared() else { return };
    let namespace = "download";
    api.namespace(namespace, "restricted");
    let url = web("{}");
    let right = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    let first = format!("{{path: base/model_index.json, url: {url}/index, sha256: {right}}}");
    let second =
        format!("{{path: base/unet/config.json, url: {url}/unet, sha256: {}}}", right.replace('4', "5"));
    let folder = tempfile::tempdir().unwrap();
    let values = folder.path().join("values.yaml");
    fs::write(&values, format!("weights: {{download: {{files: [{first}, {second}]}}}}")).unwrap();
    said(&helm(api, "install", namespace, &[values.to_str().unwrap().to_owned()], &LEAST[..1]));

    let deployment = api.get(namespace, &["deployment", "sdxl-vae"]);
    let container = &deployment["spec"]["template"]["spec"]["initContainers"][0];
    assert_eq!(container["command"], json!(["sh", "/download/download.sh", "/download/files", "/weights"]));
    let map = api.get(namespace, &["configmap", "sdxl-download"]);
    for (name, content) in map["data"].as_object().unwrap() {
        fs::write(folder.path().join(name), content.as_str().unwrap()).unwrap();
    }
    let download = || {
        let mut command = Command::new("sh");
        command.args(["download.sh", "files", "weights"]).current_dir(folder.path());
        process::run(command, PATIENCE)
    };
    let output = download();
    let wrong = format!("weights.download.files: base/unet/config.json has the SHA-256 {right}, not");
    assert!(!output.status.success() && complaint(&output).contains(&wrong), "{}", complaint(&output));
    let base = folder.path().join("weights/base");
    assert_eq!(fs::read(base.join("model_index.json")).unwrap(), b"{}");
    assert_eq!(fs::read_dir(base.join("unet")).unwrap().count(), 0, "nothing of the wrong one is left");

    let list = fs::read_to_string(folder.path().join("files")).unwrap();
    fs::write(folder.path().join("files"), list.replace(&right.replace('4', "5"), right)).unwrap();
    let printed = said(&download());
    assert!(printed.contains("base/unet/config.json") && !printed.contains("model_index"), "{printed}");
    assert_eq!(said(&download()), "", "both are there");
}

/// What the linter says, and why it may: the names of its checks come from what it prints.
const EXCEPTIONS: [(&str, &str); 5] = [
    (
        "CPU limit is not set",
        "a limit throttles a process in the middle of a step; requests share the processor",
    ),
    (
        "ImagePullPolicy is not set to Always",
        "tags of releases do not move; image.pullPolicy is there for others",
    ),
    ("does not have a host podAntiAffinity set", "topologySpreadConstraints spread over nodes"),
    ("Deployment few replicas", "one replica of a stage is what most clusters begin with"),
    ("Deployment update strategy", "two Redis pods at a time would write to one file"),
];

#[test]
fn the_linter_finds_nothing_but_what_is_explained() {
    let Some(tools) = tools() else { return };
    let mut found = BTreeMap::new();
    for name in EXAMPLES {
        let run = |tool: &str, args: &[&str]| {
            let mut command = Command::new(tools.join("bin").join(tool));
            command.args(args);
            process::run(command, PATIENCE)
        };
        let chart = chart();
        let rendered =
            run("helm", &["template", "sdxl", chart.to_str().unwrap(), "-n", "sdxl", "-f", &example(name)]);
        let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        fs::write(file.path(), said(&rendered)).unwrap();
        let path = file.path().to_str().unwrap();
        let linted =
            run("kube-score", &["score", "--kubernetes-version", "v1.31", "--output-format", "ci", path]);
        let lines = String::from_utf8_lossy(&linted.stdout).into_owned();
        assert!(lines.lines().filter(|line| line.starts_with("[OK]")).count() > 50, "{lines}");
        for line in lines.lines().filter(|line| !line.starts_with("[OK]") && !line.starts_with("[SKIPPED]")) {
            let exception = EXCEPTIONS.iter().find(|(problem, _)| line.contains(problem));
            let (problem, _) = exception.unwrap_or_else(|| panic!("{name}: {line}"));
            *found.entry(*problem).or_insert(0) += 1;
        }
    }
    assert_eq!(found.len(), EXCEPTIONS.len(), "an exception that nothing needs: {found:?}");
}

#[test]
fn the_charts_page_is_what_its_values_say() {
    let Some(tools) = tools() else { return };
    let folder = tempfile::tempdir().unwrap();
    for name in ["Chart.yaml", "values.yaml", "README.md.gotmpl"] {
        fs::copy(chart().join(name), folder.path().join(name)).unwrap();
    }
    let mut docs = Command::new(tools.join("bin/helm-docs"));
    docs.args(["--sort-values-order", "file", "--chart-search-root"]).arg(folder.path());
    said(&process::run(docs, PATIENCE));
    let page = fs::read_to_string(folder.path().join("README.md")).unwrap();
    let kept = fs::read_to_string(chart().join("README.md")).unwrap();
    assert_eq!(page, kept, "`make chart-readme` writes it anew");
    let unexplained: Vec<_> =
        page.lines().filter(|line| line.starts_with("| ") && line.ends_with("|  |")).collect();
    assert!(unexplained.is_empty(), "{unexplained:?}");
}

//! Certificates and keys as the chart hands them on, to real processes.

use crate::{PATIENCE, complaint, example, helm, kubelet::Container, text};
use integration_tests::{
    ApiServer, Clients, Server,
    certificates::{Authority, Identity},
    kubernetes::{root, said},
    process,
};
use sdxl_proto::v1::GetStageRequest;
use std::{fs, path::Path, process::Command, time::Instant};
use tonic_health::pb::health_check_response::ServingStatus;

const NAMESPACE: &str = "secured";
const SETTINGS: [&str; 6] = [
    "redis.inChart.enabled=false",
    "tls.enabled=true",
    "tls.coordinatorSecret=of-coordinator",
    "tls.stageSecret=of-stages",
    "auth.secret=callers",
    "test.keySecret=of-the-test",
];
const STAGES: [&str; 4] = ["text-encoder", "base-unet", "refiner", "vae"];

/// A Secret of files, each as `NAME=FILE`.
fn secret(api: &ApiServer, name: &str, files: &[(&str, &Path)]) {
    let files = files.iter().map(|(key, file)| format!("--from-file={key}={}", file.display()));
    let args = ["create", "secret", "generic", name, "-n", NAMESPACE].map(str::to_owned);
    api.kubectl(args.into_iter().chain(files));
}

fn certificate(api: &ApiServer, name: &str, identity: &Identity) {
    let [cert, key, ca] = ["cert.pem", "key.pem", "ca.pem"].map(|file| identity.file(file));
    secret(api, name, &[("tls.crt", &cert), ("tls.key", &key), ("ca.crt", &ca)]);
}

/// A key of the tenant `tests`, as an operator makes it, and where it has to be.
fn keys(api: &ApiServer) {
    let folder = tempfile::tempdir().unwrap();
    let new = process::run(process::command("sdxl", ["key", "new", "--tenant", "tests"]), PATIENCE);
    let (key, entry) = (folder.path().join("key"), folder.path().join("keys"));
    fs::write(&key, said(&new)).unwrap();
    fs::write(&entry, complaint(&new)).unwrap();
    secret(api, "callers", &[("keys", &entry)]);
    secret(api, "of-the-test", &[("key", &key)]);
}

/// Runs what `helm test` runs, where the coordinator's Service is known by its name as in a cluster.
fn helm_test(args: &[String]) -> std::process::Output {
    let hosts = tempfile::NamedTempFile::new().unwrap();
    fs::write(hosts.path(), format!("127.0.0.1 localhost sdxl-coordinator.{NAMESPACE}.svc\n")).unwrap();
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";
    command.args(["-rm", "sh", "-c", script, "sh"]).arg(hosts.path());
    command.arg(process::binary("sdxl")).args(args).env_remove("SDXL_KEY");
    process::run(command, PATIENCE)
}

#[tokio::test]
async fn with_certificates_and_keys_from_secrets_the_picture_of_helm_test_is_made() {
    let Some(api) = ApiServer::shared() else { return };
    api.namespace(NAMESPACE, "restricted");
    let ours = Authority::new("ours");
    let identity = |name: &str| Identity::new(&ours, &format!("sdxl-{name}.{NAMESPACE}.svc"), &[&ours]);
    let (of_coordinator, of_stages) = (identity("coordinator"), identity("base-unet"));
    certificate(api, "of-coordinator", &of_coordinator);
    certificate(api, "of-stages", &of_stages);
    keys(api);
    let notes = said(&helm(api, "install", NAMESPACE, &[example("cpu-trial")], &SETTINGS));
    assert!(!notes.contains("test.keySecret") && notes.contains("--key-file"), "{notes}");

    let weights = root().join("models/shapes");
    let pods = STAGES.map(|name| Container::of(api, NAMESPACE, name, &weights));
    let servers = pods.each_ref().map(|pod| pod.start(&[])).map(process::Starting::listening);
    let pod = Container::of(api, NAMESPACE, "coordinator", &weights);
    let found = pod.args(&[]);
    let here = STAGES.iter().zip(&servers).map(|(name, server)| {
        let flag = format!("--{name}=");
        let there = found.iter().find(|arg| arg.starts_with(&flag)).unwrap_or_else(|| panic!("no {flag}"));
        assert!(server.address().starts_with("https://"), "{}", server.address());
        (there.clone(), format!("{flag}{}", server.address().trim_start_matches("https://")))
    });
    let coordinator = pod.start(&here.collect::<Vec<_>>()).listening();
    // As the kubelet's probes do, which show no certificate.
    let health = Clients::new(&health_of(&coordinator));
    assert!(health.becomes(ServingStatus::Serving, PATIENCE).await, "{}", coordinator.stderr());

    let test = Container::of_test(api, NAMESPACE);
    let endpoint = format!("--endpoint=https://sdxl-coordinator.{NAMESPACE}.svc:");
    let port = coordinator.address().rsplit_once(':').unwrap().1;
    let args = test.args(&[(format!("{endpoint}50051"), format!("{endpoint}{port}"))]);
    assert!(args.iter().any(|arg| arg.starts_with(&endpoint) && arg.ends_with(port)), "{args:?}");
    let output = helm_test(&args);
    assert!(output.status.success(), "{}\n{}", complaint(&output), coordinator.stderr());
    assert_eq!(&fs::read(test.file("/tmp/picture.png")).unwrap()[1..4], b"PNG");

    let without: Vec<_> = args.iter().filter(|arg| !arg.starts_with("--key-file=")).cloned().collect();
    assert_eq!(without.len() + 1, args.len());
    let refused = helm_test(&without);
    assert!(!refused.status.success() && complaint(&refused).contains("does not let us in"), "{refused:?}");
    // Prometheus has no certificate either.
    for server in servers.iter().chain([&coordinator]) {
        let text = process::get(&health_of(server), "/metrics", "text/plain");
        let is_counted = |line: &str| line.starts_with("rpc_server_call_duration_seconds_count{");
        assert!(text.lines().any(is_counted), "{text}");
    }
    // Stages let the coordinator in, and none of themselves.
    for server in &servers {
        let ask = async |identity: &Identity| {
            let tls = identity.client(true, &format!("sdxl-base-unet.{NAMESPACE}.svc"));
            Clients::over(server.address(), &tls).stage().get_stage(GetStageRequest {}).await
        };
        ask(&of_coordinator).await.unwrap();
        ask(&of_stages).await.unwrap_err();
    }
}

/// The address where a server tells its health without TLS, by its log.
fn health_of(server: &Server) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        for line in server.stderr().lines().filter(|line| line.starts_with('{')) {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let message = &line["message"];
            if message.as_str().is_some_and(|message| message.starts_with("health on ")) {
                return text(message).trim_start_matches("health on ").to_owned();
            }
        }
        assert!(Instant::now() < end, "{}", server.stderr());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

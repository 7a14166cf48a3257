//! What the chart's pods would run, run here.

use crate::{LEAST, PATIENCE, complaint, example, helm, kubelet::Container};
use integration_tests::{
    ApiServer,
    kubernetes::{root, said},
    process,
};
use serde_json::json;
use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    process::Command,
    thread,
    time::{Duration, Instant},
};

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
        stages.map(|(name, _)| Container::of(api, namespace, name, &weights).start(&[]).listening());
    let here = stages.iter().zip(&servers).map(|((name, port), server)| {
        let found = format!("--{name}=kubernetes:sdxl-{name}:{port}");
        (found, format!("--{name}={}", server.address().trim_start_matches("http://")))
    });
    let here: Vec<_> = here.collect();
    let pod = Container::of(api, namespace, "coordinator", &weights);
    assert!(here.iter().all(|(found, _)| pod.args(&[]).contains(found)), "{:?}", pod.args(&[]));
    let coordinator = pod.start(&here).listening();

    let test = Container::of_test(api, namespace);
    let endpoint = "--endpoint=http://sdxl-coordinator:50051".to_owned();
    let args = test.args(&[(endpoint, format!("--endpoint={}", coordinator.address()))]);
    // The kubelet would wait for it to be ready before `helm test` could reach it.
    let end = Instant::now() + PATIENCE;
    while coordinator.healthz()["status"] != "SERVING" {
        assert!(Instant::now() < end, "{}", coordinator.stderr());
        thread::sleep(Duration::from_millis(50));
    }
    said(&process::run(process::command("sdxl", args), PATIENCE));
    assert_eq!(&fs::read(test.file("/tmp/picture.png")).unwrap()[1..4], b"PNG");
}

/// Serves `body` to whoever asks for anything; its address.
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
    said(&helm(api, "install", namespace, &[values.to_str().unwrap().to_owned()], &LEAST[..2]));

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

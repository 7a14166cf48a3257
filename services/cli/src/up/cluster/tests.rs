//! Clusters of shell scripts in place of services.

use super::*;
use crate::up::log::Log;
use sdxl_core::StageKind;
use sdxl_runtime::{Health, Shutdown, args::LogFormat, server};
use std::path::Path;
use tokio::net::TcpListener;

const VAE: Role = Role::Stage(StageKind::Vae);

fn spec(role: Role, index: u32, script: &str) -> Spec {
    let name = role.replica(index);
    Spec {
        role,
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        without_variables: vec!["SDXL_REFINER".to_owned()],
        log: Log::new(role, &name, LogFormat::Human, false),
        name,
    }
}

/// A health service in this process, which scripts give as their own address.
async fn healthy() -> (String, Shutdown) {
    let listener = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (health, shutdown) = (Health::new(&[]).await, Shutdown::new());
    health.set_serving().await;
    let server = server::Server {
        listener,
        health,
        descriptors: &[],
        drain_timeout: Duration::ZERO,
        shutdown: shutdown.clone(),
    };
    tokio::spawn(server::serve(server, tonic::service::Routes::default()));
    (address, shutdown)
}

/// Says it listens at `address`, and notes in `file` that it is told to end.
fn service(address: &str, file: &Path, name: &str) -> String {
    let file = file.display();
    format!(
        "trap 'echo {name} >> {file}; exit 0' TERM; echo listening {address}; while :; do sleep 0.05; done"
    )
}

#[tokio::test]
async fn the_coordinator_is_stopped_before_the_stages() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ends");
    let (address, _shutdown) = healthy().await;
    let mut cluster = Cluster::new(Duration::from_secs(5));
    let coordinator = spec(Role::Coordinator, 0, &service(&address, &file, "coordinator"));
    let stage = spec(VAE, 0, &service(&address, &file, "vae"));
    let run = cluster.run(vec![stage], |addresses| {
        assert_eq!(addresses, [(VAE, address.clone())]);
        coordinator
    });
    assert!(timeout(Duration::from_secs(3), run).await.is_err(), "a cluster runs until it is stopped");
    assert!(cluster.serving);
    cluster.stop().await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "coordinator\nvae\n");
}

#[tokio::test]
async fn a_service_that_cannot_start_ends_it_all_with_its_error() {
    let mut cluster = Cluster::new(Duration::from_secs(5));
    let broken = spec(VAE, 0, "echo 'error: vae/x.safetensors: truncated' >&2; exit 1");
    let waiting = spec(VAE, 1, "sleep 60");
    let error = cluster.run(vec![waiting, broken], |_| unreachable!()).await.unwrap_err();
    assert_eq!(error.to_string(), "vae[0] ended with exit code 1: vae/x.safetensors: truncated");
    cluster.stop().await;
    assert!(cluster.processes.iter().all(|p| !p.is_alive()));
}

#[tokio::test]
async fn a_stage_lives_as_long_as_one_replica_does() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ends");
    let (address, _shutdown) = healthy().await;
    let mut cluster = Cluster::new(Duration::from_secs(5));
    let coordinator = spec(Role::Coordinator, 0, &service(&address, &file, "coordinator"));
    let first = spec(VAE, 0, &format!("echo listening {address}; echo INFO fine >&2; sleep 1; kill -9 $$"));
    let second = spec(VAE, 1, &format!("echo listening {address}; sleep 2; exit 3"));
    let started = Instant::now();
    let error = cluster.run(vec![first, second], |_| coordinator).await.unwrap_err();
    assert_eq!(error.to_string(), "vae[1] ended with exit code 3");
    assert!(started.elapsed() >= Duration::from_secs(2), "the first death does not count");
    cluster.stop().await;
}

#[tokio::test]
async fn what_does_not_end_in_time_is_killed() {
    let mut cluster = Cluster::new(Duration::from_secs(60));
    let deaf = spec(VAE, 0, "trap '' TERM; while :; do sleep 0.1; done");
    let run = cluster.run(vec![deaf], |_| unreachable!());
    assert!(timeout(Duration::from_millis(500), run).await.is_err());
    let started = Instant::now();
    cluster.stop().await;
    assert!(started.elapsed() < GRACE + Duration::from_secs(2), "nothing served, so nothing is drained");
    assert!(!cluster.processes[0].is_alive());
}

#[tokio::test]
async fn what_passes_is_waited_for_and_what_lasts_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let pages = [
        r#"{"status":"NOT_SERVING","obstacle":"no replica of vae is ready","services":{},"tasks":1}"#,
        "not JSON",
        r#"{"status":"NOT_SERVING","obstacle":"they do not fit","lasts":true,"services":{},"tasks":1}"#,
    ];
    tokio::spawn(async move {
        // The last page is there for as long as it is asked for.
        for page in pages.into_iter().chain(std::iter::repeat(pages[2])) {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(format!("HTTP/1.1 503 x\r\n\r\n{page}").as_bytes()).await;
        }
    });
    let told = timeout(Duration::from_secs(60), contradiction(address)).await;
    assert_eq!(told.unwrap(), "they do not fit");
}

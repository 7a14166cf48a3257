//! Who may call.

use crate::{
    cluster::{Cluster, Layout, cat},
    fake::Script,
    redis::RedisServer,
};
use sdxl_coordinator::AccessConfig;
use sdxl_core::StageKind;
use sdxl_proto::{
    externalscaler::{ScaledObjectRef, external_scaler_client::ExternalScalerClient},
    v1::{
        self, GenerateRequest, job_service_client::JobServiceClient, model_service_client::ModelServiceClient,
    },
};
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, Request, Status};
use tonic_health::pb::health_check_response::ServingStatus::Serving;

/// A file of keys.
pub(crate) struct KeyFile(NamedTempFile);

/// As the file has a key.
pub(crate) fn entry(key: &str, tenant: &str, quotas: &str) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(key) {
        write!(hex, "{byte:02x}").unwrap();
    }
    format!("[[keys]]\nname = \"of {key}\"\nsha256 = \"{hex}\"\ntenant = \"{tenant}\"\n{quotas}\n")
}

impl KeyFile {
    pub(crate) fn new(text: &str) -> Self {
        let file = Self(NamedTempFile::new().unwrap());
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        fs::write(self.0.path(), text).unwrap();
    }

    pub(crate) fn access(&self) -> AccessConfig {
        AccessConfig { keys: Some(self.0.path().to_owned()), jwt: None }
    }
}

/// A call with a key.
pub(crate) fn with<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

pub(crate) async fn generate(
    cluster: &Cluster,
    key: &str,
    request: GenerateRequest,
) -> Result<v1::GenerateResponse, Status> {
    cluster.client().generate(with(key, request)).await.map(tonic::Response::into_inner)
}

pub(crate) async fn get_model(cluster: &Cluster, request: Request<v1::GetModelRequest>) -> Code {
    let mut client = ModelServiceClient::new(cluster.channel.clone());
    client.get_model(request).await.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// How each method of each service answers to what `dress` makes of a request.
async fn everything(cluster: &Cluster, dress: fn(&mut Request<()>)) -> Vec<(&'static str, Code)> {
    macro_rules! ask {
        ($client:expr, $method:ident, $message:expr) => {{
            let mut bare = Request::new(());
            dress(&mut bare);
            let (metadata, extensions, ()) = bare.into_parts();
            let request = Request::from_parts(metadata, extensions, $message);
            let answer = $client.$method(request).await;
            (stringify!($method), answer.map_or_else(|status| status.code(), |_| Code::Ok))
        }};
    }
    let mut images = cluster.client();
    let mut jobs = JobServiceClient::new(cluster.channel.clone());
    let mut model = ModelServiceClient::new(cluster.channel.clone());
    let job_id = "0".repeat(32);
    let submit = v1::SubmitJobRequest { request: Some(cat()), deadline: None };
    vec![
        ask!(model, get_model, v1::GetModelRequest {}),
        ask!(images, generate, cat()),
        ask!(images, generate, GenerateRequest { request_id: Some("one".into()), ..cat() }),
        ask!(images, generate_stream, cat()),
        ask!(jobs, submit_job, submit),
        ask!(jobs, get_job, v1::GetJobRequest { job_id: job_id.clone(), include_images: false }),
        ask!(jobs, watch_job, v1::WatchJobRequest { job_id: job_id.clone() }),
        ask!(jobs, cancel_job, v1::CancelJobRequest { job_id }),
        ask!(jobs, list_jobs, v1::ListJobsRequest::default()),
    ]
}

#[tokio::test]
async fn every_service_wants_a_key() {
    let redis = RedisServer::start();
    let keys = KeyFile::new(&entry("right", "team", ""));
    let layout = Layout { keep: redis.keep(), access: keys.access(), ..Layout::default() };
    let cluster = Cluster::start(layout).await;
    while cluster.health("sdxl.v1.JobService").await.unwrap() != Serving {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let wrong: [fn(&mut Request<()>); 6] = [
        |_| {},
        |request| *request = with("wrong", ()),
        |request| *request = with("", ()),
        |request| drop(request.metadata_mut().insert("authorization", "right".parse().unwrap())),
        |request| drop(request.metadata_mut().insert("authorization", "Basic right".parse().unwrap())),
        |request| {
            *request = with("right", ());
            request.metadata_mut().append("authorization", "Bearer right".parse().unwrap());
        },
    ];
    for (place, dress) in wrong.into_iter().enumerate() {
        for (method, code) in everything(&cluster, dress).await {
            assert_eq!(code, Code::Unauthenticated, "{method}, way {place}");
        }
    }
    assert_eq!(cluster.base_unet[0].denoises(), 0);
    let right: fn(&mut Request<()>) = |request| *request = with("right", ());
    for (method, code) in everything(&cluster, right).await {
        let is_about_a_job = ["get_job", "watch_job", "cancel_job"].contains(&method);
        assert_eq!(code, if is_about_a_job { Code::NotFound } else { Code::Ok }, "{method}");
    }
}

#[tokio::test]
async fn a_service_that_nobody_thought_of_is_closed_and_the_open_ones_are_open() {
    let keys = KeyFile::new(&entry("right", "team", ""));
    let cluster = Cluster::start(Layout { access: keys.access(), ..Layout::default() }).await;
    let status = async |key: &str| {
        let mut stream = TcpStream::connect(cluster.address()).await.unwrap();
        let head = format!("host: x\r\nconnection: close\r\ncontent-type: application/grpc\r\n{key}");
        let call = format!("POST /sdxl.v1.LaterService/Call HTTP/1.1\r\n{head}content-length: 0\r\n\r\n");
        stream.write_all(call.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let line = answer.lines().find_map(|line| line.strip_prefix("grpc-status: ").map(str::to_owned));
        line.unwrap_or(answer)
    };
    assert_eq!(status("").await, i32::from(Code::Unauthenticated).to_string());
    assert_eq!(status("authorization: Bearer right\r\n").await, i32::from(Code::Unimplemented).to_string());
    // Without a key: health (the cluster was waited for with it), its page, and what KEDA asks.
    assert!(cluster.healthz().await.starts_with("HTTP/1.1 200"));
    let mut scaler = ExternalScalerClient::new(cluster.channel.clone());
    let of = ScaledObjectRef {
        name: "vae".into(),
        namespace: "sdxl".into(),
        scaler_metadata: [("stage".to_owned(), "vae".to_owned())].into(),
    };
    assert!(!scaler.is_active(of).await.unwrap().into_inner().result);
}

#[tokio::test]
async fn the_tenant_is_the_keys_and_the_key_goes_no_further() {
    let keys = KeyFile::new(&format!("{}{}", entry("one", "team-1", ""), entry("two", "team-2", "")));
    let cluster = Cluster::start(Layout { access: keys.access(), ..Layout::default() }).await;
    let named = |key: &str, tenant: &'static str| {
        let mut request = with(key, GenerateRequest { request_id: Some("same".into()), ..cat() });
        request.metadata_mut().insert("sdxl-tenant", tenant.parse().unwrap());
        request
    };
    let mut client = cluster.client();
    client.generate(with("one", cat())).await.unwrap();
    client.generate(named("one", "team-1")).await.unwrap();
    // The id is another's of another tenant.
    generate(
        &cluster,
        "two",
        GenerateRequest { prompt: "a dog".into(), request_id: Some("same".into()), ..cat() },
    )
    .await
    .unwrap();
    let status = client.generate(named("one", "team-2")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(status.message().contains("sdxl-tenant"), "{status}");
    let log = cluster.base_unet[0].log.denoises.lock().unwrap();
    let tenants: Vec<_> = log.iter().map(|seen| seen.metadata.get("sdxl-tenant").unwrap()).collect();
    assert_eq!(tenants, ["team-1", "team-1", "team-2"]);
    assert!(log.iter().all(|seen| seen.metadata.get("authorization").is_none()));
}

#[tokio::test]
async fn a_file_that_changes_is_read_again_and_one_that_is_wrong_is_not_obeyed() {
    let keys = KeyFile::new(&entry("old", "team", ""));
    let slow = Script::new(StageKind::BaseUnet).step_time(Duration::from_secs(2));
    let cluster = Cluster::start(Layout { access: keys.access(), ..Layout::bases([slow]) }).await;
    let mut client = cluster.client();
    let running = tokio::spawn(async move { client.generate(with("old", cat())).await });
    cluster.base_unet[0].running(1).await;
    let get = async |key: &str| get_model(&cluster, with(key, v1::GetModelRequest {})).await;
    keys.write("[[keys]]\nname = ");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((get("old").await, get("new").await), (Code::Ok, Code::Unauthenticated));
    keys.write(&entry("new", "team", ""));
    let begun = Instant::now();
    while get("new").await != Code::Ok {
        assert!(begun.elapsed() < Duration::from_secs(5), "the new key does not come into force");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(get("old").await, Code::Unauthenticated);
    running.await.unwrap().expect("what was begun with the old key goes on");
}

#[tokio::test]
async fn without_a_readable_file_nothing_is_served() {
    let keys = KeyFile::new(&entry("k", "team", "request_per_minute = 3"));
    let mut cluster = Cluster::start_cold(Layout { access: keys.access(), ..Layout::default() }).await;
    let error = (&mut cluster.serving).await.unwrap().unwrap_err().to_string();
    let file = keys.0.path().display().to_string();
    assert!(
        error.starts_with(&format!("--keys {file}: line 5: unknown field `request_per_minute`")),
        "{error}"
    );
    let access = AccessConfig { keys: Some("/nowhere/keys.toml".into()), jwt: None };
    let mut cluster = Cluster::start_cold(Layout { access, ..Layout::default() }).await;
    let error = (&mut cluster.serving).await.unwrap().unwrap_err().to_string();
    assert!(error.starts_with("--keys /nowhere/keys.toml: No such file"), "{error}");
}

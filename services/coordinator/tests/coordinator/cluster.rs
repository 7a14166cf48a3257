//! A coordinator over fake stages, on real sockets.

use crate::fake::{Fake, Script};
use sdxl_coordinator::{
    AccessConfig, Config, Keep,
    placement::{Address, Source},
};
use sdxl_core::StageKind;
use sdxl_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        self, GenerateRequest, generate_stream_response::Event,
        image_generation_service_client::ImageGenerationServiceClient,
        model_service_client::ModelServiceClient,
    },
};
use sdxl_runtime::{
    Shutdown,
    args::{LogFormat, TelemetryArgs},
    telemetry::{self, TelemetryGuard},
};
use std::{net::SocketAddr, sync::OnceLock, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tonic::{Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// One script for each replica.
pub(crate) struct Layout {
    pub text_encoder: Vec<Script>,
    pub base_unet: Vec<Script>,
    pub refiner: Vec<Script>,
    pub vae: Vec<Script>,
    pub max_requests: usize,
    pub patience: Duration,
    pub retries_per_second: u32,
    pub keep: Keep,
    pub access: AccessConfig,
}

impl Default for Layout {
    /// One of each but the refiner.
    fn default() -> Self {
        Self {
            text_encoder: vec![Script::new(StageKind::TextEncoder)],
            base_unet: vec![Script::new(StageKind::BaseUnet)],
            refiner: Vec::new(),
            vae: vec![Script::new(StageKind::Vae)],
            max_requests: 64,
            patience: Duration::ZERO,
            retries_per_second: 10,
            keep: Keep::default(),
            access: AccessConfig::default(),
        }
    }
}

impl Layout {
    pub(crate) fn with_refiner() -> Self {
        Self { refiner: vec![Script::new(StageKind::Refiner)], ..Self::default() }
    }

    pub(crate) fn bases(scripts: impl IntoIterator<Item = Script>) -> Self {
        Self { base_unet: scripts.into_iter().collect(), ..Self::default() }
    }
}

/// Everything at work.
pub(crate) struct Cluster {
    pub text_encoder: Vec<Fake>,
    pub base_unet: Vec<Fake>,
    pub refiner: Vec<Fake>,
    pub vae: Vec<Fake>,
    config: Config,
    address: SocketAddr,
    pub shutdown: Shutdown,
    pub serving: JoinHandle<anyhow::Result<()>>,
    pub channel: Channel,
}

static TELEMETRY: OnceLock<TelemetryGuard> = OnceLock::new();

impl Cluster {
    pub(crate) async fn start(layout: Layout) -> Self {
        let cluster = Self::start_cold(layout).await;
        cluster.becomes(ServingStatus::Serving, Duration::from_secs(10)).await;
        cluster.sees_redis().await;
        cluster
    }

    /// Where there is a Redis, what is asked before it is seen goes on without.
    async fn sees_redis(&self) {
        let end = tokio::time::Instant::now() + Duration::from_secs(10);
        while self.config.keep.redis.is_some()
            && self.health("sdxl.v1.JobService").await.ok() != Some(ServingStatus::Serving)
        {
            assert!(tokio::time::Instant::now() < end, "Redis is not seen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Without waiting for health.
    pub(crate) async fn start_cold(layout: Layout) -> Self {
        let args = TelemetryArgs {
            log: "off".into(),
            log_format: LogFormat::Human,
            log_from: None,
            trace_steps: false,
            trace_prompts: false,
        };
        TELEMETRY.get_or_init(|| telemetry::init("coordinator-test", &args).unwrap());
        let start = |scripts: Vec<Script>| scripts.into_iter().map(Fake::start).collect::<Vec<_>>();
        let (text_encoder, base_unet) = (start(layout.text_encoder), start(layout.base_unet));
        let (refiner, vae) = (start(layout.refiner), start(layout.vae));
        let config = Config {
            text_encoder: source(&text_encoder),
            base_unet: source(&base_unet),
            refiner: (!refiner.is_empty()).then(|| source(&refiner)),
            vae: source(&vae),
            zone: None,
            stage_tls: None,
            connect_timeout: Duration::from_secs(1),
            max_requests: layout.max_requests,
            checkpoint_interval: 2,
            patience: layout.patience,
            retries_per_second: layout.retries_per_second,
            retry_ratio: 0.0,
            keep: layout.keep,
            access: layout.access,
            drain_timeout: Duration::from_secs(10),
        };
        let cluster = Self::coordinator(config).await;
        Self { text_encoder, base_unet, refiner, vae, ..cluster }
    }

    /// Another coordinator over the same stages; they stay with the first.
    pub(crate) async fn beside(&self) -> Self {
        let other = Self::coordinator(self.config.clone()).await;
        other.becomes(ServingStatus::Serving, Duration::from_secs(10)).await;
        other.sees_redis().await;
        other
    }

    /// A coordinator by itself.
    async fn coordinator(config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let serving = tokio::spawn(sdxl_coordinator::serve(config.clone(), listener, shutdown.clone()));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let (text_encoder, base_unet, refiner, vae) = Default::default();
        Self { text_encoder, base_unet, refiner, vae, config, address, shutdown, serving, channel }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn client(&self) -> ImageGenerationServiceClient<Channel> {
        ImageGenerationServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) async fn generate(&self, request: GenerateRequest) -> Result<v1::GenerateResponse, Status> {
        self.client().generate(request).await.map(tonic::Response::into_inner)
    }

    /// All events, and the error that the stream ended with.
    pub(crate) async fn stream(
        &self,
        request: impl tonic::IntoRequest<GenerateRequest>,
    ) -> (Vec<Event>, Option<Status>) {
        let mut stream = match self.client().generate_stream(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return (Vec::new(), Some(status)),
        };
        let mut events = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(message)) => events.push(message.event.unwrap()),
                Ok(None) => return (events, None),
                Err(status) => return (events, Some(status)),
            }
        }
    }

    pub(crate) async fn model(&self) -> Result<v1::GetModelResponse, Status> {
        let mut client = ModelServiceClient::new(self.channel.clone());
        client.get_model(v1::GetModelRequest {}).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn health(&self, service: &str) -> Result<ServingStatus, Status> {
        let mut client = HealthClient::new(self.channel.clone());
        let request = HealthCheckRequest { service: service.into() };
        client.check(request).await.map(|answer| answer.into_inner().status())
    }

    /// What `/healthz` says over plain HTTP.
    pub(crate) async fn healthz(&self) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    pub(crate) async fn becomes(&self, status: ServingStatus, within: Duration) {
        let wait = async {
            while self.health("").await.ok() != Some(status) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(within, wait)
            .await
            .unwrap_or_else(|_| panic!("health did not become {status:?}"));
    }
}

fn source(fakes: &[Fake]) -> Source {
    Source::fixed(fakes.iter().map(|fake| address(fake.address)).collect())
}

pub(crate) fn address(address: SocketAddr) -> Address {
    address.to_string().parse().unwrap()
}

pub(crate) fn cat() -> GenerateRequest {
    GenerateRequest { prompt: "a cat".into(), seed: Some(7), num_inference_steps: 4, ..Default::default() }
}

pub(crate) fn refined(mode: v1::refiner::Mode) -> GenerateRequest {
    let refiner = v1::Refiner { mode: Some(mode), ..Default::default() };
    GenerateRequest { num_inference_steps: 10, refiner: Some(refiner), ..cat() }
}

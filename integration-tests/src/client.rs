//! Clients of a cluster, and what its errors say.

use sdxl_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        GenerateRequest, denoiser_service_client::DenoiserServiceClient,
        image_generation_service_client::ImageGenerationServiceClient, job_service_client::JobServiceClient,
        model_service_client::ModelServiceClient, stage_service_client::StageServiceClient,
        text_encoder_service_client::TextEncoderServiceClient, vae_service_client::VaeServiceClient,
    },
};
use sdxl_runtime::tls::ClientTls;
use std::time::{Duration, Instant};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

/// The connection to one server, whatever it serves.
#[derive(Clone, Debug)]
pub struct Clients {
    channel: Channel,
}

impl Clients {
    /// Connects to `http://HOST:PORT` when the first call is made. To be called inside a tokio runtime.
    ///
    /// # Panics
    /// Where `address` is none.
    #[must_use]
    pub fn new(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(address.to_owned()).expect("an address");
        Self { channel: endpoint.connect_lazy() }
    }

    /// The same over TLS.
    ///
    /// # Panics
    /// Where `address` is none.
    #[must_use]
    pub fn over(address: &str, tls: &ClientTls) -> Self {
        let endpoint = Endpoint::from_shared(address.to_owned()).expect("an address");
        Self { channel: tls.connect_lazy(&endpoint) }
    }

    /// The public service.
    #[must_use]
    pub fn images(&self) -> ImageGenerationServiceClient<Channel> {
        ImageGenerationServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Jobs.
    #[must_use]
    pub fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// What the cluster serves.
    #[must_use]
    pub fn model(&self) -> ModelServiceClient<Channel> {
        ModelServiceClient::new(self.channel.clone())
    }

    /// What a stage says of itself.
    #[must_use]
    pub fn stage(&self) -> StageServiceClient<Channel> {
        StageServiceClient::new(self.channel.clone())
    }

    /// A text encoder.
    #[must_use]
    pub fn text_encoder(&self) -> TextEncoderServiceClient<Channel> {
        TextEncoderServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// A base UNet or refiner.
    #[must_use]
    pub fn denoiser(&self) -> DenoiserServiceClient<Channel> {
        DenoiserServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// A VAE.
    #[must_use]
    pub fn vae(&self) -> VaeServiceClient<Channel> {
        VaeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The whole server's health, if it answers.
    pub async fn health(&self) -> Option<ServingStatus> {
        let request = HealthCheckRequest { service: String::new() };
        let answer = HealthClient::new(self.channel.clone()).check(request).await.ok()?;
        Some(answer.into_inner().status())
    }

    /// Waits until the whole server's health is `wanted`; `false` where that takes longer than `limit`.
    pub async fn becomes(&self, wanted: ServingStatus, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if self.health().await == Some(wanted) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }
}

/// The wrong fields that a status names, as (field, description).
#[must_use]
pub fn refused_fields(status: &Status) -> Vec<(String, String)> {
    let details = status.get_details_bad_request();
    let violations = details.map(|d| d.field_violations).unwrap_or_default();
    violations.into_iter().map(|v| (v.field, v.description)).collect()
}

/// A small request, for tests to change.
#[must_use]
pub fn fox() -> GenerateRequest {
    GenerateRequest {
        prompt: "a red fox".to_owned(),
        width: 64,
        height: 64,
        num_inference_steps: 4,
        seed: Some(5),
        ..GenerateRequest::default()
    }
}

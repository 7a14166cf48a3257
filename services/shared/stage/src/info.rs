//! What a stage says of itself.

use candle_core::{DType, Device, DeviceLocation};
use sdxl_core::{Conditioner, ConditionerInfo, DenoiserInfo, StageKind, VaeInfo};
use sdxl_proto::{convert, v1};

/// A stage and its checkpoint.
#[derive(Clone, Debug)]
pub struct StageInfo {
    /// What it is.
    pub kind: StageKind,
    /// The checkpoint's name, or the profile's.
    pub model: String,
    /// A hash of this stage's configs and weights, or of the profile.
    pub revision: String,
    /// "cpu", "cuda:N" or "simulated".
    pub device: String,
    /// What its networks compute in.
    pub dtype: DType,
    /// What depends on the kind.
    pub details: Details,
}

/// As stages are told of it and tell of it: "cpu", or "cuda:N".
#[must_use]
pub fn device_name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// The part of [`StageInfo`] that depends on the kind.
#[derive(Clone, Debug)]
pub enum Details {
    /// The conditioners that a text encoder serves.
    TextEncoder(Vec<(Conditioner, ConditionerInfo)>),
    /// A base UNet or refiner.
    Denoiser(DenoiserInfo),
    /// The autoencoder.
    Vae(VaeInfo),
}

impl From<&StageInfo> for v1::GetStageResponse {
    fn from(info: &StageInfo) -> Self {
        use v1::get_stage_response::Details as Wire;
        let details = match &info.details {
            Details::TextEncoder(conditioners) => Wire::TextEncoder(v1::TextEncoderDetails {
                conditioners: conditioners
                    .iter()
                    .map(|(which, info)| convert::conditioner_details(*which, info))
                    .collect(),
            }),
            Details::Denoiser(info) => Wire::Denoiser(info.into()),
            Details::Vae(info) => Wire::Vae(info.into()),
        };
        Self {
            stage: v1::Stage::from(info.kind).into(),
            model: info.model.clone(),
            revision: info.revision.clone(),
            device: info.device.clone(),
            dtype: crate::tensor::wire_type(info.dtype).into(),
            details: Some(details),
        }
    }
}

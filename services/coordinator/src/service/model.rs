//! `ModelService`.

use super::known;
use crate::{
    cluster::{Cluster, ModelState},
    placement::Fleets,
};
use sdxl_core::{
    SchedulerKind,
    plan::{DEFAULT_STEPS, MAX_IMAGES, MAX_STEPS},
    size::{MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE},
};
use sdxl_proto::{
    status::status,
    v1::{self, model_service_server::ModelService},
};
use std::sync::Arc;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// What the cluster serves.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    fleets: Arc<Fleets>,
    model: watch::Receiver<ModelState>,
}

impl Model {
    pub(crate) fn new(fleets: Arc<Fleets>, model: watch::Receiver<ModelState>) -> Self {
        Self { fleets, model }
    }

    fn stages(&self, cluster: &Cluster) -> Vec<v1::StageStatus> {
        let statuses = self.fleets.iter().zip(&cluster.stages).map(|(fleet, info)| v1::StageStatus {
            stage: v1::Stage::from(fleet.stage()).into(),
            model: info.model.clone(),
            revision: info.revision.clone(),
            dtype: info.dtype.into(),
            device: info.device.clone(),
            ready_replicas: u32::try_from(fleet.status().borrow().ready).unwrap_or(u32::MAX),
        });
        statuses.collect()
    }
}

#[tonic::async_trait]
impl ModelService for Model {
    async fn get_model(
        &self,
        _request: Request<v1::GetModelRequest>,
    ) -> Result<Response<v1::GetModelResponse>, Status> {
        let cluster = known(&self.model).map_err(|error| status(&error))?;
        let info = &cluster.info;
        Ok(Response::new(v1::GetModelResponse {
            model: cluster.model.clone(),
            revision: cluster.revision.clone(),
            default_size: Some(info.default_size().into()),
            default_num_inference_steps: DEFAULT_STEPS,
            training_buckets: info.training_buckets().into_iter().map(Into::into).collect(),
            schedulers: SchedulerKind::ALL.map(|kind| v1::SchedulerKind::from(kind).into()).to_vec(),
            default_scheduler: Some((&info.base.scheduler).into()),
            has_refiner: info.refiner.is_some(),
            limits: Some(v1::Limits {
                min_side: MIN_SIDE,
                max_side: MAX_SIDE,
                side_multiple: SIDE_MULTIPLE.max(info.vae.vae_scale_factor),
                max_num_inference_steps: MAX_STEPS,
                max_num_images: MAX_IMAGES,
                max_clip_skip: info.base_conditioner.max_clip_skip(),
            }),
            stages: self.stages(&cluster),
        }))
    }
}

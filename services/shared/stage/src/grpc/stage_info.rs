use super::InfoCell;
use crate::worker::Load;
use sdxl_proto::{convert::duration, status::status, v1};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// `StageService`.
#[derive(Clone, Debug)]
pub struct StageInfoGrpc {
    info: InfoCell,
    load: watch::Receiver<Load>,
}

impl StageInfoGrpc {
    /// Answers with `info` and `load`.
    #[must_use]
    pub fn new(info: InfoCell, load: watch::Receiver<Load>) -> Self {
        Self { info, load }
    }
}

#[tonic::async_trait]
impl v1::stage_service_server::StageService for StageInfoGrpc {
    async fn get_stage(
        &self,
        _: Request<v1::GetStageRequest>,
    ) -> Result<Response<v1::GetStageResponse>, Status> {
        self.info.get().map(|info| Response::new(info.into())).map_err(|error| status(&error))
    }

    async fn get_load(
        &self,
        _: Request<v1::GetLoadRequest>,
    ) -> Result<Response<v1::GetLoadResponse>, Status> {
        let Load { queued, active, progress, busy, .. } = *self.load.borrow();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let since_progress = (active > 0).then(|| duration(progress.elapsed()));
        Ok(Response::new(v1::GetLoadResponse {
            queued: count(queued),
            active: count(active),
            since_progress,
            busy_time: (!busy.is_zero()).then(|| duration(busy)),
        }))
    }
}

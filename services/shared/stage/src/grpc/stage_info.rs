use super::InfoCell;
use sdxl_proto::{status::status, v1};
use tonic::{Request, Response, Status};

/// `StageService`.
#[derive(Clone, Debug)]
pub struct StageInfoGrpc {
    info: InfoCell,
}

impl StageInfoGrpc {
    /// Answers with `info`.
    #[must_use]
    pub fn new(info: InfoCell) -> Self {
        Self { info }
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
}

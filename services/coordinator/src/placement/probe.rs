//! Following one replica's health.

use super::{fleet::Shared, info::StageInfo, replica::Replica};
use sdxl_proto::{
    MAX_MESSAGE_BYTES,
    v1::{GetStageRequest, stage_service_client::StageServiceClient},
};
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tracing::debug;

/// For an answer that a living server gives at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Who was followed for so long without a break is asked again at once, should one come.
const STABLE: Duration = Duration::from_secs(2);

/// Watches `replica` until it is aborted: connects, with growing pauses while that fails, and passes on what it says of
/// its health and of itself.
pub(super) async fn run(shared: Arc<Shared>, replica: Arc<Replica>) {
    let mut pause = Pause::new();
    loop {
        let started = Instant::now();
        let end = tokio::select! {
            end = watch(&shared, &replica) => end,
            // Whoever ejects it has said why.
            () = replica.ejected() => Status::unavailable("it was ejected"),
        };
        // One that was told to end has said that it does not serve, and is not counted.
        shared.lost(&replica, end.message());
        if started.elapsed() > STABLE {
            pause.reset();
        }
        let pause = pause.next();
        debug!(stage = %shared.stage(), replica = %replica.address(), "not reached, again in {pause:?}: {end}");
        sleep(pause).await;
    }
}

/// One health watch, until it breaks; says why it did.
async fn watch(shared: &Shared, replica: &Replica) -> Status {
    match try_watch(shared, replica).await {
        Ok(()) => Status::unavailable("it ended the health watch"),
        Err(status) => status,
    }
}

async fn try_watch(shared: &Shared, replica: &Replica) -> Result<(), Status> {
    let mut health = HealthClient::new(replica.channel());
    // The empty name stands for the server as a whole.
    let request = HealthCheckRequest { service: String::new() };
    let mut statuses = in_time(health.watch(request)).await?.into_inner();
    let mut news = in_time(statuses.message()).await?;
    while let Some(status) = news {
        if status.status() == ServingStatus::Serving {
            match StageInfo::new(shared.stage(), ask(replica).await?) {
                Ok(info) => shared.up(replica, info),
                Err(complaint) => shared.refuse(replica, complaint),
            }
        } else {
            shared.down(replica, "it says that it is not serving");
        }
        news = statuses.message().await?;
    }
    Ok(())
}

async fn ask(replica: &Replica) -> Result<sdxl_proto::v1::GetStageResponse, Status> {
    let mut client = StageServiceClient::new(replica.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    Ok(in_time(client.get_stage(GetStageRequest {})).await?.into_inner())
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    timeout(ANSWER_TIMEOUT, answer)
        .await
        .unwrap_or_else(|_| Err(Status::unavailable(format!("it gave no answer within {ANSWER_TIMEOUT:?}"))))
}

/// Pauses between attempts that grow from 50 ms to 2 s.
#[derive(Debug)]
struct Pause(Duration);

impl Pause {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(2);

    fn new() -> Self {
        Self(Self::FIRST)
    }

    fn reset(&mut self) {
        self.0 = Self::FIRST;
    }

    /// Between half of the present length and all of it, so that many coordinators do not come in step.
    fn next(&mut self) -> Duration {
        let whole = self.0;
        self.0 = (whole * 2).min(Self::LONGEST);
        whole.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_begin_anew() {
        let mut pause = Pause::new();
        for whole in [50, 100, 200, 400, 800, 1600, 2000, 2000].map(Duration::from_millis) {
            let next = pause.next();
            assert!(whole / 2 <= next && next <= whole, "{next:?} of {whole:?}");
        }
        pause.reset();
        assert!(pause.next() <= Pause::FIRST);
    }
}

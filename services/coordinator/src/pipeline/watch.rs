//! Whether a replica that says nothing hangs, or is merely busy with others.

use crate::placement::Replica;
use sdxl_proto::v1::{GetLoadRequest, GetLoadResponse, stage_service_client::StageServiceClient};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tonic::Status;

/// Silence after which a replica is asked, and asked again.
const SILENCE: Duration = Duration::from_secs(1);
/// For an answer that a living server gives at once, whatever its device does.
const ANSWER: Duration = Duration::from_secs(2);

/// Ends once `replica` is found to hang, with a line that says how: it does not answer, or its device has not ended a step
/// for many times as long as its steps usually take. A run that waits while others have their turns does not hang.
pub(super) async fn hanging(replica: &Replica) -> String {
    let started = Instant::now();
    loop {
        let silence = replica.last_heard().max(started).elapsed();
        if let Some(left) = SILENCE.checked_sub(silence).filter(|left| !left.is_zero()) {
            sleep(left).await;
            continue;
        }
        match timeout(ANSWER, ask(replica)).await {
            Err(_) => {
                return format!(
                    "it said nothing for {:.1} s",
                    replica.last_heard().max(started).elapsed().as_secs_f64()
                );
            }
            // A connection that broke ends the call itself, which says more.
            Ok(Err(_)) => {}
            Ok(Ok(load)) => {
                let since: Option<Duration> = load.since_progress.and_then(|since| since.try_into().ok());
                let hangs = since.zip(replica.longest_step()).filter(|(since, longest)| since > longest);
                if let Some((since, _)) = hangs {
                    return format!("its device has not ended a step for {:.1} s", since.as_secs_f64());
                }
            }
        }
        sleep(SILENCE).await;
    }
}

async fn ask(replica: &Replica) -> Result<GetLoadResponse, Status> {
    StageServiceClient::new(replica.channel())
        .get_load(GetLoadRequest {})
        .await
        .map(tonic::Response::into_inner)
}

//! When a request's work was sent, what it waited for, and what was lost of it.

use crate::{
    cluster::{Cluster, Layout, cat, refined},
    fake::{Fake, Fate, Script},
};
use sdxl_coordinator::Keep;
use sdxl_core::StageKind;
use sdxl_proto::{
    convert,
    v1::{
        AttemptEnd, GenerateRequest, GenerateResponse, RequestTiming, Stage, StageAttempt, StageTiming,
        refiner::Mode,
    },
};
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(20);
/// How much later a busy machine may notice something.
const LATE: Duration = Duration::from_millis(200);
/// What a fake says of its queue.
const QUEUE: Duration = Duration::from_millis(1);

fn slow(stage: StageKind) -> Script {
    Script::new(stage).step_time(STEP)
}

/// A time that has to be there.
fn time(time: Option<prost_types::Duration>) -> Duration {
    time.unwrap().try_into().unwrap()
}

/// When a unit of work was sent for the last time, and when it was done.
fn span(timing: &StageTiming) -> (Duration, Duration) {
    let start = time(timing.start_time_offset);
    (start, start + time(timing.total_time))
}

fn of(answer: &GenerateResponse, stage: Stage, image_index: Option<u32>) -> &StageTiming {
    answer.timings.iter().find(|t| t.stage() == stage && t.image_index == image_index).unwrap()
}

fn base(answer: &GenerateResponse) -> &StageTiming {
    of(answer, Stage::BaseUnet, Some(0))
}

async fn ready(cluster: &Cluster, stage: usize, count: u32) {
    while cluster.model().await.unwrap().stages[stage].ready_replicas != count {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn stages_follow_each_other_within_the_whole() {
    let layout = Layout {
        text_encoder: vec![slow(StageKind::TextEncoder)],
        base_unet: vec![slow(StageKind::BaseUnet)],
        refiner: vec![slow(StageKind::Refiner)],
        vae: vec![slow(StageKind::Vae)],
        ..Layout::default()
    };
    let cluster = Cluster::start(layout).await;
    let request = GenerateRequest { num_images: 2, ..refined(Mode::DenoisingSplit(0.5)) };
    let asked = Instant::now();
    let answer = cluster.generate(request).await.unwrap();
    let elapsed = asked.elapsed();
    let RequestTiming { total_time, admission_time, texts_time_offset, texts, texts_from_cache } =
        answer.request_timing.unwrap();
    let (total, admitted, texts_after) = (time(total_time), time(admission_time), time(texts_time_offset));
    assert!(total <= elapsed, "{total:?} of the caller's {elapsed:?}");
    assert_eq!((texts, texts_from_cache), (3, 0));
    let encode = span(of(&answer, Stage::TextEncoder, None));
    assert!(admitted <= encode.0 && encode.0 + STEP <= encode.1 && encode.1 <= texts_after);
    for picture in [Some(0), Some(1)] {
        let mut before = texts_after;
        for (stage, steps) in [(Stage::BaseUnet, 5), (Stage::Refiner, 5), (Stage::Vae, 1)] {
            let timing = of(&answer, stage, picture);
            let (start, end) = span(timing);
            assert!(before <= start, "{stage:?} began at {start:?}, before {before:?}");
            assert!(end >= start + STEP * steps, "{stage:?} took {:?}", end - start);
            // All that was between is told to be a wait, but for what the coordinator did itself.
            assert!(time(timing.wait_time) <= start - before, "{timing:?}");
            assert!(timing.lost_attempts.is_empty());
            before = end;
        }
        assert!(before <= total, "{before:?} of {total:?}");
    }
}

/// Of two replicas of the base one meets its fate after five steps. Whichever is asked first: both ways end well, and one
/// of two requests meets it.
async fn survived(fate: Fate) -> (Cluster, GenerateResponse) {
    let cluster =
        Cluster::start(Layout::bases([slow(StageKind::BaseUnet).fate(5, fate), slow(StageKind::BaseUnet)]))
            .await;
    ready(&cluster, 1, 2).await;
    for _ in 0..2 {
        let request = GenerateRequest { num_inference_steps: 9, ..cat() };
        let answer = cluster.generate(request).await.unwrap();
        if base(&answer).resumes == 1 {
            return (cluster, answer);
        }
        cluster.base_unet[1].running(0).await;
    }
    panic!("nothing was survived");
}

/// What was lost there, after checks of all that does not depend on how.
async fn lost(fate: Fate) -> StageAttempt {
    let (cluster, answer) = survived(fate).await;
    let timing = base(&answer);
    let [lost] = &timing.lost_attempts[..] else { panic!("{timing:?}") };
    assert_eq!(lost.replica, cluster.base_unet[0].address.to_string());
    assert_eq!(timing.replica, cluster.base_unet[1].address.to_string());
    assert_eq!(lost.steps, 5);
    assert_eq!((time(lost.queue_time), time(lost.run_time)), (QUEUE, 5 * STEP), "as far as it told");
    let (begun, over) = (time(lost.start_time_offset), time(lost.start_time_offset) + time(lost.total_time));
    assert!(time(lost.wait_time) <= begun && over >= begun + 5 * STEP);
    let (start, end) = span(timing);
    assert!(over <= start, "the other began at {start:?}, before it was lost at {over:?}");
    assert!(time(timing.wait_time) <= start - over, "{timing:?}");
    assert!(end <= time(answer.request_timing.unwrap().total_time));
    lost.clone()
}

#[tokio::test]
async fn a_replica_that_stops_is_told_with_what_it_did() {
    assert_eq!(lost(Fate::Stop).await.end(), AttemptEnd::Stopped);
    assert_eq!(lost(Fate::HandOver).await.end(), AttemptEnd::Stopped);
}

#[tokio::test]
async fn a_replica_that_hangs_is_told_with_the_time_until_that_was_known() {
    let lost = lost(Fate::Hang).await;
    assert_eq!(lost.end(), AttemptEnd::Hung);
    assert!(time(lost.total_time) >= 5 * STEP + Duration::from_secs(1), "silence takes a while: {lost:?}");
}

#[tokio::test]
async fn a_wait_for_a_replica_after_another_died_is_told() {
    let layout = Layout { patience: Duration::from_secs(20), ..Layout::bases([slow(StageKind::BaseUnet)]) };
    let mut cluster = Cluster::start(layout).await;
    let mut client = cluster.client();
    let request = GenerateRequest { num_inference_steps: 20, ..cat() };
    let caller = tokio::spawn(async move { client.generate(request).await });
    cluster.base_unet[0].running(1).await;
    tokio::time::sleep(STEP * 6).await;
    cluster.base_unet[0].kill();
    let (address, gone) = (cluster.base_unet[0].address, Duration::from_millis(400));
    tokio::time::sleep(gone).await;
    let _again = Fake::start_at(slow(StageKind::BaseUnet), address);
    let answer = caller.await.unwrap().unwrap().into_inner();
    let timing = base(&answer);
    let [lost] = &timing.lost_attempts[..] else { panic!("{timing:?}") };
    assert_eq!((lost.end(), lost.replica.as_str()), (AttemptEnd::Died, address.to_string().as_str()));
    let died = time(lost.start_time_offset) + time(lost.total_time);
    let (start, _) = span(timing);
    let wait = time(timing.wait_time);
    assert!(wait >= gone - LATE && wait <= start - died, "{wait:?} of {:?}", start - died);
    assert!(lost.steps >= 2 && timing.steps_repeated < lost.steps, "{timing:?}");
}

/// Its stage has no steps to tell of.
#[tokio::test]
async fn a_vae_that_is_lost_has_told_nothing() {
    let layout = Layout {
        vae: vec![
            Script::new(StageKind::Vae).step_time(Duration::from_secs(60)),
            Script::new(StageKind::Vae),
        ],
        ..Layout::default()
    };
    let mut cluster = Cluster::start(layout).await;
    ready(&cluster, 2, 2).await;
    for _ in 0..2 {
        let mut client = cluster.client();
        let caller = tokio::spawn(async move { client.generate(cat()).await });
        let is_asked = || !cluster.vae[0].log.decodes.lock().unwrap().is_empty();
        while !is_asked() && !caller.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if is_asked() {
            let asked = Instant::now();
            tokio::time::sleep(STEP * 5).await;
            let had = asked.elapsed();
            cluster.vae[0].kill();
            let answer = caller.await.unwrap().unwrap().into_inner();
            let [lost] = &of(&answer, Stage::Vae, Some(0)).lost_attempts[..] else { panic!("{answer:?}") };
            assert_eq!((lost.end(), lost.steps), (AttemptEnd::Died, 0));
            assert_eq!((lost.queue_time, lost.run_time), (None, None));
            assert!(convert::duration_or_zero(lost.total_time) >= had, "{lost:?} after {had:?}");
            return;
        }
    }
    panic!("the slow one was never asked");
}

#[tokio::test]
async fn texts_from_the_cache_are_told() {
    let keep = Keep { embedding_cache_bytes: 1024 * 1024, ..Keep::default() };
    let cluster = Cluster::start(Layout { keep, ..Layout::default() }).await;
    let asked = |negative: &str| GenerateRequest { negative_prompt: Some(negative.into()), ..cat() };
    let mut seen = Vec::new();
    for negative in ["blurred", "blurred", "grey"] {
        let timing = cluster.generate(asked(negative)).await.unwrap().request_timing.unwrap();
        assert!(time(timing.admission_time) <= time(timing.texts_time_offset));
        seen.push((timing.texts, timing.texts_from_cache));
    }
    assert_eq!(seen, [(2, 0), (2, 2), (2, 1)]);
}

/// What is refused is not lost: nothing had begun.
#[tokio::test]
async fn refusals_are_a_wait() {
    let full = Script::new(StageKind::Vae).refuse(tonic::Status::resource_exhausted("the queue is full"));
    let vae = vec![full, slow(StageKind::Vae)];
    let mut cluster =
        Cluster::start(Layout { vae, patience: Duration::from_secs(20), ..Layout::default() }).await;
    ready(&cluster, 2, 2).await;
    cluster.vae[1].kill();
    ready(&cluster, 2, 1).await;
    let mut client = cluster.client();
    let caller = tokio::spawn(async move { client.generate(cat()).await });
    while cluster.vae[0].log.decodes.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = Instant::now();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let waited = refused.elapsed();
    let again = Fake::start_at(slow(StageKind::Vae), cluster.vae[1].address);
    let answer = caller.await.unwrap().unwrap().into_inner();
    let timing = of(&answer, Stage::Vae, Some(0));
    assert_eq!(timing.replica, again.address.to_string());
    assert_eq!((timing.resumes, timing.lost_attempts.len()), (0, 0), "{timing:?}");
    assert!(time(timing.wait_time) >= waited, "{timing:?} after {waited:?}");
    let (start, end) = span(timing);
    assert!(start >= waited && end - start < Duration::from_secs(1), "{timing:?}");
}

//! Texts that were encoded before.

use crate::{
    cluster::{Cluster, Layout, cat, refined},
    fake::Script,
    redis::RedisServer,
};
use sdxl_coordinator::Keep;
use sdxl_core::StageKind;
use sdxl_proto::v1::{GenerateRequest, GenerateResponse, Stage, refiner::Mode};
use std::time::Duration;

const MIB: usize = 1024 * 1024;

fn local() -> Layout {
    Layout { keep: Keep { embedding_cache_bytes: 16 * MIB, ..Keep::default() }, ..Layout::default() }
}

/// The texts of each call to the text encoder.
fn encoded(cluster: &Cluster) -> Vec<Vec<String>> {
    let log = cluster.text_encoder[0].log.encodes.lock().unwrap();
    log.iter().map(|seen| seen.request.inputs.iter().map(|input| input.prompt.clone()).collect()).collect()
}

fn was_encoded(answer: &GenerateResponse) -> bool {
    answer.timings.iter().any(|timing| timing.stage() == Stage::TextEncoder)
}

/// What the base was told of the first text of its last call.
fn prompt_embeds(cluster: &Cluster) -> Vec<u8> {
    let log = cluster.base_unet[0].log.denoises.lock().unwrap();
    let conditioning = log.last().unwrap().request.conditioning.clone().unwrap();
    conditioning.prompt_embeds.unwrap().data.to_vec()
}

fn negative(prompt: &str, negative: &str) -> GenerateRequest {
    GenerateRequest { prompt: prompt.into(), negative_prompt: Some(negative.into()), ..cat() }
}

#[tokio::test]
async fn only_texts_that_are_missing_are_encoded() {
    let cluster = Cluster::start(local()).await;
    assert!(was_encoded(&cluster.generate(negative("a cat", "blurred")).await.unwrap()));
    let first = prompt_embeds(&cluster);
    assert!(!was_encoded(&cluster.generate(negative("a cat", "blurred")).await.unwrap()));
    assert_eq!(prompt_embeds(&cluster), first);
    assert!(was_encoded(&cluster.generate(negative("a dog", "blurred")).await.unwrap()));
    assert_eq!(encoded(&cluster), [vec!["a cat", "blurred"], vec!["a dog"]]);
}

#[tokio::test]
async fn all_that_an_embedding_depends_on_tells_it_apart() {
    let layout = Layout { keep: local().keep, ..Layout::with_refiner() };
    let cluster = Cluster::start(layout).await;
    let second = GenerateRequest { prompt_2: Some("a mat".into()), ..cat() };
    let refined = refined(Mode::DenoisingSplit(0.5));
    for request in [cat(), second, GenerateRequest { clip_skip: 1, ..cat() }, refined] {
        assert!(was_encoded(&cluster.generate(request.clone()).await.unwrap()), "{request:?}");
        assert!(!was_encoded(&cluster.generate(request).await.unwrap()));
    }
}

#[tokio::test]
async fn warnings_of_lost_text_come_from_the_cache_too() {
    let cluster = Cluster::start(local()).await;
    let request = GenerateRequest { prompt: "a catCUT on a mat".into(), ..cat() };
    let warnings = cluster.generate(request.clone()).await.unwrap().warnings;
    assert_eq!((warnings.len(), cluster.generate(request).await.unwrap().warnings), (1, warnings.clone()));
}

#[tokio::test]
async fn the_bound_in_bytes_holds() {
    // Two embeddings of 77 x 64 values of 4 bytes fit in.
    let keep = Keep { embedding_cache_bytes: 45_000, ..Keep::default() };
    let cluster = Cluster::start(Layout { keep, ..Layout::default() }).await;
    for prompt in ["1", "2", "3", "3", "2", "1"] {
        cluster.generate(GenerateRequest { prompt: prompt.into(), ..cat() }).await.unwrap();
    }
    assert_eq!(encoded(&cluster), [["1"], ["2"], ["3"], ["1"]]);
}

#[tokio::test]
async fn what_two_ask_at_once_is_encoded_once() {
    let slow = Script::new(StageKind::TextEncoder).step_time(Duration::from_millis(300));
    let cluster = Cluster::start(Layout { text_encoder: vec![slow], ..local() }).await;
    let [mut one, mut other, mut third] = [cluster.client(), cluster.client(), cluster.client()];
    let first = tokio::spawn(async move { one.generate(cat()).await });
    cluster.text_encoder[0].running(1).await;
    let second = tokio::spawn(async move { other.generate(cat()).await });
    let third = tokio::spawn(async move { third.generate(negative("a dog", "a cat")).await });
    for caller in [first, second, third] {
        caller.await.unwrap().unwrap();
    }
    assert_eq!(encoded(&cluster), [["a cat"], ["a dog"]]);
}

#[tokio::test]
async fn whoever_waits_encodes_it_where_the_first_gives_up() {
    let slow = Script::new(StageKind::TextEncoder).step_time(Duration::from_millis(300));
    let cluster = Cluster::start(Layout { text_encoder: vec![slow], ..local() }).await;
    let [mut one, mut other] = [cluster.client(), cluster.client()];
    let first = tokio::spawn(async move { one.generate(cat()).await });
    cluster.text_encoder[0].running(1).await;
    let second = tokio::spawn(async move { other.generate(cat()).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    first.abort();
    assert!(was_encoded(second.await.unwrap().unwrap().get_ref()));
    assert_eq!(encoded(&cluster), [["a cat"], ["a cat"]]);
}

#[tokio::test]
async fn coordinators_share_what_redis_keeps() {
    let redis = RedisServer::start();
    let cluster = Cluster::start(Layout { keep: redis.keep(), ..Layout::default() }).await;
    cluster.generate(cat()).await.unwrap();
    let first = prompt_embeds(&cluster);
    let keys = redis.has("sdxl:embedding:*", 1).await;
    let left: i64 = redis.ask(redis::cmd("PTTL").arg(&keys[0]));
    assert!((1..=60_000).contains(&left), "{left} ms");
    let other = cluster.beside().await;
    assert!(!was_encoded(&other.generate(cat()).await.unwrap()));
    assert_eq!(prompt_embeds(&cluster), first);
}

#[tokio::test]
async fn what_is_corrupt_or_foreign_is_dropped_and_encoded_again() {
    let redis = RedisServer::start();
    let cluster = Cluster::start(Layout { keep: redis.keep(), ..Layout::default() }).await;
    cluster.generate(cat()).await.unwrap();
    let key = redis.has("sdxl:embedding:*", 1).await.remove(0);
    let good: Vec<u8> = redis.ask(redis::cmd("GET").arg(&key));
    let mut rotten = good.clone();
    rotten[1000] ^= 1;
    let foreign = [b"SDX2", &good[4..]].concat();
    for bad in [rotten, foreign, good[..500].to_vec(), Vec::new(), b"42".to_vec()] {
        redis.ask::<()>(redis::cmd("SET").arg(&key).arg(&bad));
        assert!(was_encoded(&cluster.generate(cat()).await.unwrap()));
        let end = tokio::time::Instant::now() + Duration::from_secs(5);
        while redis.ask::<Vec<u8>>(redis::cmd("GET").arg(&key)) != good {
            assert!(tokio::time::Instant::now() < end, "a good value takes its place");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert!(!was_encoded(&cluster.generate(cat()).await.unwrap()));
}

#[tokio::test]
async fn without_redis_it_is_encoded_and_when_redis_is_back_it_is_kept() {
    let mut redis = RedisServer::start();
    let cluster = Cluster::start(Layout { keep: redis.keep(), ..Layout::default() }).await;
    redis.stop();
    for _ in 0..3 {
        assert!(was_encoded(&cluster.generate(cat()).await.unwrap()));
    }
    redis.resume();
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while was_encoded(&cluster.generate(cat()).await.unwrap()) {
        assert!(tokio::time::Instant::now() < end, "Redis is not found again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn with_four_of_five_prompts_repeated_a_fifth_of_the_calls_are_made() {
    const REQUESTS: usize = 200;
    let cluster = Cluster::start(local()).await;
    for i in 0..REQUESTS {
        // Every fifth prompt is new, the others are of those before.
        let prompt = if i % 5 == 0 { i } else { i * 7919 % (i / 5 + 1) * 5 };
        let answer = cluster.generate(negative(&format!("cat {prompt}"), "blurred")).await.unwrap();
        assert_eq!(was_encoded(&answer), i % 5 == 0, "{i}");
    }
    let calls = encoded(&cluster).len();
    println!("{calls} calls of the text encoder for {REQUESTS} requests, of which 80 % repeat a prompt");
    assert!(calls * 4 <= REQUESTS);
}

//! The coordinator over fake stages, on real loopback sockets.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "tests")]

mod cache;
mod cluster;
mod fake;
mod faults;
mod health;
mod idempotency;
mod jobs;
mod keys;
mod model;
mod placement;
mod plans;
mod quotas;
mod redis;
mod replies;
mod requests;
mod scaler;
mod timelines;
mod tokens;

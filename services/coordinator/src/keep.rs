//! What outlives a request: where it is kept, how much of it and for how long.

use clap::Args;
use redis::{Client, IntoConnectionInfo};
use sdxl_runtime::args::seconds;
use std::{fmt, time::Duration};
use thiserror::Error;

/// The flags.
#[derive(Args, Clone, Debug)]
pub struct KeepArgs {
    /// A Redis server that all coordinators of the cluster share, as redis://HOST:PORT/DB; without it each has its own
    /// cache, and there are no jobs
    #[arg(long, env = "SDXL_REDIS", value_name = "URL", hide_env_values = true)]
    pub redis: Option<String>,

    /// Embeddings of texts kept in this process, in bytes; 0 for none
    #[arg(long, env = "SDXL_EMBEDDING_CACHE_BYTES", value_name = "BYTES", default_value_t = 256 * 1024 * 1024)]
    pub embedding_cache_bytes: usize,

    /// How long Redis keeps an embedding
    #[arg(long, env = "SDXL_EMBEDDING_CACHE_TTL", value_name = "SECONDS", default_value = "86400", value_parser = seconds)]
    pub embedding_cache_ttl: Duration,

    /// How long the pictures of a request with a request_id are kept for whoever asks again
    #[arg(long, env = "SDXL_RESULT_TTL", value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    pub result_ttl: Duration,

    /// How much of them is kept in this process, in bytes
    #[arg(long, env = "SDXL_RESULT_BYTES", value_name = "BYTES", default_value_t = 256 * 1024 * 1024)]
    pub result_bytes: usize,

    /// Jobs that this coordinator does at the same time; 0 to leave them to others
    #[arg(long, env = "SDXL_JOB_CONCURRENCY", value_name = "N", default_value_t = 8, value_parser = jobs)]
    pub job_concurrency: usize,

    /// After so long without a sign of its coordinator a job is another's
    #[arg(long, env = "SDXL_JOB_LEASE", value_name = "SECONDS", default_value = "15", value_parser = seconds)]
    pub job_lease: Duration,

    /// How long a job and its pictures are kept once it has ended
    #[arg(long, env = "SDXL_JOB_TTL", value_name = "SECONDS", default_value = "86400", value_parser = seconds)]
    pub job_ttl: Duration,

    /// A job that was taken up so often in a row, or failed so often, without getting on is given up
    #[arg(long, env = "SDXL_JOB_ATTEMPTS", value_name = "N", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub job_attempts: u32,

    /// Jobs that have not ended; one more is refused, also of a tenant that has as many as it leaves free
    #[arg(long, env = "SDXL_MAX_JOBS", value_name = "N", default_value_t = 10_000)]
    pub max_jobs: usize,

    /// The largest job, in pictures x megapixels x steps
    #[arg(long, env = "SDXL_JOB_MEGAPIXEL_STEPS", value_name = "N", default_value_t = 4000)]
    pub job_megapixel_steps: u64,
}

fn jobs(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count <= 4096).ok_or_else(|| "not a number in 0..=4096".to_owned())
}

/// What the flags mean.
#[derive(Clone, Debug)]
pub struct Keep {
    /// Redis, if there is one.
    pub redis: Option<Redis>,
    /// Embeddings kept in this process, in bytes.
    pub embedding_cache_bytes: usize,
    /// How long Redis keeps an embedding.
    pub embedding_cache_ttl: Duration,
    /// How long the pictures of a request with a `request_id` are kept.
    pub result_ttl: Duration,
    /// How much of them is kept in this process, in bytes.
    pub result_bytes: usize,
    /// Jobs at the same time.
    pub job_concurrency: usize,
    /// After so long without a sign of its coordinator a job is another's.
    pub job_lease: Duration,
    /// How long a job is kept once it has ended.
    pub job_ttl: Duration,
    /// A job that was taken up so often in a row without getting on is given up.
    pub job_attempts: u32,
    /// Jobs that have not ended.
    pub max_jobs: usize,
    /// Pictures x megapixels x steps of a job.
    pub job_megapixel_steps: u64,
}

/// Where Redis is. Its password is never shown.
#[derive(Clone)]
pub struct Redis(pub(crate) Client);

/// Why the flags make no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KeepError {
    /// The address of Redis is none.
    #[error("--redis: not an address as redis://HOST:PORT/DB: {0}")]
    Redis(String),
    /// What is kept is gone at once.
    #[error("--{flag}: 0 seconds keep nothing")]
    Ttl {
        /// The flag without its dashes.
        flag: &'static str,
    },
}

impl Default for Keep {
    /// No Redis and no cache; what is kept is kept for a minute.
    fn default() -> Self {
        Self {
            redis: None,
            embedding_cache_bytes: 0,
            embedding_cache_ttl: Duration::from_secs(60),
            result_ttl: Duration::from_secs(60),
            result_bytes: 64 * 1024 * 1024,
            job_concurrency: 4,
            job_lease: Duration::from_secs(2),
            job_ttl: Duration::from_secs(60),
            job_attempts: 3,
            max_jobs: 100,
            job_megapixel_steps: 100,
        }
    }
}

impl TryFrom<&KeepArgs> for Keep {
    type Error = KeepError;

    fn try_from(args: &KeepArgs) -> Result<Self, KeepError> {
        let ttls = [
            ("embedding-cache-ttl", args.embedding_cache_ttl),
            ("result-ttl", args.result_ttl),
            ("job-lease", args.job_lease),
            ("job-ttl", args.job_ttl),
        ];
        for (flag, ttl) in ttls {
            if ttl.is_zero() {
                return Err(KeepError::Ttl { flag });
            }
        }
        // An environment variable that is set to nothing is no address.
        let url = args.redis.as_deref().map(str::trim).filter(|url| !url.is_empty());
        Ok(Self {
            redis: url.map(Redis::new).transpose()?,
            embedding_cache_bytes: args.embedding_cache_bytes,
            embedding_cache_ttl: args.embedding_cache_ttl,
            result_ttl: args.result_ttl,
            result_bytes: args.result_bytes,
            job_concurrency: args.job_concurrency,
            job_lease: args.job_lease,
            job_ttl: args.job_ttl,
            job_attempts: args.job_attempts,
            max_jobs: args.max_jobs,
            job_megapixel_steps: args.job_megapixel_steps,
        })
    }
}

impl Redis {
    /// At a URL as `redis://HOST:PORT/DB`.
    ///
    /// # Errors
    /// [`KeepError::Redis`], which does not repeat the URL: it may hold a password.
    pub fn new(url: &str) -> Result<Self, KeepError> {
        let wrong = |error: redis::RedisError| KeepError::Redis(error.to_string());
        let info = url.into_connection_info().map_err(wrong)?;
        Client::open(info).map(Self).map_err(wrong)
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis({})", self.0.get_connection_info().addr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        keep: KeepArgs,
    }

    fn keep(flags: &[&str]) -> Result<Keep, String> {
        let line = Line::try_parse_from(["x"].iter().chain(flags)).unwrap();
        Keep::try_from(&line.keep).map_err(|error| error.to_string())
    }

    #[test]
    fn redis_is_left_out_or_an_address_without_its_password() {
        assert!(keep(&[]).unwrap().redis.is_none());
        assert!(keep(&["--redis", " "]).unwrap().redis.is_none());
        let redis = keep(&["--redis", "redis://:secret@store:6379/3"]).unwrap().redis.unwrap();
        assert_eq!(format!("{redis:?}"), "Redis(store:6379)");
        let error = keep(&["--redis", "secret.example"]).unwrap_err();
        assert!(error.starts_with("--redis: not an address") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn what_is_kept_for_no_time_is_not_kept() {
        let error = keep(&["--embedding-cache-ttl", "0"]).unwrap_err();
        assert_eq!(error, "--embedding-cache-ttl: 0 seconds keep nothing");
    }
}

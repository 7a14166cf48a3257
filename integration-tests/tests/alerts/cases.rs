//! For each alert what makes it fire, and what is just not enough.

/// A series as promtool writes it: its values a minute apart, from the first minute on.
pub(crate) type Series = (&'static str, &'static str);

/// One alert's.
pub(crate) struct Case {
    pub(crate) alert: &'static str,
    /// What it has besides its name, how bad it is, and a namespace.
    pub(crate) labels: &'static [(&'static str, &'static str)],
    /// The minute at which it is looked at.
    pub(crate) at: u32,
    pub(crate) fires: &'static [&'static [Series]],
    pub(crate) does_not: &'static [&'static [Series]],
}

/// So many minutes are in the window, by default.
const ONCE: u32 = 25;
const BASE: &[(&str, &str)] = &[("stage", "base-unet")];

const OK: &str = r#"sdxl_requests_total{kind="call", outcome="ok"}"#;
const DEADLINE: &str = r#"sdxl_requests_total{kind="call", outcome="deadline"}"#;
const FAILED: &str = r#"sdxl_requests_total{kind="call", outcome="failed"}"#;
const REFUSED: &str = r#"sdxl_requests_total{kind="call", outcome="refused"}"#;
const INVALID: &str = r#"sdxl_requests_total{kind="call", outcome="invalid"}"#;
const SUCCEEDED_JOBS: &str = r#"sdxl_jobs_total{state="succeeded"}"#;
const FAILED_JOBS: &str = r#"sdxl_jobs_total{state="failed"}"#;
const READY: &str = r#"sdxl_stage_replicas{stage="base-unet", state="ready", instance="one"}"#;
const READY_BY_TWO: &str = r#"sdxl_stage_replicas{stage="base-unet", state="ready", instance="two"}"#;
const DOWN: &str = r#"sdxl_stage_replicas{stage="base-unet", state="down"}"#;
const EJECTIONS: &str = r#"sdxl_replica_ejections_total{stage="base-unet", instance="one"}"#;
const EJECTIONS_BY_TWO: &str = r#"sdxl_replica_ejections_total{stage="base-unet", instance="two"}"#;
const RESUMES: &str = r#"sdxl_resumes_total{stage="base-unet"}"#;
const UNITS: &str = r#"sdxl_stage_duration_seconds_count{stage="base-unet"}"#;
const OUTSTANDING: &str = r#"sdxl_stage_outstanding_seconds{stage="base-unet", instance="one"}"#;
const OUTSTANDING_AT_TWO: &str = r#"sdxl_stage_outstanding_seconds{stage="base-unet", instance="two"}"#;
const RUNS: &str = r#"sdxl_runs_total{stage="base-unet", outcome="ok", instance="one"}"#;
const FAILED_RUNS: &str = r#"sdxl_runs_total{stage="base-unet", outcome="failed", instance="one"}"#;
const RUNS_OF_TWO: &str = r#"sdxl_runs_total{stage="base-unet", outcome="ok", instance="two"}"#;
const HITS: &str = r#"sdxl_cache_lookups_total{result="hit"}"#;
const MISSES: &str = r#"sdxl_cache_lookups_total{result="miss"}"#;
const REDIS: &str = r#"sdxl_redis_up{instance="one"}"#;
const REDIS_BY_TWO: &str = r#"sdxl_redis_up{instance="two"}"#;

pub(crate) const CASES: [Case; 14] = [
    Case {
        alert: "SdxlDeadlinesMissed",
        labels: &[],
        at: ONCE,
        // 51 of 1000; and 2 of 21.
        fires: &[&[(OK, "0+94.9x30"), (DEADLINE, "0+5.1x30")], &[(OK, "0+1.9x30"), (DEADLINE, "0+0.2x30")]],
        // 49 of 1000; 2 of 19; and 49 of 1000 beside others that were not taken on.
        does_not: &[
            &[(OK, "0+95.1x30"), (DEADLINE, "0+4.9x30")],
            &[(OK, "0+1.7x30"), (DEADLINE, "0+0.2x30")],
            &[(OK, "0+95.1x30"), (DEADLINE, "0+4.9x30"), (INVALID, "0+100x30"), (REFUSED, "0+1x30")],
        ],
    },
    Case {
        alert: "SdxlRequestsFail",
        labels: &[],
        at: ONCE,
        // What was not taken on makes its share no smaller.
        fires: &[&[(OK, "0+94.9x30"), (FAILED, "0+5.1x30"), (INVALID, "0+100x30")]],
        does_not: &[&[(OK, "0+95.1x30"), (FAILED, "0+4.9x30")], &[(OK, "0+0.9x30"), (FAILED, "0+1x30")]],
    },
    Case {
        alert: "SdxlRequestsRefused",
        labels: &[],
        at: ONCE,
        fires: &[&[(OK, "0+79.9x30"), (REFUSED, "0+20.1x30")]],
        does_not: &[&[(OK, "0+80.1x30"), (REFUSED, "0+19.9x30")], &[(OK, "0+0.9x30"), (REFUSED, "0+1x30")]],
    },
    Case {
        alert: "SdxlJobsFail",
        labels: &[],
        at: ONCE,
        fires: &[&[(SUCCEEDED_JOBS, "0+94.9x30"), (FAILED_JOBS, "0+5.1x30")], &[(FAILED_JOBS, "0x18 3x20")]],
        does_not: &[
            &[(SUCCEEDED_JOBS, "0+95.1x30"), (FAILED_JOBS, "0+4.9x30")],
            &[(FAILED_JOBS, "0x18 2x20")],
        ],
    },
    Case {
        alert: "SdxlCoordinatorsGone",
        labels: &[],
        at: ONCE,
        // Prometheus looks back for five minutes where nobody said that a series has ended.
        fires: &[&[("sdxl_pictures_total", "0x10 stale")]],
        does_not: &[&[("sdxl_pictures_total", "0x30")], &[("sdxl_pictures_total", "0x23 stale")]],
    },
    Case {
        alert: "SdxlStageWithoutReplica",
        labels: BASE,
        at: ONCE,
        fires: &[&[(READY, "2x20 0x10"), (READY_BY_TWO, "2x30")]],
        does_not: &[&[(READY, "2x20 1x10"), (READY_BY_TWO, "2x30")], &[(READY, "2x23 0x10")]],
    },
    Case {
        alert: "SdxlReplicasUnused",
        labels: &[("stage", "base-unet"), ("state", "down")],
        at: 45,
        fires: &[&[(READY, "4x50"), (DOWN, "0x10 1x40")]],
        does_not: &[&[(READY, "4x50"), (DOWN, "0x20 1x40")], &[(READY, "4x50"), (DOWN, "1x40 0x10")]],
    },
    Case {
        alert: "SdxlReplicasEjected",
        labels: BASE,
        at: ONCE,
        fires: &[&[(EJECTIONS, "0x18 3x20")]],
        // Two coordinators saw the same two.
        does_not: &[&[(EJECTIONS, "0x18 2x20"), (EJECTIONS_BY_TWO, "0x18 2x20")]],
    },
    Case {
        alert: "SdxlResumeStorm",
        labels: BASE,
        at: ONCE,
        fires: &[&[(RESUMES, "0+1.1x30"), (UNITS, "0+10x30")], &[(RESUMES, "0+1x30")]],
        // Nine of ten; twenty of 210.
        does_not: &[&[(RESUMES, "0+0.9x30"), (UNITS, "0+1x30")], &[(RESUMES, "0+2x30"), (UNITS, "0+21x30")]],
    },
    Case {
        alert: "SdxlQueueGrows",
        labels: BASE,
        at: ONCE,
        // 13.2 s a minute for two replicas: 0.11 each.
        fires: &[&[(READY, "2x30"), (OUTSTANDING, "0+6.6x30"), (OUTSTANDING_AT_TWO, "0+6.6x30")]],
        does_not: &[
            &[(READY, "2x30"), (OUTSTANDING, "0+5.4x30"), (OUTSTANDING_AT_TWO, "0+5.4x30")],
            &[(READY, "2x30"), (OUTSTANDING, "1000-10x30")],
            // Nobody is there to do it, which is another alert.
            &[(READY, "0x30"), (OUTSTANDING, "0+6.6x30")],
        ],
    },
    Case {
        alert: "SdxlQueueLong",
        labels: BASE,
        at: ONCE,
        fires: &[&[
            (READY, "2x30"),
            (READY_BY_TWO, "2x30"),
            (OUTSTANDING, "61x30"),
            (OUTSTANDING_AT_TWO, "60x30"),
        ]],
        does_not: &[
            &[(READY, "2x30"), (READY_BY_TWO, "2x30"), (OUTSTANDING, "59x30"), (OUTSTANDING_AT_TWO, "60x30")],
            &[(READY, "0x30"), (OUTSTANDING, "61x30")],
        ],
    },
    Case {
        alert: "SdxlRunsFail",
        labels: &[("stage", "base-unet"), ("instance", "one")],
        at: ONCE,
        // The other replica has enough that end well for both.
        fires: &[&[(RUNS, "0+94.9x30"), (FAILED_RUNS, "0+5.1x30"), (RUNS_OF_TWO, "0+1000x30")]],
        does_not: &[
            &[(RUNS, "0+95.1x30"), (FAILED_RUNS, "0+4.9x30")],
            &[(RUNS, "0+0.1x30"), (FAILED_RUNS, "0x18 2x20")],
        ],
    },
    Case {
        alert: "SdxlCacheCollapsed",
        labels: &[],
        at: 1455,
        // 60 % are usual, and 29 % are found.
        fires: &[&[(HITS, "0+60x1440 86429+29x60"), (MISSES, "0+40x1440 57671+71x60")]],
        // 31 % are found; 29 % of 99 texts; none, where 19 % are usual.
        does_not: &[
            &[(HITS, "0+60x1440 86431+31x60"), (MISSES, "0+40x1440 57669+69x60")],
            &[(HITS, "0+60x1440 86400+2.871x60"), (MISSES, "0+40x1440 57600+7.029x60")],
            &[(HITS, "0+19x1440 27360x60"), (MISSES, "0+81x1440 116740+100x60")],
        ],
    },
    Case {
        alert: "SdxlRedisGone",
        labels: &[],
        at: ONCE,
        fires: &[&[(REDIS, "1x20 0x10"), (REDIS_BY_TWO, "1x30")]],
        does_not: &[&[(REDIS, "1x30")], &[(REDIS, "1x23 0x10")]],
    },
];

//! The domain's words, shared by every part of the cluster: sizes, noise schedules, requests and the plans made of
//! them, and the closed list of error classes. Nothing here does I/O or knows of gRPC, tokio or tensors.

pub mod error;
pub mod model;
pub mod plan;
pub mod request;
pub mod schedule;
pub mod scheduler;
pub mod size;
pub mod speed;
pub mod steps;
pub mod tenant;

pub use error::{Classify, ErrorClass, FieldViolation, Violations};
pub use model::{Conditioner, ConditionerInfo, DenoiserInfo, ModelInfo, StageKind, VaeInfo};
pub use plan::{ConditioningPlan, DenoisePlan, Plan, PlanError, Start, TextPlan};
pub use request::{
    DeepCacheRequest, GenerateRequest, GuidanceInterval, ImageFormat, RefinerMode, RefinerRequest,
    SchedulerRequest,
};
pub use schedule::{Schedule, ScheduleError, StepCoefficients};
pub use scheduler::{
    BetaSchedule, FinalSigmas, PredictionType, SchedulerConfig, SchedulerConfigError, SchedulerKind,
    TimestepSpacing,
};
pub use size::{CropCoords, Size};
pub use speed::StepTimes;
pub use steps::{DeepCache, StepKinds};
pub use tenant::{FIRST_SHARE, Priority, Tenant};

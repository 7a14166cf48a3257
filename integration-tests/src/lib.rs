//! What the tests of whole clusters share: checkpoints made from a seed, real server processes, golden results and
//! ways to break a checkpoint. Imports anything, is imported by nothing.

pub mod altered;
pub mod certificates;
pub mod client;
pub mod cluster;
pub mod collector;
pub mod documented;
pub mod fleet;
pub mod golden;
pub mod kubernetes;
mod leash;
pub mod made;
pub mod picture;
pub mod process;
pub mod profile;
pub mod prometheus;
pub mod redis;

pub use altered::Altered;
pub use client::{Clients, fox, refused_fields};
pub use cluster::{Cluster, ClusterConfig};
pub use collector::{Collector, Span};
pub use documented::Documented;
pub use fleet::{Fault, Member};
pub use kubernetes::ApiServer;
pub use made::Made;
pub use picture::{Difference, Picture};
pub use process::Server;
pub use profile::Profile;
pub use prometheus::Prometheus;
pub use redis::Redis;

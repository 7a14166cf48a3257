//! What every server of the cluster has: arguments, telemetry, deadlines, health, TLS, reflection and an orderly end.
//!
//! A server's `main` looks like this:
//! ```no_run
//! # use clap::Parser;
//! # use sdxl_runtime::{args::{ServerArgs, TelemetryArgs}, health::Health, server::{self, Server}, shutdown::Shutdown, telemetry};
//! #[derive(Parser)]
//! struct Args {
//!     #[command(flatten)]
//!     server: ServerArgs<50051>,
//!     #[command(flatten)]
//!     telemetry: TelemetryArgs,
//! }
//!
//! # async fn run() -> anyhow::Result<()> {
//! let args = Args::parse();
//! let _telemetry = telemetry::init("greeter", &args.telemetry)?;
//! let shutdown = Shutdown::on_signals(args.server.stop_on_stdin_close)?;
//! let health = Health::new(&["sdxl.v1.GreeterService"]).await;
//! let server = Server {
//!     listener: server::listen(&args.server).await?,
//!     health: health.clone(),
//!     descriptors: &[],
//!     drain_timeout: args.server.drain_timeout,
//!     shutdown,
//! };
//! health.set_serving().await; // once whatever is needed is ready, which may be later
//! server::serve(server, tonic::service::Routes::default()).await?;
//! # Ok(())
//! # }
//! ```

pub mod args;
pub mod body;
mod call;
pub mod deadline;
pub mod health;
pub mod metrics;
pub mod propagation;
pub mod rpc;
pub mod server;
pub mod shutdown;
pub mod telemetry;
pub mod terms;
pub mod tls;

pub use deadline::Deadline;
pub use health::Health;
pub use shutdown::Shutdown;
pub use terms::Terms;

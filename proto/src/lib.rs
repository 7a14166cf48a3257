//! The gRPC contract of the cluster: generated messages, clients and servers, their conversions to and from the
//! domain's words, and the one place where errors become [`tonic::Status`].

macro_rules! generated {
    ($(#[$doc:meta])* $module:ident, $package:literal) => {
        $(#[$doc])*
        pub mod $module {
            #![allow(
                missing_docs,
                unreachable_pub,
                clippy::all,
                clippy::allow_attributes_without_reason,
                clippy::large_futures,
                clippy::needless_pass_by_value,
                clippy::semicolon_if_nothing_returned,
                clippy::uninlined_format_args,
                reason = "generated code"
            )]
            tonic::include_proto!($package);
        }
    };
}

generated! {
    /// Messages, clients and servers of `sdxl.v1`, made from `proto/sdxl/v1/*.proto`.
    v1, "sdxl.v1"
}

generated! {
    /// What KEDA asks an external scaler.
    externalscaler, "externalscaler"
}

pub mod codec;
pub mod convert;
pub mod status;

/// The compiled descriptors of all services, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The largest message that a server or client of the cluster takes, in bytes: a PNG of 2048 x 2048 pixels is at most
/// 13 MB, and nothing else comes near it.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

//! Compiles all `.proto` files with protox, so that no `protoc` is needed, into OUT_DIR.

use prost::Message;
use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 9] = [
    "externalscaler/externalscaler.proto",
    "sdxl/v1/denoiser.proto",
    "sdxl/v1/image_generation.proto",
    "sdxl/v1/jobs.proto",
    "sdxl/v1/model.proto",
    "sdxl/v1/stage.proto",
    "sdxl/v1/text_encoder.proto",
    "sdxl/v1/types.proto",
    "sdxl/v1/vae.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=sdxl");
    println!("cargo:rerun-if-changed=externalscaler");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").codec_path("crate::codec::Codec").compile_fds(descriptors)?;
    Ok(())
}

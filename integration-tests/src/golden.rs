//! What diffusers made of the same checkpoints, requests and seeds (`golden/`, written by `golden/generate.py`).

use crate::{altered::Altered, cluster::ClusterConfig, made::Made, picture::Picture};
use safetensors::SafeTensors;
use sdxl_proto::v1;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// One folder of golden results: those of one checkpoint.
#[derive(Debug)]
pub struct Golden {
    folder: PathBuf,
    /// The requests by name.
    pub requests: BTreeMap<String, GoldenRequest>,
}

impl Golden {
    /// The results of the checkpoint of this variant and seed 0.
    ///
    /// # Panics
    /// Where the folder is not as `generate.py` leaves it.
    #[must_use]
    pub fn open(variant: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(variant);
        let requests = serde_json::from_str(&read(&folder.join("requests.json"))).expect("requests.json");
        Self { folder, requests }
    }

    /// A cluster's configuration for `made` with the golden results' scheduler, and the folders that it names.
    #[must_use]
    pub fn cluster_config(&self, made: &Made) -> (ClusterConfig, [Altered; 2]) {
        let scheduler = read(&self.folder.join("scheduler_config.json"));
        let folders = [made.base(), made.refiner()].map(|pipeline| {
            let altered = Altered::copy_of(&pipeline);
            altered.overwrite("scheduler/scheduler_config.json", scheduler.as_bytes());
            altered
        });
        let [base, refiner] = folders.each_ref().map(|folder| folder.path().to_owned());
        (ClusterConfig { base, refiner: Some(refiner), ..ClusterConfig::new(made) }, folders)
    }

    /// Picture `index` of a request.
    #[must_use]
    pub fn picture(&self, name: &str, index: usize) -> Picture {
        Picture::open(&self.folder.join(format!("{name}-{index}.png")))
    }

    /// What the VAE makes of `vae.latents`.
    #[must_use]
    pub fn vae_picture(&self) -> Picture {
        Picture::open(&self.folder.join("vae.png"))
    }

    /// Inputs and results of the single networks.
    ///
    /// # Panics
    /// Where the file is broken.
    #[must_use]
    pub fn parts(&self) -> BTreeMap<String, v1::Tensor> {
        let bytes = fs::read(self.folder.join("parts.safetensors")).expect("parts.safetensors");
        let tensors = SafeTensors::deserialize(&bytes).expect("parts.safetensors");
        let wire = |view: &safetensors::tensor::TensorView<'_>| v1::Tensor {
            shape: view.shape().iter().map(|n| u32::try_from(*n).expect("a small tensor")).collect(),
            dtype: v1::DType::F32.into(),
            data: view.data().to_vec().into(),
        };
        tensors.iter().map(|(name, view)| (name.to_owned(), wire(&view))).collect()
    }

    /// Checks that the checkpoint's weights are those that diffusers ran on: otherwise no picture could be equal.
    ///
    /// # Panics
    /// Where a file is missing or holds other bytes.
    pub fn check_weights(&self, made: &Made) {
        for line in read(&self.folder.join("checkpoint.sha256")).lines() {
            let (expected, file) = line.split_once("  ").expect("HASH  FILE");
            let path = made.root().join(file);
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let hash: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(
                hash,
                expected,
                "{} is not the file that the golden results were made with",
                path.display()
            );
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A request in the argument names of diffusers' pipelines.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenRequest {
    prompt: String,
    prompt_2: Option<String>,
    negative_prompt: Option<String>,
    negative_prompt_2: Option<String>,
    height: u32,
    width: u32,
    num_inference_steps: u32,
    #[serde(default)]
    num_images: u32,
    guidance_scale: Option<f32>,
    guidance_rescale: Option<f32>,
    seed: u64,
    #[serde(default)]
    clip_skip: u32,
    scheduler: Option<GoldenScheduler>,
    original_size: Option<[u32; 2]>,
    target_size: Option<[u32; 2]>,
    negative_original_size: Option<[u32; 2]>,
    negative_target_size: Option<[u32; 2]>,
    crops_coords_top_left: Option<[u32; 2]>,
    negative_crops_coords_top_left: Option<[u32; 2]>,
    refiner: Option<GoldenRefiner>,
    guidance_interval: Option<GoldenInterval>,
    deep_cache: Option<GoldenCache>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GoldenInterval {
    start: f32,
    stop: f32,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GoldenCache {
    cache_interval: u32,
    cache_branch_id: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GoldenScheduler {
    name: Class,
    timestep_spacing: Option<Spacing>,
    use_karras_sigmas: Option<bool>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Class {
    #[serde(rename = "EulerDiscreteScheduler")]
    Euler,
    #[serde(rename = "DDIMScheduler")]
    Ddim,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Spacing {
    Leading,
    Linspace,
    Trailing,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GoldenRefiner {
    denoising_split: Option<f32>,
    strength: Option<f32>,
    #[serde(default)]
    num_inference_steps: u32,
    aesthetic_score: Option<f32>,
    negative_aesthetic_score: Option<f32>,
}

impl From<&GoldenRequest> for v1::GenerateRequest {
    fn from(request: &GoldenRequest) -> Self {
        let request = request.clone();
        let size = |[height, width]: [u32; 2]| v1::Size { height, width };
        let crop = |[top, left]: [u32; 2]| v1::CropCoords { top, left };
        Self {
            prompt: request.prompt,
            prompt_2: request.prompt_2,
            negative_prompt: request.negative_prompt,
            negative_prompt_2: request.negative_prompt_2,
            width: request.width,
            height: request.height,
            num_inference_steps: request.num_inference_steps,
            num_images: request.num_images,
            guidance_scale: request.guidance_scale,
            guidance_rescale: request.guidance_rescale,
            seed: Some(request.seed),
            clip_skip: request.clip_skip,
            scheduler: request.scheduler.map(Into::into),
            original_size: request.original_size.map(size),
            target_size: request.target_size.map(size),
            negative_original_size: request.negative_original_size.map(size),
            negative_target_size: request.negative_target_size.map(size),
            crops_coords_top_left: request.crops_coords_top_left.map(crop),
            negative_crops_coords_top_left: request.negative_crops_coords_top_left.map(crop),
            refiner: request.refiner.map(Into::into),
            image_format: v1::ImageFormat::Png.into(),
            quality: 0,
            priority: v1::Priority::Unspecified.into(),
            request_id: None,
            guidance_interval: request.guidance_interval.map(|GoldenInterval { start, stop }| {
                v1::GuidanceInterval { start: Some(start), stop: Some(stop) }
            }),
            deep_cache: request.deep_cache.map(|GoldenCache { cache_interval, cache_branch_id }| {
                v1::DeepCache { cache_interval, cache_branch_id }
            }),
        }
    }
}

impl From<GoldenScheduler> for v1::Scheduler {
    fn from(scheduler: GoldenScheduler) -> Self {
        let kind = match scheduler.name {
            Class::Euler => v1::SchedulerKind::Euler,
            Class::Ddim => v1::SchedulerKind::Ddim,
        };
        let spacing = scheduler.timestep_spacing.map(|spacing| match spacing {
            Spacing::Leading => v1::TimestepSpacing::Leading,
            Spacing::Linspace => v1::TimestepSpacing::Linspace,
            Spacing::Trailing => v1::TimestepSpacing::Trailing,
        });
        Self {
            kind: kind.into(),
            timestep_spacing: spacing.map(Into::into),
            use_karras_sigmas: scheduler.use_karras_sigmas,
        }
    }
}

impl From<GoldenRefiner> for v1::Refiner {
    fn from(refiner: GoldenRefiner) -> Self {
        let split = refiner.denoising_split.map(v1::refiner::Mode::DenoisingSplit);
        Self {
            mode: split.or(refiner.strength.map(v1::refiner::Mode::Strength)),
            num_inference_steps: refiner.num_inference_steps,
            aesthetic_score: refiner.aesthetic_score,
            negative_aesthetic_score: refiner.negative_aesthetic_score,
        }
    }
}

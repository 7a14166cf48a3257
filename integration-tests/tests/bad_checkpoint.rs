//! Checkpoints that cannot be served: the process ends with one line that names the file and what is wrong in it.

use integration_tests::{Altered, Clients, Made, Server, process};
use sdxl_proto::v1;
use serde_json::json;
use std::time::Duration;
use tonic::Code;

/// A fault in a pipeline folder, and what the line that tells of it holds.
struct Fault {
    break_it: fn(&Altered),
    words: &'static [&'static str],
}

const LIMIT: Duration = Duration::from_secs(30);
const EMBEDDING: &str = "text_model.embeddings.token_embedding.weight";
/// The row of it that "cat" is.
const CAT: usize = 2368;

/// Starts `binary` on a copy of `made`'s base with each fault.
fn check(binary: &str, faults: &[Fault]) {
    for Fault { break_it, words } in faults {
        let altered = Altered::copy_of(&Made::pico().base());
        break_it(&altered);
        let folder = altered.path().to_str().unwrap();
        let flags = [model_flag(binary), folder, "--listen", "127.0.0.1:0", "--stop-on-stdin-close"];
        let output = process::run(process::command(binary, flags), LIMIT);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{binary}: {}", said.trim_end());
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        let complaint = complaint(&said);
        for word in *words {
            assert!(complaint.contains(word), "{word:?} is not in {complaint}");
        }
        assert!(complaint.contains(folder), "{complaint}");
    }
}

/// The text encoder may serve a refiner too, and so tells the two folders apart.
fn model_flag(binary: &str) -> &'static str {
    if binary == "sdxl-text-encoder" { "--base" } else { "--model" }
}

/// The one line that tells what is wrong; beside it there may be the log's on what the process did before.
fn complaint(said: &str) -> &str {
    let lines: Vec<_> = said.lines().filter(|line| !line.contains(" INFO ")).collect();
    assert!(lines.len() == 1 && lines[0].starts_with("error: "), "not one line of complaint:\n{said}");
    lines[0]
}

#[test]
fn base_unet() {
    check(
        "sdxl-base-unet",
        &[
            Fault { break_it: |a| a.remove("model_index.json"), words: &["model_index.json"] },
            Fault { break_it: |a| a.overwrite("model_index.json", b"{"), words: &["model_index.json"] },
            Fault { break_it: |a| a.remove("unet/config.json"), words: &["unet/config.json"] },
            Fault {
                break_it: |a| a.remove("unet/diffusion_pytorch_model.safetensors"),
                words: &["unet", "diffusion_pytorch_model.safetensors"],
            },
            Fault {
                break_it: |a| a.truncate("unet", 1000),
                words: &["unet/diffusion_pytorch_model.safetensors", "truncated"],
            },
            Fault {
                break_it: |a| a.overwrite("unet/diffusion_pytorch_model.safetensors", b"\xff\xff"),
                words: &["unet/diffusion_pytorch_model.safetensors"],
            },
            Fault {
                break_it: |a| a.rename_tensor("unet", "add_embedding.linear_1.weight"),
                words: &[
                    "unet/diffusion_pytorch_model.safetensors",
                    "add_embedding.linear_1.weight",
                    "missing",
                ],
            },
            Fault {
                break_it: |a| a.reshape_tensor("unet", "conv_in.weight", &[4, 32, 3, 3]),
                words: &[
                    "unet/diffusion_pytorch_model.safetensors",
                    "conv_in.weight",
                    "[4, 32, 3, 3]",
                    "[32, 4, 3, 3]",
                ],
            },
            Fault {
                break_it: |a| a.set("unet/config.json", "block_out_channels", json!([32, 64])),
                words: &["unet/config.json", "block_out_channels"],
            },
            Fault {
                break_it: |a| a.set("unet/config.json", "cross_attention_dim", json!(48)),
                words: &["unet/config.json", "cross_attention_dim is 48", "32 and 32, together 64"],
            },
            Fault {
                break_it: |a| a.set("unet/config.json", "attention_head_dim", json!([3, 5, 7])),
                words: &["unet/config.json", "attention_head_dim"],
            },
            Fault {
                break_it: |a| a.set("scheduler/scheduler_config.json", "use_beta_sigmas", json!(true)),
                words: &["scheduler/scheduler_config.json", "use_beta_sigmas"],
            },
            Fault {
                break_it: |a| a.fill("unet", "conv_in.weight", 3, f32::NAN),
                words: &["unet/diffusion_pytorch_model.safetensors", "conv_in.weight", "not finite in f32"],
            },
        ],
    );
}

#[test]
fn vae() {
    check(
        "sdxl-vae",
        &[
            Fault { break_it: |a| a.remove("vae/config.json"), words: &["vae/config.json"] },
            Fault {
                break_it: |a| a.remove("vae/diffusion_pytorch_model.safetensors"),
                words: &["vae", "diffusion_pytorch_model.safetensors"],
            },
            Fault {
                break_it: |a| a.truncate("vae", 1),
                words: &["vae/diffusion_pytorch_model.safetensors", "truncated"],
            },
            Fault {
                break_it: |a| a.rename_tensor("vae", "decoder.conv_in.weight"),
                words: &["vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight", "missing"],
            },
            Fault {
                break_it: |a| a.reshape_tensor("vae", "decoder.conv_in.weight", &[4, 64, 3, 3]),
                words: &[
                    "vae/diffusion_pytorch_model.safetensors",
                    "decoder.conv_in.weight",
                    "[4, 64, 3, 3]",
                ],
            },
            Fault {
                break_it: |a| a.set("vae/config.json", "block_out_channels", json!([32, 32, 64])),
                words: &["vae/config.json"],
            },
            Fault {
                break_it: |a| a.set("vae/config.json", "scaling_factor", json!(0.0)),
                words: &["scaling_factor"],
            },
            Fault {
                break_it: |a| a.fill("vae", "decoder.conv_in.weight", 3, f32::NEG_INFINITY),
                words: &[
                    "vae/diffusion_pytorch_model.safetensors",
                    "decoder.conv_in.weight",
                    "not finite in f32",
                ],
            },
        ],
    );
}

#[test]
fn text_encoder() {
    check(
        "sdxl-text-encoder",
        &[
            Fault { break_it: |a| a.remove("tokenizer/vocab.json"), words: &["tokenizer/vocab.json"] },
            Fault { break_it: |a| a.overwrite("tokenizer_2/vocab.json", b"{}"), words: &["tokenizer_2/"] },
            Fault {
                break_it: |a| a.remove("text_encoder/model.safetensors"),
                words: &["text_encoder", "model.safetensors"],
            },
            Fault {
                break_it: |a| a.truncate("text_encoder_2", 100_000),
                words: &["text_encoder_2/model.safetensors", "truncated"],
            },
            Fault {
                break_it: |a| a.rename_tensor("text_encoder_2", "text_projection.weight"),
                words: &["text_encoder_2/model.safetensors", "text_projection.weight", "missing"],
            },
            Fault {
                break_it: |a| {
                    a.reshape_tensor(
                        "text_encoder",
                        "text_model.embeddings.position_embedding.weight",
                        &[32, 77],
                    );
                },
                words: &[
                    "text_encoder/model.safetensors",
                    "text_model.embeddings.position_embedding.weight",
                    "[32, 77]",
                    "[77, 32]",
                ],
            },
            Fault {
                break_it: |a| a.set("text_encoder/config.json", "num_attention_heads", json!(5)),
                words: &["text_encoder/config.json", "num_attention_heads"],
            },
            Fault {
                break_it: |a| a.set("text_encoder_2/config.json", "vocab_size", json!(100)),
                words: &["text_encoder_2", "vocab_size"],
            },
            Fault {
                break_it: |a| a.fill("text_encoder", EMBEDDING, CAT, f32::NAN),
                words: &["text_encoder/model.safetensors", EMBEDDING, "not finite in f32"],
            },
        ],
    );
}

#[test]
fn a_folder_that_is_not_there() {
    for binary in ["sdxl-text-encoder", "sdxl-base-unet", "sdxl-refiner", "sdxl-vae"] {
        let output = process::run(
            process::command(binary, [model_flag(binary), "/nowhere/at/all", "--listen", "127.0.0.1:0"]),
            LIMIT,
        );
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{binary}: {said}");
        assert!(complaint(&said).contains("/nowhere/at/all"), "{binary}: {said}");
    }
}

/// A stage must not serve the other's checkpoint: the conditioning would be wrong without any error.
#[test]
fn base_and_refiner_are_not_taken_for_each_other() {
    for (binary, folder) in
        [("sdxl-base-unet", Made::pico().refiner()), ("sdxl-refiner", Made::pico().base())]
    {
        let flags = ["--model", folder.to_str().unwrap(), "--listen", "127.0.0.1:0"];
        let output = process::run(process::command(binary, flags), LIMIT);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{binary}: {said}");
        println!("{binary}: {}", complaint(&said));
    }
}

/// The row of one token's embedding, which no other prompt and no warm-up reads.
#[tokio::test]
async fn a_weight_that_few_requests_read_and_that_overflows_is_an_internal_error_for_those() {
    let altered = Altered::copy_of(&Made::pico().base());
    altered.widen("text_encoder", EMBEDDING);
    altered.fill("text_encoder", EMBEDDING, CAT, f32::MAX);
    let server = Server::start("sdxl-text-encoder", ["--base", altered.path().to_str().unwrap()]);
    let clients = Clients::new(server.address());
    assert!(clients.becomes(tonic_health::pb::health_check_response::ServingStatus::Serving, LIMIT).await);
    let encode = |prompt: &str| {
        let (mut client, prompt) = (clients.text_encoder(), prompt.to_owned());
        let conditioner = v1::Conditioner::Base.into();
        let inputs = vec![v1::TextInput { conditioner, prompt, ..Default::default() }];
        async move { client.encode(v1::EncodeRequest { inputs }).await }
    };
    let status = encode("a photo of a cat").await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status}");
    assert!(status.message().contains("finite"), "{status}");
    encode("a photo of a dog").await.expect("other prompts are served");
}

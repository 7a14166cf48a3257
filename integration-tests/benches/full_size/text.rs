//! Both text encoders at full size: two prompts to embeddings.

use crate::{
    checkpoint, inputs,
    network::{self, Side, TURNS, Work},
    peer::Peers,
    stage::{Stage, seconds},
    table::{Row, Table, Tables},
    unet::values,
};
use sdxl_proto::v1;
use std::{collections::HashMap, path::Path};

const PROMPTS: [&str; 2] = ["a lighthouse on a cliff in a storm, oil on canvas", "blurry, low contrast"];
/// At most so much of PyTorch's time.
const TARGET: f64 = 0.90;

pub(crate) fn run(peers: &Peers) -> Tables {
    let folder = checkpoint::full_size();
    let work = Work { part: "text", folder: &folder, name: "text", runs: 10, turns: TURNS };
    inputs::write(&work.inputs(), &[], &[("prompts", PROMPTS.join("\n"))]);
    let sides: Vec<_> =
        peers.dtypes().map(|dtype| work.run(dtype, peers, |dtype| ours(&folder, dtype, work.runs))).collect();

    let mut table = Table::new("Both text encoders, full size: two prompts.");
    for sides in &sides {
        let times = sides.times().map(|seconds| seconds * 1e3);
        table.add(Row::new(format!("two prompts, {}, ms", sides.dtype), times).of_pytorch(TARGET));
    }
    for sides in &sides {
        table.add(Row::new(format!("peak memory, {}, MiB", sides.dtype), sides.map(|side| side.peak_mib)));
    }
    for output in ["prompt_embeds", "pooled_prompt_embeds"] {
        network::errors(&mut table, &sides, output);
    }
    table.note("The peers are given both prompts in one batch, as token ids.");
    network::notes(&mut table, &sides);
    vec![Box::new(table)]
}

fn ours(folder: &Path, dtype: &str, runs: u32) -> Result<Side, String> {
    let stage = Stage::start("sdxl-text-encoder", folder, dtype)?;
    let input = |prompt: &str| v1::TextInput {
        conditioner: v1::Conditioner::Base.into(),
        prompt: prompt.to_owned(),
        prompt_2: String::new(),
        clip_skip: 0,
    };
    let request = v1::EncodeRequest { inputs: PROMPTS.map(input).to_vec() };
    let (mut best_s, mut embeddings) = (f64::INFINITY, Vec::new());
    for _ in 0..=runs {
        let answer = stage.ask(stage.clients().text_encoder().encode(request.clone()));
        let answer = answer.map_err(|e| e.to_string())?.into_inner();
        (best_s, embeddings) = (best_s.min(seconds(answer.run_time)), answer.embeddings);
    }
    let all = |of: fn(&v1::TextEmbedding) -> &Option<v1::Tensor>| {
        embeddings.iter().flat_map(|e| values(of(e).as_ref().expect("a tensor"))).collect()
    };
    let outputs = HashMap::from([
        ("prompt_embeds".to_owned(), all(|e| &e.prompt_embeds)),
        ("pooled_prompt_embeds".to_owned(), all(|e| &e.pooled_prompt_embeds)),
    ]);
    Ok(Side { first_s: f64::NAN, best_s, peak_mib: stage.peak_mib(), activations_mib: f64::NAN, outputs })
}

//! The decoder at full size: latents to a picture of 512 x 512.

use crate::{
    checkpoint,
    inputs::{self, Values},
    network::{self, Side, Sides, TURNS, Work},
    peer::Peers,
    stage::{Stage, seconds},
    table::{Row, Table, Tables},
    unet::wire,
};
use integration_tests::Picture;
use sdxl_proto::v1;
use std::{collections::HashMap, path::Path};

const SIDE: usize = 64;
/// At most so much of PyTorch's time in f32.
const TARGET: f64 = 0.80;

pub(crate) fn run(peers: &Peers) -> Tables {
    let folder = checkpoint::full_size();
    let work = Work { part: "vae", folder: &folder, name: "vae", runs: 3, turns: TURNS };
    let latents = Values::noise(4, &[4, SIDE, SIDE], 1.0);
    let batch = Values { shape: vec![1, 4, SIDE, SIDE], values: latents.values.clone() };
    inputs::write(&work.inputs(), &[("latents", &batch)], &[]);
    let sides: Vec<_> = peers
        .dtypes()
        .map(|dtype| work.run(dtype, peers, |dtype| ours(&folder, dtype, &latents, work.runs)))
        .collect();

    let mut table = Table::new("Decoder of the autoencoder, full size: 64 x 64 latents to 512 x 512 pixels.");
    for sides in &sides {
        let row = Row::new(format!("decode, {}, s", sides.dtype), sides.times());
        table.add(if sides.dtype == "f32" { row.of_pytorch(TARGET) } else { row });
    }
    for sides in &sides {
        table.add(Row::new(format!("peak memory, {}, MiB", sides.dtype), sides.map(|side| side.peak_mib)));
    }
    differences(&mut table, &sides);
    table.note("sdxl's time has the encoding of the PNG in it.");
    network::notes(&mut table, &sides);
    vec![Box::new(table)]
}

fn ours(folder: &Path, dtype: &str, latents: &Values, runs: u32) -> Result<Side, String> {
    let stage = Stage::start("sdxl-vae", folder, dtype)?;
    let request = v1::DecodeRequest {
        latents: Some(wire(latents)),
        image_format: v1::ImageFormat::Png.into(),
        quality: 0,
    };
    let (mut best_s, mut png) = (f64::INFINITY, Vec::new());
    for _ in 0..=runs {
        let answer = stage.ask(stage.clients().vae().decode(request.clone())).map_err(|e| e.to_string())?;
        let answer = answer.into_inner();
        (best_s, png) = (best_s.min(seconds(answer.run_time)), answer.data.to_vec());
    }
    let pixels = Picture::decode(&png).planes().into_iter().map(f32::from).collect();
    let outputs = HashMap::from([("pixels".to_owned(), pixels)]);
    Ok(Side { first_s: f64::NAN, best_s, peak_mib: stage.peak_mib(), activations_mib: f64::NAN, outputs })
}

/// How far pictures are from PyTorch's in f32, in steps of 255, once rounded.
fn differences(table: &mut Table, sides: &[Sides]) {
    let Some(Ok(right)) = sides.iter().find(|sides| sides.dtype == "f32").map(|sides| &sides.all[1]) else {
        return;
    };
    let apart = |side: &Side| {
        let pairs = side.outputs["pixels"].iter().zip(&right.outputs["pixels"]);
        f64::from(pairs.map(|(a, b)| (a.round() - b.round()).abs()).fold(0.0, f32::max))
    };
    for sides in sides {
        let mut greatest = sides.map(apart);
        if sides.dtype == "f32" {
            greatest[1] = f64::NAN; // it is what the others are held against
        }
        let what = format!("pixels, {}: greatest difference from PyTorch f32, of 255", sides.dtype);
        table.add(Row::plain(what, greatest));
    }
}

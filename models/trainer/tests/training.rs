//! Training as it is run: the real program on a recipe that is small enough.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as tests do")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use safetensors::SafeTensors;

fn recipe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/smoke.toml")
}

fn command(stage: &str, recipe: &Path, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sdxl-train"));
    command.arg(stage).arg("--recipe").arg(recipe).arg("--out").arg(out);
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

fn train(stage: &str, recipe: &Path, out: &Path) {
    let output = command(stage, recipe, out).output().unwrap();
    assert!(output.status.success(), "{stage}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Loss of each step, from the file beside the checkpoints.
fn losses(folder: &Path) -> Vec<f32> {
    let text = fs::read_to_string(folder.join("loss.csv")).unwrap();
    text.lines().skip(1).map(|line| line.split(',').nth(1).unwrap().parse().unwrap()).collect()
}

fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len() as f32
}

/// Weights, averages and moments of the latest checkpoint.
fn state(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(folder.join("latest.safetensors")).unwrap();
    let mut tensors: Vec<_> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.data().to_vec()))
        .collect();
    tensors.sort();
    tensors
}

/// The recipe with other numbers for some keys of a section.
fn altered(out: &Path, changes: &[(&str, &str)]) -> PathBuf {
    let mut text = fs::read_to_string(recipe()).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{from} is not in the recipe");
        text = text.replacen(from, to, 1);
    }
    fs::create_dir_all(out).unwrap();
    let path = out.join("recipe.toml");
    fs::write(&path, text).unwrap();
    path
}

fn wait_for(path: &Path, child: &mut Child) {
    let started = Instant::now();
    while !path.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it wrote {}", path.display());
        assert!(started.elapsed() < Duration::from_secs(300), "{} is never written", path.display());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_killed_run_resumes_to_identical_weights() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    let changes = [
        ("steps = 1500", "steps = 30"),
        ("decoder_steps = 300", "decoder_steps = 0"),
        ("warmup = 50", "warmup = 5"),
        ("anchor_steps = 900", "anchor_steps = 20"),
        ("checkpoint_every = 40", "checkpoint_every = 8"),
    ];
    let recipe = altered(folder.path(), &changes);
    train("vae", &recipe, &whole);

    let mut child = command("vae", &recipe, &killed).stderr(Stdio::null()).spawn().unwrap();
    wait_for(&killed.join("vae/previous.safetensors"), &mut child);
    child.kill().unwrap(); // SIGKILL: nothing is saved on the way out
    child.wait().unwrap();
    train("vae", &recipe, &killed);

    assert_eq!(losses(&whole.join("vae")), losses(&killed.join("vae")));
    for ((name, whole), (_, resumed)) in state(&whole.join("vae")).into_iter().zip(state(&killed.join("vae")))
    {
        assert!(whole == resumed, "{name} differs");
    }
}

#[test]
fn training_goes_on_from_a_finished_model() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    let model = folder.path().join("model");
    let few = [
        ("steps = 1500", "steps = 2"),
        ("decoder_steps = 300", "decoder_steps = 0"),
        ("warmup = 50", "warmup = 1"),
        ("anchor_steps = 900", "anchor_steps = 0"),
    ];
    let recipe = altered(&first, &few);
    fs::write(&recipe, brief_denoisers(&fs::read_to_string(&recipe).unwrap())).unwrap();
    for stage in ["vae", "base"] {
        train(stage, &recipe, &first);
    }
    let export = |recipe: &Path, out: &Path, model: &Path, flags: &[&str]| {
        let output = command("export", recipe, out).arg("--model").arg(model).args(flags).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    export(&recipe, &first, &model, &[]);

    // Another seed, so that weights that are not read are others; and a rate so low that the base hardly moves.
    let text = fs::read_to_string(&recipe).unwrap();
    let text = text.replacen("\nsteps = 2", "\nsteps = 0", 1).replacen("warmup = 1", "warmup = 0", 1);
    let text = text.replacen("seed = 1", "seed = 2", 1);
    let base = text.find("[base]").unwrap();
    let rate = text[base..].find("learning_rate = ").unwrap() + base;
    let end = rate + text[rate..].find('\n').unwrap();
    let text = format!("{}learning_rate = 1e-9{}", &text[..rate], &text[end..]);
    fs::create_dir_all(&second).unwrap();
    let recipe = second.join("recipe.toml");
    let pretrained = "[pretrained]\nvae = \"../model/base/vae\"\nbase = \"../model/base\"\n";
    fs::write(&recipe, format!("{text}\n{pretrained}")).unwrap();
    let worst = |other: &Path| {
        [
            ("vae", "diffusion_pytorch_model.safetensors"),
            ("unet", "diffusion_pytorch_model.safetensors"),
            ("text_encoder", "model.safetensors"),
            ("text_encoder_2", "model.safetensors"),
        ]
        .map(|(part, file)| {
            let of = |model: &Path| halves(&model.join("base").join(part).join(file));
            let (before, after) = (of(&model), of(other));
            assert!(!before.is_empty() && before.len() == after.len());
            before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        })
    };
    let [untouched, moved] = ["untouched", "moved"].map(|name| folder.path().join(name));
    export(&recipe, &second, &untouched, &["--unfinished"]);
    assert_eq!(worst(&untouched), [0.0; 4]);
    let config = |model: &Path| fs::read_to_string(model.join("base/vae/config.json")).unwrap();
    assert_eq!(config(&model), config(&untouched), "its latents are scaled as they were");
    for stage in ["vae", "base"] {
        train(stage, &recipe, &second);
    }
    assert!(!second.join("vae").exists(), "there was nothing to train");
    export(&recipe, &second, &moved, &[]);
    let [vae, others @ ..] = worst(&moved);
    assert!(vae == 0.0 && others.iter().all(|by| *by < 1e-3), "{vae}, {others:?}");

    // It does not go on from others than it began with.
    let weights = model.join("base/text_encoder/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let output = command("base", &recipe, &second).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("base/latest.safetensors: its recipe is"), "{said}");
}

/// On an NVIDIA GPU, or an emulated one: `make test-cuda`.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a GPU"]
fn a_gpu_trains_as_the_cpu_does() {
    let folder = tempfile::tempdir().unwrap();
    let few = [
        ("dataset_size = 600", "dataset_size = 120"),
        ("steps = 1500", "steps = 3"),
        ("decoder_steps = 300", "decoder_steps = 2"),
        ("warmup = 50", "warmup = 1"),
        ("anchor_steps = 900", "anchor_steps = 2"),
    ];
    let recipe = altered(folder.path(), &few);
    fs::write(&recipe, brief_denoisers(&fs::read_to_string(&recipe).unwrap())).unwrap();
    let [cpu, gpu] = ["cpu", "cuda:0"].map(|device| {
        let out = folder.path().join(device);
        for stage in ["vae", "base", "refiner"] {
            let output = command(stage, &recipe, &out).args(["--device", device]).output().unwrap();
            assert!(output.status.success(), "{stage}: {}", String::from_utf8_lossy(&output.stderr));
        }
        ["vae", "vae_decoder", "base", "refiner"].map(|part| losses(&out.join(part)))
    });
    println!("{cpu:?}\n{gpu:?}");
    assert_ne!(cpu, gpu, "a GPU rounds otherwise: it was not one that computed");
    for (cpu, gpu) in cpu.iter().flatten().zip(gpu.iter().flatten()) {
        assert!((cpu - gpu).abs() <= 1e-3 * cpu, "{gpu} for {cpu}");
    }
    assert_eq!(cpu.map(|losses| losses.len()), gpu.map(|losses| losses.len()));
}

/// The recipe with two steps for base and refiner.
fn brief_denoisers(text: &str) -> String {
    let base = text.find("[base]").unwrap();
    let line = |line: &str| match line.split_once(" = ").map_or("", |(key, _)| key) {
        key @ ("steps" | "multi_aspect_steps") => format!("{key} = 2"),
        "warmup" => "warmup = 1".to_owned(),
        _ => line.to_owned(),
    };
    let rest: Vec<_> = text[base..].lines().map(line).collect();
    format!("{}{}\n", &text[..base], rest.join("\n"))
}

/// All numbers of a file of float16.
fn halves(path: &Path) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    let numbers = tensors.iter().flat_map(|(_, view)| view.data().as_chunks().0);
    numbers.map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect()
}

#[test]
fn bad_input_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    for (change, message) in [
        (
            ("seed = 1", "seed = 1\nsead = 2"),
            "recipe.toml:5: unknown field `sead`, expected one of `name`, `seed`",
        ),
        (("sample_size = 64", "sample_size = 60"), "data.sample_size = 60: must be a multiple of 64"),
    ] {
        let recipe = altered(folder.path(), &[change]);
        let output = command("vae", &recipe, folder.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.trim().lines().count() == 1, "{said}");
        assert!(said.contains(message), "{said}");
    }
}

/// `make model-smoke`: some minutes.
#[test]
#[ignore = "takes minutes: make model-smoke"]
fn every_stage_learns_from_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path();
    // About a third above what was measured; the decoder alone begins where it was before.
    for (stage, part, bound, learns) in [
        ("vae", "vae", 0.33, 0.2),
        ("vae", "vae_decoder", 0.33, 1.05),
        ("base", "base", 0.08, 0.1),
        ("refiner", "refiner", 0.18, 0.3),
    ] {
        train(stage, &recipe(), out);
        let losses = losses(&out.join(part));
        let (first, last) = (mean(&losses[..5]), mean(&losses[losses.len() - 20..]));
        println!("{part}: loss {first:.3} at first, {last:.3} in the end");
        assert!(last < bound && last < learns * first, "{part}: {first} -> {last}, not below {bound}");
    }
}

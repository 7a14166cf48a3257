use std::path::PathBuf;

use super::*;
use crate::stages::configs;

const RECIPE: &str = include_str!("example.toml");

fn parse(text: &str) -> Result<Recipe, TrainError> {
    Recipe::parse(text, Path::new("tiny.toml"))
}

/// The complaint about the recipe with one line changed.
fn complaint(old: &str, new: &str) -> String {
    assert!(RECIPE.contains(old), "{old}");
    let message = parse(&RECIPE.replacen(old, new, 1)).unwrap_err().to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

#[test]
fn a_recipe_is_read_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.toml");
    fs::write(&path, RECIPE).unwrap();
    let recipe = Recipe::open(&path).unwrap();
    assert_eq!(recipe, parse(RECIPE).unwrap());
    assert_eq!((recipe.data.sample_size, recipe.base.all_steps()), (128, 30_000));
    assert_eq!(recipe.training.precision, Precision::Bf16);
    assert_eq!(recipe.base.adamw().schedule.decay, Decay::Cosine);
    let missing = Recipe::open(&folder.path().join("other.toml")).unwrap_err().to_string();
    assert!(missing.contains("other.toml: cannot be read"), "{missing}");
}

#[test]
fn what_does_not_parse_is_told_in_one_line() {
    let cases = [
        (
            "seed = 1\n",
            "seed = 1\nsed = 2\n",
            "tiny.toml:4: unknown field `sed`, expected one of `name`, `seed`, `vocab_size`",
        ),
        ("seed = 1\n", "", "missing field `seed`"),
        ("seed = 1\n", "seed = -1\n", "tiny.toml:3: invalid value: integer `-1`, expected u64"),
        ("seed = 1\n", "seed = \"x\"\n", "tiny.toml:3: invalid type: string \"x\", expected u64"),
        ("precision = \"bf16\"", "precision = \"f16\"", "unknown variant `f16`, expected `bf16` or `f32`"),
        (
            "batch_size = 48",
            "batch_size = 48\nloss_weight = \"snr\"",
            "unknown variant `snr`, expected `sigma` or `uniform` in `base.loss_weight`",
        ),
        ("seed = 1\n", "seed = 1\nseed = 2\n", "tiny.toml:4: duplicate key"),
        ("[model]", "[model", "tiny.toml:1: "),
        ("[vae]", "[autoencoder]\nx = 1\n[vae]", "unknown field `autoencoder`"),
    ];
    for (old, new, expected) in cases {
        let message = complaint(old, new);
        assert!(message.contains(expected), "{message}");
    }
    let wrong = complaint("kl_weight = 1e-6", "kl_weight = \"small\"");
    assert!(wrong.contains("vae.kl_weight"), "{wrong}");
}

#[test]
fn a_value_out_of_range_is_told_with_its_range() {
    let cases = [
        ("name = \"tiny\"", "name = \"Tiny Model\"", "model.name = Tiny Model: must be of a-z, 0-9 and -"),
        ("sample_size = 128", "sample_size = 100", "data.sample_size = 100: must be a multiple of 64"),
        ("sample_size = 128", "sample_size = 2048", "data.sample_size = 2048: must be 32 to 1024"),
        ("[96, 160]", "[96, 150]", "data.buckets[1] = 150: must be a multiple of 16"),
        ("[96, 160]", "[96, 1600]", "data.buckets[1] = 1600: must be 32 to 512"),
        ("crop_fraction = 0.3", "crop_fraction = 1.3", "data.crop_fraction = 1.3: must be 0 to 1"),
        ("crop_fraction = 0.3", "crop_fraction = nan", "data.crop_fraction = NaN: must be 0 to 1"),
        ("[16, 32, 32, 64]", "[16, 32, 64]", "vae.block_out_channels.len = 3: must be 4"),
        (
            "[16, 32, 32, 64]",
            "[16, 32, 36, 64]",
            "vae.norm_num_groups = 16: must be a divisor of block_out_channels[2], 36",
        ),
        ("crop = 64", "crop = 256", "vae.crop = 256: must be 8 to 128"),
        ("heads = 2", "heads = 3", "text_encoder.heads = 3: must be a divisor of hidden_size, 64"),
        ("layers = 4", "layers = 1", "text_encoder.layers = 1: must be at least 2"),
        (
            "projection_dim = 64",
            "projection_dim = 0",
            "text_encoder_2.projection_dim = 0: must be at least 1",
        ),
        (
            "[2, 4, 6]",
            "[2, 4, 5]",
            "base.attention_head_dim[2] = 5: must be a divisor of block_out_channels[2], 192",
        ),
        ("[2, 4, 6]", "[2, 4]", "base.attention_head_dim.len = 2: must be 3"),
        (
            "learning_rate = 2e-4",
            "learning_rate = 0",
            "base.learning_rate = 0: must be more than 0, and at most 1",
        ),
        ("ema_decay = 0.9999", "ema_decay = 1.0", "base.ema_decay = 1: must be 0 to less than 1"),
        ("batch_size = 48", "batch_size = 70000", "base.batch_size = 70000: must be 1 to 60000"),
        (
            "batch_size = 48",
            "batch_size = 48\nsmall_original_share = 0.7\ncrop_share = 0.4",
            "base.crop_share = 0.4: must be at most 1 with small_original_share",
        ),
        (
            "batch_size = 48",
            "batch_size = 48\nlarge_originals = 0",
            "base.large_originals = 0: must be at least 1",
        ),
        (
            "crop_fraction = 0.3",
            "crop_fraction = 0.3\nsmall_original_sizes = [0.05, 0.5]",
            "data.small_original_sizes[0] = 0.05: must be 0.0625 to 0.9",
        ),
        (
            "crop_fraction = 0.3",
            "crop_fraction = 0.3\nsmall_original_sizes = [0.5, 0.4]",
            "data.small_original_sizes[1] = 0.4: must be 0.5 to 0.9",
        ),
        (
            "batch_size = 48",
            "batch_size = 48\nsmall_originals = 0",
            "base.small_originals = 0: must be at least 1",
        ),
        (
            "batch_size = 48",
            "batch_size = 48\ncrop_share = 0.4",
            "base.crop_share = true: must be there if small_original_share is",
        ),
        ("weight_decay = 0.01", "weight_decay = nan", "base.weight_decay = NaN: must be 0 to 1"),
        ("precision = \"bf16\"", "precision = \"bf16\"\nshards = 0", "training.shards = 0: must be 1 to 64"),
        ("log_every = 50", "log_every = 0", "training.log_every = 0: must be at least 1"),
    ];
    for (old, new, expected) in cases {
        assert_eq!(complaint(old, new), format!("tiny.toml: {expected}"));
    }
}

#[test]
fn the_vocabulary_has_room_for_the_grammar() {
    let needed = Vocabulary::new().len();
    assert_eq!(parse(RECIPE).unwrap().model.vocab_size, needed);
    let sized = |size: usize| format!("seed = 1\nvocab_size = {size}\n");
    let larger = parse(&RECIPE.replacen("seed = 1\n", &sized(needed + 1), 1)).unwrap();
    assert_eq!(larger.model.vocab_size, needed + 1);
    let few = complaint("seed = 1\n", &sized(500));
    assert_eq!(few, format!("tiny.toml: model.vocab_size = 500: must be at least {needed}"));
}

#[test]
fn a_stage_is_known_by_what_matters_to_it() {
    let recipe = parse(RECIPE).unwrap();
    let changed = |old: &str, new: &str| {
        assert!(RECIPE.contains(old), "{old}");
        let other = parse(&RECIPE.replacen(old, new, 1)).unwrap();
        [Stage::Vae, Stage::VaeDecoder, Stage::Base, Stage::Refiner]
            .map(|stage| recipe.fingerprint(stage) != other.fingerprint(stage))
    };
    assert_eq!(changed("log_every = 50", "log_every = 5"), [false; 4]);
    let smaller = "crop_fraction = 0.3\nsmall_original_sizes = [0.1, 0.2]";
    assert_eq!(changed("crop_fraction = 0.3", smaller), [true; 4]);
    assert_eq!(changed("checkpoint_every = 500", "checkpoint_every = 5"), [false; 4]);
    assert_eq!(changed("name = \"tiny\"", "name = \"other\""), [false; 4]);
    assert_eq!(changed("seed = 1", "seed = 2"), [true; 4]);
    assert_eq!(changed("\"bf16\"", "\"f32\""), [true; 4]);
    assert_eq!(changed("\"bf16\"", "\"bf16\"\nshards = 3"), [true; 4]);
    assert_eq!(changed("\"bf16\"", "\"bf16\"\nshards = 2"), [false; 4]);
    assert_eq!(changed("kl_weight = 1e-6", "kl_weight = 1e-7"), [true; 4]);
    assert_eq!(changed("learning_rate = 2e-4", "learning_rate = 1e-4"), [false, false, true, true]);
    assert_eq!(changed("learning_rate = 3e-4", "learning_rate = 1e-4"), [false, false, false, true]);
    assert_eq!(recipe.fingerprint(Stage::Base), parse(RECIPE).unwrap().fingerprint(Stage::Base));
    assert_eq!(recipe.fingerprint(Stage::Base).len(), 64);
}

/// A folder with a recipe that begins with a finished autoencoder and base, all weights a few bytes.
fn begun(folder: &Path) -> PathBuf {
    let recipe = parse(RECIPE).unwrap();
    for (name, file, config) in [
        ("vae", "diffusion_pytorch_model.safetensors", configs::vae_json(&recipe, 0.9)),
        ("unet", "diffusion_pytorch_model.safetensors", configs::unet_json(&recipe)),
        ("text_encoder", "model.safetensors", configs::text_encoder_json(&recipe)),
        ("text_encoder_2", "model.safetensors", configs::text_encoder_2_json(&recipe)),
    ] {
        let own = folder.join("finished").join(name);
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("config.json"), config.to_string()).unwrap();
        fs::write(own.join(file), name).unwrap();
    }
    let path = folder.join("tiny.toml");
    let text = untrained(RECIPE);
    let pretrained = "[pretrained]\nvae = \"finished/vae\"\nbase = \"finished\"\n";
    fs::write(&path, format!("{text}\n{pretrained}")).unwrap();
    path
}

/// Without steps of the autoencoder.
fn untrained(text: &str) -> String {
    let none = [
        ("\nsteps = 20000", "\nsteps = 0"),
        ("decoder_steps = 5000", "decoder_steps = 0"),
        ("anchor_steps = 5000", "anchor_steps = 0"),
    ];
    none.iter().fold(text.to_owned(), |text, (old, new)| {
        assert!(text.contains(old), "{old}");
        text.replacen(old, new, 1)
    })
}

#[test]
fn a_stage_is_known_by_the_finished_networks_that_it_begins_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = begun(folder.path());
    let first = Recipe::open(&path).unwrap();
    let weights = &first.pretrained.vae.as_ref().unwrap().weights;
    assert_eq!(weights.parent(), Some(&*folder.path().join("finished/vae")));
    assert_eq!(first.pretrained.scaling_factor, Some(0.9));
    let names: Vec<_> = first.pretrained.base.iter().map(|part| part.name).collect();
    assert_eq!(names, ["unet", "text_encoder", "text_encoder_2"]);
    let differs = |before: &Recipe| {
        let after = Recipe::open(&path).unwrap();
        [Stage::Vae, Stage::VaeDecoder, Stage::Base, Stage::Refiner]
            .map(|stage| before.fingerprint(stage) != after.fingerprint(stage))
    };
    assert_eq!(differs(&first), [false; 4]);
    fs::write(folder.path().join("finished/text_encoder/model.safetensors"), "others").unwrap();
    assert_eq!(differs(&first), [false, false, true, true]);
    fs::write(folder.path().join("finished/vae/diffusion_pytorch_model.safetensors"), "others").unwrap();
    assert_eq!(differs(&first), [true; 4]);
}

#[test]
fn only_a_finished_autoencoder_needs_no_steps() {
    let message = parse(&untrained(RECIPE)).unwrap_err().to_string();
    assert_eq!(message, "tiny.toml: vae.steps = 0: must be at least 1");
    // A decoder may still go on alone.
    let folder = tempfile::tempdir().unwrap();
    let path = begun(folder.path());
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("decoder_steps = 0", "decoder_steps = 700", 1)).unwrap();
    let vae = Recipe::open(&path).unwrap().vae;
    assert_eq!((vae.steps, vae.decoder_steps), (0, 700));
}

#[test]
fn finished_networks_must_be_there_and_the_recipes() {
    let folder = tempfile::tempdir().unwrap();
    let path = begun(folder.path());
    let complaint = || {
        let message = Recipe::open(&path).unwrap_err().to_string();
        let start = format!("{}: ", path.display());
        message.strip_prefix(&start).unwrap_or(&message).to_owned()
    };
    let config = folder.path().join("finished/unet/config.json");
    let right = fs::read_to_string(&config).unwrap();
    fs::write(&config, right.replace("\"sample_size\":16", "\"sample_size\":128")).unwrap();
    assert!(Recipe::open(&path).is_ok(), "where a network was trained is not what it is");
    fs::write(&config, right.replace("[2,4,6]", "[2,4,8]")).unwrap();
    assert_eq!(
        complaint(),
        "pretrained.base = finished/unet, with attention_head_dim [2,4,8]: must be a network with [2,4,6], as the \
         recipe has it"
    );
    fs::write(&config, "{").unwrap();
    let message = complaint();
    assert!(
        message.starts_with("pretrained.base = finished/unet, whose config.json is not JSON: EOF"),
        "{message}"
    );
    fs::remove_file(&config).unwrap();
    let message = complaint();
    assert!(message.contains("finished/unet, whose config.json cannot be read: No such file"), "{message}");
    fs::write(&config, right).unwrap();
    let vae = folder.path().join("finished/vae");
    let text = fs::read_to_string(vae.join("config.json")).unwrap();
    fs::write(vae.join("config.json"), text.replace("\"scaling_factor\":0.9", "\"scaling_factor\":null"))
        .unwrap();
    assert_eq!(
        complaint(),
        "pretrained.vae = finished/vae, without a scaling_factor: must be a network with one"
    );
    fs::write(vae.join("config.json"), text).unwrap();
    fs::remove_file(vae.join("diffusion_pytorch_model.safetensors")).unwrap();
    let message = complaint();
    assert!(message.starts_with("pretrained.vae = finished/vae, whose diffusion_pytorch_model"), "{message}");
    let unknown = format!("{RECIPE}\n[pretrained]\nunet = \"x\"\n");
    assert!(parse(&unknown).unwrap_err().to_string().contains("unknown field `unet`"));
}

#[test]
fn a_finished_base_goes_on_with_its_own_autoencoder() {
    let folder = tempfile::tempdir().unwrap();
    let path = begun(folder.path());
    let text = fs::read_to_string(&path).unwrap();
    let trained = text.replacen("\nsteps = 0", "\nsteps = 300", 1);
    let trained = trained.replacen("warmup = 200", "warmup = 0", 1);
    let alone = trained.replacen("vae = \"finished/vae\"\n", "", 1);
    assert!(alone.len() < trained.len());
    for (text, found) in [(alone, "absent"), (trained, "trained for 300")] {
        fs::write(&path, text).unwrap();
        let message = Recipe::open(&path).unwrap_err().to_string();
        let expected =
            format!("pretrained.vae = {found}: must be there, with vae.steps = 0, beside pretrained.base");
        assert!(message.ends_with(&expected), "{message}");
    }
}

#[test]
fn the_models_of_table_2_have_the_shipped_autoencoder() {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let sizes = Recipe::open(&recipes.join("sizes.toml")).unwrap();
    let shipped = recipes.join("../shapes/base/vae").canonicalize().unwrap();
    let vae =
        sizes.pretrained.vae.iter().map(|part| part.weights.canonicalize().unwrap()).collect::<Vec<_>>();
    assert!(vae.len() == 1 && vae[0].starts_with(shipped), "{vae:?}");
    assert!(sizes.pretrained.base.is_empty());
    assert_eq!((sizes.vae.steps, sizes.vae.decoder_steps), (0, 0));
}

use super::*;

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
            "batch_size = 48",
            "batch_size = 48\nlargest_small_original = 1.5",
            "base.largest_small_original = 1.5: must be 0.05 to 1",
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

#[test]
fn the_models_of_table_2_share_the_shipped_models_autoencoder_and_pictures() {
    let shipped = parse(include_str!("../../../recipes/shapes.toml")).unwrap();
    let sizes = parse(include_str!("../../../recipes/sizes.toml")).unwrap();
    for stage in [Stage::Vae, Stage::VaeDecoder] {
        assert_eq!(shipped.fingerprint(stage), sizes.fingerprint(stage));
    }
    assert_eq!(shipped.data, sizes.data);
}

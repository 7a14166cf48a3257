//! Whether the model that ships with the project draws what it is asked, seen in the pixels of pictures that came
//! through `Generate`.

use integration_tests::{Cluster, ClusterConfig, Made, Picture};
use sdxl_proto::v1;
use std::sync::LazyLock;

static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| Cluster::start(&ClusterConfig::new(&Made::shipped())));

/// Colours as the model's scenes have them.
const RED: [u8; 3] = [217, 33, 33];
const YELLOW: [u8; 3] = [250, 219, 38];
const GREEN: [u8; 3] = [33, 158, 64];
const BLUE: [u8; 3] = [36, 82, 217];
const PURPLE: [u8; 3] = [133, 51, 173];
const ORANGE: [u8; 3] = [250, 133, 20];
const WHITE: [u8; 3] = [245, 245, 245];
const BLACK: [u8; 3] = [18, 18, 18];
const GRAY: [u8; 3] = [128, 128, 128];

/// A prompt, the colours of its object and its background, and where the object's centre is: row and column, 0 to 1.
type Case = (&'static str, [u8; 3], [u8; 3], (f64, f64));

const CASES: [Case; 10] = [
    ("a large red circle on a blue background", RED, BLUE, (0.5, 0.5)),
    ("a large yellow star on a black background", YELLOW, BLACK, (0.5, 0.5)),
    ("a green square in the top left corner, white background", GREEN, WHITE, (0.25, 0.25)),
    ("a small white circle at the bottom right on a red background", WHITE, RED, (0.75, 0.75)),
    ("a blue triangle on the left side on a yellow background", BLUE, YELLOW, (0.5, 0.25)),
    ("a purple cross on the right side, white background", PURPLE, WHITE, (0.5, 0.75)),
    ("an orange square at the top center on a gray background", ORANGE, GRAY, (0.25, 0.5)),
    ("a black circle at the bottom center on a green background", BLACK, GREEN, (0.75, 0.5)),
    ("a small red star in the center on a white background", RED, WHITE, (0.5, 0.5)),
    ("a yellow circle in the top right corner on a purple background", YELLOW, PURPLE, (0.25, 0.75)),
];

#[tokio::test]
async fn ten_prompts_show_their_colours_where_they_should() {
    let clients = CLUSTER.clients();
    let mut wrong = Vec::new();
    for (i, (prompt, object, background, (row, column))) in CASES.into_iter().enumerate() {
        let seed = Some(100 + u64::try_from(i).unwrap());
        let request = v1::GenerateRequest { prompt: prompt.to_owned(), seed, ..Default::default() };
        let answer = clients.images().generate(request).await.unwrap().into_inner();
        let picture = Picture::decode(&answer.images[0].data);
        let palette = [object, background, RED, YELLOW, GREEN, BLUE, PURPLE, ORANGE, WHITE, BLACK, GRAY];
        let seen = |colour: [u8; 3]| picture.share_and_centre(colour, &palette);
        let (object_share, (y, x)) = seen(object);
        let (background_share, _) = seen(background);
        let line = format!(
            "{prompt}: object {object_share:.2} at ({y:.2}, {x:.2}), background {background_share:.2}"
        );
        println!("{line}");
        let in_place = (y - row).abs() < 0.13 && (x - column).abs() < 0.13;
        if !(0.02..0.6).contains(&object_share) || background_share < 0.35 || !in_place {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "not what was asked for:\n{}", wrong.join("\n"));
}

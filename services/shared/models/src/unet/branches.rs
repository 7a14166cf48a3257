//! What the layers outside of each skip connection cost of the whole network, by the multiplications in them.

use super::UnetConfig;

/// Tokens of a prompt.
const TOKENS: usize = 77;
/// The picture's side in latents where a checkpoint names none, as in diffusers.
const SAMPLE_SIZE: usize = 128;

impl UnetConfig {
    /// Skip connections from the way down to the way up.
    #[must_use]
    pub fn branches(&self) -> usize {
        // The first convolution leaves one, each block one a layer, and one where it halves.
        self.layers_per_block.iter().sum::<usize>() + self.layers_per_block.len()
    }

    /// By `cache_branch_id`, counted from the outermost skip connection: the part, 0 to 1, of the multiplications of an evaluation
    /// that are in the layers outside of it, for a picture of the usual size.
    #[must_use]
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a part of a sum")]
    pub fn cache_branch_costs(&self) -> Vec<f32> {
        let outside = self.multiplications();
        let [first, last, middle] = self.ends();
        let all = first + last + middle + outside.iter().flatten().sum::<usize>();
        // The first convolution's own skip has nothing before it but that.
        let mut sum = first + last;
        let add = |[down, up]: &[usize; 2]| {
            sum += down + up;
            (sum as f64 / all as f64) as f32
        };
        outside.iter().map(add).collect()
    }

    /// Of the layer that leaves each skip, and of that which takes it, outermost first; the first convolution is in
    /// [`UnetConfig::ends`].
    fn multiplications(&self) -> Vec<[usize; 2]> {
        let levels = self.block_out_channels.len();
        let mut down = vec![(0, self.block_out_channels[0])];
        let mut before = self.block_out_channels[0];
        for level in 0..levels {
            let channels = self.block_out_channels[level];
            let attention = self.down_attention[level].then(|| self.transformer_layers_per_block[level]);
            for _ in 0..self.layers_per_block[level] {
                down.push((self.layer([before, channels], level, attention), channels));
                before = channels;
            }
            if level + 1 < levels {
                down.push((9 * channels * channels * self.pixels(level + 1), channels));
            }
        }
        let mut up = Vec::with_capacity(down.len());
        for block in 0..levels {
            let level = levels - 1 - block;
            let channels = self.block_out_channels[level];
            let attention =
                self.up_attention[block].then(|| self.reverse_transformer_layers_per_block[block]);
            for layer in 0..=self.layers_per_block[level] {
                let (_, skip) = down[down.len() - 1 - up.len()];
                let mut cost = self.layer([before + skip, channels], level, attention);
                if layer == self.layers_per_block[level] && level > 0 {
                    cost += 9 * channels * channels * self.pixels(level - 1);
                }
                up.push(cost);
                before = channels;
            }
        }
        down.iter().zip(up.iter().rev()).map(|((down, _), up)| [*down, *up]).collect()
    }

    /// Of the first and the last convolution and of the middle block.
    fn ends(&self) -> [usize; 3] {
        let (first, last) = (self.block_out_channels[0], self.block_out_channels.len() - 1);
        let (channels, depth) = (self.block_out_channels[last], self.transformer_layers_per_block[last]);
        let middle = self.layer([channels; 2], last, Some(depth)) + self.layer([channels; 2], last, None);
        [
            9 * self.in_channels * first * self.pixels(0),
            9 * self.out_channels * first * self.pixels(0),
            middle,
        ]
    }

    fn pixels(&self, level: usize) -> usize {
        self.sample_size.unwrap_or(SAMPLE_SIZE).div_ceil(1 << level).pow(2)
    }

    /// A residual block and its transformer. Keys and values of a prompt are computed once for all steps.
    fn layer(&self, [c_in, c_out]: [usize; 2], level: usize, transformer_layers: Option<usize>) -> usize {
        let pixels = self.pixels(level);
        let shortcut = if c_in == c_out { 0 } else { c_in * c_out };
        let resnet = pixels * (9 * c_out * (c_in + c_out) + shortcut);
        let block = pixels * c_out * (18 * c_out + 2 * pixels + 2 * TOKENS);
        resnet + transformer_layers.map_or(0, |layers| 2 * pixels * c_out * c_out + layers * block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// SDXL's own base, at the size that PyTorch was asked of.
    fn sdxl() -> UnetConfig {
        let text = r#"{"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "layers_per_block": 2, "sample_size": 64,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "projection_class_embeddings_input_dim": 2816, "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": true}"#;
        UnetConfig::from_json(text, Path::new("config.json")).unwrap()
    }

    #[test]
    fn the_costs_of_sdxl_are_pytorchs_count() {
        let costs = sdxl().cache_branch_costs();
        assert_eq!((costs.len(), sdxl().branches()), (9, 9));
        assert!(costs.windows(2).all(|pair| pair[0] < pair[1]), "{costs:?}");
        // PyTorch counts 3.178e12 operations in a guided step at 64 x 64, two a multiplication, keys and values of the prompts among
        // them. By hand: those, and per pixel the last layer, 640 to 320 channels, with the convolutions at the ends.
        let keys = 77.0 * 2.0 * 2048.0 * (640.0 * 10.0 + 1280.0 * 60.0);
        let all = 3.178e12 / 4.0 - keys;
        let outermost = 64.0 * 64.0 * f64::from(9 * 320 * (640 + 320) + 640 * 320 + 2 * 9 * 4 * 320);
        assert!(
            (f64::from(costs[0]) / (outermost / all) - 1.0).abs() < 0.01,
            "{} for {}",
            costs[0],
            outermost / all
        );
        assert!((0.7..1.0).contains(&costs[8]), "{costs:?}");
    }
}

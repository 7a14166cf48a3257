use super::*;

/// 64-bit FNV-1a over the little-endian bits.
fn fingerprint(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Seed, count, first and last value, fingerprint of all: `torch.randn(count, generator=torch.Generator("cpu")
/// .manual_seed(seed))` of torch 2.15.
const GOLDEN: [(u64, usize, [f32; 2], u64); 25] = [
    (0, 5, [1.5409961, -1.0845224], 0xcec5_c9af_fc02_0eb6),
    (0, 17, [-1.1258398, 0.9318266], 0x9151_e09b_e6bc_f07a),
    (0, 31, [-1.1258398, -1.4688939], 0x3e39_671a_bab4_a234),
    (0, 1024, [-1.1258398, -1.7104684], 0x0c7b_4c8c_366c_d943),
    (0, 65_536, [-1.1258398, -1.4578041], 0x1725_9a04_2c28_1ef1),
    (1, 5, [0.66135216, -0.45190597], 0x99b2_88e0_85f1_c1bd),
    (1, 17, [-1.5255959, -0.7984398], 0x2848_7f75_4359_83d0),
    (1, 31, [-1.5255959, 1.5747981], 0x96d8_709b_ade9_4b47),
    (1, 1024, [-1.5255959, 1.0561525], 0x9874_fe01_80ea_9e1f),
    (1, 65_536, [-1.5255959, -1.1983309], 0xad33_9619_1d63_3bcd),
    (42, 5, [0.33669037, -1.1228564], 0x0db6_2b49_6c41_4f74),
    (42, 17, [1.9269153, -0.30972677], 0x91ae_8bd7_90a5_0356),
    (42, 31, [1.9269153, -1.2346531], 0xbcc1_254f_5a30_e3c3),
    (42, 1024, [1.9269153, 1.5817503], 0x8402_8512_adc0_67ba),
    (42, 65_536, [1.9269153, 1.6214948], 0xde5f_08fc_e963_8b4a),
    (4_294_967_303, 5, [-0.1467951, 1.6907902], 0xe859_5308_736f_6e20),
    (4_294_967_303, 17, [-0.8201345, -0.8667016], 0xb8b2_b898_064e_9a44),
    (4_294_967_303, 31, [-0.8201345, 0.50112146], 0x1a01_e30f_021a_8183),
    (4_294_967_303, 1024, [-0.8201345, -0.90410024], 0xd661_957b_e81d_4a00),
    (4_294_967_303, 65_536, [-0.8201345, 1.8852991], 0xe2af_c98d_c68c_b927),
    (18_446_744_073_709_551_615, 5, [1.219763, -0.0755102], 0x71d4_7b07_07c8_d463),
    (18_446_744_073_709_551_615, 17, [-2.6642976, 1.6243832], 0xc48a_d8ea_8d01_60dc),
    (18_446_744_073_709_551_615, 31, [-2.6642976, -1.0488554], 0x1412_4232_8393_e1db),
    (18_446_744_073_709_551_615, 1024, [-2.6642976, 0.5531952], 0xc8d2_3576_020c_78ef),
    (18_446_744_073_709_551_615, 65_536, [-2.6642976, -0.33837187], 0xba3a_7c81_25aa_488e),
];

#[test]
fn equals_torch_bit_for_bit() {
    for (seed, numel, [first, last], expected) in GOLDEN {
        let values = TorchGenerator::new(seed).randn(numel);
        assert_eq!((values[0], values[numel - 1]), (first, last), "seed {seed}, {numel} values");
        assert_eq!(fingerprint(&values), expected, "seed {seed}, {numel} values");
    }
}

#[test]
fn draws_one_after_another_equal_torch() {
    // Five values leave half a pair for the draw of three, past a draw of 17 that must not touch it.
    let golden = [
        (5, 0xe859_5308_736f_6e20),
        (17, 0xae92_414d_bc1f_3085),
        (3, 0x3fdc_83c3_26b0_fcfa),
        (1024, 0x73d9_fe07_9523_5967),
        (2, 0x6be5_aa84_d0d7_0213),
        (33, 0xa8ed_31e4_b0f7_3d81),
    ];
    let mut generator = TorchGenerator::new(7);
    for (i, (numel, expected)) in golden.into_iter().enumerate() {
        assert_eq!(fingerprint(&generator.randn(numel)), expected, "draw {i} of {numel}");
    }
}

#[test]
fn only_the_low_word_of_a_seed_counts() {
    assert_eq!(TorchGenerator::new(7).randn(20), TorchGenerator::new((1 << 32) + 7).randn(20));
}

// The project's other kernels, compiled for the processor.

#include "call.h"
#include "instructions.h"

// What a launch gives them room for.
float2 of_channels[1 << 16], of_groups[1 << 12];

#define __shared__
#include "../src/cuda/kernels.cu"

#define OF_TYPE_(KERNEL)                                                                                          \
    KEEP(KERNEL##_f32) KEEP(KERNEL##_f16) KEEP(KERNEL##_bf16) KEEP(KERNEL##_f32_each) KEEP(KERNEL##_f16_each)     \
        KEEP(KERNEL##_bf16_each)

OF_TYPE_(group_norm_moments)
OF_TYPE_(group_norm_factors)
OF_TYPE_(group_norm_apply)
OF_TYPE_(layer_norm)
OF_TYPE_(geglu)
OF_TYPE_(add_onto)
OF_TYPE_(upsample)

// The project's attention, compiled for the processor: once for each type and width of a head.

#include "call.h"
#include "instructions.h"

#define __shared__ static
#include "../src/cuda/attention.cu"

KEEP(NAME)

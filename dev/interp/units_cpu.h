// A Reader (units.h) that runs the CPU's reference. Its views of a layer, the first being what a model is
// judged by:
//   experts, gelu, relu   units: what the decoder reads, by slot
//   GEGLU   units: gelu(a) u;   gate: gelu(a)
//   SoLU    pre: before the LayerNorm in the middle;   post: behind it, what the output reads
//   Monet   routing: of expert (i,j) the sum over heads of g0_hi g1_hj;   units: what the decoders read;
//           encoder: the hidden units
//   PEER    units: gate times activation, summed over heads;   routing: the gate alone
#pragma once
#include "units.h"

// For batches of up to B x T tokens, its weights all zero.
Reader cpu_reader(const Config& config, size_t B, size_t T);

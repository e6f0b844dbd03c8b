// All C kernels of a CPU as one library, with one set of helpers.

#include "decoder.c"
#include "many_queries.c"
#include "prefill.c"
#include "choose.c"

// The host's side alone; here it is the same header.
#pragma once
#include "cuda_runtime.h"

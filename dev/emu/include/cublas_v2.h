// Status codes and types of cuBLAS; its products are those of cublasLt.h.
#pragma once
#include "cublasLt.h"

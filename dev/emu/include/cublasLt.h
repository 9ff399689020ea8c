// cuBLASLt as far as a transformer needs it: D = epilogue(alpha op(A) op(B) + beta C) in fp32, of fp32 or
// bf16 matrices, with every epilogue of fp32 compute. What the documentation rules out is answered with its
// status (CUBLAS_STATUS_NOT_SUPPORTED, or no algorithm from the heuristic); matrices that leave their
// allocation stop the program, where a GPU would read or write what is there. The workspace that an algorithm
// claims is overwritten, as it would be. An algorithm serves the product it was asked for; of others only
// those that differ in the number of rows of a batch (n, or k where op(B) is a transpose: sums over rows).
//
// Environment:  EMU_CUBLASLT_EPILOGUES=0     the heuristic knows the default epilogue only; =bias: and bias
//               EMU_CUBLASLT_MISSING=LIST    it does not know these: name[/type of D[/up to this n]], e.g.
//                                            relu_aux_bias,dgelu_bgrad/fp32,gelu_aux_bias/bf16/4
//               EMU_CUBLASLT_REFUSE=n        every n-th reuse of an algorithm is refused: a call that is not
//                                            its first, or for other sizes than it was asked for
#pragma once
#include "cuda_runtime.h"
#include "emu/gemm.h"
#include "library_types.h"
#include <set>
#include <sstream>
#include <string>

typedef enum {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_ARCH_MISMATCH = 8,
    CUBLAS_STATUS_MAPPING_ERROR = 11,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_INTERNAL_ERROR = 14,
    CUBLAS_STATUS_NOT_SUPPORTED = 15,
    CUBLAS_STATUS_LICENSE_ERROR = 16,
} cublasStatus_t;

inline const char* cublasLtGetStatusName(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
        return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_MAPPING_ERROR:
        return "CUBLAS_STATUS_MAPPING_ERROR";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
        return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_LICENSE_ERROR:
        return "CUBLAS_STATUS_LICENSE_ERROR";
    }
    return "unknown cublas status";
}
inline const char* cublasLtGetStatusString(cublasStatus_t status) { return cublasLtGetStatusName(status); }
inline const char* cublasGetStatusName(cublasStatus_t status) { return cublasLtGetStatusName(status); }
inline const char* cublasGetStatusString(cublasStatus_t status) { return cublasLtGetStatusName(status); }

typedef enum { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1, CUBLAS_OP_C = 2 } cublasOperation_t;
typedef enum {
    CUBLAS_COMPUTE_16F = 64,
    CUBLAS_COMPUTE_32F = 68,
    CUBLAS_COMPUTE_32F_PEDANTIC = 69,
    CUBLAS_COMPUTE_32F_FAST_16F = 74,
    CUBLAS_COMPUTE_32F_FAST_16BF = 75,
    CUBLAS_COMPUTE_32F_FAST_TF32 = 77,
    CUBLAS_COMPUTE_64F = 70,
} cublasComputeType_t;

typedef enum {
    CUBLASLT_EPILOGUE_DEFAULT = 1,
    CUBLASLT_EPILOGUE_RELU = 2,
    CUBLASLT_EPILOGUE_BIAS = 4,
    CUBLASLT_EPILOGUE_RELU_BIAS = 6,
    CUBLASLT_EPILOGUE_GELU = 32,
    CUBLASLT_EPILOGUE_GELU_BIAS = 36,
    CUBLASLT_EPILOGUE_RELU_AUX = 130,
    CUBLASLT_EPILOGUE_RELU_AUX_BIAS = 134,
    CUBLASLT_EPILOGUE_DRELU = 136,
    CUBLASLT_EPILOGUE_DRELU_BGRAD = 152,
    CUBLASLT_EPILOGUE_GELU_AUX = 160,
    CUBLASLT_EPILOGUE_GELU_AUX_BIAS = 164,
    CUBLASLT_EPILOGUE_DGELU = 192,
    CUBLASLT_EPILOGUE_DGELU_BGRAD = 208,
    CUBLASLT_EPILOGUE_BGRADA = 256,
    CUBLASLT_EPILOGUE_BGRADB = 512,
} cublasLtEpilogue_t;

// ---- descriptors ----------------------------------------------------------------------------------------
// An attribute is set by its number with a buffer of exactly the size of its type.

typedef struct cublasLtContext {
    int unused;
} * cublasLtHandle_t;
inline cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
    return *handle = new cublasLtContext{}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    return delete handle, CUBLAS_STATUS_SUCCESS;
}
inline size_t cublasLtGetVersion() { return 120400; }

namespace emu {
template <class T> cublasStatus_t set_attribute(T& attribute, const void* value, size_t bytes) {
    if (!value || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&attribute, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
} // namespace emu

typedef enum { CUBLASLT_ORDER_COL = 0, CUBLASLT_ORDER_ROW = 1 } cublasLtOrder_t;
typedef enum {
    CUBLASLT_MATRIX_LAYOUT_TYPE = 0,
    CUBLASLT_MATRIX_LAYOUT_ORDER = 1,
    CUBLASLT_MATRIX_LAYOUT_ROWS = 2,
    CUBLASLT_MATRIX_LAYOUT_COLS = 3,
    CUBLASLT_MATRIX_LAYOUT_LD = 4,
    CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT = 5,
    CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 6,
} cublasLtMatrixLayoutAttribute_t;
typedef struct cublasLtMatrixLayoutOpaque_t {
    uint32_t type;
    int32_t order;
    uint64_t rows, cols;
    int64_t ld;
    int32_t batch_count;
    int64_t batch_offset;
} * cublasLtMatrixLayout_t;

inline cublasStatus_t cublasLtMatrixLayoutInit(cublasLtMatrixLayout_t layout, cudaDataType type,
                                               uint64_t rows, uint64_t cols, int64_t ld) {
    *layout = {uint32_t(type), CUBLASLT_ORDER_COL, rows, cols, ld, 1, 0};
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                                 uint64_t rows, uint64_t cols, int64_t ld) {
    *layout = new cublasLtMatrixLayoutOpaque_t;
    return cublasLtMatrixLayoutInit(*layout, type, rows, cols, ld);
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    return delete layout, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                       cublasLtMatrixLayoutAttribute_t a, const void* value,
                                                       size_t bytes) {
    switch (a) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
        return emu::set_attribute(l->type, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
        return emu::set_attribute(l->order, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
        return emu::set_attribute(l->rows, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
        return emu::set_attribute(l->cols, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_LD:
        return emu::set_attribute(l->ld, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
        return emu::set_attribute(l->batch_count, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
        return emu::set_attribute(l->batch_offset, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

typedef enum {
    CUBLASLT_MATMUL_DESC_COMPUTE_TYPE = 0,
    CUBLASLT_MATMUL_DESC_SCALE_TYPE = 1,
    CUBLASLT_MATMUL_DESC_POINTER_MODE = 2,
    CUBLASLT_MATMUL_DESC_TRANSA = 3,
    CUBLASLT_MATMUL_DESC_TRANSB = 4,
    CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8,
    CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE = 10,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER = 11,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD = 12,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE = 13,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE = 22,
    CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE = 26,
} cublasLtMatmulDescAttributes_t;
typedef struct cublasLtMatmulDescOpaque_t {
    int32_t compute_type, scale_type, pointer_mode, transa, transb;
    uint32_t epilogue;
    void* bias;
    int64_t bias_stride;
    void* aux;
    int64_t aux_ld, aux_stride;
    int32_t aux_type, bias_type; // -1: as D
} * cublasLtMatmulDesc_t;

inline cublasStatus_t cublasLtMatmulDescInit(cublasLtMatmulDesc_t desc, cublasComputeType_t compute,
                                             cudaDataType scale) {
    *desc = {compute, scale, 0, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr, 0,
             nullptr, 0,     0, -1,          -1};
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                               cudaDataType scale) {
    *desc = new cublasLtMatmulDescOpaque_t;
    return cublasLtMatmulDescInit(*desc, compute, scale);
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    return delete desc, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a,
                                                     const void* value, size_t bytes) {
    switch (a) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
        return emu::set_attribute(d->compute_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
        return emu::set_attribute(d->scale_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
        return emu::set_attribute(d->pointer_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return emu::set_attribute(d->transa, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return emu::set_attribute(d->transb, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return emu::set_attribute(d->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return emu::set_attribute(d->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE:
        return emu::set_attribute(d->bias_stride, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
        return emu::set_attribute(d->aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
        return emu::set_attribute(d->aux_ld, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE:
        return emu::set_attribute(d->aux_stride, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
        return emu::set_attribute(d->aux_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        return emu::set_attribute(d->bias_type, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

typedef enum {
    CUBLASLT_MATMUL_PREF_SEARCH_MODE = 0,
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8,
} cublasLtMatmulPreferenceAttributes_t;
typedef struct cublasLtMatmulPreferenceOpaque_t {
    uint64_t workspace;
    uint32_t search_mode, reduction, align[4]; // of A, B, C, D
} * cublasLtMatmulPreference_t;

inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* p) {
    *p = new cublasLtMatmulPreferenceOpaque_t{0, 0, ~0u, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    return delete p, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                           cublasLtMatmulPreferenceAttributes_t a,
                                                           const void* value, size_t bytes) {
    switch (a) {
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE:
        return emu::set_attribute(p->search_mode, value, bytes);
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return emu::set_attribute(p->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return emu::set_attribute(p->reduction, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        return emu::set_attribute(p->align[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        return emu::set_attribute(p->align[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        return emu::set_attribute(p->align[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        return emu::set_attribute(p->align[3], value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

typedef enum {
    CUBLASLT_REDUCTION_SCHEME_NONE = 0,
    CUBLASLT_REDUCTION_SCHEME_INPLACE = 1,
    CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2,
    CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE = 4,
    CUBLASLT_REDUCTION_SCHEME_MASK = 7,
} cublasLtReductionScheme_t;

typedef struct {
    uint64_t workspace, question; // the heuristic's calls are counted
    uint64_t m, n, k;             // what it was chosen for ..
    uint32_t align[4], epilogue, types, transposes;
    uint32_t reduction; // cublasLtReductionScheme_t, of the sums of parts of k
} cublasLtMatmulAlgo_t;
typedef enum {
    CUBLASLT_ALGO_CONFIG_ID = 0,
    CUBLASLT_ALGO_CONFIG_TILE_ID = 1,
    CUBLASLT_ALGO_CONFIG_SPLITK_NUM = 2,
    CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME = 3,
} cublasLtMatmulAlgoConfigAttributes_t;
typedef struct {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
    float wavesCount;
    int reserved[4];
} cublasLtMatmulHeuristicResult_t;

// ---- what is supported ----------------------------------------------------------------------------------

namespace emu {

struct Epilogue {
    const char* name;
    uint32_t number;
    bool bias, relu, gelu, drelu, dgelu, aux, bias_gradient, sum_a, sum_b;
};
constexpr Epilogue epilogues[] = {
    // name, number          bias relu gelu drelu dgelu aux bgrad suma sumb
    {"default", CUBLASLT_EPILOGUE_DEFAULT, 0, 0, 0, 0, 0, 0, 0, 0, 0},
    {"bias", CUBLASLT_EPILOGUE_BIAS, 1, 0, 0, 0, 0, 0, 0, 0, 0},
    {"relu", CUBLASLT_EPILOGUE_RELU, 0, 1, 0, 0, 0, 0, 0, 0, 0},
    {"relu_bias", CUBLASLT_EPILOGUE_RELU_BIAS, 1, 1, 0, 0, 0, 0, 0, 0, 0},
    {"relu_aux", CUBLASLT_EPILOGUE_RELU_AUX, 0, 1, 0, 0, 0, 1, 0, 0, 0},
    {"relu_aux_bias", CUBLASLT_EPILOGUE_RELU_AUX_BIAS, 1, 1, 0, 0, 0, 1, 0, 0, 0},
    {"gelu", CUBLASLT_EPILOGUE_GELU, 0, 0, 1, 0, 0, 0, 0, 0, 0},
    {"gelu_bias", CUBLASLT_EPILOGUE_GELU_BIAS, 1, 0, 1, 0, 0, 0, 0, 0, 0},
    {"gelu_aux", CUBLASLT_EPILOGUE_GELU_AUX, 0, 0, 1, 0, 0, 1, 0, 0, 0},
    {"gelu_aux_bias", CUBLASLT_EPILOGUE_GELU_AUX_BIAS, 1, 0, 1, 0, 0, 1, 0, 0, 0},
    {"drelu", CUBLASLT_EPILOGUE_DRELU, 0, 0, 0, 1, 0, 1, 0, 0, 0},
    {"drelu_bgrad", CUBLASLT_EPILOGUE_DRELU_BGRAD, 0, 0, 0, 1, 0, 1, 1, 0, 0},
    {"dgelu", CUBLASLT_EPILOGUE_DGELU, 0, 0, 0, 0, 1, 1, 0, 0, 0},
    {"dgelu_bgrad", CUBLASLT_EPILOGUE_DGELU_BGRAD, 0, 0, 0, 0, 1, 1, 1, 0, 0},
    {"bgrada", CUBLASLT_EPILOGUE_BGRADA, 0, 0, 0, 0, 0, 0, 0, 1, 0},
    {"bgradb", CUBLASLT_EPILOGUE_BGRADB, 0, 0, 0, 0, 0, 0, 0, 0, 1},
};
inline const Epilogue* epilogue_of(uint32_t number) {
    for (const Epilogue& e : epilogues)
        if (e.number == number) return &e;
    return nullptr;
}

// Does the environment say that the heuristic has nothing for this epilogue, this type of D and n columns?
inline bool is_missing(const Epilogue& e, uint32_t type, uint64_t n) {
    const char* const setting = getenv("EMU_CUBLASLT_EPILOGUES");
    const bool plain = e.number == CUBLASLT_EPILOGUE_DEFAULT;
    if (setting && strcmp(setting, "0") == 0 && !plain) return true;
    if (setting && strcmp(setting, "bias") == 0 && !plain && e.number != CUBLASLT_EPILOGUE_BIAS) return true;
    const char* const missing = getenv("EMU_CUBLASLT_MISSING");
    std::stringstream list(missing ? missing : "");
    for (std::string entry; std::getline(list, entry, ',');) {
        std::stringstream parts(entry);
        std::string name, of, most;
        std::getline(parts, name, '/');
        std::getline(parts, of, '/');
        std::getline(parts, most);
        const auto is_named = [&](const Epilogue& one) { return name == one.name; };
        if (!std::any_of(std::begin(epilogues), std::end(epilogues), is_named) ||
            (of != "" && of != "bf16" && of != "fp32"))
            die("EMU_CUBLASLT_MISSING has '%s', expected such as relu_aux_bias or relu_aux_bias/bf16/4",
                entry.c_str());
        if (is_named(e) && (of.empty() || (of == "bf16") == (type == CUDA_R_16BF)) &&
            (most.empty() || n <= strtoull(most.c_str(), nullptr, 10)))
            return true;
    }
    return false;
}

// Can these shapes, types and this epilogue be done at all, as the documentation has it? Pointers are looked
// at by cublasLtMatmul only.
inline cublasStatus_t check_matmul(const cublasLtMatmulDescOpaque_t& d, const cublasLtMatrixLayoutOpaque_t& a,
                                   const cublasLtMatrixLayoutOpaque_t& b,
                                   const cublasLtMatrixLayoutOpaque_t& c,
                                   const cublasLtMatrixLayoutOpaque_t& out) {
    const bool transa = d.transa != CUBLAS_OP_N, transb = d.transb != CUBLAS_OP_N;
    const uint64_t m = transa ? a.cols : a.rows, k = transa ? a.rows : a.cols;
    const uint64_t kb = transb ? b.cols : b.rows, n = transb ? b.rows : b.cols;
    if (m == 0 || n == 0 || k == 0 || k != kb || out.rows != m || out.cols != n || c.rows != m || c.cols != n)
        return CUBLAS_STATUS_INVALID_VALUE;
    for (const cublasLtMatrixLayoutOpaque_t* l : {&a, &b, &c, &out})
        if (l->ld < int64_t(l->order == CUBLASLT_ORDER_COL ? l->rows : l->cols) ||
            l->batch_count != out.batch_count || l->batch_count < 1)
            return CUBLAS_STATUS_INVALID_VALUE;
    if (d.pointer_mode != 0 || d.scale_type != CUDA_R_32F ||
        (d.compute_type != CUBLAS_COMPUTE_32F && d.compute_type != CUBLAS_COMPUTE_32F_PEDANTIC &&
         d.compute_type != CUBLAS_COMPUTE_32F_FAST_TF32 && d.compute_type != CUBLAS_COMPUTE_32F_FAST_16BF))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    const bool fp32 = a.type == CUDA_R_32F && b.type == CUDA_R_32F && out.type == CUDA_R_32F;
    const bool bf16 =
        a.type == CUDA_R_16BF && b.type == CUDA_R_16BF && (out.type == CUDA_R_16BF || out.type == CUDA_R_32F);
    if (!(fp32 || bf16) || c.type != out.type) return CUBLAS_STATUS_NOT_SUPPORTED;
    const Epilogue* const epilogue = epilogue_of(d.epilogue);
    if (!epilogue) return CUBLAS_STATUS_NOT_SUPPORTED;
    const Epilogue& e = *epilogue;
    // Bias and its gradient have D's type; so has what GELU keeps, ReLU keeps one bit.
    if ((e.bias || e.bias_gradient || e.sum_a || e.sum_b) && d.bias_type != -1 &&
        d.bias_type != int32_t(out.type))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (e.aux) {
        if ((e.gelu || e.dgelu) && d.aux_type != -1 && d.aux_type != int32_t(out.type))
            return CUBLAS_STATUS_NOT_SUPPORTED;
        const int64_t multiple = e.relu || e.drelu ? 128 : 8;
        if (d.aux_ld < int64_t(m) || d.aux_ld % multiple != 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (d.epilogue != CUBLASLT_EPILOGUE_DEFAULT && out.order != CUBLASLT_ORDER_COL)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

// tanh form, as GPT-2 has it, and its derivative.
inline float gelu(float x) { return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x))); }
inline float gelu_gradient(float x) {
    const float t = tanhf(0.7978845608f * (x + 0.044715f * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.7978845608f * (1 + 3 * 0.044715f * x * x);
}

inline size_t type_bytes(uint32_t type) { return type == CUDA_R_16BF ? 2 : 4; }

// The matrix number `batch`; transposed if asked.
inline Matrix matrix_of(const void* data, const cublasLtMatrixLayoutOpaque_t& l, bool transposed,
                        int32_t batch) {
    const bool bf16 = l.type == CUDA_R_16BF;
    size_t row = 1, column = size_t(l.ld);
    if ((l.order == CUBLASLT_ORDER_ROW) != transposed) std::swap(row, column);
    const char* first = static_cast<const char*>(data) + int64_t(type_bytes(l.type)) * l.batch_offset * batch;
    return {const_cast<char*>(first), bf16, row, column};
}

// Stops when a matrix does not lie in device memory: a GPU would report an illegal address at some later
// call.
inline void check_memory(const char* name, const void* data, const cublasLtMatrixLayoutOpaque_t& l,
                         int32_t batch) {
    const bool by_columns = l.order == CUBLASLT_ORDER_COL;
    const size_t lines = by_columns ? l.cols : l.rows, length = by_columns ? l.rows : l.cols;
    const size_t bytes = ((lines - 1) * size_t(l.ld) + length) * type_bytes(l.type);
    if (!device_memory().holds(matrix_of(data, l, false, batch).data, bytes))
        die("cublasLtMatmul: %s (%zu,%zu) with leading dimension %zu at %p is not all in device memory", name,
            size_t(l.rows), size_t(l.cols), size_t(l.ld), data);
}

// What an algorithm was chosen for, and whether it can do this product, too.
inline void describe(cublasLtMatmulAlgo_t& algo, const cublasLtMatmulDescOpaque_t& d,
                     const cublasLtMatrixLayoutOpaque_t& a, const cublasLtMatrixLayoutOpaque_t& out) {
    algo.m = out.rows;
    algo.n = out.cols;
    algo.k = d.transa != CUBLAS_OP_N ? a.rows : a.cols;
    algo.epilogue = d.epilogue;
    algo.types = a.type << 16 | out.type;
    algo.transposes = uint32_t(d.transa != CUBLAS_OP_N) << 1 | uint32_t(d.transb != CUBLAS_OP_N);
}
inline bool serves(const cublasLtMatmulAlgo_t& algo, const cublasLtMatmulAlgo_t& product) {
    const bool sums_over_rows = product.transposes & 1;
    return algo.m == product.m && (sums_over_rows ? algo.n == product.n : algo.k == product.k) &&
           algo.epilogue == product.epilogue && algo.types == product.types &&
           algo.transposes == product.transposes;
}

// Counts the uses of every answer of the heuristic; true: EMU_CUBLASLT_REFUSE wants this one refused.
inline bool refuse_reuse(const cublasLtMatmulAlgo_t& algo, const cublasLtMatmulAlgo_t& product) {
    static std::mutex mutex;
    static std::set<uint64_t> used;
    static uint64_t reuses = 0;
    const char* const setting = getenv("EMU_CUBLASLT_REFUSE");
    std::lock_guard lock(mutex);
    const bool first = used.insert(algo.question).second;
    const bool same = algo.m == product.m && algo.n == product.n && algo.k == product.k;
    if (!setting || (first && same)) return false;
    const uint64_t every = strtoull(setting, nullptr, 10);
    if (every == 0) die("EMU_CUBLASLT_REFUSE is '%s', expected a number, 1 or more", setting);
    return ++reuses % every == 0;
}

// A call of cublasLtMatmul that has been checked.
struct MatmulCall {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a_layout, b_layout, c_layout, d_layout;
    float scale, keep; // alpha, beta
    const void *a, *b, *c;
    void* d;
    bool narrow_parts;
    void run() const;
};
inline void MatmulCall::run() const {
    const Epilogue& e = *epilogue_of(desc.epilogue);
    const bool has_vector = e.bias || e.bias_gradient || e.sum_a || e.sum_b;
    const bool transa = desc.transa != CUBLAS_OP_N, transb = desc.transb != CUBLAS_OP_N;
    const size_t m = d_layout.rows, n = d_layout.cols, k = transa ? a_layout.rows : a_layout.cols;
    const bool bf16_out = d_layout.type == CUDA_R_16BF;
    const size_t out_bytes = type_bytes(d_layout.type);

    for (int32_t batch = 0; batch < d_layout.batch_count; batch++) {
        check_memory("A", a, a_layout, batch);
        check_memory("B", b, b_layout, batch);
        check_memory("D", d, d_layout, batch);
        if (keep != 0) check_memory("C", c, c_layout, batch);
        const Matrix A = matrix_of(a, a_layout, transa, batch), B = matrix_of(b, b_layout, transb, batch);
        const Matrix C = matrix_of(c, c_layout, false, batch), D = matrix_of(d, d_layout, false, batch);
        // bias, or where a gradient of it goes: a column vector (n long for BGRADB, m otherwise)
        const Matrix vector{static_cast<char*>(desc.bias) + int64_t(out_bytes) * desc.bias_stride * batch,
                            bf16_out, 1, 0};
        if (has_vector && !device_memory().holds(vector.data, (e.sum_b ? n : m) * out_bytes))
            die("cublasLtMatmul: the bias vector at %p is not all in device memory", vector.data);
        // what ReLU and GELU keep: bits or elements, columns aux_ld apart
        const bool bits = e.relu || e.drelu;
        const size_t aux_ld = size_t(desc.aux_ld);
        char* const aux = static_cast<char*>(desc.aux) +
                          (bits ? desc.aux_stride * batch / 8 : desc.aux_stride * batch * int64_t(out_bytes));
        const Matrix kept{aux, bf16_out, 1, aux_ld};
        unsigned char* const mask = reinterpret_cast<unsigned char*>(aux);
        const size_t aux_bytes = bits ? ((n - 1) * aux_ld + m + 7) / 8 : ((n - 1) * aux_ld + m) * out_bytes;
        if (e.aux && !device_memory().holds(aux, aux_bytes))
            die("cublasLtMatmul: the auxiliary matrix at %p is not all in device memory",
                static_cast<void*>(aux));

        // gradients of the bias, one partial sum for each column of tiles, so that the order is always the
        // same
        const size_t strips = (n + tile - 1) / tile;
        std::vector<float> sums(e.bias_gradient ? strips * m : 0);
        gemm(A, B, m, n, k, narrow_parts,
             [&](size_t i0, size_t j0, size_t rows, size_t columns, const float* product) {
                 for (size_t j = 0; j < columns; j++) {
                     for (size_t i = 0; i < rows; i++) {
                         const size_t row = i0 + i, column = j0 + j, bit = column * aux_ld + row;
                         float x = scale * product[j * tile + i];
                         if (keep != 0) x += keep * C.get(row, column);
                         if (e.bias) x += vector.get(row, 0);
                         if (e.relu &&
                             e.aux) { // a tile has whole bytes of the mask to itself: 96 rows are 12 bytes
                             const unsigned char one = (unsigned char)(1u << bit % 8);
                             if (x > 0)
                                 mask[bit / 8] |= one;
                             else
                                 mask[bit / 8] &= (unsigned char)(~one);
                         }
                         if (e.gelu && e.aux) kept.set(row, column, x);
                         if (e.relu) x = x > 0 ? x : 0;
                         if (e.gelu) x = gelu(x);
                         if (e.drelu) x = mask[bit / 8] >> bit % 8 & 1 ? x : 0;
                         if (e.dgelu) x *= gelu_gradient(kept.get(row, column));
                         if (e.bias_gradient) sums[j0 / tile * m + row] += x;
                         D.set(row, column, x);
                     }
                 }
             });
        if (e.bias_gradient)
            for (size_t i = 0; i < m; i++) {
                float sum = 0;
                for (size_t s = 0; s < strips; s++) sum += sums[s * m + i];
                vector.set(i, 0, sum);
            }
        if (e.sum_a || e.sum_b)
            parallel_for(e.sum_a ? m : n, [&](size_t i) {
                float sum = 0;
                for (size_t l = 0; l < k; l++) sum += e.sum_a ? A.get(i, l) : B.get(l, i);
                vector.set(i, 0, sum);
            });
    }
}

// Between its beginning and its end a product has its workspace to itself.
inline void put_product(cudaStream_t stream, const MatmulCall& call, void* workspace, size_t bytes) {
    const char* const name = "cublasLtMatmul";
    static std::atomic<uint64_t> products{0};
    const uint64_t mark = ~++products; // small numbers' complements are NaN
    if (bytes >= sizeof mark) {
        streams().put(stream, name, [workspace, bytes, mark] {
            memset(workspace, 0xFF, bytes);
            memcpy(workspace, &mark, sizeof mark);
        });
    }
    streams().put(stream, name, [call, workspace, bytes, mark] {
        if (bytes >= sizeof mark && memcmp(workspace, &mark, sizeof mark) != 0)
            die("cublasLtMatmul: its workspace at %p was written to before it was done: has each stream its "
                "own?",
                workspace);
        call.run();
    });
}

} // namespace emu

// ---- the calls ------------------------------------------------------------------------------------------

inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                     cublasLtMatmulPreference_t preference, int requested,
                                                     cublasLtMatmulHeuristicResult_t results[], int* found) {
    if (!handle || !desc || !a || !b || !c || !d || !results || !found || requested < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    *found = 0;
    const cublasStatus_t status = emu::check_matmul(*desc, *a, *b, *c, *d);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (emu::is_missing(*emu::epilogue_of(desc->epilogue), d->type, d->cols))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    static std::atomic<uint64_t> questions{0};
    cublasLtMatmulHeuristicResult_t r{};
    emu::describe(r.algo, *desc, *a, *d);
    r.algo.question = ++questions;
    // A GPU with few tiles to go round takes the fastest sum of parts of k that it may.
    const uint32_t allowed = preference ? preference->reduction : ~0u;
    if (d->type == CUDA_R_16BF && r.algo.k > emu::depth_tile)
        for (const uint32_t scheme :
             {CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE})
            if (allowed & scheme) r.algo.reduction = scheme;
    for (int i = 0; i < 4; i++) r.algo.align[i] = std::min(16u, preference ? preference->align[i] : 16u);
    if (preference) r.algo.workspace = std::min<uint64_t>(preference->workspace, 4096);
    r.workspaceSize = r.algo.workspace;
    r.wavesCount = float(double((d->rows + 127) / 128) * double((d->cols + 127) / 128) / 132); // on an H100
    results[0] = r;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                           cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                           void* value, size_t bytes, size_t* written) {
    uint32_t number = 0;
    switch (attribute) {
    case CUBLASLT_ALGO_CONFIG_ID:
    case CUBLASLT_ALGO_CONFIG_TILE_ID:
        break;
    case CUBLASLT_ALGO_CONFIG_SPLITK_NUM:
        number = algo->reduction ? uint32_t((algo->k + emu::depth_tile - 1) / emu::depth_tile) : 1;
        break;
    case CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME:
        number = algo->reduction;
        break;
    default:
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (!value || bytes < sizeof number) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(value, &number, sizeof number);
    if (written) *written = sizeof number;
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                                     const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                                     cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                                     cublasLtMatrixLayout_t c_layout, void* d,
                                     cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,
                                     void* workspace, size_t workspace_bytes, cudaStream_t stream) {
    if (!handle || !desc || !alpha || !beta || !a || !b || !d || !a_layout || !b_layout || !c_layout ||
        !d_layout)
        return CUBLAS_STATUS_INVALID_VALUE;
    const cublasStatus_t status = emu::check_matmul(*desc, *a_layout, *b_layout, *c_layout, *d_layout);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    const emu::Epilogue& e = *emu::epilogue_of(desc->epilogue);
    if (!algo && emu::is_missing(e, d_layout->type, d_layout->cols)) return CUBLAS_STATUS_NOT_SUPPORTED;
    const bool has_vector = e.bias || e.bias_gradient || e.sum_a || e.sum_b;
    float scale, keep;
    memcpy(&scale, alpha, sizeof scale);
    memcpy(&keep, beta, sizeof keep);
    if ((keep != 0 && !c) || (has_vector && !desc->bias) || (e.aux && !desc->aux))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (algo) {
        cublasLtMatmulAlgo_t product{};
        emu::describe(product, *desc, *a_layout, *d_layout);
        if (!emu::serves(*algo, product)) return CUBLAS_STATUS_NOT_SUPPORTED;
        if (algo->workspace > workspace_bytes || (algo->workspace && !workspace))
            return CUBLAS_STATUS_INVALID_VALUE;
        if (emu::refuse_reuse(*algo, product)) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    const void* const pointers[] = {a, b, keep != 0 ? c : d, d};
    const cublasLtMatrixLayout_t layouts[] = {a_layout, b_layout, c_layout, d_layout};
    for (int i = 0; i < 4; i++) {
        const size_t align = algo ? algo->align[i] : emu::type_bytes(layouts[i]->type);
        if (reinterpret_cast<uintptr_t>(pointers[i]) % align != 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (e.aux && reinterpret_cast<uintptr_t>(desc->aux) % 16 != 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    const bool narrow_parts = algo && algo->reduction == CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
    const emu::MatmulCall call{*desc, *a_layout, *b_layout, *c_layout, *d_layout, scale,
                               keep,  a,         b,         c,         d,         narrow_parts};
    emu::put_product(stream, call, workspace, algo ? size_t(algo->workspace) : 0);
    return CUBLAS_STATUS_SUCCESS;
}

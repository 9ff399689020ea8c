// The model in the report's page, whose script runs it (page/model.js). Matrices are rounded to 8 bits a row:
//   s = max |row| / 127      q = round(row / s), a whole number from -127 to 127      the rounded row is s q
// What is used as a vector (biases, LayerNorm, factors) stays as it is. What rounding costs in loss is
// measured on the rows of text that the report was given.
#pragma once
#include "units.h"

// Why the page's script cannot run a model of this kind, "" if it can.
std::string page_cannot_run(const Config& c);

// The weights of a table, rounded in place; and as bytes, tensor by tensor in the order of the table,
// little-endian: of a matrix a scale (fp32) for every row, then its rows (int8), then zeros up to a multiple
// of 4; of a vector its numbers (fp32). Both refuse weights that are not finite, naming the tensor.
void round_weights(const std::vector<Tensor>& table, float* weights);
std::string packed_weights(const std::vector<Tensor>& table, const float* weights);

std::string base64(const std::string& bytes);

// Mean cross-entropy of the same tokens, with the weights as they are and rounded.
struct RoundingCost {
    std::string source; // of the rows
    size_t tokens = 0;
    double loss = NAN, rounded = NAN;
    double error = NAN; // standard error over rows of the difference
};
// Over up to 64 rows of data: shards, or games.
RoundingCost measure_rounding(const std::string& ckpt, const std::string& data, const std::string& tokenizer,
                              const MakeReader& make_reader);

// What the tool would say (results.h), and what the page is given: the tensors' names and shapes and the
// bytes, or under `none` why they are not there. cost: the former as read from its file, or "".
std::string rounding_json(const std::string& ckpt, const RoundingCost& cost);
std::string embedded_model(const SafeTensorsFile& file, const Config& config, size_t most_parameters,
                           const std::string& cost);

// Writes the model with its weights rounded, as a checkpoint.
void write_rounded(const std::string& path, const SafeTensorsFile& file, const Config& config, int64_t step);

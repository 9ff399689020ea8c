# moex: `make` builds everything this machine can build, `make demo` shows it at work, `make help` lists the rest.
# Needs g++ (or clang++) and make. Everything built goes to build/, every run to runs/.

SHELL    := /bin/bash
CXXFLAGS ?= -O3 -march=native
FLAGS    := -std=c++20 -fno-math-errno -Wall -Wextra
OPENMP   := $(shell echo 'int main(){}' | $(CXX) -x c++ -fopenmp - -o /dev/null 2>/dev/null && echo -fopenmp)
NATIVE   := $(shell echo 'int main(){}' | $(CXX) -x c++ -march=native - -o /dev/null 2>/dev/null && echo yes)
ifeq ($(OPENMP),)
FLAGS    += -Wno-unknown-pragmas
endif
ifneq ($(NATIVE),yes)
CXXFLAGS := $(filter-out -march=native,$(CXXFLAGS))
endif
# SAN=1 builds and tests under AddressSanitizer and UndefinedBehaviorSanitizer, in a folder of its own.
ifeq ($(SAN),1)
B        := build/san
CXXFLAGS := -O1 -g -march=native -Wno-maybe-uninitialized -fsanitize=address,undefined -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS
else
B        := build
endif
COMPILE   = $(CXX) $(FLAGS) $(CXXFLAGS) $(OPENMP) -MMD -MP

PROGRAMS  = train_moex_cpu sample_cpu evaluate make_chess make_text
TESTS     = test_chess test_make_chess test_data test_safetensors test_log test_lib test_model test_gradients test_programs
BENCHES   = bench_cpu perft

.PHONY: all help found demo test test-torch bench fuzz clean $(PROGRAMS)
all: found $(PROGRAMS)
$(PROGRAMS): %: $(B)/%

found:
	@echo "compiler   $$($(CXX) --version | head -1)"
	@echo "OpenMP     $(if $(OPENMP),found,not found: programs will use one thread)"

help:
	@echo "make               build $(PROGRAMS)"
	@echo "make demo          play chess games, train a small MoE-X on them, sample, evaluate (about 6 minutes)"
	@echo "make test          all tests (SAN=1: under the sanitizers)"
	@echo "make test-torch    the reference against an independent PyTorch twin (needs python3 with torch, numpy)"
	@echo "make bench         speed of the reference beside the machine's peak, and beside PyTorch when it is there"
	@echo "make fuzz          fuzz the readers of hostile files (needs clang++; FUZZ_SECONDS=600 each)"
	@echo "make clean         remove build/"

# ---------------------------------------------------------------------------------------------------------
# Programs. Each is one source file; the compiler writes down which headers it read (-MMD).

$(B)/train_moex_cpu: dev/cpu/train_moex.cpp
$(B)/sample_cpu:     dev/cpu/sample.cpp
$(B)/evaluate:       dev/interp/evaluate.cpp
$(B)/make_chess:     data/make_chess.cpp
$(B)/make_text:      data/make_text.cpp
$(B)/bench_cpu:      dev/bench/bench_cpu.cpp
$(B)/perft:          dev/bench/perft.cpp
$(addprefix $(B)/,$(TESTS) dump_reference): $(B)/%: test/%.cpp

# These compute in double.
$(B)/test_gradients $(B)/dump_reference: FLAGS += -DMOEX_DOUBLE

BINARIES = $(addprefix $(B)/,$(PROGRAMS) $(TESTS) $(BENCHES) dump_reference)
$(BINARIES): Makefile
	@mkdir -p $(B)
	$(COMPILE) $(filter %.cpp,$^) -o $@
-include $(addsuffix .d,$(BINARIES))

# ---------------------------------------------------------------------------------------------------------
# The demo: two commands' worth of everything, on a machine with g++ and make and nothing else.

DEMO_DIR   ?= runs/demo
DEMO_GAMES ?= 43000
DEMO_STEPS ?= 9500
DEMO_SEED  ?= 1

demo: $(PROGRAMS)
	@rm -rf $(DEMO_DIR)
	@echo; echo "== 1. Playing $(DEMO_GAMES) games of chess to learn from"
	@$(B)/make_chess --games $(DEMO_GAMES) --row 257 --seed $(DEMO_SEED) --out $(DEMO_DIR)/data
	@echo; echo "== 2. Training a MoE-X on them"
	@$(B)/train_moex_cpu --init demo --train '$(DEMO_DIR)/data/train_*.bin' --val '$(DEMO_DIR)/data/val_*.bin' --out $(DEMO_DIR) \
	    --steps $(DEMO_STEPS) --seed $(DEMO_SEED) --print-every 250 --val-every 1000 --val-batches 16 --sample-every 0 --checkpoint-every 2500
	@echo; echo "== 3. What it learned, on games it has not seen"
	@$(B)/evaluate --ckpt $(DEMO_DIR) --val '$(DEMO_DIR)/data/val_*.bin'
	@echo; echo "== 4. A game it plays by itself"
	@$(B)/sample_cpu --ckpt $(DEMO_DIR) --tokens 254 --temperature 0.3 --seed $(DEMO_SEED) --board
	@echo; echo "== 5. Where things are"
	@echo "games       $(DEMO_DIR)/data"
	@echo "model       $$(ls $(DEMO_DIR)/model_*.safetensors | tail -1)"
	@echo "log         $(DEMO_DIR)/log.jsonl"
	@echo "see inside  $(B)/sample_cpu --ckpt $(DEMO_DIR) --prompt ';1.e4 e5 2.' --tokens 3 --trace"

# ---------------------------------------------------------------------------------------------------------
# Tests

ARGUMENTS_test_data       = $(B)/make_text
ARGUMENTS_test_make_chess = $(B)/make_chess
ARGUMENTS_test_programs   = $(B)

test: $(addprefix $(B)/,$(TESTS) $(PROGRAMS))
	@test/run.sh $(foreach t,$(TESTS),"$(B)/$(t) $(ARGUMENTS_$(t))")

PYTHON ?= $(shell for p in python3 /usr/bin/python3; do $$p -c 'import torch, numpy' 2>/dev/null && echo $$p && break; done)
test-torch: $(B)/dump_reference $(B)/test_safetensors
	@test -n "$(PYTHON)" || { echo "moex: no python3 with torch and numpy (Debian: apt-get install python3-torch)" >&2; exit 1; }
	@rm -rf $(B)/dump && $(B)/dump_reference $(B)/dump
	@test/run.sh "$(PYTHON) dev/torch/test_torch.py $(B)/dump" "$(PYTHON) test/test_safetensors_interop.py $(B)/test_safetensors $(B)/interop"

bench: $(addprefix $(B)/,$(BENCHES))
	@$(B)/perft
	@$(B)/bench_cpu
	@if [ -n "$(PYTHON)" ]; then dev/bench/peers.sh $(B)/bench_cpu $(PYTHON); else echo "no python3 with torch: no peer beside it"; fi

FUZZ_SECONDS ?= 600
FUZZERS = fuzz_checkpoint fuzz_shard fuzz_pgn
fuzz: $(addprefix build/fuzz/,$(FUZZERS))
	@for f in $(FUZZERS); do echo "== $$f, $(FUZZ_SECONDS) seconds"; mkdir -p build/fuzz/corpus_$$f; \
	    build/fuzz/$$f -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -print_final_stats=1 -verbosity=0 build/fuzz/corpus_$$f || exit 1; done
build/fuzz/fuzz_%: test/fuzz_%.cpp Makefile
	@mkdir -p build/fuzz
	clang++ $(FLAGS) -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -MMD -MP $< -o $@
-include $(addprefix build/fuzz/,$(addsuffix .d,$(FUZZERS)))

clean:
	rm -rf build

# moex: `make` builds everything this machine can build, `make demo` shows it at work, `make help` lists the rest.
# Needs g++ (or clang++) and make; with the CUDA toolkit it builds the GPU programs, too. Everything built goes
# to build/, every run to runs/.

SHELL    := /bin/bash
ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0) # as many at a time as there are cores, unless told
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
endif
CXXFLAGS ?= -O3 -march=native
FLAGS    := -std=c++20 -fno-math-errno -Wall -Wextra
space    := $(subst ,, )
comma    := ,
CLANG    := $(findstring clang,$(shell $(CXX) --version))
OPENMP   := $(shell echo 'int main(){}' | $(CXX) -x c++ -fopenmp - -o /dev/null 2>/dev/null && echo -fopenmp)
# libgomp linked statically lets dev/lib/threads.cpp say how long its threads spin (GCC's; others have no need).
LIBGOMP  := $(if $(CLANG),,$(shell a=$$($(CXX) -print-file-name=libgomp.a); \
              echo 'extern "C" int omp_get_max_threads(); int main() { return omp_get_max_threads() < 1; }' | \
              $(CXX) -x c++ -fopenmp - -x none $$a -Wl,--as-needed -o /dev/null 2>/dev/null && echo $$a -Wl,--as-needed))
NATIVE   := $(shell echo 'int main(){}' | $(CXX) -x c++ -march=native - -o /dev/null 2>/dev/null && echo yes)
ifeq ($(OPENMP),)
FLAGS    += -Wno-unknown-pragmas
endif
ifneq ($(NATIVE),yes)
override CXXFLAGS := $(filter-out -march=native,$(CXXFLAGS))
endif
# SAN=1 builds and tests under AddressSanitizer and UndefinedBehaviorSanitizer, in a folder of its own.
ifeq ($(SAN),1)
B        := build/san
override CXXFLAGS := $(if $(CLANG),-O0 -Wno-pass-failed,-O1 -Wno-maybe-uninitialized) -g1 -march=native -fsanitize=address,undefined -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS $(if $(CLANG),$(filter -Werror,$(CXXFLAGS)))
else
B        := build
endif
COMPILE   = $(CXX) $(FLAGS) $(CXXFLAGS) $(OPENMP) -MMD -MP

# The CUDA toolkit, and the cards to compile for: the one in this machine, or all.
NVCC     := $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
ifndef GPU_ARCH
GPU_ARCH := $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -E '^[0-9]+\.[0-9]+$$' | tr -d . | sort -nu),80 89 90)
endif
CUDA_LIB := $(if $(NVCC),$(realpath $(dir $(realpath $(NVCC)))../lib64))
# NCCL, which several GPUs need: found where a program that calls it is compiled and linked. NCCL=no builds without.
ifndef NCCL
NCCL     := $(if $(NVCC),$(shell printf '\043include <nccl.h>\nint main() { int v; return ncclGetVersion(&v); }' | \
              $(CXX) -x c++ -I $(CUDA_LIB)/../include - -L $(CUDA_LIB) -lnccl -o /dev/null 2>/dev/null && echo yes))
endif
# PRECISION=FP32 builds the GPU programs in fp32 (train_moex_fp32, sample_fp32) instead of bf16.
PRECISION ?= BF16
SUFFIX    = $(if $(filter FP32,$(PRECISION)),_fp32)

INTERP    = evaluate bsp sparsity router features probe experts report
PROGRAMS  = train_moex_cpu sample_cpu $(INTERP) train_sae make_chess make_text paper_tables
GPU_PROGRAMS = $(if $(NVCC),$(addsuffix $(SUFFIX),train_moex sample bsp_gpu))
EMULATED  = train_moex_emu train_moex_fp32_emu sample_emu sample_fp32_emu bsp_gpu_emu bsp_gpu_fp32_emu
LINUX    := $(filter Linux,$(shell uname -s))# several processes that train together are started and watched in its ways
TESTS     = test_chess test_make_chess test_data test_safetensors test_log test_lib test_threads test_model test_gradients test_programs \
            $(if $(LINUX),test_ranks) test_lanes test_games test_boards test_rules test_bsp test_sparsity test_features test_probe test_experts test_text test_language test_report test_page test_interp test_doc \
            $(if $(filter 1,$(SAN)),,test_sae) test_sae_gradients test_paper # (the sanitizers would take ten minutes to learn a dictionary)
BENCHES   = bench_cpu bench_bsp perft

BY_NAME   = $(filter-out report,$(PROGRAMS)) $(GPU_PROGRAMS) $(EMULATED) train_moex_gdb # make report writes one

.PHONY: FORCE all help found demo report paper paper-plan paper-tables test test-torch test-gpu test-gpu-programs sanitize-gpu bench fuzz clean $(BY_NAME)
all: found $(addprefix $(B)/,$(PROGRAMS) $(GPU_PROGRAMS))
$(BY_NAME): %: $(B)/%

found:
	@echo "compiler   $$($(CXX) --version | head -1)"
	@echo "OpenMP     $(if $(OPENMP),found,not found: programs will use one thread)"
	@echo "CUDA       $(if $(NVCC),$(NVCC) for sm_$(subst $(space),$(comma) sm_,$(strip $(GPU_ARCH)))$(comma) $(if $(filter yes,$(NCCL)),with NCCL,without NCCL: for one GPU),nvcc not found: no GPU programs; make train_moex_emu runs them on the CPU)"

help:
	@echo "make               build $(PROGRAMS)"
	@echo "                   and with the CUDA toolkit train_moex sample bsp_gpu (PRECISION=FP32: in fp32, their names end in _fp32)"
	@echo "make demo          play chess games, train a small MoE-X on them, sample, say what its units mean (6 minutes; DEMO_FORCE=1: once more in its place)"
	@echo "make report        an HTML page on a run: RUN=runs/demo, GAMES=games.pgn for a chess model, DATA='val*.bin' for text; ALL=1: experts and probe, too"
	@echo "make paper         train and compare the paper's methods (make paper-plan: how long it takes; paper-tables: with what is there)"
	@echo "make test          all tests, as many at a time as there are cores (SAN=1: under the sanitizers; TEST_JOBS=1: one by one)"
	@echo "make test-gpu      kernels, whole model and sampler on the GPU (also test-gpu-programs; sanitize-gpu: compute-sanitizer)"
	@echo "make train_moex_gdb  the CUDA trainer on the CPU, to step through a kernel in gdb (also, faster, train_moex_emu and sample_emu)"
	@echo "make test-torch    the reference against an independent PyTorch twin (needs python3 with torch, numpy)"
	@echo "make bench         speed of the reference and of bsp beside the machine's peak, and beside PyTorch when it is there (GPU: dev/bench/gpu.sh)"
	@echo "make fuzz          fuzz the readers of hostile files (needs clang++; FUZZ_SECONDS=600 each)"
	@echo "make clean         remove build/"
	@echo "Also: one program by its name (make bsp), SAN=1 in build/san, CXX, CXXFLAGS, NVCC, GPU_ARCH='80 90', -j1"

# ---------------------------------------------------------------------------------------------------------
# Every source that is not a program is compiled once and goes into the archive of its layer: libmoex.a (dev/lib,
# data, dev/run), libcpu.a (dev/cpu) and libinterp.a (dev/interp); libdouble.a is dev/cpu, and the arithmetic of
# SAEs, in double. A program is
# its own object and the archives below it, linked from the top of the house to the bottom. The compiler writes
# down which headers it read (-MMD).

MAINS     = $(addprefix data/,make_chess.cpp make_text.cpp) $(addprefix dev/cpu/,train_moex.cpp sample.cpp) $(INTERP:%=dev/interp/%.cpp) dev/interp/sae/train_sae.cpp \
            dev/experiments/paper_tables.cpp
SOURCES   = $(filter-out $(MAINS),$(wildcard $(addsuffix /*.cpp,$(1))))
MOEX_CPP := $(filter-out $(if $(LINUX),,dev/run/ranks.cpp),$(call SOURCES,dev/lib data dev/run))
CPU_CPP  := $(call SOURCES,dev/cpu)
INTERP_CPP := $(call SOURCES,dev/interp dev/interp/sae)

$(B)/libmoex.a:   $(MOEX_CPP:%.cpp=$(B)/obj/%.o)
$(B)/libcpu.a:    $(CPU_CPP:%.cpp=$(B)/obj/%.o)
$(B)/libdouble.a: $(CPU_CPP:%.cpp=$(B)/double/%.o) $(B)/double/dev/interp/sae/sae.o
$(B)/libinterp.a: $(INTERP_CPP:%.cpp=$(B)/obj/%.o)
LIBRARIES = $(addprefix $(B)/,libmoex.a libcpu.a libdouble.a libinterp.a)
$(LIBRARIES): Makefile
	@rm -f $@
	@ar rcs $@ $(filter %.o,$^)

MAKERS = make_chess make_text
DOUBLE = test_gradients test_sae_gradients dump_reference

$(B)/train_moex_cpu: $(B)/obj/dev/cpu/train_moex.o
$(B)/sample_cpu:     $(B)/obj/dev/cpu/sample.o
$(addprefix $(B)/,$(MAKERS)):  $(B)/%: $(B)/obj/data/%.o
$(addprefix $(B)/,$(INTERP)):  $(B)/%: $(B)/obj/dev/interp/%.o
$(B)/train_sae:      $(B)/obj/dev/interp/sae/train_sae.o
$(addprefix $(B)/,$(BENCHES)): $(B)/%: $(B)/obj/dev/bench/%.o
$(addprefix $(B)/,$(filter-out $(DOUBLE),$(TESTS)) rank_stub test_training_ranks): $(B)/%: $(B)/obj/test/%.o
$(addprefix $(B)/,$(DOUBLE)):  $(B)/%: $(B)/double/test/%.o

# The report's page: files that an editor knows, put into the program as they are.
PAGE_SCRIPTS = $(addprefix dev/interp/page/,$(addsuffix .js,charts run board sparsity router experts probe units chess model reading play main))# in this order
PAGE         = dev/interp/page/page.html dev/interp/page/style.css $(PAGE_SCRIPTS)
NODE        := $(shell command -v node)
$(B)/page.cpp: $(PAGE) Makefile
	@mkdir -p $(B)
	$(if $(NODE),@for f in $(PAGE_SCRIPTS); do $(NODE) --check $$f || exit 1; done)
	@embed() { printf 'extern const char %s[];\nconst char %s[] = R"page(' "$$1" "$$1"; shift; cat "$$@"; printf ')page";\n'; }; \
	    { embed page_html dev/interp/page/page.html; embed page_style dev/interp/page/style.css; embed page_script $(PAGE_SCRIPTS); } > $@
$(B)/page.o: $(B)/page.cpp $(B)/cxx.flags
	$(COMPILE) -c $< -o $@
$(B)/libinterp.a: $(B)/page.o

# The page that compares methods, and the program that writes it: the tables of dev/experiments.
COMPARE = dev/experiments/page/compare.html dev/experiments/page/compare.js
$(B)/compare.cpp: $(COMPARE) dev/interp/page/style.css Makefile
	@mkdir -p $(B)
	$(if $(NODE),@$(NODE) --check dev/experiments/page/compare.js)
	@embed() { printf 'extern const char %s[];\nconst char %s[] = R"page(' "$$1" "$$1"; shift; cat "$$@"; printf ')page";\n'; }; \
	    { embed compare_html dev/experiments/page/compare.html; embed page_style dev/interp/page/style.css; embed compare_script dev/experiments/page/compare.js; } > $@
$(B)/compare.o: $(B)/compare.cpp
	$(COMPILE) -c $< -o $@
TABLES_CPP := $(call SOURCES,dev/experiments)
$(addprefix $(B)/,paper_tables test_paper): $(TABLES_CPP:%.cpp=$(B)/obj/%.o)
$(B)/paper_tables: $(B)/obj/dev/experiments/paper_tables.o $(B)/compare.o

BINARIES = $(addprefix $(B)/,$(PROGRAMS) $(TESTS) $(BENCHES) dump_reference rank_stub test_training_ranks)
OF_DATA  = $(MAKERS) paper_tables test_paper perft test_chess test_make_chess test_data test_safetensors test_ranks rank_stub test_lanes test_training_ranks # these wait for nothing else
$(addprefix $(B)/,$(filter-out $(OF_DATA) $(DOUBLE) train_moex_cpu sample_cpu,$(notdir $(BINARIES)))): $(B)/libinterp.a
$(addprefix $(B)/,$(filter-out $(OF_DATA) $(DOUBLE),$(notdir $(BINARIES)))): $(B)/libcpu.a
$(addprefix $(B)/,$(DOUBLE)): $(B)/libdouble.a
$(BINARIES): $(B)/libmoex.a
$(BINARIES):
	$(LINK)

LINK = $(CXX) $(CXXFLAGS) $(OPENMP) $(filter %.o,$^) $(filter %.a,$^) $(LIBGOMP) -o $@
$(B)/obj/%.o: %.cpp Makefile $(B)/cxx.flags
	@mkdir -p $(@D)
	$(COMPILE) -c $< -o $@
$(B)/double/%.o: %.cpp Makefile $(B)/cxx.flags
	@mkdir -p $(@D)
	$(COMPILE) -DMOEX_DOUBLE -c $< -o $@
# What reads flags and files and writes results is compiled at -O1, in two thirds of the time; so are tests (-O0 for the
# sanitizers), in half: what takes time in them is what they test, in the archives above.
LIGHT := $(filter-out dev/lib/safetensors.cpp dev/lib/threads.cpp,$(wildcard dev/lib/*.cpp dev/run/*.cpp dev/experiments/*.cpp $(addprefix dev/interp/,report*.cpp *_output.cpp \
           bsp_tool.cpp features_tool.cpp router_tool.cpp experts_tool.cpp sparsity_tool.cpp results.cpp)))
$(LIGHT:%.cpp=$(B)/obj/%.o): private override CXXFLAGS := $(subst -O3,-O1,$(CXXFLAGS))
$(foreach t,$(TESTS) test_training_ranks,$(B)/obj/test/$(t).o): private override CXXFLAGS := $(subst -O3,-O1,$(subst -O1,-O0,$(CXXFLAGS)))
ifeq ($(SAN),1) # the model's arithmetic is most of what runs there
$(CPU_CPP:%.cpp=$(B)/obj/%.o): private override CXXFLAGS := $(subst -O0,-O3,$(subst -O1,-O3,$(CXXFLAGS)))
$(patsubst %.cpp,$(B)/obj/%.o,$(filter-out $(LIGHT),$(INTERP_CPP))): private override CXXFLAGS := $(subst -O0,-O1,$(CXXFLAGS))
endif
-include $(shell find $(B)/obj $(B)/double -name '*.d' 2>/dev/null)

# ---------------------------------------------------------------------------------------------------------
# The CUDA programs: by nvcc for the GPU, and by dev/emu and the C++ compiler for the CPU. What ptxas says of
# registers and spills is kept beside the binary; test/test_ptxas.sh reads it. Beside the cards' own code there is
# PTX of the last of them, which newer cards compile when they load it. 90a: with wgmma, which no other card has.

CUDA_LAYERS  = $(B)/libinterp.a $(B)/libmoex.a # train_moex.cu and dev/cpu know nothing of each other
CUDA_TESTS   = test_kernels test_cuda test_sample test_units
NVCC_FLAGS   = -std=c++20 -O3 --expt-relaxed-constexpr -lineinfo -t 0 -Xptxas -v \
               $(foreach a,$(GPU_ARCH:90=90a),-gencode arch=compute_$(a),code=sm_$(a)) \
               -gencode arch=compute_$(lastword $(GPU_ARCH)),code=compute_$(lastword $(GPU_ARCH)) -Xcompiler -Wall,-Wextra$(if $(OPENMP),$(comma)-fopenmp)
NVCC_COMPILE = @mkdir -p $(@D); echo "$(NVCC) -> $@"; $(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $@.d -MT $@ $(firstword $(filter %.cu,$^)) $(filter %.o,$^) $(filter %.a,$^) -lcublasLt $(if $(CUDA_LIB),-Xlinker -rpath=$(CUDA_LIB)) -o $@ \
               > $@.ptxas 2>&1 || { grep -v 'ptxas info\|bytes stack' $@.ptxas >&2; exit 1; }

vpath %.cu . dev/interp dev/bench test
CUDA_PROGRAMS = train_moex sample bsp_gpu bench_gpu
$(addprefix $(B)/,train_moex train_moex_fp32 bench_gpu bench_gpu_fp32 gpu/test_exchange): private NVCC_FLAGS += $(if $(filter yes,$(NCCL)),-DMOEX_NCCL -lnccl)
$(addprefix $(B)/,$(CUDA_PROGRAMS)): $(B)/%: %.cu $(CUDA_LAYERS) Makefile $(B)/nvcc.flags
	$(NVCC_COMPILE)
$(addprefix $(B)/,$(addsuffix _fp32,$(CUDA_PROGRAMS))): private NVCC_FLAGS += -DPRECISION_FP32
$(addprefix $(B)/,$(addsuffix _fp32,$(CUDA_PROGRAMS))): $(B)/%_fp32: %.cu $(CUDA_LAYERS) Makefile $(B)/nvcc.flags
	$(NVCC_COMPILE)
$(addprefix $(B)/gpu/,$(CUDA_TESTS) test_exchange): $(B)/gpu/%: test/%.cu $(B)/double/test/reference.o $(CUDA_LAYERS) Makefile $(B)/nvcc.flags
	$(NVCC_COMPILE)
$(addprefix $(B)/gpu/,$(addsuffix _fp32,$(CUDA_TESTS))): private NVCC_FLAGS += -DPRECISION_FP32
$(addprefix $(B)/gpu/,$(addsuffix _fp32,$(CUDA_TESTS))): $(B)/gpu/%_fp32: test/%.cu $(B)/double/test/reference.o $(CUDA_LAYERS) Makefile $(B)/nvcc.flags
	$(NVCC_COMPILE)

-include $(foreach p,$(CUDA_PROGRAMS) $(addprefix gpu/,$(CUDA_TESTS) test_exchange),$(B)/$(p).d $(B)/$(p)_fp32.d)

# For the CPU: translate writes C++ (and which sources it read), and every source is compiled once for each
# precision. train_moex.cu and sample.cu are libraries to the others, which see their declarations; their own
# main gives way to that of the program they are linked into.
$(B)/translate: $(B)/obj/dev/emu/translate.o $(B)/libmoex.a
	$(LINK)
EMU_LIBRARIES = train_moex sample test_library
$(B)/emu/%.cpp: %.cu $(B)/translate
	@mkdir -p $(B)/emu
	$(B)/translate $(if $(filter $*,$(EMU_LIBRARIES)),--library) $< $@

EMU_CXXFLAGS ?= $(subst -O0,-O1,$(subst -O3,-O1,$(CXXFLAGS))) $(if $(SAN),-g0)# no slower than at -O2: what takes time is changing fibers
EMU_COMPILE  = $(CXX) $(FLAGS) $(if $(CLANG),-Wno-unused-const-variable) $(EMU_CXXFLAGS) $(OPENMP) -MMD -MP -fno-strict-aliasing -DMOEX_NCCL -I dev/emu/include -I test -c $< -o $@
$(B)/emu/%_fp32.o: $(B)/emu/%.cpp Makefile $(B)/emu.flags
	$(EMU_COMPILE) -DPRECISION_FP32
$(B)/emu/%.o: $(B)/emu/%.cpp Makefile $(B)/emu.flags
	$(EMU_COMPILE)
$(B)/emu/train_moex_without_nccl.o: $(B)/emu/train_moex.cpp Makefile $(B)/emu.flags
	$(EMU_COMPILE) -UMOEX_NCCL -O0
$(B)/emu/train_moex_gdb.o: $(B)/emu/train_moex.cpp Makefile $(B)/emu.flags
	$(EMU_COMPILE) -O0 -g

EMU_BINARIES = $(addprefix $(B)/,$(EMULATED) $(foreach t,$(CUDA_TESTS),$(t)_emu $(t)_fp32_emu) \
               test_emu test_nccl test_exchange_emu bench_gpu_emu train_moex_without_nccl_emu)
EMU_PROGRAMS = $(filter-out $(B)/test_emu $(B)/test_nccl $(B)/train_moex_without_nccl_emu,$(EMU_BINARIES)) \
               $(B)/bench_gpu_fp32_emu# for dev/bench/gpu.sh --rehearse
$(B)/test_emu: $(B)/emu/test_emu.o $(B)/emu/test_library.o
$(B)/test_nccl: $(B)/emu/test_nccl.o
$(B)/train_moex_without_nccl_emu: $(B)/emu/train_moex_without_nccl.o
$(B)/train_moex_gdb: $(B)/emu/train_moex_gdb.o
$(EMU_PROGRAMS): $(B)/%_emu: $(B)/emu/%.o
$(B)/test_sample_emu: $(B)/emu/sample.o
$(B)/test_sample_fp32_emu: $(B)/emu/sample_fp32.o
$(filter-out %_fp32_emu,$(EMU_PROGRAMS)): $(B)/emu/train_moex.o
$(filter %_fp32_emu,$(EMU_PROGRAMS)): $(B)/emu/train_moex_fp32.o
$(foreach t,$(CUDA_TESTS),$(B)/$(t)_emu $(B)/$(t)_fp32_emu): $(B)/double/test/reference.o
$(sort $(EMU_BINARIES) $(EMU_PROGRAMS)) $(B)/train_moex_gdb: $(CUDA_LAYERS)
	$(LINK)
.SECONDARY:
-include $(wildcard $(B)/emu/*.d)

# How a compiler was called stands in $(B)/*.flags: with other flags what it compiled is compiled anew.
CALL_cxx  = $(COMPILE)
CALL_emu  = $(EMU_COMPILE)
CALL_nvcc = $(NVCC) $(NVCC_FLAGS) $(NCCL)
$(B)/%.flags: FORCE
	+@mkdir -p $(B); echo '$(CALL_$*)' | cmp -s - $@ || echo '$(CALL_$*)' > $@
FORCE:

# ---------------------------------------------------------------------------------------------------------
# The demo (DEMO_STEPS, if given, are not timed but taken), and a report on any run.

DEMO_DIR   ?= runs/demo
DEMO_GAMES ?= 43000
DEMO_SEED  ?= 1
DEMO_FRESH ?= 2400# games played anew, to ask its units about

demo:
	+@$(if $(findstring n,$(firstword -$(MAKEFLAGS))),echo) env DEMO_DIR='$(DEMO_DIR)' DEMO_GAMES='$(DEMO_GAMES)' DEMO_STEPS='$(DEMO_STEPS)' DEMO_SEED='$(DEMO_SEED)' \
	    DEMO_FRESH='$(strip $(DEMO_FRESH))' DEMO_FORCE='$(DEMO_FORCE)' MAKE='$(MAKE)' dev/demo.sh $(B)

# The page on a run: what has not been measured yet is, on GAMES or, for text, on DATA; ALL=1: experts and probe, too.
RUN ?= $(DEMO_DIR)
report: $(B)/report
	@$(B)/report --run $(RUN) $(if $(GAMES),--games '$(GAMES)') $(if $(DATA),--data '$(DATA)') $(if $(TOKENIZER),--tokenizer '$(TOKENIZER)') $(if $(ALL),--all)

# The paper's tables run anew: dev/experiments/paper.mk says what is run. SIZE, SEEDS, ONLY, TRAINER, GAMES.
PAPER_PROGRAMS = $(addprefix $(B)/,train_moex_cpu train_sae make_chess evaluate bsp sparsity router features paper_tables)
paper paper-plan paper-tables: $(PAPER_PROGRAMS)
	+@$(MAKE) --no-print-directory -f dev/experiments/paper.mk B=$(B) $(patsubst paper-%,%,$@)

# ---------------------------------------------------------------------------------------------------------
# Tests

ARGUMENTS_test_data       = $(B)/make_text
ARGUMENTS_test_make_chess = $(B)/make_chess
ARGUMENTS_test_programs   = $(B)
ARGUMENTS_test_interp     = $(B)
ARGUMENTS_test_sae        = $(B)
ARGUMENTS_test_paper      = $(B)
ARGUMENTS_test_ranks      = $(B)/rank_stub

# The CUDA programs on the CPU: the emulator, every kernel, the model and the sampler in either precision, and the
# program from the command line, whose checkpoints the CPU programs read and go on with.
ARGUMENTS_test_sample = $(B)/sample_cpu
SETTING_test_cuda_emu = EMU_STREAMS=random:1# in fp32 everything has happened when a call returns
ifeq ($(SAN),1)
CUDA_TEST_BINARIES = $(addprefix $(B)/,test_emu test_nccl test_exchange_emu test_kernels_emu test_sample_emu)
CUDA_TEST_RUNS = $(foreach t,$(CUDA_TEST_BINARIES),"$(t) $(ARGUMENTS_$(patsubst %_emu,%,$(notdir $(t))))")
else
# By nvcc: the programs, and in fp32 the sampler, which has the trainer's kernels, too.
COMPILED = $(addprefix $(B)/,$(sort $(GPU_PROGRAMS) $(if $(NVCC),sample_fp32)))
CUDA_TEST_BINARIES = $(EMU_BINARIES) $(B)/test_training_ranks $(B)/train_moex_gdb $(COMPILED)
CUDA_TEST_RUNS = "$(B)/test_training_ranks $(B)" "$(B)/test_emu" "$(B)/test_nccl" "$(B)/test_exchange_emu" $(foreach t,$(CUDA_TESTS),$(foreach p,_emu _fp32_emu,"$(SETTING_$(t)$(p)) $(B)/$(t)$(p) $(ARGUMENTS_$(t))")) \
    "EMU_ORDER=random:1 $(B)/test_kernels_emu" \
    "test/test_gdb.sh $(B)" "test/test_bench_gpu.sh $(B)/bench_gpu_emu" "test/test_gpu_scripts.sh $(B)" \
    "$(B)/test_programs $(B) train_moex_emu sample_emu inputs variants" \
    "$(B)/test_programs $(B) train_moex_fp32_emu sample_fp32_emu inputs variants exchange sampling board trace" \
    "$(B)/test_programs $(B) train_moex_emu sample_emu inputs help usage printed log checkpoints not_finite bad_models exchange gpu board" \
    "$(B)/test_interp $(B) bsp_gpu_fp32_emu" "test/test_ptxas.sh $(addsuffix .ptxas,$(COMPILED))"
endif

test: $(addprefix $(B)/,$(TESTS) $(PROGRAMS) rank_stub) $(CUDA_TEST_BINARIES)
	@test/run.sh test/test_includes.sh "test/test_flags.sh $(CXX)" test/test_demo.sh "test/test_translate.sh $(B)/translate" $(foreach t,$(TESTS),"$(B)/$(t) $(ARGUMENTS_$(t))") $(CUDA_TEST_RUNS)

# On the GPU: kernels, whole model and sampler; the programs from the command line; compute-sanitizer.
BOTH = $(1) $(addsuffix _fp32,$(1))
test-gpu: $(addprefix $(B)/gpu/,$(call BOTH,$(CUDA_TESTS)) $(if $(filter yes,$(NCCL)),test_exchange)) $(B)/sample_cpu
	@test/on_gpu.sh $(B)
test-gpu-programs: $(addprefix $(B)/,$(PROGRAMS) test_programs test_training_ranks test_interp bsp_gpu_fp32 $(call BOTH,train_moex sample))
	@test/on_gpu.sh $(B) programs
sanitize-gpu: $(addprefix $(B)/,make_chess $(call BOTH,train_moex sample))
	@test/test_sanitizer.sh $(B)

PYTHON ?= $(shell for p in python3 /usr/bin/python3; do $$p -c 'import torch, numpy' 2>/dev/null && echo $$p && break; done)
test-torch: $(addprefix $(B)/,dump_reference test_safetensors bsp make_chess train_moex_cpu evaluate experts)
	@test -n "$(PYTHON)" || { echo "moex: no python3 with torch and numpy (Debian: apt-get install python3-torch)" >&2; exit 1; }
	@rm -rf $(B)/dump && $(B)/dump_reference $(B)/dump
	@test/run.sh "$(PYTHON) dev/torch/test_torch.py $(B)/dump" "$(PYTHON) test/test_safetensors_interop.py $(B)/test_safetensors $(B)/interop" "$(PYTHON) test/test_bsp_numpy.py $(B)" \
	    "$(PYTHON) dev/torch/test_gpt2.py $(B)" "$(PYTHON) test/test_text_eval.py $(B)" "$(PYTHON) test/test_ask.py $(B)" "$(PYTHON) test/test_mixed_text.py" "$(PYTHON) dev/doc/figures.py --check"

bench: $(addprefix $(B)/,$(BENCHES))
	@$(B)/perft
	@$(B)/bench_bsp
	@$(B)/bench_cpu
	@if [ -n "$(PYTHON)" ]; then dev/bench/peers.sh $(B)/bench_cpu $(PYTHON); else echo "no python3 with torch: no peer beside it"; fi

FUZZ_SECONDS ?= 600
FUZZERS = fuzz_checkpoint fuzz_shard fuzz_pgn fuzz_interp fuzz_ranks
fuzz: $(addprefix build/fuzz/,$(FUZZERS))
	@for f in $(FUZZERS); do echo "== $$f, $(FUZZ_SECONDS) seconds"; mkdir -p build/fuzz/corpus_$$f; \
	    build/fuzz/$$f -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -print_final_stats=1 -verbosity=0 build/fuzz/corpus_$$f || exit 1; done
FUZZ_COMPILE = clang++ $(FLAGS) -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all
build/fuzz/%.o: %.cpp Makefile
	@mkdir -p $(@D)
	$(FUZZ_COMPILE) -MMD -MP -c $< -o $@
build/fuzz/libmoex.a: $(patsubst %.cpp,build/fuzz/%.o,$(MOEX_CPP) $(CPU_CPP) $(INTERP_CPP))
	@rm -f $@
	@ar rcs $@ $^
$(addprefix build/fuzz/,$(FUZZERS)): build/fuzz/%: build/fuzz/test/%.o build/fuzz/libmoex.a
	$(FUZZ_COMPILE) $^ -o $@
-include $(shell find build/fuzz -name '*.d' 2>/dev/null)

clean:
	rm -rf build

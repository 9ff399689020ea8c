# The tables of the MoE-X paper run anew: what is trained, how it is measured, which table it stands in. Called by
# `make paper`, `make paper-plan` and `make paper-tables`, from the top of the house:
#
#   make paper SIZE=demo SEEDS='1 2 3' ONLY='table1 table3' TRAINER=build/train_moex GAMES=games.pgn
#
# A run is a folder, PAPER/SIZE/METHOD/sSEED: a model and its log, run.json (where it comes from), interp/ and
# evaluate.json (what was measured), result.json (its numbers). Stopped or killed at any moment, the next `make
# paper` goes on: a run resumes, and what is measured stays measured. Seed S is that of the weights and of the
# order of the data, the same for all methods.

SHELL := /bin/bash
.NOTPARALLEL:
.DELETE_ON_ERROR:
.SECONDARY:

B       ?= build
SIZE    ?= demo
SEEDS   ?= 1 2 3
PAPER   ?= runs/paper
TRAINER ?= $(B)/train_moex_cpu
GAMES   ?=
EXPERIMENTS := table1 table3 table4 sae k sparsity router balance width rate
ONLY    ?= $(EXPERIMENTS)
OUT     := $(PAPER)/$(SIZE)
unknown := $(filter-out $(EXPERIMENTS),$(ONLY))
$(if $(unknown),$(error moex: ONLY=$(unknown), expected some of $(EXPERIMENTS)))
tab := $(shell printf '\t')
define newline


endef

# ---------------------------------------------------------------------------------------------------------
# Sizes: the model and its training; the games it learns from, and those its units are asked about; an SAE's
# training; F, the width of the narrowest layer that is compared (GEGLU's), for the scores at equal F.

sizes := tiny demo mid chess
$(if $(filter-out $(sizes),$(SIZE)),$(error moex: SIZE=$(SIZE), expected one of $(sizes)))

tiny.shape  := --init demo --layers 2 --heads 2 --embd 16 --experts 4 --d-expert 16
tiny.train  := --batch 4 --total-tokens 1024 --warmup 4
tiny.rate   := 3e-3
tiny.steps  := 24
tiny.tokens := 24576
tiny.parameters := 16000
tiny.games  := 300
tiny.asked  := 12
tiny.sae    := --batch 256 --tokens 6144 --k 8 --lr 3e-3
tiny.few    := --rows 8 --games 2# of evaluate
tiny.C      := 16
tiny.E      := 4
tiny.D      := 16
tiny.F      := 24

demo.shape  := --init demo
demo.train  := --batch 4 --total-tokens 1024 --warmup 200
demo.rate   := 1.5e-3
demo.steps  := 9500
demo.tokens := 9728000
demo.parameters := 2500000
demo.games  := 43000
demo.asked  := 2400
demo.C      := 128
demo.E      := 8
demo.D      := 256
demo.F      := 344

mid.shape   := --init mid
mid.train   := --total-tokens 16384 --warmup 1000
mid.rate   := 6e-4
mid.steps   := 20000
mid.tokens  := 327680000
mid.parameters := 19000000
mid.games   := 1400000
mid.asked   := 2400
mid.sae     := --tokens 100000000
mid.C       := 256
mid.E       := 8
mid.D       := 512
mid.F       := 680

chess.shape := --init chess
chess.train := --total-tokens 102300 --warmup 2000
chess.rate   := 3e-4
chess.steps := 60000
chess.tokens := 6138000000
chess.parameters := 143000000
chess.games := 16000000
chess.asked := 2400
chess.sae   := --tokens 300000000
chess.C     := 512
chess.E     := 8
chess.D     := 2048
chess.F     := 2728

steps := $($(SIZE).steps)
steps.2     := $(shell echo $$((2 * $(steps))))
steps.0.33  := $(shell echo $$((($(steps) + 2) / 3)))
C     := $($(SIZE).C)
D     := $($(SIZE).D)
E     := $($(SIZE).E)
row   := $(if $(filter chess,$(SIZE)),1024,257)

# ---------------------------------------------------------------------------------------------------------
# Methods: $(call method,NAME,LABEL,SLOWER,LENGTH,FLAGS). SLOWER than the dense twin, for the plan; LENGTH in
# runs of the size's steps: 1, 2 or 0.33. `from` names another method whose run of the same seed it begins from,
# METHOD.rate another learning rate than the size's.

methods :=
define method
methods       += $(1)
$(1).label    := $(2)
$(1).slower   := $(3)
$(1).length   := $(4)
$(1).flags    := $(5)
$(1).from     := $(6)
endef
add = $(eval $(call method,$(1),$(2),$(3),$(4),$(5),$(6)))

dense := --ffn dense
$(call add,gelu,GPT-2 (dense GELU),1,1,$(dense) --act gelu)
$(call add,relu,dense ReLU,1,1,$(dense) --act relu)
$(call add,geglu,GEGLU,1.1,1,$(dense) --act geglu)
$(call add,solu,SoLU,1.2,1,$(dense) --act solu)
$(call add,monet-hd,Monet-HD,2,1,--ffn monet-hd)
$(call add,monet-vd,Monet-VD,2,1,--ffn monet-vd)
$(call add,peer,PEER (equal active size),3,1,--ffn peer)
$(call add,peer-published,PEER (as published),3,1,--ffn peer --retrieve 8 --top 16 --d-key $(shell echo $$(($(C) / 2))))
$(call add,switch,Switch,1.1,1,--act gelu --router topk)
$(call add,moex,MoE-X,1.1,1,)
$(call add,relu-topk,ReLU experts + learned router,1.1,1,--router topk)
$(call add,gelu-sparsity,GELU experts + sparsity router,1.1,1,--act gelu)
# From the trained dense model, as long again.
$(call add,gelu-continued,GPT-2 continued,1,1,,gelu)
$(call add,up-switch,Switch (upcycled),1.1,1,--upcycle --act gelu --router topk,gelu)
$(call add,up-moex,MoE-X (upcycled),1.1,1,--upcycle --act relu,gelu)
$(call add,up-relu-topk,ReLU experts + learned router (upcycled),1.1,1,--upcycle --act relu --router topk,gelu)
$(call add,up-gelu-sparsity,GELU experts + sparsity router (upcycled),1.1,1,--upcycle --act gelu,gelu)
$(call add,up-moex-relu,MoE-X (upcycled from ReLU),1.1,1,--upcycle --act relu,relu)
$(call add,moex-twice,MoE-X (twice the steps),1.1,2,)
# Experts of a token: (a) at fixed D, so that work grows; (b) at fixed K*D and E*D.
$(call add,k1,K 1,0.9,1,--active 1)
$(call add,k1-all,K 1 (gate over all),0.9,1,--active 1 --gate all)
$(call add,k4,K 4,1.5,1,--active 4)
$(call add,k1-even,(K D E) = (1 2D E/2),1.1,1,--active 1 --d-expert $(shell echo $$((2 * $(D)))) --experts $(shell echo $$(($(E) / 2))))
$(call add,k4-even,(K D E) = (4 D/2 2E),1.1,1,--active 4 --d-expert $(shell echo $$(($(D) / 2))) --experts $(shell echo $$((2 * $(E)))))
# What sets the sparsity.
targets := $(if $(filter tiny,$(SIZE)),4 8,8 16 32 64 128 256)
tops    := $(if $(filter tiny,$(SIZE)),2 4,4 8 16 32 64)
l1s     := 1e-5 1e-4 1e-3
$(foreach t,$(targets),$(call add,l0-$(t),MoE-X (target l0 $(t)),1.1,1,--l0-target $(t)))
$(foreach t,$(tops),$(call add,top-$(t),MoE-X (the $(t) largest units of an expert),1.1,1,--unit-top $(t)))
$(foreach l,$(l1s),$(call add,l1-$(l),dense ReLU (L1 weight $(l)),1,1,$(dense) --act relu --l1-weight $(l)))
# The router's estimate; load balance.
$(call add,sd-scaled,MoE-X (scaled sd),1.1,1,--router-sd scaled)
$(call add,sd-full,MoE-X (full covariance),1.8,1,--router-sd full)
$(call add,balance-bias,MoE-X (balanced by a bias),1.1,1,--balance bias)
# Width of the dense layer, and of the whole model: D and C times so much.
$(foreach w,2 4 8,$(call add,wide-$(w),dense ReLU (width times $(w)),$(w),1,$(dense) --act relu --d-expert $(shell echo $$(($(w) * $(D))))))
of_width = $(call add,$(1)-$(3),dense ReLU (C $(shell echo $$(($(C) * $(2)))) and width times $(3)),$(3),1,$(dense) --act relu \
    --embd $(shell echo $$(($(C) * $(2)))) --d-expert $(shell echo $$(($(3) * $(D) * $(2)))))
$(foreach w,1 2 4 8,$(call of_width,half,1/2,$(w))$(call of_width,double,2,$(w)))
# The learning rate: of each new kind of layer half, once and twice the size's, for a third of the steps.
new_kinds := geglu solu monet-hd monet-vd peer
factors   := 0.5 1 2
at_rate = $(call add,$(1)-rate-$(2),$($(1).label) (rate times $(2)),$($(1).slower),0.33,$($(1).flags))$(eval $(1)-rate-$(2).rate := $(shell \
    LC_ALL=C awk 'BEGIN { printf "%.3g", $($(SIZE).rate) * $(2) }'))
$(foreach m,$(new_kinds),$(foreach f,$(factors),$(call at_rate,$(m),$(f))))
# Sparse autoencoders on the dense run: `on` names it, LENGTH is a guess.
units := $(shell echo $$(($(E) * $(D))))
eight := $(shell echo $$((8 * $(C))))
define sae
$(call method,$(1),$(2),1,1,$(3))
$(1).on := gelu
endef
add_sae = $(eval $(call sae,$(1),$(2),$(3)))
$(call add_sae,sae-$(units),GPT-2 + SAE of $(units),--width $(units))
$(if $(filter $(units),$(eight)),,$(call add_sae,sae-$(eight),GPT-2 + SAE of $(eight),--width $(eight)))
ks := $(if $(filter tiny,$(SIZE)),2 4,8 16 32 64 128)
$(foreach k,$(ks),$(call add_sae,sae-k$(k),SAE (k $(k)),--width $(units) --k $(k)))
$(call add_sae,sae-untrained,SAE of untrained weights,--width $(units) --untrained-seed 1)

# Which stands where, and what it is compared with.
table1.title     := Table 1: every method, from scratch at equal tokens, and upcycled at equal total tokens
table1.reference := moex
table1.methods   := gelu relu geglu solu monet-hd monet-vd peer peer-published switch moex sae-$(units) \
                    gelu-continued up-switch up-moex
table3.title     := Table 3: ReLU experts and the sparsity router, apart and together
table3.reference := moex
table3.methods   := switch relu-topk gelu-sparsity moex up-switch up-relu-topk up-gelu-sparsity up-moex
table4.title     := Table 4: from scratch, continued, upcycled
table4.reference := moex
table4.methods   := gelu gelu-continued moex moex-twice up-moex up-moex-relu
sae.title        := Sparse autoencoders on the dense model, beside MoE-X
sae.reference    := moex
sae.methods      := moex gelu $(filter sae-%,$(methods))
k.title          := Experts of a token
k.reference      := moex
k.methods        := moex k1 k1-all k4 k1-even k4-even
sparsity.title   := What sets the sparsity
sparsity.reference := moex
sparsity.methods := moex relu $(targets:%=l0-%) $(tops:%=top-%) $(l1s:%=l1-%)
router.title     := The router's estimate
router.reference := moex
router.methods   := moex sd-scaled sd-full
balance.title    := Load balance
balance.reference := moex
balance.methods  := moex balance-bias
width.title      := Width of a dense layer
width.reference  := relu
width.methods    := relu $(foreach m,wide half double,$(filter $(m)-%,$(methods)))
rate.title       := The learning rate of each new kind of layer, a third of the steps
rate.reference   := -
rate.methods     := $(foreach m,$(new_kinds),$(factors:%=$(m)-rate-%))

# ---------------------------------------------------------------------------------------------------------
# What follows from that: the runs of the tables asked for, seed after seed, each after the one it begins from.

wanted := $(foreach e,$(ONLY),$($(e).methods))
wanted += $(foreach m,$(wanted),$($(m).from) $($(m).on))
wanted := $(foreach m,$(methods),$(if $(filter $(m),$(wanted)),$(m)))
runs   := $(foreach s,$(SEEDS),$(foreach m,$(wanted),$(m)/s$(s)))
data   := $(OUT)/data/train_000000.bin
asked  := $(OUT)/asked.txt

manifest := $(OUT)/manifest.txt
line = $(file >>$(manifest),$(1))
define write_manifest
$(shell mkdir -p $(OUT))
$(file >$(manifest),size$(tab)$(SIZE))
$(call line,tokens$(tab)$($(SIZE).tokens))
$(call line,parameters$(tab)$($(SIZE).parameters))
$(foreach m,$(wanted),$(call line,method$(tab)$(m)$(tab)$($(m).label)$(tab)$($(m).slower)$(tab)$($(m).length)$(tab)$($(m).flags)))
$(foreach e,$(ONLY),$(call line,table$(tab)$(e)$(tab)$($(e).reference)$(tab)$($(e).title)$(tab)$($(e).methods)))
$(foreach r,$(runs),$(call line,run$(tab)$(patsubst %/,%,$(dir $(r)))$(tab)$(patsubst s%,%,$(notdir $(r)))))
endef

.PHONY: paper plan tables
paper: $(runs:%=$(OUT)/%/result.json)
	$(write_manifest)
	@$(B)/paper_tables --manifest $(manifest) --results $(OUT)
tables:
	$(write_manifest)
	@$(B)/paper_tables --manifest $(manifest) --results $(OUT)
plan:
	$(write_manifest)
	@$(B)/paper_tables --manifest $(manifest) --results $(OUT) --plan $(if $(RATE),--rate $(RATE))
	@echo "games and rows go to $(OUT)/data, $(words $(runs)) runs to $(OUT)"

# Games to learn from, and others to ask about: of a file of games those that are held out for validation.
$(data):
	@mkdir -p $(@D)
	@echo "== games to learn from"
	@$(B)/make_chess $(if $(GAMES),--pgn '$(GAMES)' --val-text $(asked),--games $($(SIZE).games) --seed 1) --row $(row) --out $(@D)
$(asked): | $(data)
	@[[ -e $@ ]] || echo "== games to ask about"
	@[[ -e $@ ]] || $(B)/make_chess --games $($(SIZE).asked) --row 257 --seed 1001 --train-text $@.tmp --out $(OUT)/asked > /dev/null
	@[[ -e $@ ]] || mv $@.tmp $@

# $(call run,METHOD,SEED)
half := $(shell echo $$(($($(SIZE).asked) / 2)))
shards = --train '$(OUT)/data/train_*.bin'
plain = $(shards) --val '$(OUT)/data/val_*.bin' --seed $(2) $($(SIZE).train) --lr $(or $($(1).rate),$($(SIZE).rate)) \
    --steps $(or $(steps.$($(1).length)),$(steps)) --val-every 0 --sample-every 0 --checkpoint-every 1000 \
    --keep 1 --print-every 500 $($(1).flags)
begin = $(if $($(1).from),--init $$$$(ls $(OUT)/$($(1).from)/s$(2)/model_*.safetensors | tail -1),$($(SIZE).shape))
model_of = $(if $($(1).on),$(OUT)/$($(1).on)/s$(2),$(OUT)/$(1)/s$(2))
sae_of   = $(if $($(1).on),--sae $(OUT)/$(1)/s$(2))
# Views beside the first: what else of a layer could be taken for its units.
geglu.views    := split gate
solu.views     := split post
gelu.views     := split
monet-hd.views := units encoder
monet-vd.views := units encoder
peer.views     := routing
view_flags = $(if $(filter split,$(1)),--split-signs,--features $(1))
bsp = $(B)/bsp --ckpt $(call model_of,$(1),$(2)) $(call sae_of,$(1),$(2)) --games $(asked) --count $(half) --json

define run
dir := $(OUT)/$(1)/s$(2)
$$(dir)/run.json: | $$(data) $(if $($(1).from),$(OUT)/$($(1).from)/s$(2)/run.json) $(if $($(1).on),$(OUT)/$($(1).on)/s$(2)/run.json)
	@dev/experiments/train.sh $$(@D) $(if $($(1).on),$(B)/train_sae --ckpt $(OUT)/$($(1).on)/s$(2) $(shards) --seed $(2) $($(SIZE).sae) $($(1).flags),$(TRAINER) $(call begin,$(1),$(2)) $(call plain,$(1),$(2)))
$$(dir)/result.json: $$(dir)/run.json | $$(asked)
	$$(call measure,$(1),$(2))
	@$$(B)/paper_tables --collect $$(@D) --method $(1) --size $$(SIZE) --seed $(2)
endef
# What is measured of a run, if it is not there yet and the run was not refused.
features = $(B)/features --ckpt $(call model_of,$(1),$(2)) --games $(asked) --count $(if $(filter tiny,$(SIZE)),6,500) --json
routed   = $(filter-out $(foreach m,$(methods),$(if $(findstring --ffn,$($(m).flags))$($(m).on),$(m))),$(1))# has a router of experts
once = $(newline)	@[[ ! -e $(@D)/run.json ]] || dev/experiments/measure.sh $(1) $(2)
define measure
$(call once,$(@D)/evaluate.json,$(B)/evaluate --ckpt $(call model_of,$(1),$(2)) $(call sae_of,$(1),$(2)) --val '$(OUT)/data/val_*.bin' $($(SIZE).few) --json $(@D)/evaluate.json)
$(call once,$(@D)/interp/bsp.json,$(call bsp,$(1),$(2)) $(@D)/interp/bsp.json --subset $($(SIZE).F))
$(foreach v,$($(1).views),$(call once,$(@D)/interp/bsp_$(v).json,$(call bsp,$(1),$(2)) $(@D)/interp/bsp_$(v).json --subset $($(SIZE).F) $(call view_flags,$(v))))
$(if $($(1).on),,$(call once,$(@D)/interp/sparsity.json,$(B)/sparsity --ckpt $(@D) --data $(asked) --rows $(half) --json $(@D)/interp/sparsity.json))
$(if $($(1).on),,$(call once,$(@D)/interp/features.json,$(call features,$(1),$(2)) $(@D)/interp/features.json))
$(if $(call routed,$(1)),$(call once,$(@D)/interp/router.json,$(B)/router --ckpt $(@D) --data $(asked) --history 1 --json $(@D)/interp/router.json))
endef
$(foreach s,$(SEEDS),$(foreach m,$(wanted),$(eval $(call run,$(m),$(s)))))

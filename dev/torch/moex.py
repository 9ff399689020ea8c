"""The PyTorch twin of moex: an independent check of the C++ and CUDA programs, and the way to use a
checkpoint from Python. It is written straight from the formulas (README, "The model") and shares no code
with the rest; autograd does the backward pass. Needs torch 1.13 or newer and numpy.

    import torch, moex                       # with dev/torch on PYTHONPATH

    model = moex.load("model_00001000.safetensors", device="cuda")
    tokenizer = model.config.tokenizer
    game = moex.encode(";1.e4 e5 2.", tokenizer)
    print(moex.decode(moex.generate(model, game, 40, temperature=0.5, seed=1), tokenizer))

    out = model(torch.tensor([game], device="cuda"), trace=True)
    out.logits                               # (B,T,V)
    layer = out.layers[3]                    # a LayerTrace: g, chosen, weights, hidden, l0, ...
    print(layer.chosen[0, -1], layer.weights[0, -1])     # the experts of the last token, best first
    print(layer.hidden[0, -1, 0].topk(5))                # the strongest units of the first of them

Contents: Config | layers and MoeX | training step | text and sampling | checkpoint files.
Shapes: B batch, T positions, C channels, V vocabulary, E experts, K of them per token, D units per expert,
N = B*T tokens, F = K*D units of the dense MLP.
"""

import dataclasses
import json
import math
import mmap
import os
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

# ---------------------------------------------------------------------------------------------------------
# Config

WORDS = {"ffn": ("moe", "dense", "monet-hd", "monet-vd", "peer"), "act": ("relu", "gelu", "geglu", "solu", "relu2"),
         "router": ("sparsity", "topk"), "gate": ("chosen", "all"), "balance": ("loss", "bias"),
         "router_sd": ("diagonal", "scaled", "full")}


# Fields that came after the first release: a checkpoint names those alone that differ from their default.
LATER = ("gate", "balance", "router_sd", "unit_top", "n_key", "n_retrieve", "n_top", "d_key", "n_share")


@dataclasses.dataclass(frozen=True)
class Config:
    """The model's sizes and variant, by the names they have in a checkpoint's metadata."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    d_expert: int
    n_expert: int = 8
    n_expert_active: int = 2
    ffn: str = "moe"          # moe | dense: one MLP of n_expert_active * d_expert units | monet-hd | monet-vd | peer
    act: str = "relu"         # relu | gelu, the tanh form; dense only: geglu | solu; Monet's: relu2
    router: str = "sparsity"  # sparsity | topk
    tokenizer: str = ""       # bytes | chess-32 | gpt2, "" when unstated; for encode() and decode()
    # A checkpoint names a field from here on only where it is not the default.
    gate: str = "chosen"      # moe: weights are the softmax over the chosen scores | over all
    balance: str = "loss"     # moe: loads are evened by a loss | by a bias on the choice
    router_sd: str = "diagonal"  # sparsity router: diagonal | scaled | full
    unit_top: int = 0         # moe of relu units: the largest so many of a slot stay; 0: all
    # Monet and PEER only, else 0
    n_key: int = 0            # Q, sub-keys a side: Q*Q experts
    n_retrieve: int = 0       # H, heads that retrieve
    n_top: int = 0            # k, sub-keys that a head keeps of a side
    d_key: int = 0            # PEER: numbers of a query
    n_share: int = 0          # Monet: layers that share a router

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < 1 and field.name not in LATER:
                raise ValueError(f"config: {field.name} is {value}, expected at least 1")
            if field.name in WORDS and value not in WORDS[field.name]:
                raise ValueError(f"config: {field.name} is {value!r}, expected one of {WORDS[field.name]}")
        if self.n_embd % self.n_head:
            raise ValueError(f"config: n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        if self.ffn == "moe" and self.n_expert_active > self.n_expert:
            raise ValueError(f"config: {self.n_expert_active} active experts of {self.n_expert}")
        used = {"peer": ("n_key", "n_retrieve", "n_top", "d_key"), "moe": (), "dense": ()}.get(
            self.ffn, ("n_key", "n_retrieve", "n_top", "n_share"))
        for name in ("n_key", "n_retrieve", "n_top", "d_key", "n_share"):
            if (getattr(self, name) >= 1) != (name in used) or getattr(self, name) < 0:
                raise ValueError(f"config: {name} is {getattr(self, name)}, not for ffn {self.ffn}")
        if self.n_top > self.n_key:
            raise ValueError(f"config: n_top is {self.n_top}, n_key {self.n_key}")
        words = (self.gate, self.balance, self.router_sd)
        if self.ffn != "moe" and words != ("chosen", "loss", "diagonal"):
            raise ValueError(f"config: gate, balance, router_sd are {words}: not for ffn {self.ffn}")
        if self.router == "topk" and self.router_sd != "diagonal":
            raise ValueError(f"config: router_sd {self.router_sd} goes with router sparsity")
        if not 0 <= self.unit_top <= self.d_expert or self.unit_top and (self.ffn, self.act) != ("moe", "relu"):
            raise ValueError(f"config: unit_top is {self.unit_top}, for ffn moe and act relu, at most d_expert")
        if (self.act == "relu2") != self.ffn.startswith("monet"):
            raise ValueError(f"config: act {self.act} does not go with ffn {self.ffn}")
        if self.act in ("geglu", "solu") and self.ffn != "dense":
            raise ValueError(f"config: act {self.act} goes with ffn dense, this is ffn {self.ffn}")


# ---------------------------------------------------------------------------------------------------------
# Layers. Parameter names are those of the checkpoint: model.state_dict() has the file's keys and shapes.


class LayerTrace(NamedTuple):
    """What one feed-forward layer did. A dense one has no g, chosen and weights, and hidden is (B,T,F)."""

    x: Tensor                  # (B,T,C)   its input, after ln_2
    y: Tensor                  # (B,T,C)   its output, before the residual is added
    hidden: Tensor             # (B,T,K,D) units after the activation, expert by expert as in `chosen`
    l0: Tensor                 # (B,T)     number of units that are not zero
    g: Optional[Tensor]        # (B,T,E)   router scores
    chosen: Optional[Tensor]   # (B,T,K)   the experts used, highest score first
    weights: Optional[Tensor]  # (B,T,K)   their gate weights, which sum to 1


class Output(NamedTuple):
    logits: Tensor                      # (B,T,V)
    loss: Optional[Tensor]              # mean cross-entropy; None without targets
    aux: Tensor                         # load balance, summed over layers, not weighted; 0 when dense
    share: Tensor                       # summed over layers: the share the router expects to fire, of the chosen
    l1: Tensor                          # summed over layers: mean over tokens of sum w z_i |w_dec_i|
    layers: Optional[List[LayerTrace]]  # with trace=True


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:  # (B,T,C) -> (B,T,C)
        B, T, C = x.shape
        HS = C // self.n_head
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, HS).permute(2, 0, 3, 1, 4)  # each (B,NH,T,HS)
        scores = q @ k.transpose(-2, -1) / math.sqrt(HS)                                # (B,NH,T,T)
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.c_proj((weights @ v).transpose(1, 2).reshape(B, T, C))


class DenseMLP(nn.Module):
    """y = act(x W_fc' + b_fc) W_proj' + b_proj, with F = K*D units.
    geglu: the units are gelu(x W_gate' + b_gate) * (x W_fc' + b_fc)  (Shazeer, arXiv 2002.05202).
    solu: they are LayerNorm(F h softmax(h)), h = x W_fc' + b_fc      (Elhage et al., 2022)."""

    def __init__(self, config: Config):
        super().__init__()
        units = config.n_expert_active * config.d_expert
        self.config = config
        self.c_fc = nn.Linear(config.n_embd, units)
        if config.act == "geglu":
            self.c_gate = nn.Linear(config.n_embd, units)
        if config.act == "solu":
            self.ln_mid = nn.LayerNorm(units)
        self.c_proj = nn.Linear(units, config.n_embd)

    def forward(self, x: Tensor, trace: bool) -> Tuple[Tensor, Tensor, Optional[LayerTrace]]:
        h = self.c_fc(x)  # (B,T,F)
        if self.config.act == "geglu":
            hidden = F.gelu(self.c_gate(x), approximate="tanh") * h
        elif self.config.act == "solu":
            hidden = self.ln_mid(h.shape[-1] * h * h.softmax(-1))
        else:
            hidden = activation(self.config)(h)
        self.share, self.l1 = x.new_zeros(()), (hidden @ self.c_proj.weight.norm(dim=0)).mean()
        y = self.c_proj(hidden)
        info = LayerTrace(x, y, hidden, (hidden != 0).sum(-1), None, None, None) if trace else None
        return y, x.new_zeros(()), info


class MoeLayer(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        E, D, C = config.n_expert, config.d_expert, config.n_embd
        self.config = config
        self.act = activation(config)
        self.w_enc = nn.Parameter(torch.empty(E, D, C))
        self.b_enc = nn.Parameter(torch.empty(E, D))
        self.w_dec = nn.Parameter(torch.empty(E, D, C))
        self.b_dec = nn.Parameter(torch.empty(E, C))
        if config.router == "topk":
            self.router = nn.Parameter(torch.empty(E, C))
        if config.router_sd == "scaled":
            self.register_buffer("rho", torch.ones(E))
            self.variances = 0  # (2,E) over the slots: true, diagonal; since rho_step()
        if config.balance == "bias":
            self.register_buffer("balance", torch.zeros(E))
            self.load = 0  # (E) slots of each expert since balance_step()

    @torch.no_grad()
    def balance_step(self, rate: float):
        """balance=bias: the bias of an expert with fewer slots than the mean rises, of one with more it falls."""
        load = self.load.to(self.balance.dtype)
        self.balance += rate * torch.sign(load.mean() - load)
        self.load = 0

    @torch.no_grad()
    def rho_step(self):
        """router_sd=scaled: rho^2 follows the quotient of the true and the diagonal variance of the slots."""
        truth, diagonal = self.variances
        moved = 0.99 * self.rho.square() + 0.01 * truth / diagonal
        self.rho.copy_(torch.where(diagonal > 0, moved.sqrt(), self.rho))
        self.variances = 0

    def scores(self, x: Tensor) -> Tensor:
        """g_j for every expert: x (N,C) -> (N,E). topk: a linear router. sparsity: -erf(mu_j/(sqrt(2) sd_j)).
        Were the rows of w_enc[j] Gaussian with independent coordinates, the D units of expert j would have
        mean mu_j and deviation sd_j before the activation, and D*Phi(mu_j/sd_j) of them would be positive."""
        if self.config.router == "topk":
            return x @ self.router.T
        m, mb = self.w_enc.mean(1), self.b_enc.mean(1)                               # (E,C) (E)
        v, vb = self.w_enc.var(1, unbiased=False), self.b_enc.var(1, unbiased=False)
        mu = x @ m.T + mb                                                            # (N,E)
        sd = torch.sqrt((x * x) @ v.T + vb + 1e-12)
        if self.config.router_sd == "scaled":
            sd = self.rho * sd
        if self.config.router_sd == "full":
            h = torch.einsum("nc,edc->ned", x, self.w_enc) + self.b_enc
            sd = torch.sqrt(h.var(2, unbiased=False) + 1e-12)
        return -torch.erf(mu / (math.sqrt(2) * sd))

    def forward(self, x: Tensor, trace: bool) -> Tuple[Tensor, Tensor, Optional[LayerTrace]]:
        (B, T, C), K, E, D = x.shape, self.config.n_expert_active, self.config.n_expert, self.config.d_expert
        x = x.reshape(B * T, C)

        # Router. The stable sort of -g gives a tie to the lower index; the choice itself has no gradient.
        g = self.scores(x)                                                   # (N,E)
        biased = g.detach() + (self.balance if self.config.balance == "bias" else 0)
        chosen = torch.sort(-biased, dim=1, stable=True).indices[:, :K]      # (N,K)
        weights = g.softmax(1).gather(1, chosen) if self.config.gate == "all" else g.gather(1, chosen).softmax(1)

        # Load balance E * sum_j f_j P_j: f_j is a count, so only P_j carries gradient.
        f = torch.bincount(chosen.reshape(-1), minlength=E).to(g.dtype) / chosen.numel()
        aux = E * (f * g.softmax(1).mean(0)).sum()
        if self.config.balance == "bias":
            aux = aux.detach()
            self.load = self.load + torch.bincount(chosen.reshape(-1), minlength=E)

        # Experts, one at a time, each on the tokens that chose it.
        y, l1, variances = torch.zeros_like(x), x.new_zeros(()), x.new_zeros(2, E)
        hidden = x.new_zeros(B * T, K, D) if trace else None
        for j in range(E):
            token, slot = (chosen == j).nonzero(as_tuple=True)
            h = x[token] @ self.w_enc[j].T + self.b_enc[j]                   # (tokens of j, D)
            z = self.act(h)
            if self.config.unit_top:
                rank = torch.sort(-z.detach(), dim=1, stable=True).indices.argsort(1)
                z = z * (rank < self.config.unit_top)
            if self.config.router_sd == "scaled":
                v, vb = self.w_enc[j].var(0, unbiased=False), self.b_enc[j].var(unbiased=False)
                diagonal = x[token].square() @ v + vb + 1e-12
                variances[:, j] = torch.stack((h.var(1, unbiased=False).sum(), diagonal.sum())).detach()
            l1 = l1 + (weights[token, slot] * (z @ self.w_dec[j].norm(dim=1))).sum() / len(x)
            out = z @ self.w_dec[j] + self.b_dec[j]                          # (tokens of j, C)
            y = y.index_add(0, token, weights[token, slot, None] * out)
            if trace:
                hidden = hidden.index_put((token, slot), z)

        self.share, self.l1 = ((1 - g.gather(1, chosen)) / 2).mean(), l1
        if self.config.router_sd == "scaled":
            self.variances = self.variances + variances
        y, info = y.view(B, T, C), None
        if trace:
            hidden, g, chosen, weights = (t.view(B, T, *t.shape[1:]) for t in (hidden, g, chosen, weights))
            info = LayerTrace(x.view(B, T, C), y, hidden, (hidden != 0).sum((2, 3)), g, chosen, weights)
        return y, aux, info


class MonetLayer(nn.Module):
    """Monet (Park et al., arXiv 2412.04139): y = sum_h sum_ij g0_hi g1_hj E_ij(x) over Q*Q experts, each put
    together of halves i and j, by the plain sum over all of them.
      hd   E_ij(x) = V_j relu2(U_i x + b_i) + c_j
      vd   E_ij(x) = [V11_i a1_i + V12_i a2_j + c0_i, V21_j a1_i + V22_j a2_j + c1_j], a1_i = relu2(U1_i x + b1_i)
    g^s_h is the softmax of the k largest of z^s_h = R[s,h] x, 0 elsewhere; a layer without a router takes that of
    the group's first layer, from its x."""

    def __init__(self, config: Config, routes: bool):
        super().__init__()
        Q, m, H, C = config.n_key, config.d_expert, config.n_retrieve, config.n_embd
        self.config = config
        if routes:
            self.router = nn.Parameter(torch.empty(2, H, Q, C))
        if config.ffn == "monet-hd":
            self.u, self.v = nn.Parameter(torch.empty(Q, m, C)), nn.Parameter(torch.empty(Q, m, C))
            self.b_u, self.b_v = nn.Parameter(torch.empty(Q, m)), nn.Parameter(torch.empty(Q, C))
            return
        for i in "12":
            setattr(self, f"u{i}", nn.Parameter(torch.empty(Q, m // 2, C)))
            setattr(self, f"b_u{i}", nn.Parameter(torch.empty(Q, m // 2)))
        for i in "12":
            for j in "12":
                setattr(self, f"v{i}{j}", nn.Parameter(torch.empty(Q, m // 2, C // 2)))
            setattr(self, f"b_v{i}", nn.Parameter(torch.empty(Q, C // 2)))

    def route(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """x (B,T,C) -> weights g (2,B,T,H,Q), zero but for k of Q, and aux: how unevenly the halves are used, and
        how undecided the heads are."""
        Q = self.config.n_key
        z = torch.einsum("btc,shqc->sbthq", x, self.router)
        chosen = torch.sort(-z.detach(), dim=-1, stable=True).indices[..., :self.config.n_top]
        g = torch.zeros_like(z).scatter(-1, chosen, z.gather(-1, chosen).softmax(-1))
        uniformity = -z.softmax(-1).mean((1, 2)).log().mean() - math.log(Q)
        return g, uniformity + (1 - g.amax(-1)).mean()

    def forward(self, x: Tensor, g: Tensor, trace: bool) -> Tuple[Tensor, Optional[LayerTrace]]:
        def relu2(u, b):
            return torch.relu(torch.einsum("btc,qmc->btqm", x, u) + b).square()

        pairs = torch.einsum("bthi,bthj->btij", g[0], g[1])  # (B,T,Q,Q)
        if self.config.ffn == "monet-hd":
            a = relu2(self.u, self.b_u)
            y = torch.einsum("btij,btim,jmc->btc", pairs, a, self.v) + torch.einsum("btij,jc->btc", pairs, self.b_v)
        else:
            a1, a2 = relu2(self.u1, self.b_u1), relu2(self.u2, self.b_u2)
            left = (torch.einsum("btij,btim,imc->btc", pairs, a1, self.v11)
                    + torch.einsum("btij,btjm,imc->btc", pairs, a2, self.v12)
                    + torch.einsum("btij,ic->btc", pairs, self.b_v1))
            right = (torch.einsum("btij,btim,jmc->btc", pairs, a1, self.v21)
                     + torch.einsum("btij,btjm,jmc->btc", pairs, a2, self.v22)
                     + torch.einsum("btij,jc->btc", pairs, self.b_v2))
            y = torch.cat((left, right), -1)
        hidden = pairs.flatten(2)
        info = LayerTrace(x, y, hidden, (hidden != 0).sum(-1), None, None, None) if trace else None
        return y, info


class PeerLayer(nn.Module):
    """PEER (He, arXiv 2407.04153): each of H heads retrieves the k of Q*Q units whose keys fit its query best,
    here by looking at all of them; y = sum over heads and their units of softmax(fit) act(u . x) v."""

    def __init__(self, config: Config):
        super().__init__()
        Q, C = config.n_key, config.n_embd
        self.config = config
        self.act = activation(config)
        self.query = nn.Parameter(torch.empty(config.n_retrieve, config.d_key, C))
        self.keys = nn.Parameter(torch.empty(2, Q, config.d_key // 2))
        self.w_enc = nn.Parameter(torch.empty(Q * Q, C))
        self.w_dec = nn.Parameter(torch.empty(Q * Q, C))

    def forward(self, x: Tensor, trace: bool) -> Tuple[Tensor, Tensor, Optional[LayerTrace]]:
        half = self.config.d_key // 2
        q = torch.einsum("btc,hdc->bthd", x, self.query)
        fit = (q[..., :half] @ self.keys[0].T)[..., :, None] + (q[..., half:] @ self.keys[1].T)[..., None, :]
        fit = fit.flatten(-2)                                                     # (B,T,H,Q*Q)
        unit = torch.sort(-fit.detach(), dim=-1, stable=True).indices[..., :self.config.n_top]
        w = fit.gather(-1, unit).softmax(-1)                                      # (B,T,H,k)
        gates = torch.zeros_like(fit).scatter(-1, unit, w).sum(-2)                # (B,T,Q*Q)
        hidden = gates * self.act(x @ self.w_enc.T)
        y = hidden @ self.w_dec
        info = LayerTrace(x, y, hidden, (hidden != 0).sum(-1), None, None, None) if trace else None
        return y, x.new_zeros(()), info


def activation(config: Config):
    return torch.relu if config.act == "relu" else nn.GELU(approximate="tanh")


class Block(nn.Module):
    def __init__(self, config: Config, l: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        if config.ffn == "moe":
            self.moe = MoeLayer(config)
        elif config.ffn == "peer":
            self.peer = PeerLayer(config)
        elif config.ffn == "dense":
            self.mlp = DenseMLP(config)
        else:
            self.monet = MonetLayer(config, l % config.n_share == 0)

    def forward(self, x: Tensor, routed: Optional[Tensor], trace: bool):
        """routed: Monet's weights of the layer before; those of this layer come out last."""
        x = x + self.attn(self.ln_1(x))
        in_ = self.ln_2(x)
        if hasattr(self, "monet"):
            aux = x.new_zeros(())
            if hasattr(self.monet, "router"):
                routed, aux = self.monet.route(in_)
            y, info = self.monet(in_, routed, trace)
        else:
            ffn = self.moe if hasattr(self, "moe") else self.peer if hasattr(self, "peer") else self.mlp
            y, aux, info = ffn(in_, trace)
        return x + y, aux, info, routed


class MoeX(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.step = 0  # optimizer steps behind the weights, as a checkpoint states it
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # also the output head
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, l) for l in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """The C++ programs' distribution, drawn with torch's random numbers."""
        for name, p in self.named_parameters():
            if is_matrix(name):
                last_in_block = name.endswith(("c_proj.weight", "w_dec")) or ".monet.v" in name
                fan_in = ".peer." in name or ".monet.u" in name or ".monet.router" in name
                std = 1 / math.sqrt(p.shape[-1]) if fan_in else 0.02
                p.normal_(0, std / math.sqrt(2 * self.config.n_layer) if last_in_block else std)
            else:
                p.fill_(1 if name.endswith("weight") else 0)  # LayerNorm weights, and all biases

    def forward(self, tokens: Tensor, targets: Optional[Tensor] = None, trace: bool = False) -> Output:
        """tokens, targets (B,T) integers below V, T at most block_size. The loss that training minimises is
        out.loss + aux_weight * out.aux."""
        B, T = tokens.shape
        if T > self.config.block_size:
            raise ValueError(f"{T} positions, expected at most block_size {self.config.block_size}")
        x = self.wte(tokens) + self.wpe.weight[:T]  # (B,T,C)
        aux, layers, routed = x.new_zeros(()), [], None
        for block in self.h:
            x, layer_aux, info, routed = block(x, routed, trace)
            aux = aux + layer_aux
            layers.append(info)
        ffn = [block.moe if hasattr(block, "moe") else block.mlp for block in self.h
               if hasattr(block, "moe") or hasattr(block, "mlp")]
        share, l1 = (sum((getattr(layer, name) for layer in ffn), x.new_zeros(())) for name in ("share", "l1"))
        logits = self.ln_f(x) @ self.wte.weight.T   # (B,T,V)
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return Output(logits, loss, aux, share, l1, layers if trace else None)


# ---------------------------------------------------------------------------------------------------------
# Training step


def is_matrix(name: str) -> bool:
    """Whether a tensor is used as a matrix (weights, embeddings, w_enc, w_dec, router): those decay and start
    random. The others are biases (b_enc and b_dec too, though they have two dimensions) and LayerNorm."""
    return not (name.endswith(".bias") or ".b_" in name or ".ln_" in f".{name}")


def make_optimizer(model: MoeX, lr: float, weight_decay: float = 0.1, **kwargs) -> torch.optim.AdamW:
    """AdamW as in dev/cpu/model.h; kwargs (fused, foreach, ...) go to torch."""
    groups = [{"params": [p for name, p in model.named_parameters() if is_matrix(name) == matrix],
               "weight_decay": weight_decay if matrix else 0.0} for matrix in (True, False)]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, **kwargs)


def learning_rate(step: int, lr: float, warmup: int, steps: int, final_frac: float = 0.1) -> float:
    """For step counted from 0: linear over `warmup` steps, then a cosine from lr to lr*final_frac."""
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return lr * (final_frac + (1 - final_frac) * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def clip_gradients(model: MoeX, clip: float = 1.0) -> float:
    """Scales all gradients by clip/norm if their global norm exceeds clip; returns the norm before that.
    (torch's own clip_grad_norm_ divides by norm + 1e-6, which shows in float64.)"""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
    if norm > clip:
        for g in grads:
            g.mul_(clip / norm)
    return norm


def train_step(model: MoeX, optimizer: torch.optim.Optimizer, tokens: Tensor, targets: Tensor, lr: float,
               aux_weight: float = 1e-3, clip: float = 1.0, balance_rate: float = 1e-3,
               l0_weight: float = 0.0, l1_weight: float = 0.0) -> Tuple[float, float, float]:
    """One step at the given rate on tokens, targets (B,T); returns loss, aux and gradient norm before it."""
    optimizer.zero_grad(set_to_none=True)
    biased = [block.moe for block in model.h if model.config.balance == "bias"]
    scaled = [block.moe for block in model.h if model.config.router_sd == "scaled"]
    for layer in biased:
        layer.load = 0
    for layer in scaled:
        layer.variances = 0
    out = model(tokens, targets)
    (out.loss + aux_weight * out.aux + l0_weight * out.share + l1_weight * out.l1).backward()
    norm = clip_gradients(model, clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    for layer in biased:
        layer.balance_step(balance_rate)
    for layer in scaled:
        layer.rho_step()
    model.step += 1
    return float(out.loss.detach()), float(out.aux.detach()), norm


# ---------------------------------------------------------------------------------------------------------
# Text and sampling

CHESS_32 = " #+-.0123456789;=BKNOQRabcdefghx"  # id = place in this string


def encode(text: str, tokenizer: str) -> List[int]:
    if tokenizer == "bytes":
        return list(text.encode())
    if tokenizer == "chess-32":
        unknown = sorted(set(text) - set(CHESS_32))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not one of the 32 characters of chess-32, {CHESS_32!r}")
        return [CHESS_32.index(c) for c in text]
    return gpt2_tokenizer(tokenizer).encode(text, allowed_special="all")


def decode(ids: List[int], tokenizer: str) -> str:
    """The bytes tokenizer's id 256, end of text, becomes a line break."""
    if tokenizer == "bytes":
        return b"".join(bytes([i]) if i < 256 else b"\n" for i in ids).decode(errors="replace")
    if tokenizer == "chess-32":
        return "".join(CHESS_32[i] for i in ids)
    return gpt2_tokenizer(tokenizer).decode(ids)


def gpt2_tokenizer(tokenizer: str):
    if tokenizer != "gpt2":
        raise ValueError(f"tokenizer {tokenizer!r} is unknown, expected bytes, chess-32 or gpt2")
    import tiktoken
    return tiktoken.get_encoding("gpt2")


@torch.no_grad()
def generate(model: MoeX, prompt: List[int], n: int, temperature: float = 1.0, top_k: int = 0,
             seed: Optional[int] = None) -> List[int]:
    """The prompt (at least one id) followed by n sampled ids. temperature 0 takes the likeliest, top_k 0
    draws from all. Every id costs a whole forward pass over the last block_size ids: the programs sample and
    sample_cpu are the fast way."""
    device = model.wte.weight.device
    random = torch.Generator().manual_seed(seed) if seed is not None else None
    ids = list(prompt)
    for _ in range(n):
        window = torch.tensor([ids[-model.config.block_size:]], device=device)
        logits = model(window).logits[0, -1].double().cpu()  # (V)
        if temperature == 0:
            ids.append(int(logits.argmax()))
            continue
        if top_k > 0:
            logits[logits < logits.topk(min(top_k, len(logits))).values[-1]] = -math.inf
        ids.append(int(torch.multinomial((logits / temperature).softmax(0), 1, generator=random)))
    return ids


# ---------------------------------------------------------------------------------------------------------
# Checkpoint files. A safetensors file is: length of the header (8 bytes, little-endian); the header, JSON:
# name -> {"dtype", "shape", "data_offsets": [begin, end] counted from the header's end} and "__metadata__" ->
# strings; the data, little-endian and row-major. The safetensors package reads and writes the same files.

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32}


def read_safetensors(path) -> Tuple[Dict[str, Tensor], Dict[str, str]]:
    """All tensors and the metadata. The data is mapped, not read: it costs memory where it is touched."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = 8 + int.from_bytes(file.read(8), "little")
        if size < 8 or start > size:
            raise ValueError(f"{path}: not a safetensors file: {size} bytes, its header ends at {start}")
        try:
            header = json.loads(file.read(start - 8))
            metadata = header.pop("__metadata__", {})
            entries = [(k, DTYPES[e["dtype"]], e["shape"], *e["data_offsets"]) for k, e in header.items()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: bad safetensors header: {type(error).__name__} {error}") from None
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    tensors = {}
    for name, dtype, shape, *offsets in entries:
        numbers = isinstance(shape, list) and all(type(i) is int and i >= 0 for i in shape + offsets)
        if not numbers or len(offsets) != 2 or start + offsets[1] > size \
                or offsets[1] - offsets[0] != math.prod(shape) * itemsize(dtype):
            raise ValueError(f"{path}: tensor {name!r} of shape {shape} does not lie at {offsets}")
        tensors[name] = torch.empty(shape, dtype=dtype) if 0 in shape else torch.frombuffer(
            data, dtype=dtype, count=math.prod(shape), offset=start + offsets[0]).view(shape)
    return tensors, metadata


def write_safetensors(path, tensors: Dict[str, Tensor], metadata: Dict[str, str]) -> None:
    """Written under a temporary name, synced, renamed: a killed writer leaves the old file or the new one."""
    words = {dtype: word for word, dtype in DTYPES.items()}
    header, end = {"__metadata__": metadata}, 0
    for name, t in tensors.items():
        begin, end = end, end + t.numel() * itemsize(t.dtype)
        header[name] = {"dtype": words[t.dtype], "shape": list(t.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that every tensor of 8-byte numbers lies on a multiple of 8
    with open(f"{path}.tmp", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for t in tensors.values():
            file.write(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.tmp", path)


def itemsize(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()


def load(path, dtype: torch.dtype = torch.float32, device="cpu") -> MoeX:
    """The model of a checkpoint, its weights converted to dtype. A file whose metadata or tensors are not
    those of a moex model raises ValueError with what was wrong and what was expected."""
    tensors, metadata = read_safetensors(path)
    if not isinstance(metadata, dict) or metadata.get("model") != "moex":
        raise ValueError(f"{path}: not a moex checkpoint: its metadata lacks model=moex")
    try:
        config = Config(**{f.name: f.type(metadata[f.name]) for f in dataclasses.fields(Config)
                           if f.name in metadata or f.name not in LATER})
        step = int(metadata["step"])
    except KeyError as error:
        raise ValueError(f"{path}: the metadata lacks {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    units = {"moe": config.n_expert * config.d_expert, "dense": config.n_expert_active * config.d_expert,
             "peer": config.n_key ** 2}.get(config.ffn, config.n_key * config.d_expert)
    rows = config.vocab_size + config.block_size + config.n_layer * (4 * config.n_embd + 2 * units)
    if rows * config.n_embd > sum(t.numel() for t in tensors.values()):  # before memory is asked for
        raise ValueError(f"{path}: fewer numbers than the metadata's sizes need, {config}")
    model = MoeX(config).to(device=device, dtype=dtype)
    expected = model.state_dict()
    for name in sorted({*expected, *tensors}):
        found = list(tensors[name].shape) if name in tensors else "no such tensor"
        wanted = list(expected[name].shape) if name in expected else "no such tensor"
        if found != wanted:
            raise ValueError(f"{path}: {name}: {found}, expected {wanted}")
    model.load_state_dict(tensors)
    model.step = step
    return model


def metadata_of(config: Config, step: int) -> Dict[str, str]:
    """What a checkpoint says of itself."""
    metadata = {"format": "pt", "model": "moex", "step": str(step)}
    metadata.update({f.name: str(getattr(config, f.name)) for f in dataclasses.fields(Config)
                     if f.name not in LATER or getattr(config, f.name) != f.default})
    return metadata


def save(model: MoeX, path, dtype: Optional[torch.dtype] = None) -> None:
    """Writes a checkpoint that load() and the moex programs read; dtype None keeps the model's own."""
    tensors = {name: t.to(dtype or t.dtype) for name, t in model.state_dict().items()}
    write_safetensors(path, tensors, metadata_of(model.config, model.step))

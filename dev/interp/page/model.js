// The model itself, read from the page and run forward, one token at a time with a cache of keys and values,
// as dev/cpu/decode.cpp does it. Symbols as in DESIGN.md: L layers, NH heads, C channels, E experts of D
// units, K of them per token, V tokens, T positions. Weights and activations are fp32, sums are double.

// --- Weights: matrices come as a scale for every row and whole numbers of 8 bits (dev/interp/embed.h)

function unpackWeights(embedded) {
  const text = atob(embedded.weights), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const weights = {};
  let at = 0;
  const floats = n => {
    const list = new Float32Array(bytes.buffer, at, n);
    at += 4 * n;
    return list;
  };
  for (const {name, shape, rounded} of embedded.tensors) {
    const count = shape.reduce((a, x) => a * x, 1), columns = shape[shape.length - 1];
    if (!rounded) {
      weights[name] = floats(count);
      continue;
    }
    const scale = floats(count / columns), q = new Int8Array(bytes.buffer, at, count),
          w = weights[name] = new Float32Array(count);
    for (let r = 0, i = 0; r < scale.length; r++)
      for (const end = i + columns; i < end; i++) w[i] = scale[r] * q[i];
    at += 4 * Math.ceil(count / 4);
  }
  return weights;
}

// --- Functions of numbers

// erf, to the last digits of a double: its series, or for larger x the continued fraction of erfc.
function erf(x) {
  const a = Math.abs(x);
  if (a > 6) return Math.sign(x);
  if (a < 2.5) {
    let term = x, total = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(total); n++) {
      term *= -x * x / n;
      total += term / (2 * n + 1);
    }
    return 2 / Math.sqrt(Math.PI) * total;
  }
  let f = a;
  for (let n = 60; n > 0; n--) f = a + n / 2 / f;
  return Math.sign(x) * (1 - Math.exp(-a * a) / Math.sqrt(Math.PI) / f);
}
const gelu = x => .5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + .044715 * x * x * x)));

// Rows of numbers inside arrays, eight at a time, which share what they read: where nearly all time goes.
// out[r] = w[first + r stride ..] . x[at ..] of n numbers, for so many rows
function products(out, w, first, stride, x, at, n, rows) {
  let r = 0;
  for (; r + 7 < rows; r += 8) {
    const a = first + r * stride, b = a + stride, c = b + stride, d = c + stride, e = d + stride,
          f = e + stride, g = f + stride, h = g + stride;
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
    for (let i = 0; i < n; i++) {
      const y = x[at + i];
      s0 += w[a + i] * y;
      s1 += w[b + i] * y;
      s2 += w[c + i] * y;
      s3 += w[d + i] * y;
      s4 += w[e + i] * y;
      s5 += w[f + i] * y;
      s6 += w[g + i] * y;
      s7 += w[h + i] * y;
    }
    out[r] = s0, out[r + 1] = s1, out[r + 2] = s2, out[r + 3] = s3;
    out[r + 4] = s4, out[r + 5] = s5, out[r + 6] = s6, out[r + 7] = s7;
  }
  for (; r < rows; r++) {
    let s0 = 0;
    for (let i = 0, a = first + r * stride; i < n; i++) s0 += w[a + i] * x[at + i];
    out[r] = s0;
  }
}
// y[at ..] += sum over k < count of factor[k] w[row[k] ..], n numbers each
function addRows(y, at, w, row, factor, count, n) {
  let k = 0;
  for (; k + 7 < count; k += 8) {
    const a = row[k], b = row[k + 1], c = row[k + 2], d = row[k + 3], e = row[k + 4], f = row[k + 5],
          g = row[k + 6], h = row[k + 7];
    const f0 = factor[k], f1 = factor[k + 1], f2 = factor[k + 2], f3 = factor[k + 3], f4 = factor[k + 4],
          f5 = factor[k + 5], f6 = factor[k + 6], f7 = factor[k + 7];
    for (let i = 0; i < n; i++)
      y[at + i] += f0 * w[a + i] + f1 * w[b + i] + f2 * w[c + i] + f3 * w[d + i] +
        (f4 * w[e + i] + f5 * w[f + i] + f6 * w[g + i] + f7 * w[h + i]);
  }
  for (; k < count; k++)
    for (let i = 0, a = row[k], f = factor[k]; i < n; i++) y[at + i] += f * w[a + i];
}
// out (rows) = weight (rows, n) x + bias, of a matrix that begins at row `first`
function matrixVector(out, weight, bias, x, rows, first = 0) {
  products(out, weight, first * x.length, x.length, x, 0, x.length, rows);
  for (let r = 0; r < rows && bias; r++) out[r] += bias[first + r];
}
function layerNorm(out, x, weight, bias) {
  const n = x.length;
  let mean = 0, variance = 0;
  for (let i = 0; i < n; i++) mean += x[i] / n;
  for (let i = 0; i < n; i++) variance += (x[i] - mean) ** 2 / n;
  const rstd = 1 / Math.sqrt(variance + 1e-5);
  for (let i = 0; i < n; i++) out[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
}
function softmax(logits, temperature = 1) {
  let most = -Infinity, total = 0;
  for (const x of logits) most = Math.max(most, x);
  const p = Float64Array.from(logits, x => Math.exp((x - most) / temperature));
  for (const x of p) total += x;
  return p.map(x => x / total);
}

// --- The model: what does not change from token to token

function readModel(embedded, config) {
  const size = name => +config[name];
  const m = {
    L: size('n_layer'),
    NH: size('n_head'),
    C: size('n_embd'),
    T: size('block_size'),
    V: size('vocab_size'),
    moe: config.ffn === 'moe',
    relu: config.act === 'relu',
    linearRouter: config.router === 'topk',
    gateAll: config.gate === 'all',
    unitTop: +(config.unit_top || 0),
    w: unpackWeights(embedded)
  };
  // A dense layer is one expert that every token chooses.
  m.E = m.moe ? size('n_expert') : 1, m.K = m.moe ? size('n_expert_active') : 1;
  m.D = m.moe ? size('d_expert') : size('n_expert_active') * size('d_expert');
  m.layers = Array.from({length: m.L}, (_, l) => {
    const of = name => m.w[`h.${l}.${name}`], layer = {
      ln1: [of('ln_1.weight'), of('ln_1.bias')],
      ln2: [of('ln_2.weight'), of('ln_2.bias')],
      attn: [of('attn.c_attn.weight'), of('attn.c_attn.bias')],
      proj: [of('attn.c_proj.weight'), of('attn.c_proj.bias')],
      router: of('moe.router'),
      rho: of('moe.rho'),
      balance: of('moe.balance')
    };
    if (m.moe)
      Object.assign(layer,
        {enc: of('moe.w_enc'), encBias: of('moe.b_enc'), dec: of('moe.w_dec'), decBias: of('moe.b_dec')});
    else {
      const out = of('mlp.c_proj.weight'), W = m.D; // (C,W): its columns are what the units write
      layer.enc = of('mlp.c_fc.weight'), layer.encBias = of('mlp.c_fc.bias'),
      layer.decBias = of('mlp.c_proj.bias');
      layer.dec = new Float32Array(out.length);
      for (let c = 0; c < m.C; c++)
        for (let u = 0; u < W; u++) layer.dec[u * m.C + c] = out[c * W + u];
    }
    if (m.moe && !m.linearRouter) Object.assign(layer, expertStatistics(layer, m));
    return layer;
  });
  return m;
}
// Mean and population variance over the D rows of each expert's encoder, and of its biases.
function expertStatistics({enc, encBias}, {E, D, C}) {
  const mean = new Float32Array(E * C), variance = new Float32Array(E * C), meanBias = new Float32Array(E),
        varianceBias = new Float32Array(E);
  const over = (x, from, step) => {
    let m = 0, v = 0;
    for (let d = 0; d < D; d++) m += x[from + d * step] / D;
    for (let d = 0; d < D; d++) v += (x[from + d * step] - m) ** 2 / D;
    return [m, v];
  };
  for (let j = 0; j < E; j++) {
    for (let c = 0; c < C; c++) [mean[j * C + c], variance[j * C + c]] = over(enc, j * D * C + c, C);
    [meanBias[j], varianceBias[j]] = over(encBias, j * D, 1);
  }
  return {mean, variance, meanBias, varianceBias};
}

// --- The decoder: a text read so far

// change: what is changed inside. change.get(layer) is a Map from an expert to {off, factor, units}: off: it
// is never chosen (K of a layer stay); factor of what it writes; units a Map from a unit to the factor of its value. null:
// nothing is.
function newDecoder(model, change = null) {
  const {L, NH, C, E, K, D, T, V} = model, HS = C / NH;
  const array = n => new Float32Array(n);
  const keys = array(L * T * C), values = array(L * T * C), x = array(C), norm = array(C), square = array(C),
        qkv = array(3 * C), att = array(C), y = array(C), scores = array(T), mu = array(E),
        variance = array(E), rows = new Int32Array(Math.max(T, D)), factors = array(D);
  const d = {
    model,
    change,
    position: 0,
    logits: array(V),
    // What the last token did in each layer; z: units before any factor, (K,D)
    layers: model.layers.map(
      () => ({choice: Array(K).fill(0), weight: Array(K).fill(1), g: array(E), z: array(K * D)}))
  };

  function attend(l) {
    const base = l * T * C, n = d.position + 1, scale = 1 / Math.sqrt(HS);
    keys.set(qkv.subarray(C, 2 * C), base + d.position * C);
    values.set(qkv.subarray(2 * C), base + d.position * C);
    att.fill(0);
    for (let at = 0; at < C; at += HS) { // head by head
      let most = -Infinity, total = 0;
      products(scores, keys, base + at, C, qkv, at, HS, n);
      for (let t = 0; t < n; t++) most = Math.max(most, scores[t] *= scale);
      for (let t = 0; t < n; t++) total += scores[t] = Math.exp(scores[t] - most);
      for (let t = 0; t < n; t++) scores[t] /= total, rows[t] = base + t * C + at;
      addRows(att, at, values, rows, scores, n, HS);
    }
  }
  function route(layer, state, changed) { // choice and gate weights, from norm
    const {g, choice, weight} = state;
    if (model.linearRouter)
      matrixVector(g, layer.router, null, norm, E);
    else {
      for (let i = 0; i < C; i++) square[i] = norm[i] * norm[i];
      matrixVector(mu, layer.mean, layer.meanBias, norm, E);
      matrixVector(variance, layer.variance, layer.varianceBias, square, E);
      for (let j = 0; j < E; j++) {
        const sd = Math.sqrt(variance[j] + 1e-12) * (layer.rho ? layer.rho[j] : 1);
        g[j] = -erf(mu[j] / (Math.SQRT2 * sd));
      }
    }
    const score = j => g[j] + (layer.balance ? layer.balance[j] : 0);
    const on = Array.from(g, (_, j) => j).filter(j => !(changed && changed.get(j) && changed.get(j).off));
    on.sort((a, b) => score(b) - score(a) || a - b).slice(0, K).forEach((j, k) => choice[k] = j);
    const most = Math.max(...choice.map(j => g[j])), e = j => Math.exp(g[j] - most);
    const total = (model.gateAll ? on : choice).reduce((a, j) => a + e(j), 0);
    choice.forEach((j, k) => weight[k] = e(j) / total);
  }
  function expert(layer, state, k, changed) { // adds w y of the k-th chosen expert to x
    const j = state.choice[k], z = state.z.subarray(k * D, (k + 1) * D),
          {factor = 1, units = null} = changed || {};
    matrixVector(z, layer.enc, layer.encBias, norm, D, j * D);
    for (let u = 0; u < D; u++) z[u] = model.relu ? Math.max(0, z[u]) : gelu(z[u]);
    if (model.unitTop) { // the largest stay, a tie to the lower index
      const order = Array.from(z, (_, u) => u).sort((a, b) => z[b] - z[a] || a - b);
      order.slice(model.unitTop).forEach(u => z[u] = 0);
    }
    for (let i = 0; i < C; i++) y[i] = layer.decBias[j * C + i];
    let firing = 0; // a silent unit moves nothing
    for (let u = 0; u < D; u++) {
      const value = units && units.has(u) ? units.get(u) * z[u] : z[u];
      if (value !== 0) rows[firing] = (j * D + u) * C, factors[firing++] = value;
    }
    addRows(y, 0, layer.dec, rows, factors, firing, C);
    for (let i = 0; i < C; i++) x[i] += factor * state.weight[k] * y[i];
  }

  // Reads a token at the next position; then `logits` are those of the one after it.
  d.step = token => {
    if (d.position >= T) throw new Error(`the context of ${T} tokens is full`);
    const {w} = model;
    for (let i = 0; i < C; i++) x[i] = w['wte.weight'][token * C + i] + w['wpe.weight'][d.position * C + i];
    model.layers.forEach((layer, l) => {
      const state = d.layers[l], changed = d.change && d.change.get(l);
      layerNorm(norm, x, ...layer.ln1);
      matrixVector(qkv, ...layer.attn, norm, 3 * C);
      attend(l);
      matrixVector(y, ...layer.proj, att, C);
      for (let i = 0; i < C; i++) x[i] += y[i];
      layerNorm(norm, x, ...layer.ln2);
      if (model.moe) route(layer, state, changed);
      for (let k = 0; k < K; k++) expert(layer, state, k, changed && changed.get(state.choice[k]));
    });
    layerNorm(norm, x, w['ln_f.weight'], w['ln_f.bias']);
    matrixVector(d.logits, w['wte.weight'], null, norm, V);
    d.position++;
    return d.logits;
  };
  // Forgets what was read from a position on.
  d.back = position => { d.position = position; };
  // The keys and values of one position, and the way back: to look along several continuations of a text.
  d.column = t => {
    const saved = array(2 * L * C);
    for (let l = 0; l < L; l++) {
      saved.set(keys.subarray((l * T + t) * C, (l * T + t + 1) * C), 2 * l * C);
      saved.set(values.subarray((l * T + t) * C, (l * T + t + 1) * C), (2 * l + 1) * C);
    }
    return saved;
  };
  d.setColumn = (t, saved) => {
    for (let l = 0; l < L; l++) {
      keys.set(saved.subarray(2 * l * C, (2 * l + 1) * C), (l * T + t) * C);
      values.set(saved.subarray((2 * l + 1) * C, (2 * l + 2) * C), (l * T + t) * C);
    }
  };
  return d;
}

// --- Tokens: characters of chess-32, bytes; of other vocabularies only the numbers are known

const chessCharacters = ' #+-.0123456789;=BKNOQRabcdefghx';
// A text as tokens; null for a character that is none.
function encodeText(text, tokenizer) {
  if (tokenizer === 'bytes') return [...new TextEncoder().encode(text)];
  return tokenizer === 'chess-32' ? [...text].map(c => chessCharacters.indexOf(c)).map(i => i < 0 ? null : i)
                                  : null;
}
function tokenText(token, tokenizer) {
  if (tokenizer === 'chess-32') return chessCharacters[token];
  if (tokenizer !== 'bytes') return '#' + token;
  return token === 256                                         ? '(end)'
    : token < 32 && token !== 10 && token !== 9 || token > 126 ? '\\x' + token.toString(16).padStart(2, '0')
                                                               : String.fromCharCode(token);
}

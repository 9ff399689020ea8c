// A text read by the model: what it made of every token, what it would write next, and what it writes.
// Nothing here draws.

// --- Changes: {layer, expert, unit (null: the whole expert), off, factor}

// As a decoder takes them (model.js); null for none.
function changeOf(list) {
  if (!list.length) return null;
  const layers = new Map();
  for (const {layer, expert, unit, off, factor} of list) {
    if (!layers.has(layer)) layers.set(layer, new Map());
    const experts = layers.get(layer), e = experts.get(expert) || {off: false, factor: 1, units: new Map()};
    if (unit !== null)
      e.units.set(unit, factor);
    else if (off)
      e.off = true;
    else
      e.factor = factor;
    experts.set(expert, e);
  }
  return layers;
}

// --- Readers: a decoder, the records of the tokens it has read, and what of that text has been found once

function newReader(model, change = null) {
  return {decoder: newDecoder(model, change), tokens: [], records: [], moves: null};
}
const strongestUnits = 5; // kept of each expert
// What the last token did: the probabilities of the next one, and per layer the chosen experts, each with its
// gate weight w, how many of its units fire, and the strongest of them by w z.
function recordOf({model, logits, layers}) {
  const {D} = model;
  return {
    p: softmax(logits),
    layers: layers.map(({choice, weight, z}) => choice.map((expert, k) => {
      const units = []; // in falling order, a tie to the lower unit
      let active = 0;
      for (let unit = 0; unit < D; unit++) {
        const value = weight[k] * z[k * D + unit];
        if (!(value > 0)) continue;
        active++;
        if (units.length === strongestUnits && !(value > units[strongestUnits - 1].value)) continue;
        let at = units.length;
        while (at > 0 && value > units[at - 1].value) at--;
        units.splice(at, 0, {unit, value});
        units.length = Math.min(units.length, strongestUnits);
      }
      return {expert, weight: weight[k], active, units};
    }))
  };
}
// Reads tokens; what it has read already of the same text is not read again.
function follow(reader, tokens) {
  let same = 0;
  while (same < tokens.length && same < reader.tokens.length && tokens[same] === reader.tokens[same]) same++;
  if (same === tokens.length && same === reader.tokens.length) return reader;
  reader.decoder.back(same), reader.tokens.length = reader.records.length = same, reader.moves = null;
  for (const token of tokens.slice(same)) {
    reader.decoder.step(token);
    reader.tokens.push(token), reader.records.push(recordOf(reader.decoder));
  }
  return reader;
}
const nextOf = reader => reader.records[reader.records.length - 1].p;

// --- What it would write next

// The likeliest continuations that end(text) calls whole, each with its probability, found by going on from
// the likeliest beginning until they have a probability of `enough` together, or `most` tokens are read.
function lookAhead(reader, textOf, end, enough = .995, most = 150) {
  const {decoder} = reader, base = reader.tokens.length, room = decoder.model.T - base, whole = [];
  let open = [{text: '', p: 1, tokens: [], columns: []}], found = 0;
  for (let read = 0; open.length && read <= most && found < enough; read++) {
    const best = open.reduce((a, b) => b.p > a.p ? b : a), depth = best.tokens.length;
    open.splice(open.indexOf(best), 1);
    if (depth > room || depth > 10) continue;
    if (depth) {
      best.columns.forEach((saved, i) => decoder.setColumn(base + i, saved));
      decoder.back(base + depth - 1), decoder.step(best.tokens[depth - 1]);
    }
    const columns = depth ? [...best.columns, decoder.column(base + depth - 1)] : [];
    (depth ? softmax(decoder.logits) : nextOf(reader)).forEach((q, token) => {
      const p = best.p * q, text = best.text + textOf(token);
      if (p < 1e-4) return;
      if (end(text))
        whole.push({text, p}), found += p;
      else
        open.push({text, p, tokens: [...best.tokens, token], columns});
    });
  }
  decoder.back(base);
  return whole.sort((a, b) => b.p - a.p);
}
const endsMove = text => /[ ;#]$/.test(text);
// The same of moves of chess: text without its end, and whether it is legal. written: what of the move stands
// already.
function nextMoves(reader, position, written) {
  const legal = new Map(namedMoves(position).map(m => [unmarked(m.san), m])), list = [];
  for (const {text, p} of lookAhead(reader, t => chessCharacters[t], endsMove)) {
    const san = written + text.replace(/[ ;]$/, ''), same = list.find(m => m.san === san);
    if (same)
      same.p += p;
    else
      list.push({san, p, move: legal.get(unmarked(san)) || null});
  }
  return list.sort((a, b) => b.p - a.p);
}

// --- What it writes

// A token, by chance; temperature 0: the likeliest.
function drawToken(logits, temperature) {
  if (!(temperature > 0)) return logits.reduce((best, x, i) => x > logits[best] ? i : best, 0);
  const p = softmax(logits, temperature);
  let left = Math.random();
  for (let i = 0; i < p.length; i++)
    if ((left -= p[i]) < 0) return i;
  return p.length - 1;
}
// Tokens written behind those read, until end(token) is true or there are `most`; the reader is left where it
// was.
function write(reader, temperature, most, end) {
  const {decoder} = reader, base = reader.tokens.length, tokens = [];
  let logits = Array.from(nextOf(reader), Math.log);
  while (tokens.length < most && base + tokens.length < decoder.model.T) {
    const token = drawToken(logits, temperature);
    if (end(token)) break;
    tokens.push(token), logits = decoder.step(token);
  }
  decoder.back(base);
  return tokens;
}

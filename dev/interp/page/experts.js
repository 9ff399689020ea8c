// What experts measured: what decides which expert a token goes to, what an expert takes, and what is lost without it.

// --- What is asked of routing

const conceptName = name => words(name.replace(/^\w+_state: /, ''));
const ordinal = k => ['first', 'second', 'third'][k] || `${k + 1}th`;
const askedOfRouting = [
  ['token', 'the token'], ['position', 'its position in the row'], ['before', 'the token before'],
  ['below', 'the expert of the layer below'], ['group', chess ? 'the phase of the game' : 'the kind of token']
];
const movedName = 'its labels moved within the document';

let routedSlot = 0, routedLayer = 0, routedExpert = 0;

// What tells the expert of a slot, layer by layer. All but the first beyond the token, on one scale.
function whatTells(again) {
  const layers = experts.layers, slots = layers[0].slots.length;
  const range = keys => rangeOf(layers.flatMap(l => l.slots.flatMap(q => keys.map(key => q[key]))));
  const beyond = range(askedOfRouting.slice(1).map(([key]) => key));
  const one = ([key, name], i) => {
    const rows = layers.map(l => ({name: `Layer ${l.layer}`, ...l.slots[routedSlot][key], controls: []}))
                   .filter(r => number(r.value));
    const title = i ? `${name}, beyond the token` : name;
    return rows.length > 0 && figure(title[0].toUpperCase() + title.slice(1), chart(w => dotRows(w, {
      title: `What ${title} tells of the ${ordinal(routedSlot)} expert, by layer`,
      x: i ? beyond : [0, 1],
      rows,
      own: 'share of the entropy'
    })));
  };
  return [
    slots > 1 &&
      choice(again, 'Of a token’s experts, the', Array.from({length: slots}, (_, k) => [k, ordinal(k)]), routedSlot,
        k => { routedSlot = k; }),
    figure(`What tells the ${ordinal(routedSlot)} expert`, h('div', {class: 'grid three'}, askedOfRouting.map(one)),
      'Share of the entropy of which expert it is, with its 95% interval over documents. All but the first are what is ' +
        'told beyond the token, and have one scale.')
  ];
}

// --- The experts of a layer

const loss = q => ({value: q[0], low: q[1], high: q[2]}); // of a list of three
// The `most` of which something is known, in falling order of f.
const largest = (list, known, f, most) => list.filter(q => number(known(q))).sort((a, b) => f(b) - f(a)).slice(0, most);

function expertTable(l, again) {
  const shown = l.experts.some(x => x.effect), caption = `The experts of layer ${l.layer}`;
  const range = rangeOf(l.experts.flatMap(x => x.effect ? [x.effect.inside, x.effect.control] : []));
  const line = (x, e) => h('tr', {}, h('th', {scope: 'row'},
    h('button', {
      type: 'button',
      'aria-pressed': String(e === routedExpert),
      'aria-label': `Show expert ${e}`,
      click: () => again(caption, () => { routedExpert = e; })
    },
      s('svg', {width: 12, height: 12, 'aria-hidden': 'true', class: 'inline'},
        s('circle', {cx: 6, cy: 6, r: 5, fill: expertColour(e)})),
      `expert ${e}`),
    h('small', {}, x.label || 'no label')),
    h('td', {class: 'wide'}, percent(x.load, 1)),
    h('td', {class: 'chart'}, bar(x.own.balanced, [
      [x.token.balanced, 'the tokens alone'], [x.other.balanced, 'labels of other experts'],
      [x.random.balanced, 'random routing']
    ])),
    [x.token, x.other, x.random].map(q => h('td', {class: 'wide'}, fix(q.balanced, 2))),
    shown && h('td', {class: 'chart'}, x.effect &&
      reach(range, x.effect.inside, number(x.effect.other) && x.effect.control, `expert ${x.effect.other} off`)));
  return figure('What they take, and what is lost without them',
    table(['expert', 'share of the work?', '<its windows told by its label', 'by tokens alone?', 'by others’ labels?',
            'if random?', ...(shown ? ['<log p where the label holds, when it is off'] : [])],
      l.experts.map(line), caption),
    'A label is the best conjunction of up to three concepts and tokens. Its balanced accuracy is that of telling windows of ' +
      'other documents in which the expert’s tokens are marked from those of other experts; 0.5 is a guess. Ticks: the tokens ' +
      'alone, the labels of the other experts, and the label found where routing is random.' +
      (shown ? ' Switched off, the next best expert takes its place: the change of log p of the true next token, with its ' +
        '95% interval; in grey, at the same places, that of switching off the expert of the nearest load instead.' : ''));
}

// One expert: in words, and when it is switched off.
function expertCard(l, e) {
  const x = l.experts[e], f = x.effect, none = {};
  const fact = (name, value, note) =>
    h('div', {}, h('dt', {}, name), h('dd', {}, value, note && h('small', {}, ' ' + note)));
  const said = q => number(q.value) ? [fix(q.value, 4), h('small', {}, ` ${fix(q.low, 4)} to ${fix(q.high, 4)}`)] : '–';
  const off = (name, all, inside, outside) => h('tr', {}, h('th', {scope: 'row'}, name), h('td', {}, said(all)),
    h('td', {}, said(inside)), h('td', {class: 'wide'}, said(outside)));
  const changed = f ? largest(l.concepts.map((c, i) => ({...c, ...loss(f.by_concept[i])})), c => c.value, c => -c.value, 8) : [];
  const range = rangeOf(changed);
  return h('div', {class: 'card'}, h('p', {class: 'kicker'}, `Layer ${l.layer}, expert ${e}`),
    h('h3', {}, x.named ? 'Takes more than its tokens: ' + x.label
      : x.label ? 'Best told by: ' + x.label
                : 'No label: it has no tokens, or all of them'),
    switchOff({layer: l.layer, expert: e, unit: null}),
    x.label && !x.named && h('p', {class: 'note'},
      'That is not beyond its tokens, the other experts’ labels and random routing by four standard errors each: it may be no ' +
        'more than a choice of tokens.'),
    h('dl', {class: 'facts'}, fact('share of the work', percent(x.load, 1)),
      fact('balanced accuracy', scoreText(x.own.balanced), number(x.own.error) && `± ${fix(1.96 * x.own.error)}`),
      fact('tokens alone', scoreText(x.token.balanced)), fact('other labels', scoreText(x.other.balanced)),
      fact('random routing', scoreText(x.random.balanced)),
      fact('windows found', x.own.by_quarter.map(q => percent(q)).join(', '), 'by rising importance')),
    x.language && h('p', {},
      `A language model says: “${x.language.hypothesis}”. It tells the same windows with ${
        fix(x.language.own.balanced)} ± ${fix(1.96 * x.language.own.error)}, the hypothesis of another expert with ${
        fix(x.language.control.balanced)}; ${percent(x.language.unread)} of its answers could not be read.`),
    f && [
      h('h4', {}, 'When it is switched off'),
      table(['change of log p of the true next token', 'at all tokens', 'where its label holds', 'elsewhere?'],
        [
          off('it is never chosen: the next best takes its place', f.off, f.inside, f.outside),
          off('its output is zero', f.zero, none, none),
          number(f.other) && [
            off(`expert ${f.other}, of the nearest load, is never chosen`, none, f.control, none),
            off('the first less that', none, f.beyond, none)
          ]
        ],
        `What is lost without expert ${e} of layer ${l.layer}`),
      h('p', {class: 'note'}, 'Without it less with it, with 95% intervals over documents: below zero, it was of use.' +
        (f.triggers ? ` At ${f.triggers} single places where its label holds, taking its output away there alone changes log p ` +
            `by ${fix(f.at_position, 3)}; direct logit attribution would have it add ${
              fix(f.dla, 3)} to the logit. In this layer the two correlate with ${fix((l.agreement || none).value)} (${
              between(l.agreement || none)}).`
                    : '')),
      changed.length > 0 && [
        h('h4', {}, 'Where most is lost'),
        table(['concept', '<change of log p there, when it is never chosen'],
          changed.map(c => h('tr', {}, h('th', {scope: 'row', title: c.concept}, conceptName(c.concept)),
                             h('td', {class: 'chart long'}, reach(range, c)))),
          `Concepts at which most is lost without expert ${e} of layer ${l.layer}`),
        h('p', {class: 'note'}, `The largest ${changed.length} of ${f.by_concept.length}, chosen by their size: some of it is ` +
          'chance.')
      ]
    ]);
}

// What concepts tell of the layer's first expert, beyond the token, each beside its labels moved.
function conceptsTold(l) {
  const most = largest(l.concepts, c => c.beyond.value, c => c.beyond.value - c.moved, 8), range = rangeOf(most.map(c => c.beyond));
  return most.length > 0 &&
    figure('Concepts that tell the first expert beyond the token',
      table(['concept', '<told beyond the token', 'moved', 'told alone?'],
        most.map(c => h('tr', {}, h('th', {scope: 'row', title: c.concept}, conceptName(c.concept)),
                        h('td', {class: 'chart long'}, reach(range, c.beyond, {value: c.moved}, movedName)),
                        h('td', {}, fix(c.moved, 3)), h('td', {class: 'wide'}, fix(c.alone.value, 3)))),
        `Concepts that tell the first expert of layer ${l.layer}`),
      `Shares of its entropy; the ${most.length} of ${l.concepts.length} concepts that tell most more than ${
        movedName}, in grey.`);
}

// Do the tokens of a stretch of text go to the same experts? By the length of the stretch.
function localities(l) {
  const at = key => l.windows.map(q => [Math.log2(q.tokens), key(q)]);
  const picture = (title, series, caption) => {
    const values = series.flatMap(q => q.points.map(a => a[1])).filter(number);
    const space = .08 * (highest(values) - lowest(values) || 1), tokens = l.windows.map(q => q.tokens);
    return figure(title, chart(w => lines(w, 230, {
      title: `${title}, layer ${l.layer}`,
      x: [Math.log2(tokens[0]), Math.log2(tokens[tokens.length - 1])],
      y: [Math.max(0, lowest(values) - space), Math.min(1, highest(values) + space)],
      xTicks: tokens.map(Math.log2),
      xText: x => 2 ** x,
      xLabel: 'tokens in a row',
      margin: {top: 18, right: 96},
      at: x => `${2 ** x} tokens`,
      digits: 2,
      series
    })),
      caption);
  };
  const own = {colour: 'var(--accent)', dots: true}, control = {colour: 'var(--ink)', thin: true, dash: true};
  return l.windows.length > 1 && h('div', {class: 'grid two'},
    picture('One group of experts for a stretch of text (SRP)',
      [
        {...own, name: 'as it is', label: 'as it is', points: at(q => q.srp.value)},
        {...control, name: 'shuffled', label: 'shuffled', points: at(q => q.srp_shuffled)}
      ],
      'F1 of the best choice of experts for each stretch as a whole, beside the same tokens shuffled within their rows.'),
    picture(`A cache of ${experts.cache} experts`,
      [
        {...own, name: 'as it is', label: 'as it is', points: at(q => q.sch)},
        {...control, name: 'shuffled', label: 'shuffled', points: at(q => q.sch_shuffled)},
        {...control, colour: 'var(--grey)', name: 'LRU', label: 'LRU', points: at(q => q.lru)},
        {...control, colour: 'var(--grey)', name: 'LFU', label: 'LFU', points: at(q => q.lfu)}
      ],
      'Share of requests found in it if it knows what the stretch ahead asks for; LRU and LFU know nothing of it.'));
}

function expertsOfLayer(again) {
  const l = experts.layers.find(q => q.layer === routedLayer) || experts.layers[0];
  if (routedExpert >= l.experts.length) routedExpert = 0;
  return [
    experts.layers.length > 1 &&
      choice(again, 'Layer', experts.layers.map(q => [q.layer, q.layer]), l.layer, layer => { routedLayer = layer; }),
    expertTable(l, again), expertCard(l, routedExpert), conceptsTold(l), localities(l)
  ];
}

function specialists() {
  const layers = experts.layers, all = layers.flatMap(l => l.experts.map((x, e) => ({...x, layer: l.layer, expert: e}))),
        named = all.filter(x => x.named);
  const share = key => mean(layers.map(l => l.slots[0][key].value));
  const first = named[0] || best(all.filter(x => x.effect && number(x.effect.off.value)), x => -x.effect.off.value);
  if (first) routedLayer = first.layer, routedExpert = first.expert;
  const top = best(layers.flatMap(l => l.concepts.filter(c => number(c.beyond.value)).map(c => ({...c, layer: l.layer}))),
    c => c.beyond.value - c.moved);
  const told = askedOfRouting.slice(1).filter(([key]) => number(share(key)));
  return [
    h('p', {class: 'lede'},
      `Of the entropy of a token’s first expert, the token itself tells ${percent(share('token'))} (mean over the layers); ` +
        `beyond the token, ${told.map(([key, name]) => `${name} tells ${percent(share(key), 1)}`).join(', ')}.` +
        (top ? ` The concept that tells most beyond the token is “${conceptName(top.concept)}” with ${
                 percent(top.beyond.value, 1)} in layer ${top.layer}; moved within the documents it tells ${
                 percent(top.moved, 1)}.`
             : '') +
        ` ${whole(named.length)} of ${whole(all.length)} experts ${
          named.length === 1 ? 'takes' : 'take'} what is more than their tokens.`),
    redrawn(whatTells), redrawn(expertsOfLayer),
    h('details', {}, h('summary', {}, 'All numbers by layer'),
      table(['layer', 'expert of the token', 'entropy, bits', ...askedOfRouting.map(([, name]) => name)],
        layers.flatMap(l => l.slots.map((q, k) => row(l.layer, ordinal(k), fix(q.entropy),
                                          ...askedOfRouting.map(([key]) => number(q[key].value)
                                              ? `${fix(q[key].value, 3)} (${between(q[key])})` : '–')))),
        'What tells the routing, by layer'),
      table(['layer', 'tokens in a row', 'SRP', '95% interval', 'shuffled', 'group', 'SCH', 'shuffled', 'LRU', 'LFU'],
        layers.flatMap(l => l.windows.map(q => row(l.layer, q.tokens, fix(q.srp.value, 3), between(q.srp),
                                            fix(q.srp_shuffled, 3), fix(q.group), fix(q.sch, 3), fix(q.sch_shuffled, 3),
                                            fix(q.lru, 3), fix(q.lfu, 3)))),
        'Locality by layer'),
      layers[0].clusters.length > 0 &&
        table(['layer', 'clusters of tokens', 'divergence from the layer, less that of draws, of the most possible',
                '95% interval over experts'],
          layers.flatMap(l => l.clusters.map(q => row(l.layer, q.clusters, fix(q.divergence.value, 3), between(q.divergence)))),
          'Divergence of the experts’ tokens by layer'),
      h('p', {class: 'note'}, `Measured on ${whole(experts.rows)} documents of ${whole(experts.tokens)} tokens of ${
        experts.data}. SRP and SCH: arXiv 2505.16056. SRP: the group holds so many times the experts that a token uses.`))
  ];
}

// What bsp measured: the board functions by layer, beside their controls.

// --- Board state: coverage and reconstruction, their controls, and the paper's table

// Marks of the dot plots: the trained model in the accent colour, controls in grey.
const other = chess ? 'labels of another game at the same move' : 'labels of another text at the same place';
const textMark = (x, y) =>
  s('path', {d: `M${x} ${y - 6}l6 10h-12z`, fill: 'var(--paper)', stroke: 'var(--ink)', 'stroke-width': 1.8});
const controls = [
  {key: 'text', name: 'rules about the text', mark: textMark}, {
    key: 'same_move',
    name: other,
    mark: (x, y) =>
      s('path', {d: `M${x - 4.5} ${y - 4.5}l9 9m0 -9l-9 9`, stroke: 'var(--muted)', 'stroke-width': 1.8})
  },
  {
    key: 'permuted',
    name: 'labels shuffled',
    mark: (x, y) => s('line', {x1: x, x2: x, y1: y - 7, y2: y + 7, stroke: 'var(--muted)', 'stroke-width': 2})
  },
  {
    key: 'untrained',
    name: 'untrained weights',
    mark: (x, y) =>
      s('circle', {cx: x, cy: y, r: 5, fill: 'var(--paper)', stroke: 'var(--muted)', 'stroke-width': 2})
  }
];
const trainedMark = (x, y) =>
  s('circle', {cx: x, cy: y, r: 6.5, fill: 'var(--accent)', stroke: 'var(--paper)', 'stroke-width': 1.5});

// The scale of charts side by side, which show these numbers.
function scoreRange(keys) {
  const all = bsp.layers.flatMap(l => keys.flatMap(
    key => [l.board[key], l.board[key + '_low'], l.board[key + '_high'],
      ...controls.map(c => (l.board[c.key] || {})[key])])).filter(number);
  return [Math.min(0, ...all), Math.min(1, 1.02 * Math.max(.02, ...all))];
}
// One number of every layer's board score and the same number of its controls. key: in the layer and the controls.
function scores(title, key, range, caption) {
  const rows = bsp.layers.map(l => ({
    name: `Layer ${l.layer}`,
    strong: l.layer === boardLayer.layer,
    value: l.board[key],
    low: l.board[key + '_low'],
    high: l.board[key + '_high'],
    controls: controls.map(c => ({...c, value: (l.board[c.key] || {})[key]}))
  }));
  return figure(title, chart(w => dotRows(w, {title, x: range, rows, own: 'trained'})), caption);
}

// Yang et al., arXiv 2503.07639, tables of the chess experiments.
const paper = [
  ['GELU (GPT-2)', .213, .356, .608], ['ReLU', .215, .312, .581], ['GEGLU', .209, .255, .394],
  ['SoLU', .216, .306, .343], ['Monet-HD', .210, .312, .528], ['Monet-VD', .212, .283, .482],
  ['PEER', .214, .323, .426], ['Switch', .212, .424, .734], ['MoE-X from scratch', null, .398, .657],
  ['MoE-X, upcycled', .211, .428, .840]
];

function board() {
  const S = boardLayer.board, of = bsp.functions.find(f => f.name === boardName) || {};
  const legend = markLegend([
    ['trained, and its 95% interval over games', trainedMark], ...[...controls].reverse().map(c => [c.name, c.mark])
  ]);
  const names = ['text', 'untrained', 'same_move', 'permuted'],
        heads = ['text', 'untrained', 'same move', 'shuffled'],
        beside = (q, key) => names.map(c => fix((q[c] || {})[key], 3)),
        range = (q, key) => `${fix(q[key + '_low'], 3)}–${fix(q[key + '_high'], 3)}`;
  const held = scoreRange(['held_out', 'coverage']), beyond = scoreRange(['beyond', 'rec_beyond']);
  return [
    h('p', {class: 'lede'},
      `For every piece on every square, the unit was looked for that best tells whether it stands there. Much of ` +
        `that is said aloud by the text: rules about it, which know no chess, have a mean F1 of ${
          fix((S.text || {}).held_out, 3)} on games they were not chosen on; the units of layer ${
          boardLayer.layer} have ${fix(S.held_out, 3)}. Where units are better than the text, they add ${
          fix(S.beyond, 3)} to it (${range(S, 'beyond')}); untrained weights add ${
          fix((S.untrained || {}).beyond, 3)}.`),
    legend,
    h('div', {class: 'grid two'},
      scores('Coverage beyond the text, held out', 'beyond', beyond,
        'What units have more than the best rules about the text, where on the first games they are better.'),
      scores('Reconstruction beyond the text, held out', 'rec_beyond', beyond,
        'Units that are at least 95% sure, taken together: F1 over the pieces that no such rule says.'),
      scores('Coverage, held out', 'held_out', held,
        `Chosen on ${whole(bsp.games.train)} games, measured on ${whole(bsp.games.test)} others.`),
      scores('Coverage, as published', 'coverage', held, 'Chosen and measured on the same games.')),
    h('p', {class: 'note'},
      `Charts side by side have one scale. Of the 768 pieces on squares ${
        percent(of.attainable, 0)} occur in the first games, so that coverage ends at ${fix(of.attainable, 3)} there, and at ${
        fix(of.attainable_test, 3)} on the others; a unit that is always on has ${fix(of.floor, 3)} and ${
        fix(of.floor_test, 3)}. At the same move, with the same last move and length of the text, the units chosen ` +
        `would have ${fix(S.matched, 3)} by that alone. ${
          percent(bsp.games.seen)} of the positions are reached by a text that also begins one of the first games; ` +
        `on the others held-out coverage is ${fix(S.unseen, 3)}. Over the ${
          whole(of.common)} pieces on squares that are not rare it is ${fix(S.common, 3)}, that of rules about the text ${
          fix(S.text_common, 3)}.` +
        (bsp.own_games ? ' The model was trained on these games.' : '')),
    h('details', {}, h('summary', {}, 'All numbers by layer'),
      table(
        ['layer', 'units', 'alive', 'on per dot', 'beyond the text', '95% interval', 'untrained', 'held out',
          '95% interval', ...heads, 'expected of clock and last move'],
        bsp.layers.map(({board: q, ...l}) => row(l.layer, whole(l.units), whole(l.alive), fix(l.active[0], 1),
                         fix(q.beyond, 3), range(q, 'beyond'), fix((q.untrained || {}).beyond, 3),
                         fix(q.held_out, 3), range(q, 'held_out'), ...beside(q, 'held_out'), fix(q.matched, 3))),
        'Coverage by layer'),
      table(
        ['layer', 'as published', 'threshold', ...heads, 'a threshold for each', 'of the 704 that can occur'],
        bsp.layers.map(({board: q, ...l}) => row(l.layer, fix(q.coverage, 3), percent(q.threshold),
                         ...beside(q, 'coverage'), fix(q.per_cell, 3), fix(q.of_704, 3))),
        'Coverage as published, by layer'),
      table(
        ['layer', 'reconstruction beyond the text', '95% interval', 'untrained', 'held out', '95% interval',
          'as published', 'threshold', ...heads, 'each unit at its highest threshold'],
        bsp.layers.map(({board: q, ...l}) => row(l.layer, fix(q.rec_beyond, 3), range(q, 'rec_beyond'),
                         fix((q.untrained || {}).rec_beyond, 3), fix(q.rec, 3), range(q, 'rec'),
                         fix(q.rec_published, 3), percent(q.rec_threshold), ...beside(q, 'rec_published'),
                         fix(q.rec_max_mask, 3))),
        'Reconstruction by layer')),
    figure('For orientation: the models of the paper, on other games',
      table(['model', 'validation loss', '<board coverage', '<board reconstruction'],
        paper.map(m => h('tr', {}, h('th', {scope: 'row'}, m[0]), h('td', {}, fix(m[1], 3)),
                         h('td', {class: 'chart'}, bar(m[2], [], true)),
                         h('td', {class: 'chart'}, bar(m[3], [], true)))),
        'Models of the paper'),
      'Yang et al., arXiv 2503.07639; coverage and reconstruction as published, without the text as a rival. Not to be ' +
        'compared with this run: coverage depends on the games, their number and that of the units, and rare pieces. ' +
        'Those models have 8 layers of 512 channels, were trained for 60,000 steps of 100 human games from Lichess and ' +
        `measured on human games; this run on ${bsp.games.source}, layer ${boardLayer.layer}: ${
          fix(S.coverage, 3)} and ${fix(S.rec_published, 3)}, with ${whole(boardLayer.units)} units.`)
  ];
}

// --- Every board function, for one layer

let strategyLayer = bsp ? best(bsp.layers, l => l.strategy.gain).layer : 0;
function strategy(host) {
  const layer = bsp.layers.find(l => l.layer === strategyLayer),
        tokens = f => f.cells * bsp.games.train * bsp.games.dots;
  const line = f => {
    const S = layer.functions.find(q => q.name === f.name) || {}, c = key => (S[key] || {});
    return h('tr', {}, h('th', {scope: 'row'}, words(f.name)), h('td', {class: 'words wide'}, f.meaning),
      h('td', {class: 'wide'}, percent(f.positives[0] / tokens(f), 1)),
      h('td', {class: 'chart'},
        bar(S.held_out,
          [
            [c('text').held_out, f.text_rule ? `the text: ${f.text_rule}` : 'rules about the text'],
            [f.floor_test, 'always on'], [c('untrained').held_out, 'untrained'],
            [c('permuted').held_out, 'shuffled'], [c('same_move').held_out, 'same move'],
            [S.matched, 'expected of clock and last move']
          ])),
      h('td', {class: 'wide'}, fix(c('text').held_out, 3)),
      h('td', {class: 'wide'},
        fix(Math.max(...[f.floor_test, c('untrained').held_out, c('permuted').held_out, c('same_move').held_out,
              S.matched].filter(number)),
          3)),
      h('td', {class: 'chart'}, bar(S.beyond, [[c('untrained').beyond, 'untrained']])),
      h('td', {class: 'chart'}, bar(S.rec_beyond, [
        [c('untrained').rec_beyond, 'untrained'], [c('permuted').rec_beyond, 'shuffled'],
        [c('same_move').rec_beyond, 'same move']
      ])));
  };
  const group = (name,
    list) => [h('tr', {class: 'group'}, h('th', {colspan: 8, scope: 'colgroup'}, name)), list.map(line)];
  const means = [['held_out', 'coverage'], ['beyond', 'beyond the text'],
    ['rec_beyond', 'reconstruction beyond it']].map(([key, name]) => `${name} ${fix(layer.strategy[key], 3)}` +
      (layer.strategy.untrained ? ` (untrained ${fix(layer.strategy.untrained[key], 3)})` : ''));
  host.replaceChildren(
    picker('Layer', bsp.layers.map(l => [l.layer, l.layer]), strategyLayer,
      l => { strategyLayer = l, strategy(host), host.querySelector('[aria-pressed=true]').focus(); }),
    h('p', {class: 'note'},
      `Mean of the 14 strategy functions in layer ${strategyLayer}: ${means.join(', ')}.`),
    table(
      [
        'property', '<what it says?', 'true at?', '<coverage, held out', 'text?', 'best other control?',
        '<beyond the text', '<reconstruction beyond it'
      ],
      [
        group('Strategy', bsp.functions.filter(f => f.strategy)),
        group('Board', bsp.functions.filter(f => !f.strategy))
      ],
      'Board functions of one layer'));
}
function strategies() {
  const host = h('div', {}), queen = bsp.functions.find(f => f.name === 'has_queen'),
        check = boardLayer.functions.find(f => f.name === 'check_state');
  strategy(host);
  return [
    h('p', {class: 'lede'},
      'Several of these properties score high for nothing' +
        (queen ? `: a unit that is always on tells with F1 ${fix(queen.floor_test)} that White has a queen` : '') +
        (check && check.text ? `, and the + in the text tells with F1 ${fix(check.text.held_out)} of a check` : '') +
        '. What counts is what a unit has beyond all of that.'),
    host,
    h('p', {class: 'note'},
      'All measured on games that units and rules were not chosen on. Ticks: the best rules about the text, a unit that ' +
        'is always on, the untrained weights, shuffled labels, the labels of another game at the same move, and what is ' +
        'expected of the same units at the same move, last move and length of the text (point at one for its name and ' +
        'value). “True at” is the share of positions, or of squares.')
  ];
}

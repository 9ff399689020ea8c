// What bsp measured: the board functions by layer, beside their controls.

// --- Board state: coverage and reconstruction, their controls, and the paper's table

// Marks of the dot plots: the trained model in the accent colour, controls in grey.
const other = chess ? 'labels of another game at the same move' : 'labels of another text at the same place';
const controls = [
  {
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

// One number of every layer's board score and the same number of its controls.
function scores(title, key, low, high, caption) {
  const values = bsp.layers.map(l => ({
    layer: l.layer,
    value: l.board[key],
    low: l.board[low],
    high: l.board[high],
    controls: controls.map(c => (l.board[c.key] || {})[key])
  }));
  const top = Math.max(.02, ...values.flatMap(v => [v.value, v.high, ...v.controls]).filter(number)),
        first = best(values, v => v.value);
  return figure(title, chart(w => {
    const step = 30, p = plot(w, step * L + 30, {
      title,
      x: [0, Math.min(1, top * 1.02)],
      y: [0, L],
      yTicks: [],
      margin: {left: 62, right: 48, top: 4, bottom: 26}
    });
    values.forEach((v, i) => {
      const y = 4 + step * (i + .5), name = `Layer ${v.layer}`;
      p.svg.append(s('text', {x: 0, y: y + 4, class: v === first ? 'strong' : ''}, name),
        s('line', {class: 'gridline', x1: p.X(0), x2: w - p.m.right, y1: y, y2: y}));
      controls.forEach((c, j) => {
        if (number(v.controls[j]))
          p.svg.append(fill(c.mark(p.X(v.controls[j]), y), {},
            [s('title', {}, `${name}, ${c.name}: ${fix(v.controls[j], 3)}`)]));
      });
      if (number(v.low) && number(v.high))
        p.svg.append(s('line', {
          x1: p.X(v.low),
          x2: p.X(v.high),
          y1: y,
          y2: y,
          stroke: 'var(--accent)',
          'stroke-width': 5,
          opacity: .45
        }));
      if (number(v.value))
        p.svg.append(fill(trainedMark(p.X(v.value), y), {},
                       [s('title', {},
                         `${name}, trained: ${fix(v.value, 3)}` +
                           (number(v.low) ? `, 95% interval ${fix(v.low, 3)} to ${fix(v.high, 3)}` : ''))]),
          s('text', {class: 'strong halo', x: p.X(Math.max(v.value, v.high || 0)) + 11, y: y + 4},
            fix(v.value, 3)));
    });
    return p.svg;
  }),
    caption);
}

// Yang et al., arXiv 2503.07639, tables of the chess experiments.
const paper = [
  ['GELU (GPT-2)', .213, .356, .608], ['ReLU', .215, .312, .581], ['GEGLU', .209, .255, .394],
  ['SoLU', .216, .306, .343], ['Monet-HD', .210, .312, .528], ['Monet-VD', .212, .283, .482],
  ['PEER', .214, .323, .426], ['Switch', .212, .424, .734], ['MoE-X from scratch', null, .398, .657],
  ['MoE-X, upcycled', .211, .428, .840]
];

function board() {
  const S = boardBest.board, T = rebuiltBest.board,
        floor = (bsp.functions.find(f => f.name === boardName) || {}).floor;
  const mine = [
    `this run, layer ${boardBest.layer}` + (rebuiltBest !== boardBest ? ` and ${rebuiltBest.layer}` : ''),
    valLoss, S.coverage, T.reconstruction, true
  ];
  const legend = h('ul', {class: 'legend'},
    [['trained, and its 95% interval over games', trainedMark]]
      .concat(controls.map(c => [c.name, c.mark]).reverse())
      .map(([name, mark]) =>
             h('li', {}, s('svg', {width: 18, height: 18, 'aria-hidden': 'true'}, mark(9, 9)), name)));
  const against = ['untrained', 'shuffled', 'same move'],
        beside = (q, key) => ['untrained', 'permuted', 'same_move'].map(c => fix((q[c] || {})[key], 3));
  const held = best(bsp.layers, l => l.board.held_out).board,
        of = (q, key) =>
          q.untrained && number(q.untrained[key]) ? ` (${fix(q.untrained[key], 3)} before training)` : '';
  return [
    h('p', {class: 'lede'},
      `For every piece on every square, the unit was looked for that best tells whether it stands ` +
        `there. In layer ${boardBest.layer} these units have a mean F1 of ${fix(S.coverage, 3)}${
          of(S, 'coverage')}; chosen on some games and scored on others, ${fix(held.held_out, 3)} at best${
          of(held, 'held_out')}. ` +
        `Units that are at least 95% sure, taken together, rebuild the board of held-out games with an F1 of ${
          fix(T.reconstruction, 3)}${of(T, 'reconstruction')}.`),
    legend,
    h('div', {class: 'grid three'},
      scores('Coverage, as published', 'coverage', '', '', 'Chosen and scored on the same games.'),
      scores('Coverage, held out', 'held_out', 'held_out_low', 'held_out_high',
        `Chosen on ${whole(bsp.games.train)} games, scored on ${whole(bsp.games.test)} others.`),
      scores('Reconstruction', 'reconstruction', 'rec_low', 'rec_high',
        'Labels from the first games, scored on the others.')),
    h('p', {class: 'note'},
      (number(floor) ? `A unit that is always on would have a coverage of ${fix(floor, 3)}. ` : '') +
        `Of the 768 pieces on squares 64 can never occur, so that coverage ends at 0.917` +
        (number(S.possible) ? `; over the other 704 layer ${boardBest.layer} has ${fix(S.possible, 3)}`
                            : '') +
        '.'),
    figure('Beside the models of the paper',
      table(['model', 'validation loss', '<board coverage', '<board reconstruction'],
        [mine, ...paper]
          .sort((a, b) => b[2] - a[2])
          .map(m => h('tr', {class: m[4] ? 'this' : ''}, h('th', {scope: 'row'}, m[0]),
                 h('td', {}, fix(m[1], 3)), h('td', {class: 'chart'}, bar(m[2], [], !m[4])),
                 h('td', {class: 'chart'}, bar(m[3], [], !m[4])))),
        'Models of the paper and this run'),
      `Other rows: Yang et al., arXiv 2503.07639. Those models have 8 layers of 512 ` +
        `channels and were trained for 60,000 steps of 100 games on human games from Lichess, and ` +
        `measured on human games; this run was measured on ${
          bsp.games
            .source} with coverage and reconstruction as published. Losses on different games do not compare.`),
    h('details', {}, h('summary', {}, 'All numbers by layer'),
      table(
        [
          'layer', 'units', 'alive', 'on per dot', 'coverage (threshold)', ...against, 'held out',
          '95% interval', ...against
        ],
        bsp.layers.map(
          ({board: q, ...l}) => row(l.layer, whole(l.units), whole(l.alive), fix(l.active[0], 1),
            `${fix(q.coverage, 3)} (${q.threshold})`, ...beside(q, 'coverage'), fix(q.held_out, 3),
            `${fix(q.held_out_low, 3)}–${fix(q.held_out_high, 3)}`, ...beside(q, 'held_out'))),
        'Coverage by layer'),
      table(
        [
          'layer', 'reconstruction (threshold)', 'last', 'threshold of the train games', '95% interval',
          ...against
        ],
        bsp.layers.map(({board: q, ...l}) => row(l.layer, `${fix(q.reconstruction, 3)} (${q.rec_threshold})`,
                         fix(q.last, 3), fix(q.rec_held_out, 3), `${fix(q.rec_low, 3)}–${fix(q.rec_high, 3)}`,
                         ...beside(q, 'reconstruction'))),
        'Reconstruction by layer'))
  ];
}

// --- Every board function, for one layer

let strategyLayer = bsp ? best(bsp.layers, l => l.strategy.coverage).layer : 0;
function strategy(host) {
  const layer = bsp.layers.find(l => l.layer === strategyLayer),
        tokens = f => f.cells * bsp.games.train * bsp.games.dots;
  const line = f => {
    const S = layer.functions.find(q => q.name === f.name) || {}, c = key => (S[key] || {});
    return h('tr', {}, h('th', {scope: 'row'}, words(f.name)), h('td', {class: 'words wide'}, f.meaning),
      h('td', {class: 'wide'}, percent(f.positives[0] / tokens(f), 1)),
      h('td', {class: 'chart'},
        bar(S.coverage,
          [
            [f.floor, 'always on'], [c('untrained').coverage, 'untrained'],
            [c('permuted').coverage, 'shuffled'], [c('same_move').coverage, 'same move']
          ])),
      h('td', {class: 'wide'},
        fix(Math.max(
              ...[f.floor, c('untrained').coverage, c('permuted').coverage, c('same_move').coverage].filter(
                number)),
          3)),
      h('td', {class: 'wide'}, fix(S.held_out, 3)), h('td', {class: 'chart'}, bar(S.reconstruction, [
        [c('untrained').reconstruction, 'untrained'], [c('permuted').reconstruction, 'shuffled'],
        [c('same_move').reconstruction, 'same move']
      ])));
  };
  const group = (name,
    list) => [h('tr', {class: 'group'}, h('th', {colspan: 7, scope: 'colgroup'}, name)), list.map(line)];
  const means = ['coverage', 'reconstruction'].map(key => `${key} ${fix(layer.strategy[key], 3)}` +
      (layer.strategy.untrained ? ` (untrained ${fix(layer.strategy.untrained[key], 3)})` : ''));
  host.replaceChildren(
    picker('Layer', bsp.layers.map(l => [l.layer, l.layer]), strategyLayer,
      l => { strategyLayer = l, strategy(host), host.querySelector('[aria-pressed=true]').focus(); }),
    h('p', {class: 'note'},
      `Mean of the 14 strategy functions in layer ${strategyLayer}: ${means.join(', ')}.`),
    table(
      [
        'property', '<what it says?', 'true at?', '<coverage', 'best control?', 'held out?', '<reconstruction'
      ],
      [
        group('Strategy', bsp.functions.filter(f => f.strategy)),
        group('Board', bsp.functions.filter(f => !f.strategy))
      ],
      'Board functions of one layer'));
}
function strategies() {
  const host = h('div', {}), queen = bsp.functions.find(f => f.name === 'has_queen');
  strategy(host);
  return [
    h('p', {class: 'lede'},
      'Several of these properties score high for nothing' +
        (queen ? `: a unit that is always on tells with F1 ${fix(queen.floor)} that White has a queen` : '') +
        '. What counts is the distance of a bar from its ticks.'),
    host,
    h('p', {class: 'note'},
      'Ticks: what a unit that is always on, the untrained weights, shuffled labels and ' +
        'the labels of another game at the same move come to (point at one for its name and value). ' +
        '“Best control” is the highest of them; “held out” the coverage of units chosen on other games. ' +
        '“True at” is the share of positions, or of squares.')
  ];
}

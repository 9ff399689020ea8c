// What sparsity measured: how many units work on a token, and which experts.

// --- Sparsity

const small = (layers, make) =>
  h('div', {class: 'grid'}, layers.map(l => figure(`Layer ${l.layer}`, chart(w => make(l, w)))));

// Which tokens the figures are about: all of them (-1), or a group.
let sparseGroup = -1;
function sparseFigures(host) {
  const groups = sparsity.groups || [];
  const layers = sparsity.layers.map(
    l => sparseGroup < 0 ? l : {...l.groups[sparseGroup], layer: l.layer, groups: []});
  host.replaceChildren(...[
    groups.length > 1 &&
      picker('Tokens',
        [[-1, 'all'], ...groups.map((g, i) => [i, g, !sparsity.layers[0].groups[i].tokens])], sparseGroup,
        g => { sparseGroup = g, sparseFigures(host), host.querySelector('[aria-pressed=true]').focus(); }),
    figure('Units at work on a token', small(layers, unitsPerToken),
      `Tokens by how many units fire, ${whole(layers[0].tokens)} tokens.`),
    figure('How often a unit fires', small(layers, firingRates),
      'Units by the share of tokens they fire on, on a logarithmic scale. Units that do not fire here are left out.'),
    moe &&
      figure('The work of the experts', [small(layers, loads), sparseGroup < 0 && groupLegend(groups)],
        `Share of the assignments that go to each expert; dashed, an even share of ${percent(1 / E, 1)}.` +
          (groups.length > 1 && sparseGroup < 0
            ? ' Bars are all tokens, dots the groups with at least 1% of them.' : '')),
    moe && +config.n_expert_active > 1 &&
      figure('Experts that work together', small(layers, together),
        'Of the tokens that go to the expert of the row, the share that goes also to the expert of the column.'),
    h('details', {}, h('summary', {}, 'All numbers by layer'), sparsityTable(layers))
  ].filter(Boolean));
}
function sparse() {
  const layers = sparsity.layers, groups = sparsity.groups || [], host = h('div', {});
  const least = best(layers, l => -l.l0.mean), dead = sum(layers.map(l => l.dead));
  const byGroup = layers.map(l => row(l.layer, ...l.groups.map(g => fix(g.l0.mean, 1)), fix(l.l0.mean, 1)));
  sparseFigures(host);
  return [
    h('p', {class: 'lede'},
      `Of a layer’s ${whole(width)} units, ${whole(l0)} work on a token; layer ${least.layer} does ` +
        `with ${whole(least.l0.mean)}. ${percent(mean(layers.map(l => l.zero_work)))} of the units that ` +
        (moe ? 'the chosen experts compute' : 'are computed') + ' come out as zero, and ' +
        (dead ? `${whole(dead)} units of all layers do not fire on these ${whole(layers[0].tokens)} tokens.` : 'every unit fires at some time.')),
    groups.length > 1 &&
      figure(chess ? 'In the course of a game' : 'By kind of token',
        table(['layer', ...groups, 'all'], byGroup, 'Active units by group'),
        'Mean units at work per token. ' +
          groups.map((g, i) => `${g}: ${whole(layers[0].groups[i].tokens)} tokens`).join('; ') + '.'),
    host
  ];
}
function unitsPerToken(l, w) {
  const {edges, counts} = l.histogram, high = Math.max(...sparsity.layers.flatMap(q => q.histogram.edges));
  return histogram(w, 150, {
    title: `Active units per token in layer ${l.layer}`,
    x: [0, high],
    edges,
    counts,
    marks: [[l.l0.mean, `mean ${fix(l.l0.mean, 1)}`]],
    tell: i => `${fix(edges[i], 0)} to ${fix(edges[i + 1], 0)} units: ${whole(counts[i])} tokens`
  });
}
function firingRates(l, w) {
  const {edges, counts} = l.rates, low = Math.log10(Math.min(...sparsity.layers.map(q => q.rates.edges[0])));
  const names = {0: '100%', '-1': '10%', '-2': '1%', '-3': '0.1%', '-4': '10⁻⁴', '-5': '10⁻⁵', '-6': '10⁻⁶'};
  return histogram(w, 150, {
    title: `Units of layer ${l.layer} by firing rate`,
    log: true,
    x: [low, 0],
    edges,
    counts,
    xTicks: [-6, -5, -4, -3, -2, -1, 0].filter(x => x >= low - .01),
    xText: x => names[x],
    tell: i =>
      `${percent(edges[i], 3)} to ${percent(edges[i + 1], 3)} of the tokens: ${whole(counts[i])} units`
  });
}
function sparsityTable(layers) {
  const experts = ['load entropy, bits', 'at most', 'largest share', 'smallest share'];
  const load = l => {
    const shares = l.experts.map(e => e.load);
    return [
      fix(l.entropy), fix(l.max_entropy), percent(Math.max(...shares), 1), percent(Math.min(...shares), 1)
    ];
  };
  const one = l => row(l.layer, fix(l.l0.mean, 1), `${fix(l.l0.low, 1)}–${fix(l.l0.high, 1)}`,
    fix(l.l0.sd, 1), fix(l.participation, 1), percent(l.zero_work, 1), whole(l.dead), ...(moe ? load(l) : []));
  return table(['layer', 'units per token', 'interval', 'sd', 'participation ratio', 'zero work', 'dead', ...(moe ? experts : [])],
    layers.map(one), 'Sparsity by layer');
}
const groupColour = (i, n) =>
  `color-mix(in oklab, var(--ink) ${n > 1 ? Math.round(100 * i / (n - 1)) : 100}%, var(--paper))`;
const groupLegend = groups => groups.length > 1 &&
  h('ul', {class: 'legend'},
    groups.map(
      (g, i) => h('li', {},
        s('svg', {width: 12, height: 12, 'aria-hidden': 'true'},
          s('circle', {cx: 6, cy: 6, r: 4.5, fill: groupColour(i, groups.length), stroke: 'var(--muted)'})),
        g)));
function loads(l, w) {
  const enough = g => g.tokens >= .01 * sparsity.tokens, groups = l.groups.length > 1 ? l.groups : [];
  const high =
    Math.max(...sparsity.layers.flatMap(
               q => [q, ...q.groups.filter(enough)].flatMap(g => g.experts.map(e => e.load))),
      1.5 / E) *
    1.05;
  const p = plot(w, 170, {
    title: `Load of the experts of layer ${l.layer}`,
    x: [-.5, E - .5],
    y: [0, high],
    yText: y => percent(y),
    margin: {top: 10, bottom: 24},
    xTicks: Array.from({length: E}, (_, e) => e).filter(e => E <= 16 || e % Math.ceil(E / 16) === 0)
  });
  const thick = (p.X(1) - p.X(0)) * .7;
  l.experts.forEach(
    (x, e) => p.svg.append(s('rect', {
      x: p.X(e) - thick / 2,
      width: thick,
      y: p.Y(x.load),
      height: p.Y(0) - p.Y(x.load),
      fill: expertColour(e)
    },
      s('title', {},
        `expert ${e}: ${percent(x.load, 1)} of the assignments, ${fix(x.units, 1)} units when chosen`))));
  groups.forEach((g, i) => enough(g) &&
      g.experts.forEach(({load: x}, e) => p.svg.append(s('circle', {
        cx: p.X(e),
        cy: p.Y(x),
        r: Math.min(3.5, thick / 3),
        fill: groupColour(i, groups.length),
        stroke: 'var(--muted)',
        'stroke-width': 1
      },
                       s('title', {}, `expert ${e}, ${g.name}: ${percent(x, 1)}`)))));
  p.svg.append(s('line',
    {class: 'dash', stroke: 'var(--ink)', x1: p.m.left, x2: w - p.m.right, y1: p.Y(1 / E), y2: p.Y(1 / E)}));
  return p.svg;
}
function together(l, w) {
  const left = 24, top = 20, size = Math.min(300, w) - left, cell = size / E;
  const svg = s('svg', {
    viewBox: `0 0 ${size + left} ${size + top}`,
    width: size + left,
    height: size + top,
    role: 'img',
    'aria-label': `Which experts of layer ${l.layer} work together`
  });
  const some = e => E <= 16 || e % Math.ceil(E / 16) === 0;
  for (let a = 0; a < E; a++) {
    if (some(a))
      svg.append(s('text', {x: left - 7, y: top + (a + .5) * cell + 4, 'text-anchor': 'end'}, a),
        s('text', {x: left + (a + .5) * cell, y: top - 7, 'text-anchor': 'middle'}, a));
    const own = l.experts[a].load * +config.n_expert_active; // share of the tokens that go to a
    for (let b = 0; b < E; b++) {
      const share = a === b || !(own > 0) ? 0 : Math.min(1, l.corouting[a][b] / own);
      svg.append(s('rect', {
        x: left + b * cell,
        y: top + a * cell,
        width: Math.max(.5, cell - 1),
        height: Math.max(.5, cell - 1),
        fill: a === b
          ? 'none'
          : `color-mix(in oklab, var(--accent) ${Math.round(100 * Math.sqrt(share))}%, var(--soft))`
      },
        a !== b &&
          s('title', {}, `of the tokens of expert ${a}, ${percent(share, 1)} go to expert ${b}, too`)));
      if (cell > 27 && a !== b && share >= .005)
        svg.append(s('text', {
          x: left + (b + .5) * cell - .5,
          y: top + (a + .5) * cell + 4,
          'text-anchor': 'middle',
          style: `pointer-events:none;font-size:11px;fill:${share > .35 ? 'var(--paper)' : 'var(--ink)'}`
        },
          Math.round(100 * share)));
    }
  }
  return svg;
}

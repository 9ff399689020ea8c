// What probe measured: how well a few units of an expert tell a concept, beside what explains it away.

// --- Figures (dev/interp/probe.h), each with what it is in words and how its line is drawn

const negativesNames = ['same document', 'other documents', 'same token'].filter(
  name => probe && probe.concepts.some(c => c[name]));
const cellsOf = moe ? 'expert' : 'layer';
const ownLine = {colour: 'var(--accent)', dots: true}, fineLine = {colour: 'var(--accent)', thin: true, dash: true};
const control1 = {colour: 'var(--ink)', thin: true}, control2 = {...control1, dash: true},
      control3 = {colour: 'var(--grey)', thin: true}, control4 = {...control3, dash: true};
// of(v, i, c): the figure of concept c, variant v of its negatives, at the i-th k. flat: the same for every k
const bestFigures = [
  {key: 'B', name: `best ${cellsOf}, picked on other documents`, line: ownLine, of: (v, i) => v.model[i].B},
  {key: 'A', name: 'picked on the test tokens, as published', line: fineLine, of: (v, i) => v.model[i].A},
  {key: 'E', name: 'a dense twin on the same tokens', line: control1, of: (v, i) => (v.E || [])[i]},
  {key: 'F', name: 'the twin, tokens dealt out at random', line: control2, of: (v, i) => (v.F || [])[i]},
  {key: 'J', name: 'random subsets of the twin’s units', line: control3, of: (v, i) => (v.J || [])[i]},
  {key: 'H', name: `always yes, best ${cellsOf}`, line: control4, of: (v, i) => v.model[i].H_most},
  {key: 'G', name: 'labels shifted, one unit', first: true, of: (v, i, c) => c.G.A_mean}
];
const togetherFigures = [
  {key: 'D', name: moe ? 'all experts together' : 'all tokens of the best layer', line: ownLine, of: (v, i) => v.model[i].D},
  {key: 'dense', name: 'the dense twin', line: control1, of: (v, i) => v.dense && v.dense[i].D},
  {key: 'place', name: 'the token and its place', line: control2, of: v => v.I_position},
  {key: 'token', name: 'the token alone', line: control4, of: v => v.I_token},
  {key: 'rule', name: 'the best rule about the text', line: control3, all: true, of: v => v.I_rule},
  {key: 'G', name: 'labels shifted, one unit', first: true, of: (v, i, c) => c.G.D_mean}
];
const lineMark = line => (x, y) => line
  ? s('line', {x1: 0, x2: 18, y1: y, y2: y, class: 'line' + (line.thin ? ' thin' : '') + (line.dash ? ' dash' : ''),
      style: `stroke:${line.colour}`})
  : s('circle', {cx: x, cy: y, r: 3, fill: 'var(--muted)'});

let probeNegatives = 0, probeGroup = '', probeK = 0;
const askedConcepts = () => probe.concepts.filter(
  c => (!probeGroup || c.group === probeGroup) && c[negativesNames[probeNegatives]]);
// Mean of a figure over the concepts that have it, and how many those are.
function meanFigure(q, i) {
  const values = askedConcepts().map(c => q.of(c[negativesNames[probeNegatives]], i, c)).filter(number);
  return {value: mean(values), count: values.length};
}
// G is measured with negatives of the same document alone.
// all: of all concepts that are shown, or its mean would be one of others.
const isThere = q => {
  const {count} = meanFigure(q, 0);
  return (!q.first || probeNegatives === 0) && (q.all ? count === askedConcepts().length : count > 0);
};

function probeCurves(title, figures, caption) {
  const shown = figures.filter(isThere), count = askedConcepts().length;
  const points = q => probe.k.slice(0, q.first ? 1 : probe.k.length)
                        .map((k, i) => [Math.log2(k), meanFigure(q, i).value]).filter(a => number(a[1]));
  const series = shown.map(q => ({
    name: q.key,
    label: q.first ? '' : q.key,
    ...(q.line || {colour: 'var(--muted)', dots: true}),
    points: points(q)
  }));
  const values = series.flatMap(q => q.points.map(a => a[1])), low = lowest(values);
  const last = Math.log2(probe.k[probe.k.length - 1]);
  return figure(title, [
    chart(w => lines(w, 290, {
      title: `${title}: F1 by number of units, ` + shown.map(q => `${q.name} ${fix(points(q)[0][1], 3)}`).join(', '),
      x: [Math.log2(probe.k[0]), last === Math.log2(probe.k[0]) ? last + 1 : last],
      y: [Math.max(0, Math.floor(20 * low - .4) / 20), 1],
      yLabel: 'F1',
      xLabel: 'units of a probe',
      xTicks: probe.k.map(Math.log2),
      xText: x => Math.round(2 ** x),
      margin: {right: 52},
      at: x => `k ${Math.round(2 ** x)}`,
      digits: 2,
      series
    })),
    markLegend(shown.map(q => {
      const n = meanFigure(q, 0).count;
      return [(q.key === q.name ? '' : q.key + ': ') + q.name + (n < count ? ` (of ${n} concepts)` : ''), lineMark(q.line)];
    }))
  ],
    caption);
}

// Every concept at one k, beside its controls.
function conceptTable() {
  const negatives = negativesNames[probeNegatives], marks = (c, figures) => figures.slice(1)
      .filter(q => !q.first || (probeK === 0 && probeNegatives === 0)).map(q => [q.of(c[negatives], probeK, c), q.name]);
  const line = c => {
    const m = c[negatives].model[probeK];
    return h('tr', {}, h('th', {scope: 'row', title: c.concept}, conceptName(c.concept)),
      h('td', {class: 'chart'}, bar(m.B, marks(c, bestFigures))),
      h('td', {class: 'chart'}, bar(m.D, marks(c, togetherFigures))),
      h('td', {class: 'wide'}, moe ? `${m.layer}/${m.expert}` : m.layer), h('td', {class: 'wide'}, percent(m.coverage)),
      h('td', {class: 'wide'}, fix(c[negatives].I_token, 3)), h('td', {class: 'wide'}, fix(c[negatives].I_rule, 3)),
      h('td', {class: 'wide'}, c.counts ? 'yes' : 'no'));
  };
  const list = askedConcepts(), groups = [...new Set(list.map(c => c.group))];
  return table([
    'concept', `<best ${cellsOf} (B)`, `<${togetherFigures[0].name} (D)`, `${moe ? 'layer/expert' : 'layer'}?`,
    'of the concept’s tokens it sees?', 'the token alone?', 'best rule?', 'beyond token and text?'
  ],
    groups.map(group => [h('tr', {class: 'group'}, h('th', {colspan: 8, scope: 'colgroup'}, group)),
                 list.filter(c => c.group === group).map(line)]),
    'Concepts by probes');
}

function probeFigures(again) {
  const groups = [...new Set(probe.concepts.map(c => c.group))],
        asked = probe.concepts.filter(c => c[negativesNames[probeNegatives]]);
  if (!askedConcepts().length) probeGroup = '';
  return [
    negativesNames.length > 1 &&
      choice(again, 'Negatives', negativesNames.map((name, v) => [v, name]), probeNegatives, v => { probeNegatives = v; }),
    groups.length > 1 &&
      choice(again, 'Concepts', [['', 'all'], ...groups.map(g => [g, g, !asked.some(c => c.group === g)])], probeGroup,
        g => { probeGroup = g; }),
    h('div', {class: 'grid two'},
      probeCurves(moe ? 'The best of all experts' : 'The best of all layers', bestFigures,
        `F1 on the ${cellsOf}’s own tokens. The best of many is high by itself: so are its controls.`),
      probeCurves(moe ? 'All experts together' : 'On all tokens', togetherFigures,
        'Every token counts, F1 at equal classes: what always says yes has 0.667.' +
          (probe.concepts.some(c => c.rule) ? ' Rules about the text stand beside groups of concepts that have them.' : ''))),
    h('p', {class: 'note'}, `Means over ${askedConcepts().length} concepts.` +
      (probe.twin && probeNegatives > 0 ? ' E, F, G and J are measured beside tokens of the same document alone.' : '')),
    h('details', {}, h('summary', {}, 'Every concept beside its controls'),
      probe.k.length > 1 &&
        choice(again, 'Units', probe.k.map((k, i) => [i, k]), probeK, i => { probeK = i; }),
      conceptTable(), h('p', {class: 'note'}, 'Ticks: the same controls as above (point at one for its name and value).'))
  ];
}
function probing() {
  if (!probe.concepts.length || !negativesNames.length) return [h('p', {class: 'absent'}, 'No concept is answered often enough.')];
  const value = (list, key) => fix(meanFigure(list.find(q => q.key === key), 0).value, 2);
  const n = probe.concepts.length, cells = moe ? `${whole(E * probe.layers.length)} experts` : `${probe.layers.length} layers`;
  return [
    h('p', {class: 'lede'},
      `${whole(n)} concepts were asked of ${probe.k.length > 1 ? `${probe.k[0]} to ${probe.k[probe.k.length - 1]} units` : `${
        probe.k[0]} units`} at a time, chosen on some documents and measured on others. Taken as published, from the best of ` +
        `${cells} on the test tokens themselves, a probe of ${probe.k[0]} has a mean F1 of ${value(bestFigures, 'A')}; with ` +
        `labels shifted within the document it has ${value(bestFigures, 'G')}, and whoever always says yes ${
          value(bestFigures, 'H')}. ${moe ? 'All experts together' : 'On all tokens'}, at equal classes, it has ${
          value(togetherFigures, 'D')}, the token alone ${value(togetherFigures, 'token')}. ${
          whole(probe.concepts.filter(c => c.counts).length)} of the concepts are told better than by the token, its place ` +
        'and rules about the text.'),
    probe.twin ? h('p', {class: 'verdict'}, probe.sentence)
               : moe && h('p', {class: 'note'},
                   'Whether a dense model’s units tell as much on the same tokens is not known without one. This measures it ' +
                     'beside one: ',
                   h('code', {}, 'build/' + run.tools.probe.command + ' --twin DENSE_RUN'), '.'),
    redrawn(probeFigures),
    h('p', {class: 'note'},
      `Measured on ${whole(probe.rows)} documents of ${whole(probe.tokens)} tokens of ${probe.data}: ${
        probe.documents.map(whole).join(', ')} to train on, to choose on, to test on` +
        (probe.twin ? `; twin ${probe.twin.checkpoint}` : '') +
        `. ${whole(probe.left_out.length)} more concepts are answered too seldom. After arXiv 2604.02178.`)
  ];
}

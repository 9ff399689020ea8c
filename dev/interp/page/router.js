// What router measured: its scores beside what all experts would have done, and the weights of the experts.

// --- The router's score against what the experts would have done

// Points of one colour are one path of dots: thousands of points in few elements.
const dots = (points, colour, X, Y, size, opacity, name) => s('path', {
  d: points.map(q => `M${X(q[0]).toFixed(1)} ${Y(q[1]).toFixed(1)}h0`).join(''),
  fill: 'none',
  stroke: colour,
  'stroke-width': size,
  'stroke-linecap': 'round',
  opacity
}, s('title', {}, name));
const byExpert = points => Array.from({length: E}, (_, e) => points.filter(q => q[2] === e));
// The number of each expert in the middle of its points: hue alone would not tell them.
const expertNumbers = (points, X, Y) => E > 16 ? [] : byExpert(points).map((q, e) => q.length > 0 && s('text', {
  class: 'strong halo',
  'text-anchor': 'middle',
  x: X(mean(q.map(a => a[0]))),
  y: Y(mean(q.map(a => a[1]))) + 4
}, e));

function routing() {
  const layers = router.layers, sparsityRouter = config.router === 'sparsity', D = +config.d_expert;
  const most = Math.max(1, highest(layers.flatMap(l => l.scatter.map(q => q[1]))));
  const gs = layers.flatMap(l => l.scatter.map(q => q[0])),
        range = sparsityRouter ? [-1, 1] : [lowest(gs), highest(gs)];
  const r = mean(layers.map(l => l.pearson.within)), agree = mean(layers.map(l => l.agreement)),
        chance = mean(layers.map(l => l.chance));
  const calibrated = layers.filter(
    l => l.calibration && l.calibration.predicted.length && l.calibration.predicted.some(number));
  const interval = q => q.within_low !== undefined ? `${fix(q.within_low, 3)} to ${fix(q.within_high, 3)}`
                                                   : `${fix(q.low, 3)} to ${fix(q.high, 3)}`;
  return [
    h('p', {class: 'lede'},
      sparsityRouter
        ? `The router computes the mean that an expert’s units would have on a token, exactly, and estimates their ` +
          `spread; from both it scores which experts would fire least. On ${
            whole(router.sample.tokens)} tokens all experts were run to see. Score and count correlate with ${
            fix(r, 2)}${number(truthBefore) ? ` (before training ${fix(truthBefore, 2)}: a mean must go with the count above zero)` : ''}, and ${percent(agree)} of the chosen are among the sparsest (by chance ${
            percent(chance)}).`
        : `This router has weights of its own. On ${
            whole(
              router.sample
                .tokens)} tokens all experts were run: its scores and the units that fire correlate with ${
            fix(r, 2)}, and ${percent(agree)} of the chosen are among the sparsest (by chance ${
            percent(chance)}).`),
    figure('Score against units that fire',
      [
        small(layers,
          (l, w) => {
            const p = plot(w, 210, {
              title: `Router score and active units in layer ${l.layer}`,
              x: range,
              y: [0, most * 1.03],
              yLabel: 'units',
              xLabel: 'score g',
              margin: {left: 36, top: 22},
              xTicks: sparsityRouter ? [-1, 0, 1] : null
            });
            byExpert(l.scatter).forEach(
              (points, e) => p.svg.append(dots(points, expertColour(e), p.X, p.Y, 3.4, .6, `expert ${e}`)));
            fill(p.svg, {}, expertNumbers(l.scatter, p.X, p.Y));
            p.svg.append(s('text', {class: 'strong halo', x: w - 10, y: 34, 'text-anchor': 'end'},
              `r = ${fix(l.pearson.within, 3)}`));
            return p.svg;
          }),
        expertLegend()
      ],
      'Each dot is one expert on one token, chosen or not, each number stands in the middle of its expert’s; r is ' +
        'taken over a token’s experts and averaged.'),
    calibrated.length > 0 &&
      figure('Units expected against units that fire',
        small(calibrated,
          (l, w) => {
            const c = l.calibration,
                  top = Math.max(...c.predicted.filter(number), ...c.actual.filter(number)) * 1.04;
            const p = plot(w, 210, {
              title: `Expected and true active units in layer ${l.layer}`,
              x: [0, top],
              y: [0, top],
              xLabel: 'expected, D Φ(μ/σ)',
              yLabel: 'units',
              margin: {left: 36, top: 22}
            });
            const points =
              c.predicted.map((x, i) => [x, c.actual[i]]).filter(q => number(q[0]) && number(q[1]));
            fill(p.svg, {}, [
              s('line', {
                class: 'axis dash',
                x1: p.X(0),
                y1: p.Y(0),
                x2: p.X(top),
                y2: p.Y(top),
                style: 'shape-rendering:auto'
              }),
              s('path', {class: 'line', d: path(points, p.X, p.Y), style: 'stroke:var(--accent)'}),
              points.map((q, i) => s('circle', {cx: p.X(q[0]), cy: p.Y(q[1]), r: 3, fill: 'var(--accent)'},
                           s('title', {},
                             `expected ${fix(q[0], 1)}, true ${fix(q[1], 1)}: ${whole(c.count[i])} cases`)))
            ]);
            return p.svg;
          }),
        `The estimate takes the ${
          D} rows of an expert for Gaussian. On the dashed line it is right. The root mean square error is ${
          layers.map(l => fix(l.rmse, 1)).join(', ')} units from layer ${layers[0].layer} on.`),
    h('details', {}, h('summary', {}, 'All numbers by layer'),
      table(
        [
          'layer', 'Pearson, in a token', '95% interval', 'Pearson, overall', 'Spearman, in a token',
          '95% interval', 'Spearman, overall', 'agreement', 'chance', 'regret, units', 'rms error'
        ],
        layers.map(l => row(l.layer, fix(l.pearson.within, 3), interval(l.pearson), fix(l.pearson.overall, 3),
                     fix(l.spearman.within, 3), interval(l.spearman), fix(l.spearman.overall, 3),
                     percent(l.agreement, 1), percent(l.chance, 1), fix(l.regret, 2), fix(l.rmse, 2))),
        'Router by layer'),
      h('p', {class: 'note'},
        'The paper reports a correlation beyond −0.95, and no reliable relation for a learned top-k router. ' +
          'Regret: units that the truly sparsest experts would have saved.'))
  ];
}

function gaussian() {
  const steps = router.history,
        at = (l, key) =>
          steps.filter(q => q.layers[l] && number(q.layers[l][key])).map(q => [q.step, q.layers[l][key]]);
  const panel = (title, key, caption, control) => {
    const series = Array
                     .from({length: L}, (_, l) => ({
                       name: 'layer ' + l,
                       label: L <= 12 || l === L - 1 || l === 0 ? String(l) : null,
                       colour: layerColour(l),
                       thin: true,
                       dots: true,
                       points: at(l, key)
                     }))
                     .filter(q => q.points.length);
    if (control)
      series.push(
        {name: 'a true Gaussian', colour: 'var(--ink)', dash: true, thin: true, points: at(0, control)});
    const values = series.flatMap(q => q.points.map(a => a[1]));
    if (!values.length) return null;
    const low = Math.min(0, ...values), high = Math.max(0, ...values), space = .06 * (high - low || 1);
    const y = key === 'pearson_within'
      ? [-1, Math.max(-.9, high === 0 ? Math.max(...values) + .02 : high + space)]
      : [low < 0 ? low - space : 0, high + space];
    return figure(title, chart(w => lines(w, 210, {
      title,
      y,
      margin: {top: 18, right: 24},
      xTicks: [0, run.step],
      digits: 3,
      series,
      read: list => list.filter(q => q.name !== 'a true Gaussian').map(q => fix(q.value, 2)).join('  ')
    })),
      caption);
  };
  const last = steps[steps.length - 1], distance = mean(last.layers.map(l => l.ks)),
        control = mean(last.layers.map(l => l.ks_gaussian));
  const spread = mean(last.layers.map(l => l.sd_ratio)), fitted = mean(last.layers.map(l => l.ks_fitted)),
        fittedControl = (router.gaussian || {}).ks_fitted;
  return [
    h('p', {class: 'lede'},
      `The router takes what an expert’s units say to a token for a Gaussian sample. At step ${
        whole(last.step)} their distribution is ${
        fix(distance, 3)} away from the one it assumes, where a true sample is ${fix(control, 3)} away.` +
        (number(spread) && number(fitted)
            ? ` They spread ${
                fix(spread,
                  2)} times as far as assumed; from the Gaussian of their own mean and spread they are ${
                fix(fitted, 3)} away${number(fittedControl) ? ` (a true sample: ${fix(fittedControl, 3)})` : ''}.`
            : '')),
    h('div', {class: 'grid three'},
      panel('Distance from the Gaussian assumed', 'ks',
        'Largest difference of the distribution functions (Kolmogorov–Smirnov). ' +
          'Dashed: a true Gaussian sample of the same size.',
        'ks_gaussian'),
      panel('Spread beside the one assumed', 'sd_ratio',
        'True standard deviation over the router’s σ, which takes the channels for independent. ' +
          '1: it is right.' +
          (number(last.layers[0].sd_ratio_low)
              ? ' By expert, lowest to highest: ' + last.layers.map(l => `${fix(l.sd_ratio_low)} to ${
                  fix(l.sd_ratio_high)}`).join('; ') + '. Where experts differ, their order may be wrong.'
              : '')),
      panel('Skew', 'skew', 'Gaussian: 0.'),
      panel('Excess kurtosis', 'kurtosis',
        'Gaussian: 0. Above: a few units answer far more strongly than the rest.'),
      panel('Correlation of score and truth', 'pearson_within',
        'Over the experts of a token. −1: the router’s order is the true one.')),
    h('p', {class: 'note'},
      'Numbers at the lines are layers, the last in the accent colour. Step 0 is before training.')
  ];
}

// --- The encoder rows of all experts in two dimensions

let encoderLayer = 0;
function encoder(host) {
  const layer = router.layers.find(l => l.layer === encoderLayer) || router.layers[0], pca = layer.pca;
  const range = f => pca.points.reduce(([a, b], q) => [Math.min(a, q[f]), Math.max(b, q[f])], [0, 0]);
  host.replaceChildren(router.layers.length > 1
      ? picker('Layer', router.layers.map(l => [l.layer, l.layer]), layer.layer,
          l => { encoderLayer = l, encoder(host), host.querySelector('[aria-pressed=true]').focus(); })
      : '',
    chart(w => {
      const [x0, x1] = range(0), [y0, y1] = range(1),
                 k = Math.min((w - 12) / (x1 - x0 || 1), 520 / (y1 - y0 || 1)), height = (y1 - y0) * k + 12;
      const X = q => w / 2 + (q - (x0 + x1) / 2) * k, Y = q => 6 + (y1 - q) * k;
      const svg = s('svg', {
        viewBox: `0 0 ${w} ${height}`,
        width: w,
        height,
        role: 'img',
        'aria-label':
          `Encoder rows of layer ${layer.layer} on their first two principal axes, coloured by expert`
      },
        s('line', {class: 'gridline', x1: X(x0), x2: X(x1), y1: Y(0), y2: Y(0)}),
        s('line', {class: 'gridline', x1: X(0), x2: X(0), y1: Y(y0), y2: Y(y1)}));
      byExpert(pca.points).forEach(
        (points, e) => svg.append(dots(points, expertColour(e), X, Y, 4.5, .55, `expert ${e}`)));
      return fill(svg, {}, expertNumbers(pca.points, X, Y));
    }),
    expertLegend(),
    h('p', {class: 'note'},
      `Layer ${layer.layer}: ${
        whole(pca.points.length)} rows of W_enc on the first two principal axes, which hold ${
        percent(pca.explained[0], 1)} and ${percent(pca.explained[1], 1)} of their variance.`));
}
function encoders() {
  const host = h('div', {});
  encoder(host);
  return host;
}

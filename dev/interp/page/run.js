// The head of the page and how the run was trained: from the log and the state file.

// --- The head: what the model is, and its numbers in one glance

const modelName = !moe ? (config.act === 'gelu' ? 'GPT-2' : 'Dense ReLU model')
  : config.router === 'topk'
  ? (config.act === 'gelu' ? 'Switch-style mixture' : 'Top-k mixture of ReLU experts')
  : config.act === 'relu' ? 'MoE-X'
                          : 'Mixture of GELU experts, routed by sparsity';
const boardName = 'piece_masked_blank_and_initial_state';
// The layer that gains most over the text on the games that units were chosen on; all numbers of it are of others.
const boardLayer = bsp && (bsp.layers.find(l => l.layer === bsp.best_layer) || bsp.layers[0]);
const valLoss = run.val_loss && run.val_loss.length ? run.val_loss[run.val_loss.length - 1][1] : null;
const l0 = sparsity         ? mean(sparsity.layers.map(l => l.l0.mean))
  : run.l0 && run.l0.length ? run.l0[run.l0.length - 1][1]
                            : null;
const truth = router && mean(router.layers.map(l => l.pearson && l.pearson.within));
const truthBefore = router && router.history && router.history.length && router.history[0].step === 0
  ? mean(router.history[0].layers.map(l => l.pearson_within))
  : null;
const unitName = u => `layer ${u.layer}, ` + (moe ? `expert ${u.expert}, ` : '') + `unit ${u.unit}`;

function head() {
  const tiles = [];
  const tile = (name, value, small, note) => tiles.push(h('div', {}, h('dt', {}, name),
    h('dd', {class: 'value'}, value, small && h('small', {}, ' ' + small)), h('dd', {class: 'note'}, note)));
  if (number(valLoss))
    tile('Validation loss', fix(valLoss, 3), null,
      `nats per token; a uniform guess has ${fix(Math.log(+config.vocab_size), 2)}`);
  if (number(l0))
    tile('Active units per token', whole(l0), 'of ' + whole(width),
      `in a layer, ${percent(l0 / width, 1)}` +
        (moe ? `; the ${config.n_expert_active} chosen experts have ${
                 whole(config.n_expert_active * config.d_expert)}`
             : ''));
  if (boardLayer) {
    const B = boardLayer.board, before = B.untrained || {};
    tile('Board coverage beyond the text', fix(B.beyond, 3), null,
      `layer ${boardLayer.layer}, ${fix(B.beyond_low, 3)} to ${fix(B.beyond_high, 3)} on games its units were not ` +
        `chosen on; untrained weights ${fix(before.beyond, 3)}. With what the text says: ${fix(B.held_out, 3)}, rules ` +
        `about the text alone ${fix((B.text || {}).held_out, 3)}`);
    tile('Board reconstruction beyond it', fix(B.rec_beyond, 3), null,
      `F1 over the pieces that no rule about the text says; ${fix(B.rec_beyond_low, 3)} to ${
        fix(B.rec_beyond_high, 3)}, untrained weights ${fix(before.rec_beyond, 3)} at most`);
  }
  if (number(truth))
    tile('Router and truth', fix(truth, 2), null,
      `correlation of the score with the units that fire, over a token's experts`);
  if (features) {
    const f = features.summary, before = f.untrained;
    tile('Units that know more than the text says', whole(f.knows), 'of ' + whole(f.tested),
      `${whole(f.reads)} read the text` +
        (before ? `; of untrained weights ${whole(before.knows)} and ${whole(before.reads)}` : ''));
  }
  const sentence = features && features.sentence;
  const link = features && number(features.best) && features.units[features.best];
  return h('header', {}, h('p', {class: 'kicker'}, `${run.run}, step ${whole(run.step)}`),
    h('h1', {},
      `What a ${modelName} of ${human(run.parameters)} parameters learned` + (chess ? ' from chess' : '')),
    sentence ? h('p', {class: 'lede'}, sentence[0].toUpperCase() + sentence.slice(1) + '. ',
                 link && h('a', {href: place(link)}, 'See it at work'))
             : h('p', {class: 'lede'},
                 `Its ${config.n_layer} layers have ${whole(width)} units each.`),
    h('dl', {class: 'numbers'}, tiles),
    h('nav', {'aria-label': 'Sections'},
      sections.filter(q => !q.when || q.when()).map(q => h('a', {href: '#' + q.id}, q.name))));
}

// --- How it was trained

function training() {
  const flags = run.flags, facts = [];
  const fact = (name, value) => {
    if (value !== undefined && value !== null && value !== '')
      facts.push(h('div', {}, h('dt', {}, name), h('dd', {}, value)));
  };
  fact('layers, heads, channels', `${config.n_layer}, ${config.n_head}, ${config.n_embd}`);
  fact('feed-forward',
    moe ? `${config.n_expert_active} of ${config.n_expert} experts of ${config.d_expert}`
        : `dense, ${whole(width)} units`);
  fact('activation, router', config.act + (moe ? ', ' + config.router : ''));
  fact('parameters', `${human(run.parameters)}, ${human(run.active_parameters)} per token`);
  fact('tokens',
    `${config.tokenizer || 'tokenizer unstated'}, ${whole(+config.vocab_size)}; ${
      config.block_size} positions`);
  fact('training data', flags.train);
  fact('tokens per step', flags['total-tokens'] && whole(+flags['total-tokens']));
  fact('tokens seen', flags['total-tokens'] && human(run.step * +flags['total-tokens']));
  fact('learning rate', flags.lr && +flags.lr ? +flags.lr : null);
  fact('weight decay, load balance',
    flags['weight-decay'] && `${flags['weight-decay']}, ${flags['aux-weight']}`);
  fact('seed', flags.seed);
  fact('time',
    run.train_seconds > 0 ? `${duration(run.train_seconds)}, ${human(run.tokens_per_second)} tokens/s`
                          : null);
  const charts = [];
  if (run.loss && run.loss.length) {
    const values = run.loss.map(a => a[1]).concat((run.val_loss || []).map(a => a[1]));
    const low = Math.min(...values), start = Math.max(...values), sorted = [...values].sort((a, b) => a - b);
    const high = Math.min(
      start, Math.max(low + 3 * (sorted[Math.floor(.9 * sorted.length)] - low), low + .25 * (start - low)));
    const y = [Math.max(0, low - .06 * (high - low)), high];
    charts.push(figure('Loss', chart(w => lines(w, 270, {
      title: 'Loss over steps',
      y,
      yLabel: 'nats per token',
      xLabel: 'step',
      margin: {right: 74},
      series: [
        {
          name: 'training',
          label: 'training',
          colour: 'var(--grey)',
          points: run.loss,
          band: true,
          thin: true
        },
        {
          name: 'validation',
          label: 'validation',
          colour: 'var(--accent)',
          points: run.val_loss || [],
          dots: true
        }
      ]
    })),
      `Means over ${whole(run.step / run.loss.length)} steps, shaded from the smallest to the largest.` +
        (high < start ? ` The start, from ${fix(start, 2)}, is cut off.` : '')));
  }
  if (run.l0 && run.l0.length) {
    const high = 1.08 * Math.max(...run.l0.map(a => a[3]));
    charts.push(figure('Units at work per token', chart(w => lines(w, 270, {
      title: 'Active units per token over steps',
      y: [0, high],
      yLabel: 'units, mean over the layers',
      xLabel: 'step',
      margin: {right: 14},
      digits: 0,
      series: [{name: 'units', colour: 'var(--accent)', points: run.l0, band: true}]
    })),
      `A layer has ${whole(width)}.`));
  }
  const layers = Array.from({length: L}, (_, l) => figure(`Layer ${l}`, chart(w => loadCurves(l, w))));
  return [
    h('dl', {class: 'settings'}, facts), h('div', {class: 'grid two'}, charts),
    moe && run.load && run.load.length > 1 &&
      figure('Share of the work that goes to each expert',
        [h('div', {class: 'grid'}, layers), expertLegend()],
        `Measured at every evaluation. Dashed: an even share, ${percent(1 / E, 1)}.`),
    !run.loss && h('p', {class: 'absent'}, 'The folder has no log.jsonl.')
  ];
}

// The share of a layer's assignments that goes to each expert, over steps. Pointing at it names the largest.
function loadCurves(l, w) {
  const even = {name: 'even share', colour: 'var(--ink)', dash: true, thin: true};
  even.points = [[0, 1 / E], [run.step, 1 / E]];
  const series = Array.from({length: E}, (_, e) => {
    return {
      name: 'expert ' + e,
      label: E <= 10 ? String(e) : null, // hue alone would not tell them
      colour: expertColour(e),
      thin: true,
      points: run.load.map(a => [a[0], a[1][l][e]])
    };
  });
  const largest = list => best(list.slice(0, E), r => r.value);
  return lines(w, 190, {
    title: `Expert load of layer ${l} over steps`,
    series: [...series, even],
    margin: {top: 18, right: 24},
    y: [0, 1.05 * Math.max(2 / E, ...run.load.flatMap(a => a[1].flat()))],
    yText: y => percent(y),
    xTicks: [0, run.step],
    read: list => `${largest(list).name} has ${percent(largest(list).value)}`
  });
}
const expertLegend = () => h('ul', {class: 'legend'},
  Array.from({length: E},
    (_, e) => h('li', {},
      s('svg', {width: 12, height: 12, 'aria-hidden': 'true'},
        s('circle', {cx: 6, cy: 6, r: 5, fill: expertColour(e)})),
      'expert ' + e)));

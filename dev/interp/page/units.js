// What features measured: a browser of single units, with a board for chess models.

// --- The browser of units

// Silhouettes in a square of 100, own drawings: [outline, lines inside].
const foot = 'M24 87c0-8 4-12 12-13h28c8 1 12 5 12 13z';
const pieces = {
  p: [
    'M50 24a12.5 12.5 0 0 1 8 22.1c7 4.6 9.5 13 10.5 23.9h-37c1-10.9 3.5-19.3 10.5-23.9A12.5 12.5 0 0 1 50 24z' +
      'M27 87c0-8 4-12 10-13h26c6 1 10 5 10 13z',
    ''
  ],
  r: ['M28 19h10.5v8h6v-8h11v8h6v-8H72v17l-7 7 2.5 28h-35L35 43l-7-7z' + foot, 'M36 43h28'],
  b: [
    'M50 12a5.5 5.5 0 0 1 4.5 8.6C64 27 70 36 70 46c0 7-4 12-8 15l2.5 10h-29L38 61c-4-3-8-8-8-15 0-10 6-19 15.5-25.4A5.5 5.5 0 0 1 50 12z' +
      foot,
    'M38 61h24M50 31v15M43 38.5h14'
  ],
  n: [
    'M37 72c-1-12 4-16 9-22 1.5-2 1.5-4 1-6-3 4-8 6-13 7l-6 6c-3 2-9-1-9-5 0-3 5-9 6-13 2-8 8-13 14-16l1-10 9 8c17 3 25 20 24 51z' +
      foot,
    'M59 30c6 7 8 19 7.5 34'
  ],
  q: [
    'M20 31l12.5 23L36.5 24 50 50l13.5-26 4 30L80 31l-10 41H30z' +
      'M20 24.5a5 5 0 1 1 0 10a5 5 0 1 1 0-10zM36.5 16a5 5 0 1 1 0 10a5 5 0 1 1 0-10zM63.5 16a5 5 0 1 1 0 10a5 5 0 1 1 0-10zM80 24.5a5 5 0 1 1 0 10a5 5 0 1 1 0-10z' +
      foot,
    'M32 64h36'
  ],
  k: [
    'M46.5 9h7v6h6v7h-6v9h-7v-9h-6v-7h6z' +
      'M50 40c5-11 27-11 29 4 1 10-6 17-10 28H31c-4-11-11-18-10-28 2-15 24-15 29-4z' + foot,
    'M50 40v24M31.5 64h37'
  ]
};

// The drawing of a piece, by its letter in a FEN.
function pieceShapes(letter) {
  const white = letter < 'a', [outline, inside] = pieces[letter.toLowerCase()];
  const line = {stroke: white ? 'var(--outline)' : 'var(--white-piece)'};
  return [
    s('path', {
      ...line,
      d: outline,
      fill: white ? 'var(--white-piece)' : 'var(--black-piece)',
      'stroke-width': white ? 3.2 : 2.2,
      'stroke-linejoin': 'round'
    }),
    inside && s('path', {...line, d: inside, fill: 'none', 'stroke-width': 3, 'stroke-linecap': 'round'})
  ].filter(Boolean);
}

const square = i => 'abcdefgh'[i % 8] + (1 + Math.floor(i / 8));
// What stands on the 64 squares, a1 first, as letters of a FEN ('' for none); null for text that is no FEN.
function squares(fen) {
  const list = Array(64).fill(''), ranks = String(fen || '').split(' ')[0].split('/');
  if (ranks.length !== 8) return null;
  ranks.forEach((rank, r) => {
    let file = 0;
    for (const c of rank) {
      if (c >= '1' && c <= '8') file += +c;
      else {
        if (!pieces[c.toLowerCase()] || file > 7) return;
        list[8 * (7 - r) + file++] = c;
      }
    }
  });
  return list;
}
const pieceNames = {
  p: 'pawn',
  n: 'knight',
  b: 'bishop',
  r: 'rook',
  q: 'queen',
  k: 'king'
};

// Heat: how often the property holds on a square when the unit fires, in percent of how often it holds at the same
// moves of all games. Above 100 the square takes on the heat colour, by the logarithm, fully at the highest (at least
// threefold).
const heatOf = (lift, most) => lift > 100 ? Math.log(lift / 100) / Math.log(Math.max(300, most) / 100) : 0;
const times = lift => lift >= 1000 ? whole(lift / 100) : fix(lift / 100, 1);
function boardSvg(unit, context) {
  const on = context && squares(context.fen),
        heat = Array.isArray(unit.heat) && unit.heat.length === 64 ? unit.heat : null,
        most = heat && Math.max(...heat);
  const last = context && /^[a-h][1-8][a-h][1-8]/.test(context.last || '')
    ? [context.last.slice(0, 2), context.last.slice(2, 4)]
    : [];
  const svg = s('svg', {
    viewBox: '-28 0 828 828',
    width: 520,
    height: 520,
    role: 'img',
    class: 'board',
    'aria-label': 'The board of the chosen context' +
      (on ? ': ' + on.map((c, i) => c && (c < 'a' ? 'white ' : 'black ') + pieceNames[c.toLowerCase()] + ' ' + square(i))
                     .filter(Boolean).join(', ') : '') +
      (heat ? '; with a heat map: ' + unit.heat_function : '')
  });
  for (let i = 0; i < 64; i++) {
    const x = 100 * (i % 8), y = 100 * (7 - Math.floor(i / 8)), hot = heat ? heatOf(heat[i], most) : 0;
    const group = s('g', {transform: `translate(${x} ${y})`},
      s('title', {},
        square(i) +
          (on && on[i] ? (on[i] < 'a' ? ', white ' : ', black ') + pieceNames[on[i].toLowerCase()] : '') +
          (heat ? `: ${times(heat[i])} times as often as at these moves` : '')),
      s('rect', {
        width: 100,
        height: 100,
        fill: (i + Math.floor(i / 8)) % 2 ? 'var(--square-light)' : 'var(--square-dark)'
      }),
      hot > .01 &&
        s('rect', {width: 100, height: 100, fill: 'var(--heat)', opacity: (.92 * hot).toFixed(3)}));
    if (last.includes(square(i)))
      group.append(s('rect', {
        x: 3,
        y: 3,
        width: 94,
        height: 94,
        fill: 'none',
        stroke: 'var(--ink)',
        'stroke-width': 4,
        opacity: .55
      }));
    if (on && on[i]) group.append(...pieceShapes(on[i]));
    svg.append(group);
  }
  for (let i = 0; i < 8; i++)
    svg.append(
      s('text', {x: -12, y: 100 * (7 - i) + 58, 'text-anchor': 'middle', style: 'font-size:23px'}, i + 1),
      s('text', {x: 100 * i + 50, y: 822, 'text-anchor': 'middle', style: 'font-size:23px'}, 'abcdefgh'[i]));
  return svg;
}

// What the F1 of a unit is to be read against.
const alwaysMark = (x, y) =>
  s('circle', {cx: x, cy: y, r: 5, fill: 'var(--paper)', stroke: 'var(--muted)', 'stroke-width': 2});
const markOf = key => controls.find(c => c.key === key).mark;
const againstMarks = unit => [
  [unit.floor, 'always on', alwaysMark], [unit.shuffled, 'labels shuffled', markOf('permuted')],
  [unit.matched, chess ? 'expected of move, last move and length' : 'expected of the token', markOf('same_move')],
  [unit.rule_f1, 'the best rule about the text', markOf('text')]
];
// The F1 of a unit on its axis.
function against(unit) {
  return chart(w => {
    const p = plot(w, 66, {
      title: 'F1 on held-out data, beside its controls',
      x: [0, 1],
      xTicks: [0, .25, .5, .75, 1],
      y: [0, 1],
      yTicks: [],
      margin: {left: 6, right: 8, top: 22, bottom: 24}
    }),
          y = 30;
    p.svg.append(s('line', {class: 'gridline', x1: p.X(0), x2: p.X(1), y1: y, y2: y}));
    for (const [value, name, mark] of againstMarks(unit))
      if (number(value))
        p.svg.append(fill(mark(p.X(value), y), {}, [s('title', {}, `${name}: F1 ${fix(value)}`)]));
    if (number(unit.f1_low))
      p.svg.append(s('line', {
        x1: p.X(unit.f1_low),
        x2: p.X(unit.f1_high),
        y1: y,
        y2: y,
        stroke: 'var(--accent)',
        'stroke-width': 4,
        opacity: .45
      }));
    if (number(unit.f1))
      p.svg.append(trainedMark(p.X(unit.f1), y),
        s('text', {class: 'strong', x: Math.min(w - 34, p.X(unit.f1)), y: 16, 'text-anchor': 'middle'},
          'F1 ' + fix(unit.f1)));
    return p.svg;
  });
}
// White space of a token made visible.
const visible = t => t === ''
  ? '∅'
  : t.replace(/\n/g, '↵').replace(/\t/g, '⇥').replace(/^ +$| +$|^ +/g, m => '␣'.repeat(m.length));
function tokens(list, up, most) {
  return h('div', {class: 'tokens'},
    list.map(([token, logit]) => [h('span', {class: 'token'}, visible(String(token))),
               h('i', {class: up ? 'up' : '', style: `width:${(100 * Math.abs(logit) / most).toFixed(1)}%`}),
               h('span', {class: 'value'}, (logit > 0 ? '+' : '') + fix(logit))]));
}

const units = features ? features.units : [];
const chosen = {
  unit: null,
  context: 0
};
const of = (l, e) => units.filter(u => u.layer === l && u.expert === e);
const place = (u, context) => `#unit=${u.layer}/${u.expert}/${u.unit}` + (context ? '/' + context : '');
function choose(unit, context = 0) {
  if (!unit) return;
  chosen.unit = unit, chosen.context = Math.min(context, Math.max(0, (unit.contexts || []).length - 1));
  try {
    history.replaceState(null, '', place(unit, chosen.context));
  } catch (e) { /* a frame without an address */
  }
  showBrowser();
}
// One step along: units within the expert (and on to the next), experts, layers, where there are units.
function step(what, by) {
  const u = chosen.unit, list = of(u.layer, u.expert),
        ls = [...new Set(units.map(q => q.layer))].sort((a, b) => a - b);
  const es = [...new Set(units.filter(q => q.layer === u.layer).map(q => q.expert))].sort((a, b) => a - b);
  const round = (values, value) => values[(values.indexOf(value) + by + values.length) % values.length];
  if (what === 'unit') choose(list[Math.max(0, Math.min(list.length - 1, list.indexOf(u) + by))]);
  if (what === 'expert') choose(of(u.layer, round(es, u.expert))[0]);
  if (what === 'layer') {
    const l = round(ls, u.layer);
    choose(of(l, u.expert)[0] || units.find(q => q.layer === l));
  }
  const now = browser.querySelector('.units [aria-current=true]');
  if (now && browser.contains(document.activeElement)) now.focus({preventScroll: true});
}
function keys(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const k = event.key, vertical = k === 'ArrowUp' || k === 'ArrowDown',
        by = k === 'ArrowUp' || k === 'ArrowLeft' ? -1 : 1;
  if (vertical) step('unit', by);
  else if (k === 'ArrowLeft' || k === 'ArrowRight') step(event.shiftKey || !moe ? 'layer' : 'expert', by);
  else if (k >= '1' && k <= '9' && +k <= chosen.unit.contexts.length) choose(chosen.unit, +k - 1);
  else return;
  event.preventDefault();
}

const live = h('p', {class: 'hidden', 'aria-live': 'polite'}); // says which unit is shown
const browser = h('div', {class: 'browser', tabindex: '-1', keydown: keys});
// What the model loses when the unit is off, beside another that fires as often.
function effectFacts(e) {
  const signed = x => (x > 0 ? '+' : '') + fix(x, 4);
  const change = ([value, low, high]) =>
    number(value) ? `${signed(value)} (${signed(low)} to ${signed(high)})` : 'not known';
  const line = (name, q) =>
    row(name, change(q.inside), change(q.outside), ...(chess ? [change(q.legal_inside), change(q.legal_outside)] : []));
  return [
    h('h4', {}, 'When it is switched off'),
    table(['off', 'log p of what follows, where the property holds', 'elsewhere',
            ...(chess ? ['p of characters that begin legal moves?', 'elsewhere?'] : [])],
      [line('this unit', e),
        line(`unit ${moe ? e.control.expert + '/' : ''}${e.control.unit}, as often on`, e.control)],
      'What the model loses when the unit is off'),
    h('p', {class: 'note'},
      `Without it less with it, with 95% intervals, at ${whole(e.places)} places where the property holds and the ` +
        `others of ${whole(e.games)} ${chess ? 'games' : 'blocks of text'}. Beyond what the other unit does there: ${
          change(e.beyond)}.`)
  ];
}
function unitPage(u) {
  const contexts = u.contexts || [], context = contexts[chosen.context];
  const fact = (name, value, note) =>
    h('div', {}, h('dt', {}, name), h('dd', {}, value, note && h('small', {}, ' ' + note)));
  const excerpt = (c, i) => {
    const text = Array.from(String(c.text)), at = Math.max(0, Math.min(c.mark, text.length - 1)),
          end = at + (c.length || 1);
    return h('li', {},
      h('button', {
        type: 'button',
        'aria-pressed': String(i === chosen.context),
        click: () => {
          choose(u, i);
          browser.querySelector('.contexts [aria-pressed=true]').focus({preventScroll: true});
        }
      },
        text.slice(0, at).join(''), h('mark', {}, visible(text.slice(at, end).join(''))),
        text.slice(end).join(''), h('small', {}, `fires with ${fix(c.value)}`)));
  };
  const list = h('div', {},
    h('h4', {}, chess ? 'Where it fires most strongly, one place a game' : 'Where it fires most strongly'),
    chess && h('p', {class: 'note'},
      `It is on at ${fix(u.on_anywhere, 1)} characters a game. Properties are tried at the boundaries between moves, ` +
        `of both sides: ${whole(u.on)} of its firings, at ${whole(u.places)} places of the games it was not chosen on. ` +
        `These strongest places may be others.`),
    h('ol', {class: 'contexts'}, contexts.map(excerpt)));
  const most = Math.max(1e-9, ...(u.promotes || []).concat(u.suppresses || []).map(q => Math.abs(q[1])));
  const side = h('div', {}, h('h4', {}, 'Its direct path makes likelier'), tokens(u.promotes || [], true, most),
    h('h4', {}, 'and less likely'), tokens(u.suppresses || [], false, most),
    h('p', {class: 'note'},
      'Change of the logits per unit of its value, up to a factor common to all tokens; what later layers make of it ' +
        'is not counted.'),
    moe && (u.with || []).length > 0 && [
      h('h4', {}, 'When it fires, these experts work with its own'),
      h('div', {class: 'tokens'},
        u.with.slice(0, 5).map(
          ([e, part, base]) => [h('span', {class: 'token'}, e),
            h('i', {style: `width:${(100 * part).toFixed(1)}%;background:${expertColour(e)}`}),
            h('span', {class: 'value'}, `${percent(part)}, else ${percent(base)}`)]))
    ]);
  const title = u.verdict === 'knows' ? 'Tells that ' + u.property
    : u.verdict === 'reads'           ? 'Reads the text: ' + u.text
                                      : 'Nothing found that it tells';
  return h('div', {class: 'card unit'},
    h('p', {class: 'kicker'}, unitName(u)[0].toUpperCase() + unitName(u).slice(1)), h('h3', {}, title), switchOff(u),
    u.verdict === 'knows' &&
      h('p', {class: 'note'},
        `More than the text says: the best rule for it (${u.rule}) has Matthews ${fix(u.rule_mcc)}, the unit ${
          fix(u.mcc)}. Where that rule and the one nearest to its firing (${
          u.text}) say the same, it still tells ${fix(u.beyond, 3)} ± ${fix(u.beyond_error, 3)} of it.` +
          (u.outright ? ' By itself it tells it better than that rule.' : '')),
    u.verdict === 'reads' &&
      h('p', {class: 'note'},
        `This rule about the text fits its firing as well as any property (Matthews ${
          fix(u.text_mcc)}). Nearest of the properties: ${u.property}.`),
    u.verdict === 'nothing' &&
      h('p', {class: 'note'}, `Nearest is “${u.property}”; it does not clearly beat all that it is measured against. ` +
        'That is no proof that it tells nothing.'),
    (u.rivals || []).length > 0 && h('p', {class: 'note'}, 'As well, within one standard error: ' + u.rivals.join('; ') + '.'),
    h('dl', {class: 'facts'},
      fact('precision', scoreText(u.precision),
        number(u.precision_low) && `95% ${scoreText(u.precision_low)} to ${scoreText(u.precision_high)}`),
      fact('recall', scoreText(u.recall)), fact('base rate', fix(u.base, u.base < .0005 ? 5 : u.base < .095 ? 3 : 2)),
      fact('is above zero on', percent(u.rate, 1), chess ? 'of characters' : 'of tokens'),
      fact('counts as on', `the strongest ${percent(u.share)}`,
        `of its firings, above ${percent(u.threshold)} of ${fix(u.max)}`)),
    u.effect && effectFacts(u.effect),
    against(u),
    markLegend([['F1 with its 95% interval', trainedMark], ...againstMarks(u).map(([, name, mark]) => [name, mark])]),
    chess ? h('div', {class: 'columns'},
              h('div', {},
                h('h4', {},
                  context ? 'The board there' + (context.move ? `, after ${context.move}` : '') : 'Squares'),
                boardSvg(u, context),
                Array.isArray(u.heat) && u.heat.length === 64 &&
                  h('p', {class: 'note'},
                    `Red, over all its firings: ${u.heat_function}, more often than at these moves of all games; up to ${
                      times(Math.max(...u.heat))} times on ${square(u.heat.indexOf(Math.max(...u.heat)))}.`)),
              side)
          : h('div', {class: 'columns'}, list, side),
    chess && list);
}
function showBrowser() {
  const u = chosen.unit,
        scrolled = browser.querySelector('.units') ? browser.querySelector('.units').scrollTop : 0;
  const layers = [...new Set(units.map(q => q.layer))].sort((a, b) => a - b),
        experts =
          [...new Set(units.filter(q => q.layer === u.layer).map(q => q.expert))].sort((a, b) => a - b);
  const again = (what, f) => value => {
    f(value);
    const e = browser.querySelector(`.pickers [aria-label="${what}"] [aria-pressed=true]`);
    if (e) e.focus({preventScroll: true});
  };
  const list = h('ul', {class: 'units', 'aria-label': `Units of ${unitName(u).replace(/, unit.*/, '')}`},
    of(u.layer, u.expert)
      .map(q => h('li', {},
             h('button', {
               type: 'button',
               'aria-current': q === u && 'true',
               class: q.found ? '' : 'not',
               click: () => {
                 choose(q);
                 browser.querySelector('.units [aria-current=true]').focus({preventScroll: true});
               }
             },
               h('span', {}, q.verdict === 'reads' ? q.text : q.property),
               h('small', {}, h('span', {}, 'unit ' + q.unit),
                 h('span', {},
                   q.verdict === 'knows'   ? `beyond the text ${fix(q.beyond, 3)}`
                     : q.verdict === 'reads' ? 'reads the text'
                                             : 'nothing found'))))));
  live.textContent = unitName(u);
  browser.replaceChildren(
    h('div', {class: 'pickers'},
      picker('Layer', layers.map(l => [l, l]), u.layer,
        again('Layer', l => choose(of(l, u.expert)[0] || units.find(q => q.layer === l)))),
      moe &&
        picker('Expert', Array.from({length: E}, (_, e) => [e, e, !experts.includes(e)]), u.expert,
          again('Expert', e => choose(of(u.layer, e)[0]))),
      h('p', {class: 'hint'}, 'Click in here, then ', h('kbd', {}, '↑'), h('kbd', {}, '↓'), ' units ',
        moe && [h('kbd', {}, '←'), h('kbd', {}, '→'), ' experts ', h('kbd', {}, 'Shift')], h('kbd', {}, '←'),
        h('kbd', {}, '→'), ' layers ', h('kbd', {}, '1'), '–', h('kbd', {}, '4'), ' contexts')),
    list, unitPage(u));
  list.scrollTop = scrolled;
  const now = list.querySelector('[aria-current=true]');
  if (now &&
    (now.offsetTop < list.scrollTop || now.offsetTop + now.offsetHeight > list.scrollTop + list.clientHeight))
    list.scrollTop = now.offsetTop - list.clientHeight / 2;
}
function fromAddress() {
  const m = /^#unit=(\d+)\/(\d+)\/(\d+)(?:\/(\d+))?$/.exec(location.hash);
  const unit = m && units.find(u => u.layer === +m[1] && u.expert === +m[2] && u.unit === +m[3]);
  if (!unit) return false;
  choose(unit, +(m[4] || 0));
  document.getElementById('units').scrollIntoView({behavior: 'auto'});
  return true;
}
function browse() {
  const f = features.summary;
  if (!units.length) return [h('p', {class: 'absent'}, 'features found no unit that fires.')];
  chosen.unit = number(features.best) ? units[features.best] : units[0];
  showBrowser();
  const census = c => `${whole(c.knows)} know more than the text says (${
    percent(c.knows_firing, 1)} of all firing, ${whole(c.properties)} different properties) and ${
    whole(c.reads)} read the text (${percent(c.reads_firing)})`;
  return [
    h('p', {class: 'lede'},
      `For each unit, the property was looked for that its firing tells best, on ${
        chess ? 'games' : 'text'} apart from those it is measured on. Rules about the text are its rivals: a unit is said ` +
        `to know a property only where it tells more of it than they do. Of ${whole(f.units)} units ${
          whole(f.tested)} are on often enough to be tested: ${
          census(f)}` +
        (f.untrained ? `; of the untrained weights’ ${whole(f.untrained.tested)}, ${census(f.untrained)}` : '') + '.' +
        (f.other_labels ? ` With the labels of another ${chess ? 'game at the same move' : 'text at the same place'} ${
                            whole(f.other_labels.knows)} would know.`
                        : '') +
        ` ${whole(f.outright)} tell their property better than any rule about the text does by itself.`),
    live,
    browser,
    company()
  ];
}

// --- Pairs: what two units tell together that they do not tell apart

function company() {
  const pairs = features.pairs || [], D = moe ? +config.d_expert : width, most = 20;
  if (!pairs.length) return null;
  const estimate = ([value, low, high]) => ({value, low, high});
  const tested = pairs.filter(q => number(q.beyond[0])), more = tested.filter(q => q.more);
  const shown = [...tested].sort((a, b) => b.more - a.more || b.beyond[0] - b.null[0] - (a.beyond[0] - a.null[0]))
                  .slice(0, most);
  const range = rangeOf(shown.flatMap(q => [estimate(q.beyond), estimate(q.null)]));
  const name = (layer, i) => {
    const unit = {layer, expert: Math.floor(i / D), unit: i % D}, text = moe ? `${layer}/${unit.expert}/${unit.unit}` : `${layer}/${i}`;
    return units.some(u => place(u) === place(unit)) ? h('a', {href: place(unit)}, text) : text;
  };
  return figure('Units that fire together',
    [
      shown.length > 0 && table(
        ['two units', 'both fire?', 'times by chance?', '<bits beyond the two apart', 'the two apart?'],
        shown.map(q => h('tr', {class: q.more ? 'this' : ''},
          h('th', {scope: 'row'}, name(q.layer, q.a), ' and ', name(q.layer, q.b), h('small', {}, q.property)),
          h('td', {class: 'wide'}, percent(q.both, 1)), h('td', {class: 'wide'}, fix(q.lift[0])),
          h('td', {class: 'chart'}, reach(range, estimate(q.beyond), estimate(q.null), 'with other labels')),
          h('td', {class: 'wide'}, fix(q.apart[0], 3)))),
        'Pairs of units')
    ],
    `Do two units form a code that neither shows alone? Of the ${whole(pairs.length)} pairs that fire together most often, ${
      more.length ? `${whole(more.length)} tell` : 'none tells'} a property beyond what the two tell apart, above zero and above ` +
      `the same with the labels of another ${chess ? 'game at the same move' : 'text at the same place'} (in grey), by their ` +
      '95% intervals: bits per place, measured on other ' + (chess ? 'games' : 'text') + ' than the property was chosen on.' +
      (shown.length < pairs.length ? ` Shown are the ${shown.length} that tell most.` : ''));
}

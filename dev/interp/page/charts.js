// Elements and charts, for all that follows. The files of this folder's script are put one after the other in the
// order of the Makefile (PAGE_SCRIPTS); the page asks no network for anything, and what comes from files goes into
// it as text only, never as markup.
'use strict';

// --- Reading, formatting, making elements

const read = id => {
  const e = document.getElementById('data-' + id);
  return e && JSON.parse(e.textContent);
};
const run = read('run'), bsp = read('bsp'), sparsity = read('sparsity'), router = read('router'),
      features = read('features'), experts = read('experts'), probe = read('probe');
const config = run.config, L = +config.n_layer, moe = config.ffn === 'moe', E = moe ? +config.n_expert : 1;
const chess = config.tokenizer === 'chess-32';
const width = (moe ? +config.n_expert : +config.n_expert_active) * +config.d_expert; // units of a layer
const number = x => typeof x === 'number' && isFinite(x);
const fix = (x, digits = 2) => number(x) ? x.toFixed(digits).replace(/^-(?=0*\.?0*$)/, '').replace('-', '−') : '–';
const percent = (x, digits = 0) => number(x) ? (100 * x).toFixed(digits) + '%' : '–';
const whole = x => number(x) ? Math.round(x).toLocaleString('en-GB') : '–';
const human = x => !number(x) ? '–'
  : x >= 1e9                  ? (x / 1e9).toFixed(2) + 'G'
  : x >= 1e6                  ? (x / 1e6).toFixed(2) + 'M'
  : x >= 1e4                  ? (x / 1e3).toFixed(0) + 'K'
                              : whole(x);
const words = name => name.replace(/_state$/, '').replace(/_/g, ' ');
const sum = list => list.reduce((a, x) => a + x, 0);
const mean = list => {
  const known = list.filter(number);
  return known.length ? sum(known) / known.length : null;
};
const best = (list, f) => list.reduce((a, x) => a === null || !(f(x) <= f(a)) ? x : a, null);
// Of lists that may be too long to be the arguments of a call.
const highest = list => list.reduce((a, x) => Math.max(a, x), -Infinity);
const lowest = list => list.reduce((a, x) => Math.min(a, x), Infinity);
const duration = t => t < 90 ? Math.round(t) + ' s'
  : t < 5400                 ? Math.round(t / 60) + ' min'
                             : (t / 3600).toFixed(1) + ' h';

const between = ({low, high}) => `${fix(low, 3)} to ${fix(high, 3)}`; // an interval
const scoreText = x => fix(x, x >= .995 && x < 1 ? 3 : 2);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {}))
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? '' : value);
  element.append(...children.flat(Infinity).filter(c => c !== null && c !== undefined && c !== false));
  return element;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const SVG = document.querySelector('svg').namespaceURI; // the frame has an empty one
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Experts go round the colour wheel, neighbours also differ in lightness; layers go from grey to the accent.
const expertColour = e => moe
  ? `oklch(calc(var(--light) + ${e % 2 ? .07 : -.05}) var(--chroma) ${Math.round(30 + 360 * e / E)})`
  : 'var(--accent)';
const layerColour = l =>
  `color-mix(in oklab, var(--accent) ${L > 1 ? Math.round(100 * l / (L - 1)) : 100}%, var(--grey))`;

// --- Charts: drawn at the width their place has, and again when it changes

const drawings = new Map();
const watcher =
  new ResizeObserver(entries => requestAnimationFrame(() => entries.forEach(e => draw(e.target))));
function draw(host) {
  if (!host.isConnected) return watcher.unobserve(host), drawings.delete(host);
  const w = Math.round(host.clientWidth), drawing = drawings.get(host);
  if (w === 0 || w === drawing.width) return;
  drawing.width = w;
  host.replaceChildren(drawing.make(w));
}
function chart(make) {
  const host = h('div');
  drawings.set(host, {make, width: 0});
  watcher.observe(host);
  queueMicrotask(() => draw(host)); // it has its place by then
  return host;
}
const figure = (title, body, caption) =>
  h('figure', {}, title && h('h3', {}, title), body, caption && h('figcaption', {}, caption));

function ticks([low, high], most) {
  if (!(high > low)) return [low];
  const rough = (high - low) / most, power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = power * [1, 2, 5, 10].find(m => m * power >= rough);
  const list = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++)
    list.push(Math.round(i * step * 1e9) / 1e9);
  return list;
}
const tickText = x => Math.abs(x) >= 10000 ? x / 1000 + 'K' : String(x).replace('-', '−');

// An empty plot: frame, grid, ticks; X and Y turn values into places.
function plot(w, height, o) {
  const m = {top: 24, right: 10, bottom: o.xLabel ? 40 : 24, left: 40, ...o.margin};
  const scale = ([a, b], from, to) => x => from + (x - a) / (b - a || 1) * (to - from);
  const X = scale(o.x, m.left, w - m.right), Y = scale(o.y, height - m.bottom, m.top);
  const svg = s('svg', {viewBox: `0 0 ${w} ${height}`, width: w, height, role: 'img', 'aria-label': o.title});
  for (const y of o.yTicks || ticks(o.y, Math.max(2, height / 55)))
    svg.append(s('line', {class: 'gridline', x1: m.left, x2: w - m.right, y1: Y(y), y2: Y(y)}),
      s('text', {x: m.left - 7, y: Y(y) + 4, 'text-anchor': 'end'}, (o.yText || tickText)(y)));
  for (const x of o.xTicks || ticks(o.x, Math.max(2, w / 95)))
    svg.append(
      s('line', {class: 'axis', x1: X(x), x2: X(x), y1: height - m.bottom, y2: height - m.bottom + 4}),
      s('text', {x: X(x), y: height - m.bottom + 17, 'text-anchor': 'middle'}, (o.xText || tickText)(x)));
  svg.append(
    s('line', {class: 'axis', x1: m.left, x2: w - m.right, y1: height - m.bottom, y2: height - m.bottom}));
  if (o.yLabel) svg.append(s('text', {x: 0, y: 11}, o.yLabel));
  if (o.xLabel) svg.append(s('text', {x: w - m.right, y: height - 4, 'text-anchor': 'end'}, o.xLabel));
  return {svg, X, Y, m, w, height};
}
const path = (points, X, Y) =>
  points.map((p, i) => (i ? 'L' : 'M') + X(p[0]).toFixed(1) + ' ' + Y(p[1]).toFixed(1)).join('');

// Lines over steps, or over what o.at(x) names. series: {name, colour, points, band, dash, label}; pointing at the
// plot reads them off.
function lines(w, height, o) {
  const range = o.x || [0, Math.max(1, ...o.series.flatMap(q => q.points).map(q => q[0]))];
  const p = plot(w, height, {x: range, ...o});
  const inside = y => Math.max(o.y[0], Math.min(o.y[1], y));
  for (const q of o.series) {
    if (q.band)
      p.svg.append(s('path', {
        d: path(q.points.map(a => [a[0], inside(a[3])]), p.X, p.Y) +
          path([...q.points].reverse().map(a => [a[0], inside(a[2])]), p.X, p.Y).replace('M', 'L') + 'Z',
        fill: q.colour,
        opacity: .16
      }));
    p.svg.append(s('path', {
      class: 'line' + (q.thin ? ' thin' : '') + (q.dash ? ' dash' : ''),
      d: path(q.points.map(a => [a[0], inside(a[1])]), p.X, p.Y),
      style: `stroke:${q.colour}`
    },
      s('title', {}, q.name)));
    if (q.dots)
      for (const a of q.points)
        if (a[1] <= o.y[1])
          p.svg.append(
            s('circle', {cx: p.X(a[0]), cy: p.Y(a[1]), r: 3, fill: q.colour, stroke: 'var(--paper)'}));
  }
  const named = o.series.filter(q => q.label && q.points.length)
                  .map(q => ({q, y: p.Y(Math.min(o.y[1], q.points[q.points.length - 1][1]))}))
                  .sort((a, b) => a.y - b.y);
  named.forEach((n, i) => {
    if (i && n.y < named[i - 1].y + 14) n.y = named[i - 1].y + 14;
  });
  const over = named.length ? Math.max(0, named[named.length - 1].y - (height - p.m.bottom)) : 0;
  for (const {q, y} of named)
    p.svg.append(
      s('text', {x: w - p.m.right + 7, y: y - over + 4, style: `fill:${q.colour};font-weight:600`}, q.label));

  const rule = s('line', {class: 'axis', y1: p.m.top, y2: height - p.m.bottom, visibility: 'hidden'});
  const reading =
    s('text', {class: 'strong halo', y: 11, 'text-anchor': 'end', x: w - p.m.right, visibility: 'hidden'});
  const near = (points, x) => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
  p.svg.append(rule, reading);
  p.svg.addEventListener('pointermove', event => {
    const box = p.svg.getBoundingClientRect(), main = o.series[0].points;
    const at = (event.clientX - box.left) / box.width * w, t = (at - p.m.left) / (w - p.m.right - p.m.left);
    if (!main.length || t < 0 || t > 1) return;
    const x = near(main, range[0] + t * (range[1] - range[0]))[0];
    rule.setAttribute('x1', p.X(x)), rule.setAttribute('x2', p.X(x));
    reading.textContent = (o.at ? o.at(x) : 'step ' + whole(x)) + '  ' +
      (o.read || (list => list.map(r => r.name + ' ' + fix(r.value, o.digits ?? 3)).join('  ')))(
        o.series.filter(q => q.points.length).map(q => ({name: q.name, value: near(q.points, x)[1]})));
    rule.setAttribute('visibility', 'visible'), reading.setAttribute('visibility', 'visible');
  });
  p.svg.addEventListener('pointerleave',
    () => { rule.setAttribute('visibility', 'hidden'), reading.setAttribute('visibility', 'hidden'); });
  return p.svg;
}

// Rows of numbers on one axis, o.x, each with its interval and beside its controls. o.rows: {name, strong, value,
// low, high, controls: [{name, mark, value}]}; own: what the number is.
function dotRows(w, o) {
  const step = 30, p = plot(w, step * o.rows.length + 30,
    {y: [0, 1], yTicks: [], ...o, margin: {left: 62, right: 48, top: 4, bottom: 26, ...o.margin}});
  o.rows.forEach((r, i) => {
    const y = 4 + step * (i + .5);
    p.svg.append(s('text', {x: 0, y: y + 4, class: r.strong ? 'strong' : ''}, r.name),
      s('line', {class: 'gridline', x1: p.X(o.x[0]), x2: w - p.m.right, y1: y, y2: y}));
    for (const c of r.controls)
      if (number(c.value))
        p.svg.append(
          fill(c.mark(p.X(c.value), y), {}, [s('title', {}, `${r.name}, ${c.name}: ${fix(c.value, 3)}`)]));
    if (number(r.low) && number(r.high))
      p.svg.append(s('line', {
        x1: p.X(r.low),
        x2: p.X(r.high),
        y1: y,
        y2: y,
        stroke: 'var(--accent)',
        'stroke-width': 5,
        opacity: .45
      }));
    if (number(r.value))
      p.svg.append(fill(trainedMark(p.X(r.value), y), {},
                     [s('title', {},
                       `${r.name}, ${o.own}: ${fix(r.value, 3)}` +
                         (number(r.low) ? `, 95% interval ${between(r)}` : ''))]),
        s('text', {class: 'strong halo', x: p.X(Math.max(r.value, r.high || 0)) + 11, y: y + 4},
          fix(r.value, 3)));
  });
  return p.svg;
}
// What the marks of a chart mean: [[name, mark]].
const markLegend = list => h('ul', {class: 'legend'},
  list.map(([name, mark]) =>
    h('li', {}, s('svg', {width: 18, height: 18, 'aria-hidden': 'true'}, mark(9, 9)), name)));

// Bars over bins: edges has one more than counts. marks: [[value, text]].
function histogram(w, height, o) {
  const high = Math.max(1, ...o.counts);
  const p = plot(w, height, {y: [0, high * 1.04], yTicks: [], margin: {left: 2, top: 20}, ...o});
  const place = o.log ? x => p.X(Math.log10(x)) : p.X;
  p.svg.append(s('text', {x: 2, y: 11}, `highest bar: ${whole(high)}`));
  o.counts.forEach((n, i) => {
    if (!n) return;
    const a = place(o.edges[i]), b = place(o.edges[i + 1]);
    p.svg.append(s('rect', {
      x: a + .5,
      width: Math.max(.7, b - a - 1),
      y: p.Y(n),
      height: p.Y(0) - p.Y(n),
      fill: 'var(--accent)',
      opacity: .85
    },
      s('title', {}, o.tell(i))));
  });
  for (const [x, text] of o.marks || []) {
    const at = place(x), right = at > w * .6;
    p.svg.append(s('line', {x1: at, x2: at, y1: 14, y2: p.Y(0), stroke: 'var(--ink)'}),
      s('text',
        {class: 'strong halo', x: at + (right ? -5 : 5), y: 22, 'text-anchor': right ? 'end' : 'start'},
        text));
  }
  return p.svg;
}

// A number as a bar from 0 to 1, with ticks for what it is to be read against.
function bar(value, marks = [], plain = false) {
  const at = x => 'left:' + (100 * Math.max(0, Math.min(1, x))).toFixed(2) + '%';
  return h('div', {class: 'bar'}, h('span', {class: 'value'}, fix(value, 3)),
    h('div', {class: 'track'}, number(value) && h('span', {
      class: 'fill' + (plain ? ' plain' : ''),
      style: `width:${(100 * Math.max(0, Math.min(1, value))).toFixed(2)}%`
    }),
      marks.filter(([x]) => number(x)).map(([x,
        text]) => h('span', {class: 'tick', style: at(x), title: `${text} ${fix(x, 3)}`}))));
}

// A number with its 95% interval on an axis over `range`, with a line at 0, and below it in grey the one that it is
// to be read against; both {value, low, high}.
function reach(range, own, control, controlName) {
  const place = x => 100 * Math.max(0, Math.min(1, (x - range[0]) / (range[1] - range[0] || 1)));
  const said = q => `${fix(q.value, 3)} (${between(q)})`;
  const draw = (q, name, plain) => number(q.value) && [
    number(q.low) && number(q.high) && h('span', {
      class: 'span' + (plain ? ' plain' : ''),
      style: `left:${place(q.low).toFixed(2)}%;right:${(100 - place(q.high)).toFixed(2)}%`,
      title: `${name}${said(q)}`
    }),
    h('span', {class: 'dot' + (plain ? ' plain' : ''), style: `left:${place(q.value).toFixed(2)}%`})
  ];
  return h('div', {class: 'bar reach' + (control ? ' two' : '')}, h('span', {class: 'value'}, fix(own.value, 3)),
    h('span', {class: 'hidden'},
      (number(own.low) ? ` (${between(own)})` : '') + (control ? `; ${controlName}: ${said(control)}` : '')),
    h('div', {class: 'track', 'aria-hidden': 'true'},
      h('span', {class: 'zero', style: `left:${place(0).toFixed(2)}%`}), draw(own, ''),
      control && draw(control, controlName + ': ', true)));
}
// The range that holds all of these {value, low, high}, and 0.
const rangeOf = list => {
  const all = [0, ...list.flatMap(q => q ? [q.value, q.low, q.high] : [])].filter(number);
  return [lowest(all), highest(all)];
};

// A row of buttons of which one is chosen.
function picker(label, choices, chosen, choose) {
  return h('div', {class: 'pick', role: 'group', 'aria-label': label},
    h('span', {'aria-hidden': 'true'}, label),
    choices.map(([value, text, none]) => h('button', {
      type: 'button',
      disabled: none,
      'aria-pressed': String(value === chosen),
      click: () => choose(value),
      'aria-label': label + ' ' + text
    },
                  text)));
}
// What make(again) gives, drawn anew by again(name, choose) after a choice; the focus stays on the chosen button of
// what has that name, and what was unfolded stays so.
function redrawn(make) {
  const host = h('div', {}), folds = () => [...host.querySelectorAll('details')];
  const again = (name, choose) => {
    choose();
    const open = folds().map(d => d.open);
    host.replaceChildren();
    fill(host, {}, [make(again)]);
    folds().forEach((d, i) => { d.open = open[i]; });
    const now = host.querySelector(`[aria-label="${name}"] [aria-pressed=true]`);
    if (now) now.focus({preventScroll: true});
  };
  return fill(host, {}, [make(again)]);
}
// A picker whose choice draws all of it anew.
const choice = (again, label, choices, chosen, choose) =>
  picker(label, choices, chosen, value => again(label, () => choose(value)));

// Of the heads, one that begins with '<' stands left, one that ends with '?' is left out on a phone.
function table(head, rows, caption) {
  return h('div', {class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption},
    h('table', {},
      h('thead', {},
        h('tr', {},
          head.map(x => h('th',
                     {scope: 'col', class: (x[0] === '<' ? 'left' : '') + (x.endsWith('?') ? ' wide' : '')},
                     x.replace(/[<?]/g, ''))))),
      h('tbody', {}, rows)));
}
const row = (first, ...cells) => h('tr', {}, h('th', {scope: 'row'}, first), cells.map(c => h('td', {}, c)));

// What stands in the place of a section whose measurement is not there.
function absent(name) {
  const tool = run.tools[name];
  return h('div', {class: 'absent'},
    h('p', {}, `Not on this page: ${tool.shows} (${tool.note}). This command measures it: `,
      h('code', {}, 'build/' + tool.command)));
}

// The page that report writes, apart from its numbers: style, frame and script, put together in report.h. The
// script draws everything from the JSON in the page's <script type="application/json"> elements, one for the
// run and one per tool. It asks no network for anything (the policy in page_head forbids it), and what comes
// from files goes into the page as text only, never as markup.
#pragma once

inline constexpr char page_head[] =
    R"page(<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-page'">
)page";

inline constexpr char page_body[] = R"page(<main id="page"></main>
<svg width="0" height="0" aria-hidden="true"></svg>
<noscript><p>The charts of this page are drawn by its script, which is switched off here.</p></noscript>
)page";

// ---------------------------------------------------------------------------------------------------------
// Style. One accent colour, for the trained model's own numbers; controls are grey; experts have hues.

inline constexpr char page_style[] = R"page(
:root {
  --paper: #fffefb; --ink: #1d1d1b; --muted: #65655f; --rule: #e2e0d8; --soft: #f5f3ec; --grid: #ebe9e1;
  --accent: #b8391b; --accent-soft: #f6ddd3; --heat: #d8502c; --grey: #8d8b83;
  --square-light: #f3efe4; --square-dark: #d9d2c0; --white-piece: #fffdf6; --black-piece: #2c2a27;
    --outline: #2c2a27;
  --light: .60; --chroma: .13;
  --text: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Sitka Text", Cambria, Georgia, "Liberation Serif", serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "Liberation Mono", monospace;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #161614; --ink: #ebe9e2; --muted: #a3a198; --rule: #393832; --soft: #201f1c; --grid: #2b2a26;
    --accent: #f08262; --accent-soft: #4c2a20; --heat: #e2603c; --grey: #8a887f;
    --square-light: #6d695f; --square-dark: #524f47; --white-piece: #fbf8ef; --black-piece: #1b1a18;
      --outline: #131211;
    --light: .72; --chroma: .12;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--text);
  font-variant-numeric: lining-nums; overflow-wrap: break-word; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
noscript { display: block; padding: 24px; }
h1, h2 { font-family: var(--serif); font-weight: 600; line-height: 1.15; letter-spacing: -.01em;
  text-wrap: balance; }
h1 { font-size: clamp(30px, 5vw, 48px); margin: 6px 0 16px; }
h2 { font-size: clamp(24px, 3.2vw, 32px); margin: 4px 0 12px; }
h3 { font-size: 15px; font-weight: 600; margin: 28px 0 4px; line-height: 1.35; }
p { margin: 0 0 12px; max-width: 68ch; text-wrap: pretty; }
a { color: inherit; text-decoration-color: var(--accent); text-underline-offset: 3px; }
a:hover { color: var(--accent); }
code, kbd, .mono { font-family: var(--mono); font-size: .875em; }
code { overflow-wrap: anywhere; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 2px; }
section { margin-top: 72px; padding-top: 20px; border-top: 1px solid var(--ink); scroll-margin-top: 8px; }
.kicker { color: var(--muted); font-size: 14px; margin: 0; max-width: none; overflow-wrap: anywhere; }
.lede { font-family: var(--serif); font-size: clamp(18px, 2.1vw, 21px); line-height: 1.45; max-width: 46em; }
.note, figcaption { color: var(--muted); font-size: 14px; line-height: 1.5; }
.note { max-width: 78ch; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 26px; font-size: 15px; }

.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 0 28px;
  margin: 30px 0 8px; padding: 0; }
.numbers div { border-top: 3px solid var(--accent); padding: 10px 0 16px; }
.numbers dt { font-size: 14px; font-weight: 600; line-height: 1.3; white-space: nowrap; }
.numbers dd { margin: 0; }
.numbers .value { font-family: var(--serif); font-size: 38px; line-height: 1.2; font-weight: 600;
  letter-spacing: -.01em; }
.numbers .value small { font-size: 20px; font-weight: 400; color: var(--muted); }
.settings { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 0 28px;
  margin: 12px 0 0; font-size: 14px; }
.settings div { display: flex; gap: 12px; justify-content: space-between;
  border-bottom: 1px solid var(--rule); padding: 5px 0; }
.settings dt { color: var(--muted); flex: none; }
.settings dd { margin: 0; text-align: right; overflow-wrap: anywhere; }

figure { margin: 20px 0 0; min-width: 0; }
figure > h3 { margin-top: 0; }
figcaption { margin-top: 4px; max-width: 78ch; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 225px), 1fr)); gap: 8px 28px;
  margin-top: 16px; }
.grid.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); }
.grid.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr)); }
.grid figure { margin: 8px 0; }
figure > .grid, figure > div > .grid { margin-top: 0; }
figure figure > h3 { font-weight: 400; color: var(--muted); }
svg { display: block; overflow: visible; max-width: 100%; height: auto; }
svg text { font: 12px var(--text); fill: var(--muted); font-variant-numeric: tabular-nums; }
svg .strong { fill: var(--ink); font-weight: 600; }
svg .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.gridline { stroke: var(--grid); shape-rendering: crispEdges; }
.axis { stroke: var(--grey); shape-rendering: crispEdges; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.thin { stroke-width: 1.5; }
.dash { stroke-dasharray: 4 4; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 8px 0 0; padding: 0; list-style: none;
  font-size: 14px; color: var(--muted); }
.legend li { display: flex; align-items: center; gap: 6px; }
.legend svg { flex: none; }

.scroll { overflow-x: auto; margin: 16px 0 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px 6px 0; text-align: right; border-bottom: 1px solid var(--rule);
  vertical-align: middle; }
th { font-weight: 600; color: var(--muted); vertical-align: bottom; }
th:first-child, td:first-child, th.left { text-align: left; }
th:last-child, td:last-child { padding-right: 0; }
th.left + th, td.words + td { padding-left: 6px; }
td.chart, th.left:not(.wide) { padding-left: 14px; }
thead th { border-bottom: 1px solid var(--ink); }
tbody th { color: var(--ink); vertical-align: middle; }
tr.this td, tr.this th { color: var(--accent); font-weight: 600; }
tr.group th { padding-top: 18px; color: var(--muted); }
td.words { text-align: left; color: var(--muted); min-width: 170px; }
tbody th { min-width: 130px; }
td.chart { width: 24%; min-width: 150px; text-align: left; }
.bar { display: flex; align-items: center; gap: 8px; }
.bar .track { position: relative; flex: 1; height: 12px; background: var(--soft); }
.bar .fill { position: absolute; inset: 0 auto 0 0; background: var(--accent); }
.bar .fill.plain { background: var(--grey); }
.bar .tick { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px;
  background: var(--ink); }
.bar .value { width: 3.1em; text-align: right; flex: none; white-space: nowrap; }
details { margin-top: 18px; font-size: 15px; }
summary { cursor: pointer; color: var(--muted); }
summary:hover { color: var(--accent); }

.pick { display: flex; flex-wrap: wrap; align-items: center; gap: 6px; margin: 10px 0; font-size: 14px; }
.pick > span { min-width: 56px; color: var(--muted); }
button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; }
.pick button { min-width: 34px; padding: 3px 9px; text-align: center; border: 1px solid var(--rule);
  border-radius: 3px; font-variant-numeric: tabular-nums; }
.pick button:hover { border-color: var(--accent); }
.pick button:disabled { color: var(--rule); border-color: var(--rule); cursor: default; }
.pick button[aria-pressed=true] { background: var(--ink); color: var(--paper); border-color: var(--ink); }

.browser { display: grid; grid-template-columns: minmax(210px, 270px) minmax(0, 1fr); gap: 0 36px;
  margin-top: 12px; outline: none; }
.browser .pickers { grid-column: 1 / -1; }
.units { list-style: none; margin: 8px 0 0; padding: 0; max-height: 690px; overflow-y: auto;
  border-top: 1px solid var(--rule); position: relative; }
.units button { display: grid; grid-template-columns: 1fr auto; gap: 0 8px; width: 100%; padding: 6px 8px;
  border-bottom: 1px solid var(--rule); font-size: 14px; line-height: 1.35; }
.units button:hover { background: var(--soft); }
.units button[aria-current=true] { background: var(--accent-soft); }
.units small { color: var(--muted); font-size: 13px; grid-column: 1 / -1; display: flex;
  justify-content: space-between; }
.units .not { color: var(--muted); }
.unit .kicker { margin-top: 8px; }
.unit h3 { font-family: var(--serif); font-size: 25px; line-height: 1.22; margin: 2px 0 8px;
  overflow-wrap: anywhere; text-wrap: balance; }
.unit .columns { display: grid; grid-template-columns: minmax(0, 1.1fr) minmax(0, 1fr); gap: 0 32px; }
.unit h4 { font-size: 14px; margin: 18px 0 6px; }
.facts { display: flex; flex-wrap: wrap; gap: 4px 26px; margin: 8px 0 10px; }
.facts div { min-width: 66px; }
.facts dt { font-size: 13px; color: var(--muted); }
.facts dd { margin: 0; font-size: 20px; font-variant-numeric: tabular-nums; line-height: 1.3; }
.facts dd small { font-size: 13px; color: var(--muted); }
.contexts { list-style: none; margin: 6px 0 0; padding: 0; }
.contexts button { display: block; width: 100%; padding: 7px 10px; border-left: 3px solid var(--rule);
  margin-bottom: 6px; font: 13px/1.5 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; }
.contexts button:hover { border-color: var(--grey); }
.contexts button[aria-pressed=true] { border-color: var(--accent); background: var(--soft); }
.contexts small { display: block; font: 13px var(--text); color: var(--muted); }
mark { background: var(--accent); color: var(--paper); padding: 1px 3px; border-radius: 2px;
  font-weight: 700; }
.tokens { display: grid; grid-template-columns: auto 1fr auto; gap: 3px 10px; align-items: center;
  font-size: 13px; margin: 0; }
.tokens .token { font-family: var(--mono); min-width: 2.2em; background: var(--soft); padding: 0 6px;
  text-align: center; white-space: pre; overflow: hidden; text-overflow: ellipsis; max-width: 14em; }
.tokens .value { font-variant-numeric: tabular-nums; text-align: right; }
.tokens i { display: block; height: 9px; background: var(--grey); }
.tokens i.up { background: var(--accent); }
.hint { font-size: 14px; color: var(--muted); margin: 4px 0 14px; max-width: none; }
kbd { border: 1px solid var(--rule); border-bottom-width: 2px; border-radius: 3px; padding: 0 5px;
  margin-right: 2px; }
.browser:focus-within .hint { color: var(--ink); }
.absent { border-left: 3px solid var(--rule); padding: 2px 0 2px 14px; color: var(--muted); }
.absent code { color: var(--ink); }
footer { margin-top: 72px; padding-top: 14px; border-top: 1px solid var(--rule); }

@media screen and (max-width: 760px) {
  .grid { grid-template-columns: repeat(auto-fit, minmax(min(100%, 140px), 1fr)); gap: 8px 16px; }
  .numbers { grid-template-columns: repeat(auto-fit, minmax(min(100%, 145px), 1fr)); gap: 0 16px; }
  .numbers dt { white-space: normal; }
  .numbers .value { font-size: 32px; }
  .wide { display: none; }
  td.chart { min-width: 112px; }
  td.chart, th.left:not(.wide) { padding-left: 4px; padding-right: 6px; }
  .bar { gap: 4px; }
  .bar .value { width: 2.7em; }
  tbody th { min-width: 96px; }
  main { padding: 24px 16px 48px; }
  section { margin-top: 52px; }
  .browser, .unit .columns { grid-template-columns: minmax(0, 1fr); }
  .units { max-height: 232px; }
  .unit { margin-top: 20px; }
  .hint { display: none; }
}
@media print {
  :root { --paper: #fff; --soft: #f4f2ec; }
  body { zoom: .72; } /* the desktop layout on A4 or letter paper */
  main { max-width: none; padding: 0; }
  nav, .hint, .pickers { display: none; }
  section { margin-top: 44px; }
  footer { margin-top: 28px; }
  .lede { break-inside: avoid; }
  figure figure, tr, svg, .numbers div, .contexts li { break-inside: avoid; }
  h2, h3, h4, .kicker, .lede { break-after: avoid; }
  .browser { grid-template-columns: 230px minmax(0, 1fr); }
  .units { max-height: none; overflow: visible; }
  .scroll { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
@page { margin: 16mm 14mm; }
)page";

// ---------------------------------------------------------------------------------------------------------
// Script

inline constexpr char page_script[] = R"page('use strict';
// --- Reading, formatting, making elements

const read = id => {
  const e = document.getElementById('data-' + id);
  return e && JSON.parse(e.textContent);
};
const run = read('run'), bsp = read('bsp'), sparsity = read('sparsity'), router = read('router'),
      features = read('features');
const config = run.config, L = +config.n_layer, moe = config.ffn === 'moe', E = moe ? +config.n_expert : 1;
const chess = config.tokenizer === 'chess-32';
const width = (moe ? +config.n_expert : +config.n_expert_active) * +config.d_expert; // units of a layer
const number = x => typeof x === 'number' && isFinite(x);
const fix = (x, digits = 2) => number(x) ? x.toFixed(digits).replace('-', '−') : '–';
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
const duration = t => t < 90 ? Math.round(t) + ' s'
  : t < 5400                 ? Math.round(t / 60) + ' min'
                             : (t / 3600).toFixed(1) + ' h';

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

// Lines over steps. series: {name, colour, points, band, dash, label}; pointing at the plot reads them off.
function lines(w, height, o) {
  const range = [0, Math.max(1, ...o.series.flatMap(q => q.points).map(q => q[0]))];
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
    reading.textContent = 'step ' + whole(x) + '  ' +
      (o.read || (list => list.map(r => r.name + ' ' + fix(r.value, o.digits ?? 3)).join('  ')))(
        o.series.filter(q => q.points.length).map(q => ({name: q.name, value: near(q.points, x)[1]})));
    rule.setAttribute('visibility', 'visible'), reading.setAttribute('visibility', 'visible');
  });
  p.svg.addEventListener('pointerleave',
    () => { rule.setAttribute('visibility', 'hidden'), reading.setAttribute('visibility', 'hidden'); });
  return p.svg;
}

// Bars over bins: edges has one more than counts. marks: [[value, text]].
function histogram(w, height, o) {
  const high = Math.max(1, ...o.counts);
  const p = plot(w, height, {y: [0, high * 1.04], yTicks: [], margin: {left: 2, top: 20}, ...o});
  const place = o.log ? x => p.X(Math.log10(x)) : p.X;
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
)page"
                                      R"page(
// --- The head: what the model is, and its numbers in one glance

const modelName = !moe ? (config.act === 'gelu' ? 'GPT-2' : 'Dense ReLU model')
  : config.router === 'topk'
  ? (config.act === 'gelu' ? 'Switch-style mixture' : 'Top-k mixture of ReLU experts')
  : config.act === 'relu' ? 'MoE-X'
                          : 'Mixture of GELU experts, routed by sparsity';
const boardName = 'piece_masked_blank_and_initial_state';
const boardBest = bsp && best(bsp.layers, l => l.board.coverage),
      rebuiltBest = bsp && best(bsp.layers, l => l.board.reconstruction);
const valLoss = run.val_loss && run.val_loss.length ? run.val_loss[run.val_loss.length - 1][1] : null;
const l0 = sparsity         ? mean(sparsity.layers.map(l => l.l0.mean))
  : run.l0 && run.l0.length ? run.l0[run.l0.length - 1][1]
                            : null;
const truth = router && mean(router.layers.map(l => l.pearson && l.pearson.within));
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
  if (boardBest)
    tile('Board coverage', fix(boardBest.board.coverage, 3), null,
      `layer ${boardBest.layer}; untrained weights reach ${
        fix(boardBest.board.untrained && boardBest.board.untrained.coverage, 3)}`);
  if (rebuiltBest)
    tile('Board reconstruction', fix(rebuiltBest.board.reconstruction, 3), null,
      `layer ${rebuiltBest.layer}, F1 on held-out games; untrained ${
        fix(rebuiltBest.board.untrained && rebuiltBest.board.untrained.reconstruction, 3)}`);
  if (number(truth))
    tile('Router and truth', fix(truth, 2), null,
      `correlation of the score with the units that fire, over a token's experts`);
  if (!bsp && features)
    tile('Units with a meaning', whole(features.summary.found), 'of ' + whole(features.summary.tested),
      `that holds on held-out ${chess ? 'games' : 'text'} and beyond chance`);
  const sentence = features && features.best && features.best.sentence;
  const link = features && features.best && features.units[features.best.index];
  return h('header', {}, h('p', {class: 'kicker'}, `${run.run}, step ${whole(run.step)}`),
    h('h1', {},
      `What a ${modelName} of ${human(run.parameters)} parameters learned` + (chess ? ' from chess' : '')),
    sentence ? h('p', {class: 'lede'}, sentence[0].toUpperCase() + sentence.slice(1) + '. ',
                 link && h('a', {href: place(link)}, 'See it at work'))
             : h('p', {class: 'lede'},
                 features ? 'No single unit passed the test against chance on held-out data.'
                          : `Its ${config.n_layer} layers have ${whole(width)} units each.`),
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
      colour: expertColour(e),
      thin: true,
      points: run.load.map(a => [a[0], a[1][l][e]])
    };
  });
  const largest = list => best(list.slice(0, E), r => r.value);
  return lines(w, 190, {
    title: `Expert load of layer ${l} over steps`,
    series: [...series, even],
    margin: {top: 18},
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
)page"
                                      R"page(
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
      'Units by the share of tokens they fire on, on a logarithmic scale. Units that never fire are left out.'),
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
        (dead ? `${whole(dead)} units of all layers never fire.` : 'every unit fires at some time.')),
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
    fix(l.l0.sd, 1), percent(l.zero_work, 1), whole(l.dead), ...(moe ? load(l) : []));
  return table(['layer', 'units per token', 'interval', 'sd', 'zero work', 'dead', ...(moe ? experts : [])],
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

// --- The router's score against what the experts would have done

// Points of one colour are one path of dots: thousands of points in few elements.
const dots = (points, colour, X, Y, size, opacity) => s('path', {
  d: points.map(q => `M${X(q[0]).toFixed(1)} ${Y(q[1]).toFixed(1)}h0`).join(''),
  fill: 'none',
  stroke: colour,
  'stroke-width': size,
  'stroke-linecap': 'round',
  opacity
});
const byExpert = points => Array.from({length: E}, (_, e) => points.filter(q => q[2] === e));

function routing() {
  const layers = router.layers, sparsityRouter = config.router === 'sparsity', D = +config.d_expert;
  const most = Math.max(1, ...layers.flatMap(l => l.scatter.map(q => q[1])));
  const gs = layers.flatMap(l => l.scatter.map(q => q[0])),
        range = sparsityRouter ? [-1, 1] : [Math.min(...gs), Math.max(...gs)];
  const r = mean(layers.map(l => l.pearson.within)), agree = mean(layers.map(l => l.agreement)),
        chance = mean(layers.map(l => l.chance));
  const calibrated = layers.filter(
    l => l.calibration && l.calibration.predicted.length && l.calibration.predicted.some(number));
  const interval = q => q.within_low !== undefined ? `${fix(q.within_low, 3)} to ${fix(q.within_high, 3)}`
                                                   : `${fix(q.low, 3)} to ${fix(q.high, 3)}`;
  return [
    h('p', {class: 'lede'},
      sparsityRouter
        ? `The router never looks at the units: it guesses from the mean and the variance of` +
          ` their weights which experts would fire least. On ${
            whole(router.sample.tokens)} tokens all experts were run to see. Score and count correlate with ${
            fix(r, 2)}, and ${percent(agree)} of the chosen are truly among the sparsest (by chance ${
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
              (points, e) => p.svg.append(dots(points, expertColour(e), p.X, p.Y, 3.4, .6)));
            p.svg.append(s('text', {class: 'strong halo', x: w - 10, y: 34, 'text-anchor': 'end'},
              `r = ${fix(l.pearson.within, 3)}`));
            return p.svg;
          }),
        expertLegend()
      ],
      'Each dot is one expert on one token, chosen or not; r is taken over a token’s experts and averaged.'),
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
  const spread = mean(last.layers.map(l => l.sd_ratio)), fitted = mean(last.layers.map(l => l.ks_fitted));
  return [
    h('p', {class: 'lede'},
      `The router takes what an expert’s units say to a token for a Gaussian sample. At step ${
        whole(last.step)} their distribution is ${
        fix(distance, 3)} away from the one it assumes, where a true sample is ${fix(control, 3)} away.` +
        (number(spread) && number(fitted)
            ? ` They spread ${
                fix(spread,
                  2)} times as far as assumed; from the Gaussian of their own mean and spread they are ${
                fix(fitted, 3)} away.`
            : '')),
    h('div', {class: 'grid three'},
      panel('Distance from the Gaussian assumed', 'ks',
        'Largest difference of the distribution functions (Kolmogorov–Smirnov). ' +
          'Dashed: a true Gaussian sample of the same size.',
        'ks_gaussian'),
      panel('Spread beside the one assumed', 'sd_ratio',
        'True standard deviation over the router’s σ, which takes the channels for independent. ' +
          '1: it is right.'),
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
      byExpert(pca.points).forEach((points, e) => svg.append(dots(points, expertColour(e), X, Y, 4.5, .55)));
      return svg;
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
)page"
                                      R"page(
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

// Heat: how often the property holds on a square when the unit fires, in percent of how often it holds
// anyway. Above 100 the square takes on the heat colour, by the logarithm, fully at the highest (at least
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
    'aria-label': 'The board of the chosen context' + (heat ? ' with a heat map: ' + unit.heat_function : '')
  });
  for (let i = 0; i < 64; i++) {
    const x = 100 * (i % 8), y = 100 * (7 - Math.floor(i / 8)), hot = heat ? heatOf(heat[i], most) : 0;
    const group = s('g', {transform: `translate(${x} ${y})`},
      s('title', {},
        square(i) +
          (on && on[i] ? (on[i] < 'a' ? ', white ' : ', black ') + pieceNames[on[i].toLowerCase()] : '') +
          (heat ? `: ${times(heat[i])} times as often as usual` : '')),
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
    if (on && on[i]) {
      const white = on[i] < 'a', [outline, inside] = pieces[on[i].toLowerCase()];
      group.append(s('path', {
        d: outline,
        fill: white ? 'var(--white-piece)' : 'var(--black-piece)',
        stroke: white ? 'var(--outline)' : 'var(--white-piece)',
        'stroke-width': white ? 3.2 : 2.2,
        'stroke-linejoin': 'round'
      }));
      if (inside)
        group.append(s('path', {
          d: inside,
          fill: 'none',
          stroke: white ? 'var(--outline)' : 'var(--white-piece)',
          'stroke-width': 3,
          'stroke-linecap': 'round'
        }));
    }
    svg.append(group);
  }
  for (let i = 0; i < 8; i++)
    svg.append(
      s('text', {x: -12, y: 100 * (7 - i) + 58, 'text-anchor': 'middle', style: 'font-size:23px'}, i + 1),
      s('text', {x: 100 * i + 50, y: 822, 'text-anchor': 'middle', style: 'font-size:23px'}, 'abcdefgh'[i]));
  return svg;
}

// The F1 of a unit on its axis, with what it is to be read against.
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
    for (const [value, name, mark] of [[
           unit.floor, 'always on',
           (x, y) => s(
             'circle', {cx: x, cy: y, r: 5, fill: 'var(--paper)', stroke: 'var(--muted)', 'stroke-width': 2})
         ],
           [unit.permuted, 'labels shuffled', controls[1].mark], [unit.same_move, other, controls[0].mark]])
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
function tokens(list, up) {
  const most = Math.max(1e-9, ...list.map(q => Math.abs(q[1])));
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

const browser = h('div', {class: 'browser', tabindex: '-1', keydown: keys});
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
      'Properties are tried at the dots of move numbers, where it is White’s turn. At other places a unit ' +
        'may fire for what is the same of Black.'),
    h('ol', {class: 'contexts'}, contexts.map(excerpt)));
  const side = h('div', {}, h('h4', {}, 'It makes likelier'), tokens(u.promotes || [], true),
    h('h4', {}, 'and less likely'), tokens(u.suppresses || [], false), moe && (u.with || []).length > 0 && [
      h('h4', {}, 'When it fires, these experts work with its own'),
      h('div', {class: 'tokens'},
        u.with.slice(0, 5).map(
          ([e, part]) => [h('span', {class: 'token'}, e),
            h('i', {style: `width:${(100 * part).toFixed(1)}%;background:${expertColour(e)}`}),
            h('span', {class: 'value'}, percent(part))]))
    ]);
  return h('div', {class: 'unit', 'aria-live': 'polite'},
    h('p', {class: 'kicker'}, unitName(u)[0].toUpperCase() + unitName(u).slice(1)),
    h('h3', {},
      u.found ? (u.precision >= .9 ? 'Fires when ' : 'Fires more often when ') + u.property
              : 'Detects none of the properties looked for'),
    !u.found &&
      h('p', {class: 'note'},
        `Nearest is “${
          u.property}”: on held-out data it does not clearly beat all that it is measured against.`),
    h('dl', {class: 'facts'},
      fact(
        'precision', scoreText(u.precision), number(u.precision_low) && `at least ${fix(u.precision_low)}`),
      fact('recall', scoreText(u.recall)), fact('base rate', fix(u.base, u.base < .0005 ? 5 : u.base < .095 ? 3 : 2)),
      fact('is not zero on', percent(u.rate, 1), 'of tokens'),
      fact('counts as on above', percent(u.threshold), `of ${fix(u.max)}`)),
    against(u),
    h('ul', {class: 'legend'},
      [
        ['F1 with its 95% interval', trainedMark], ['always on', controls[2].mark],
        ['labels shuffled', controls[1].mark], [other, controls[0].mark]
      ].map(([name, mark]) =>
              h('li', {}, s('svg', {width: 18, height: 18, 'aria-hidden': 'true'}, mark(9, 9)), name))),
    chess ? h('div', {class: 'columns'},
              h('div', {},
                h('h4', {},
                  context ? 'The board there' + (context.move ? `, after ${context.move}` : '') : 'Squares'),
                boardSvg(u, context),
                Array.isArray(u.heat) && u.heat.length === 64 &&
                  h('p', {class: 'note'},
                    `Red, over all its firings: ${u.heat_function}, more often than usual; up to ${
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
               h('span', {}, q.property),
               h('small', {}, h('span', {}, 'unit ' + q.unit),
                 h('span', {},
                   q.found ? `F1 ${scoreText(q.f1)}, precision ${scoreText(q.precision)}` : 'not found'))))));
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
  chosen.unit = features.best ? units[features.best.index] : units[0];
  showBrowser();
  return [
    h('p', {class: 'lede'},
      `For each unit, the one property was looked for that its firing tells best. ` +
        `It is called found if it holds on ${
          chess ? 'games' : 'text'} that the search never saw, and clearly more than shuffled labels and ${
          other} would. Of ${whole(f.tested)} units, ${whole(f.found)} pass` +
        (number(f.found_same_move) ? `; searched with the ${other}, ${whole(f.found_same_move)} do` : '') +
        '.'),
    browser
  ];
}

// --- The page

const sections = [
  {id: 'training', name: 'Training', title: 'Training', make: training}, {
    id: 'board',
    name: 'Board state',
    title: 'Do its units tell the board?',
    make: board,
    tool: 'bsp',
    when: () => chess
  },
  {
    id: 'strategy',
    name: 'Strategy',
    title: 'What it knows beyond pieces and squares',
    make: strategies,
    tool: 'bsp',
    when: () => chess && bsp
  },
  {id: 'sparsity', name: 'Sparsity', title: 'How few units do the work', make: sparse, tool: 'sparsity'}, {
    id: 'router',
    name: 'Router',
    title: 'Does the router choose the sparsest experts?',
    make: routing,
    tool: 'router',
    when: () => moe
  },
  {
    id: 'gaussian',
    name: 'Gaussian check',
    title: 'Does the router’s assumption hold?',
    make: gaussian,
    tool: 'router',
    when: () => moe && router && router.history && router.history.length
  },
  {
    id: 'encoder',
    name: 'Encoder rows',
    title: 'The experts’ weights in two dimensions',
    make: encoders,
    tool: 'router',
    when: () => moe && router && router.layers.some(l => l.pca)
  },
  {id: 'units', name: 'Units', title: 'What single units detect', make: browse, tool: 'features'}
];
const measured = {
  bsp,
  sparsity,
  router,
  features
};

function section(q) {
  let body;
  try {
    body = q.tool && !measured[q.tool] ? [absent(q.tool)] : q.make();
  } catch (error) {
    console.error(q.id, error);
    body = [h('p', {class: 'absent'}, `This part could not be drawn: ${error.message}.`)];
  }
  return h(
    'section', {id: q.id, 'aria-labelledby': q.id + '-title'}, h('h2', {id: q.id + '-title'}, q.title), body);
}
function foot_notes() {
  const seeds =
    [bsp && bsp.seeds && Object.entries(bsp.seeds).map(([k, v]) => `${k} ${v}`).join(', ')].filter(Boolean);
  return h('footer', {class: 'note'},
    h('p', {},
      `Checkpoint ${run.checkpoint}.` +
        (bsp ? ` Board metrics: ${whole(bsp.games.train)} and ${whole(bsp.games.test)} games of ${
                 bsp.games.source}, their first ${bsp.games.characters} characters and ${
                 bsp.games.dots} moves; units ${
                 bsp.gated ? 'times their gate weights' : 'without gate weights'}.`
             : '') +
        (seeds.length ? ` Seeds: ${seeds}.` : '') +
        ' Models: Yang et al., Mixture of Experts Made Intrinsically Interpretable, arXiv 2503.07639.' +
        ' Board metrics: Karvonen et al., arXiv 2408.00113.'));
}
document.getElementById('page').append(
  head(), ...sections.filter(q => !q.when || q.when()).map(section), foot_notes());
for (const host of drawings.keys()) draw(host); // now, so that the address finds its place
fromAddress();
addEventListener('hashchange', fromAddress);
addEventListener('beforeprint', () => {
  document.querySelectorAll('details').forEach(d => {
    if (!d.open) d.open = d.dataset.opened = true;
  });
});
addEventListener('afterprint', () => {
  document.querySelectorAll('details[data-opened]').forEach(d => {
    d.open = false;
    delete d.dataset.opened;
  });
});
document.documentElement.dataset.drawn = 'true';
)page";

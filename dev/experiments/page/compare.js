// Methods compared: a panel for each number of a table, a line for each method; a dot is the mean over seeds, the
// bar its 95% t interval, small ticks the runs. What the paper reports for its own data stands in a panel of its
// own, in grey. The page asks no network for anything, and what comes from files goes into it as text only.
'use strict';

const data = JSON.parse(document.getElementById('data-tables').textContent);
const number = x => typeof x === 'number' && isFinite(x);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.flat(Infinity).filter(c => c !== null && c !== undefined));
  return element;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) =>
  fill(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);

// Numbers that a scale is marked at: three to six round ones.
function marks(low, high) {
  const raw = (high - low) / 4, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(x => x * power).find(x => x >= raw);
  const list = [];
  for (let x = Math.ceil(low / step - 1e-9) * step; x <= high + 1e-9 * step; x += step) list.push(x);
  return {list, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9))};
}

// rows: {label, mean, low, high, values, mark}; grey: another data set's.
function panel(title, rows, digits, grey) {
  const known = rows.filter(r => number(r.mean));
  if (!known.length) return null;
  const left = 232, width = 560, line = 22, top = 8, height = rows.length * line;
  const all = known.flatMap(r => [r.mean, r.low, r.high, ...r.values]).filter(number);
  let low = Math.min(...all), high = Math.max(...all);
  const room = (high - low || Math.abs(high) || 1) * .08;
  low -= room;
  high += room;
  const x = v => left + (width - left - 60) * (v - low) / (high - low);
  const scale = marks(low, high);
  const svg = s('svg', {viewBox: `0 0 ${width} ${top + height + 24}`, width, role: 'img', 'aria-label': title});
  for (const m of scale.list)
    svg.append(s('line', {x1: x(m), x2: x(m), y1: top, y2: top + height, class: 'gridline'}),
               s('text', {x: x(m), y: top + height + 16, 'text-anchor': 'middle'}, m.toFixed(scale.digits)));
  rows.forEach((r, i) => {
    const y = top + (i + .5) * line, colour = grey ? 'var(--grey)' : 'var(--accent)';
    svg.append(s('text', {x: left - 10, y: y + 4, 'text-anchor': 'end', class: r.mark ? 'strong' : ''},
                 r.label.length > 36 ? r.label.slice(0, 35) + '…' : r.label));
    if (!number(r.mean)) {
      svg.append(s('text', {x: x(low), y: y + 4}, '–', s('title', {}, r.reason || 'no run')));
      return;
    }
    if (number(r.low) && number(r.high))
      svg.append(s('line', {x1: x(r.low), x2: x(r.high), y1: y, y2: y, stroke: colour, 'stroke-width': 2}));
    for (const v of r.values)
      svg.append(s('line', {x1: x(v), x2: x(v), y1: y - 4, y2: y + 4, stroke: colour, opacity: .5}));
    const half = number(r.low) ? ' ± ' + ((r.high - r.low) / 2).toFixed(digits) : '';
    svg.append(s('circle', {cx: x(r.mean), cy: y, r: 4, fill: grey ? 'var(--paper)' : colour, stroke: colour},
                 s('title', {}, `${r.label}: ${r.mean.toFixed(digits)}${half}`)),
               s('text', {x: width, y: y + 4, 'text-anchor': 'end'}, r.mean.toFixed(digits)));
  });
  return h('figure', {}, h('h3', {}, title), svg);
}

const page = document.getElementById('page');
page.append(h('p', {class: 'kicker'}, `size ${data.size}`), h('h1', {}, 'Methods compared'),
            h('p', {class: 'lede'},
              'A dot is the mean over seeds, the bar its 95% t interval, small ticks are runs. ' +
              'Labels in bold differ from the table’s reference after Holm’s correction over all its differences. ' +
              'A dash is a run that is missing.'));
for (const table of data.tables) {
  const section = h('section', {}, h('h2', {}, table.title));
  const grid = h('div', {class: 'grid two'});
  for (const metric of data.metrics.filter(m => m.compare)) {
    const rows = table.rows.map(row => {
      const cell = row.cells[metric.name] || {values: {}};
      const difference = row.differences[metric.name];
      return {label: row.label, mean: cell.mean, low: cell.low, high: cell.high, reason: row.reason,
              values: Object.values(cell.values), mark: difference && difference.marked};
    });
    const figure = panel(metric.head, rows, metric.digits, false);
    if (figure) grid.append(figure);
  }
  section.append(grid);
  if (!grid.children.length) section.append(h('p', {class: 'note'}, 'No run yet.'));
  const refused = table.rows.filter(row => row.reason && !row.view);
  if (refused.length)
    section.append(h('p', {class: 'note'}, refused.map(row => `${row.label}: not run: ${row.reason}. `).join('')));
  if (table.published.length) {
    section.append(h('h3', {}, 'The paper’s own numbers: other data, other training, one run each'));
    const labels = Object.fromEntries(table.rows.map(row => [row.view ? '' : row.method, row.label]));
    const papers = h('div', {class: 'grid two'});
    for (const [name, head] of [['val_loss', 'validation loss'], ['board.coverage', 'coverage, published'],
                                ['board.rec_published', 'reconstruction, published']]) {
      const rows = table.published.map(p => ({label: labels[p.method] || p.method, mean: p[name], values: []}));
      const figure = panel(head, rows, 3, true);
      if (figure) papers.append(figure);
    }
    section.append(papers);
  }
  page.append(section);
}

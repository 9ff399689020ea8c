// The model at work in the page: a board to play on, or a prompt; what it would write next, what happens
// inside while it reads, and what becomes of both when its units or experts are changed.

const embedded = read('model');
// What rounding the weights to 8 bits costs.
function roundingNote() {
  const c = embedded.cost;
  return 'Its weights are in this page, rounded to 8 bits. ' +
    (c ? `On ${whole(c.tokens)} tokens of ${c.data} its loss is ${
           fix(c.rounded, 4)} nats, that of the weights as trained ${fix(c.loss, 4)}: rounding costs ${
           fix(c.rounded - c.loss, 4)}${number(c.error) ? ' ± ' + fix(c.error, 4) : ''}.`
       : 'What that costs in loss was not measured: report does it when it is given games or held-out tokens.');
}

// --- What is on the table

const desk = {
  text: chess ? ';1.' : '',
  cursor: null, // of a token; null: the last
  temperature: .3,
  answers: true,
  turned: false,
  from: null,
  promotion: 'q',
  changes: [],
  unit: null,
  said: '',
  refused: [] // moves it has just tried that are not legal
};
let plain = null, changed = null; // readers: of the model as it is, and with the changes
const active = () => changed || plain;

const tokensOf = text => chess || config.tokenizer === 'chess-32' ? encodeText(text, 'chess-32')
                                                                  : [256, ...encodeText(text, 'bytes')];
const shownToken = token => visible(tokenText(token, config.tokenizer));

// --- Moves

const game = () => readGame(desk.text);
// The text with the number of the move that is to come, if that is not there.
function ready({position, rest, error}) {
  const number = moveNumber(position);
  return !error && rest === '' ? desk.text + number : desk.text;
}
function playMove(san) {
  const {position, at} = game(), next = afterMove(position, moveNamed(position, san));
  setText(desk.text.slice(0, at) + moveNumber(position) + san + ' ' + moveNumber(next));
}
// The model's move: drawn at the temperature; what is not legal is said, and drawn again.
function answer() {
  const {position, rest, error} = game(), legal = namedMoves(position), reader = active();
  if (error || !legal.length || rest && rest !== moveNumber(position)) return;
  if (desk.text.length + 12 > +config.block_size) {
    desk.said = `The game is as long as the model can read: ${config.block_size} characters.`;
    return show();
  }
  desk.refused = [];
  const played = () => {
    for (let i = 0; i < (desk.temperature > 0 ? 8 : 1); i++) {
      const word = write(reader, desk.temperature, 10, t => ' ;'.includes(chessCharacters[t]))
                     .map(t => chessCharacters[t])
                     .join('');
      const move = legal.find(m => unmarked(m.san) === unmarked(word));
      if (move) return move;
      desk.refused.push(word);
    }
    const list = nextMoves(reader, position, '').filter(m => m.move);
    return list.length ? list[0].move : null;
  };
  const move = played();
  const times = new Map();
  desk.refused.forEach(word => times.set(word, (times.get(word) || 0) + 1));
  const wrote = [...times].map(([word, n]) => (word || '∅') + (n > 1 ? ` ${n} times` : '')).join(', ');
  desk.said = (wrote ? `It wrote ${wrote}, not legal here. ` : '') +
    (move ? `It plays ${move.san}.` : 'It finds no legal move.');
  if (move)
    playMove(move.san);
  else
    show();
}
function userMove(from, to) {
  const {position} = game(),
        move = namedMoves(position).find(
          m => m.from === from && m.to === to && (!m.promotion || m.promotion === desk.promotion));
  if (!move) return false;
  desk.from = null, desk.said = `You play ${move.san}.`, desk.refused = [];
  playMove(move.san);
  if (desk.answers) answer();
  return true;
}
function takeBack() {
  const {moves} = game(), keep = moves.slice(0, Math.max(0, moves.length - (desk.answers ? 2 : 1)));
  let text = ';', p = positionOf(startFen);
  for (const m of keep) text += moveNumber(p) + m.san + ' ', p = afterMove(p, m);
  desk.said = '', desk.refused = [];
  setText(text + moveNumber(p));
}

// --- Changes

const sameThing = (a, b) => a.layer === b.layer && a.expert === b.expert && a.unit === b.unit;
const changeIn = thing => desk.changes.find(c => sameThing(c, thing));
function setChange(thing, what) { // what: {off, factor}, or null to take the change away
  desk.changes = desk.changes.filter(c => !sameThing(c, thing));
  const {E, K} = plain.decoder.model, off = desk.changes.filter(c => c.off && c.layer === thing.layer).length;
  if (what && what.off && off >= E - K) {
    desk.said = `Layer ${thing.layer} has no more experts to spare: a token goes to ${K}.`;
    what = null;
  }
  if (what) desk.changes.push({...thing, ...what});
  changed = null;
  show();
}
function reset() {
  if (!desk.changes.length) return;
  desk.changes = [], changed = null, desk.said = 'The model is as it was.';
  show();
}
const thingName =
  ({layer, expert, unit}) => [`layer ${layer}`, moe && `expert ${expert}`, unit !== null && `unit ${unit}`]
                               .filter(Boolean)
                               .join(', ');

// --- Drawing

const panel = (name, label) => h('div', {class: name, role: 'group', 'aria-label': label});
const panels = {
  board: panel('desk-board', 'Board'),
  text: panel('desk-text', 'Text'),
  next: panel('desk-next', 'What comes next'),
  changes: panel('desk-changes', 'Changes'),
  inside: panel('desk-inside', 'Inside')
};
const button = (text, click, attributes = {}) => h('button', {type: 'button', click, ...attributes}, text);
// Fills a panel anew; what had the keyboard in it has it again, by its data-key.
function redraw(host, ...children) {
  const key = host.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  host.replaceChildren(...children.flat(Infinity).filter(Boolean));
  const again = key && [...host.querySelectorAll('[data-key]')].find(e => e.dataset.key === key);
  if (again) again.focus({preventScroll: true});
}
function setText(text) {
  clearInterval(alongTimer);
  desk.text = text, desk.cursor = null, desk.from = null;
  show();
}

// From the first token to the last, a few a second.
let alongTimer = 0;
function lookAlong() {
  const last = active().tokens.length - 1;
  desk.cursor = 0;
  lookAt(desk.cursor);
  clearInterval(alongTimer);
  alongTimer = setInterval(() => {
    if (desk.cursor === null || desk.cursor >= last) return clearInterval(alongTimer);
    lookAt(desk.cursor + 1);
  }, 200);
}
function lookAt(token) {
  desk.cursor = token >= active().tokens.length - 1 ? null : Math.max(0, token);
  drawNext(chess ? game() : null, true), drawInside(true);
}

// Reads the text with the model as it is and as changed; false: there is nothing to read.
function readAlong(text) {
  const tokens = tokensOf(text), model = plain.decoder.model;
  if (tokens.includes(null) || !tokens.length || tokens.length > model.T) return false;
  if (desk.changes.length && !changed) changed = newReader(model, changeOf(desk.changes));
  follow(plain, tokens);
  if (changed) follow(changed, tokens);
  return true;
}
function show() {
  const now = chess ? game() : null, text = chess ? ready(now) : desk.text, reads = readAlong(text);
  if (chess) drawBoard(now);
  drawText(now, text, reads);
  drawNext(now, reads);
  drawChanges();
  drawInside(reads);
  if (announced.textContent !== desk.said) announced.textContent = desk.said;
}
const announced = h('p', {class: 'desk-said', 'aria-live': 'polite'});

function drawBoard({position, moves, error}) {
  const {board} = position, last = moves[moves.length - 1],
        targets =
          desk.from === null ? [] : legalMoves(position).filter(m => m.from === desk.from).map(m => m.to);
  const unit = desk.unit,
        heat = unit && Array.isArray(unit.heat) && unit.heat.length === 64 ? unit.heat : null;
  const order =
    Array.from({length: 64}, (_, i) => desk.turned ? 8 * (i >> 3) + 7 - i % 8 : 8 * (7 - (i >> 3)) + i % 8);
  const press = i => {
    if (desk.from !== null && targets.includes(i) && userMove(desk.from, i)) return;
    desk.from = board[i] !== '' && isWhite(board[i]) === position.white && desk.from !== i ? i : null;
    drawBoard(game());
  };
  const cells = order.map((i, at) => {
    const hot = heat ? heatOf(heat[i], Math.max(...heat)) : 0, piece = board[i];
    const name = square(i) +
      (piece ? `, ${isWhite(piece) ? 'white' : 'black'} ${pieceNames[piece.toLowerCase()]}` : '') +
      (targets.includes(i) ? ', can go here' : '');
    return h('button', {
      type: 'button',
      'data-key': square(i),
      'aria-label': name,
      'aria-pressed': String(desk.from === i),
      tabindex: (desk.from === null ? at === 56 : desk.from === i) ? '0' : '-1',
      class: [
        (i + (i >> 3)) % 2 ? 'light' : '', last && (i === last.from || i === last.to) ? 'last' : '',
        targets.includes(i) ? 'target' : ''
      ].join(' '),
      click: () => press(i)
    },
      at % 8 === 0 && h('small', {class: 'rank'}, square(i)[1]),
      at > 55 && h('small', {class: 'file'}, square(i)[0]),
      hot > .01 && h('i', {style: `opacity:${(.92 * hot).toFixed(3)}`}),
      piece && s('svg', {viewBox: '0 0 100 100', 'aria-hidden': 'true'}, pieceShapes(piece)));
  });
  const arrows = event => { // from square to square
    const way = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -8, ArrowDown: 8}[event.key],
          at = [...event.currentTarget.children].indexOf(document.activeElement), to = at + way;
    if (!way || at < 0) return;
    event.preventDefault();
    if (to < 0 || to > 63 || Math.abs(way) === 1 && to >> 3 !== at >> 3) return;
    event.currentTarget.children[to].focus();
  };
  const promotes =
    desk.from !== null && board[desk.from].toLowerCase() === 'p' && targets.some(t => t < 8 || t > 55);
  const over = !legalMoves(position).length;
  redraw(panels.board,
    h('div', {
      class: 'squares',
      role: 'group',
      'aria-label': 'Squares; arrow keys go from one to the next',
      keydown: arrows
    },
      cells),
    h('p', {class: 'note'},
      error ||
        (over ? (inCheck(position) ? 'Checkmate.' : 'Stalemate.')
              : `${position.white ? 'White' : 'Black'} to move.`),
      heat && ` Red: ${unit.heat_function}, more often when ${unitName(unit)} fires.`),
    promotes &&
      picker('Promotes to', [...'qrbn'].map(l => [l, pieceNames[l]]), desk.promotion,
        l => {
          desk.promotion = l;
          drawBoard(game());
        }),
    h('div', {class: 'pick'}, button('The model moves', () => answer(), {'data-key': 'answer'}),
      button('Take back', takeBack, {'data-key': 'back'}), button('New game', () => {
        desk.said = '', desk.refused = [];
        setText(';1.');
      }, {'data-key': 'new'}), button('Turn the board', () => {
        desk.turned = !desk.turned;
        drawBoard(game());
      }, {'data-key': 'turn'})));
}

// The text, to type into; the settings; and the tokens, of which one is looked at.
const field = h('textarea', {
  rows: chess ? 3 : 4,
  spellcheck: 'false',
  autocapitalize: 'off',
  'aria-label': chess ? 'Text of the game' : 'Prompt',
  input: () => {
    desk.said = '', desk.refused = [];
    setText(field.value);
  }
});
function drawText(now, text, reads) {
  if (field.value !== desk.text) field.value = desk.text;
  if (!panels.text.contains(field)) {
    const heat = h('output', {}, fix(desk.temperature, 1));
    panels.text.append(h('label', {}, chess ? 'Text of the game, as the model reads it' : 'Prompt', field),
      h('div', {class: 'settings-row'},
        h('label', {}, 'Temperature ', h('input', {
          type: 'range',
          min: '0',
          max: '1.5',
          step: '.1',
          value: desk.temperature,
          input: event => heat.textContent = fix(desk.temperature = +event.target.value, 1)
        }),
          heat),
        chess ? h('label', {}, h('input', {
          type: 'checkbox',
          checked: desk.answers,
          input: event => desk.answers = event.target.checked
        }),
                  ' the model answers')
              : button('Let it go on', goOn, {class: 'small'})),
      h('p', {class: 'note wrong', role: 'status'}));
  }
  const tokens = tokensOf(text), most = plain.decoder.model.T;
  panels.text.querySelector('.wrong').textContent = reads ? ''
    : tokens.includes(null) ? 'There is a character in it that games are not written with.'
    : tokens.length > most  ? `The model reads ${most} tokens; this text has ${tokens.length}.`
                            : 'Write something for it to read.';
}
function goOn() {
  if (!plain.tokens.length) return;
  const tokens = write(active(), desk.temperature, 60, t => t === 256);
  desk.said = tokens.length ? 'It wrote on.' : 'It ends the text here.';
  setText(new TextDecoder().decode(Uint8Array.from([...active().tokens.slice(1), ...tokens])));
}

// Bars for what comes next: as the model is, and with the changes.
function chances(title, head, rows) { // rows: {name, before, after, bad}
  return figure(title,
    table([head, '<' + (changed ? 'as it is' : 'probability'), ...(changed ? ['<changed'] : [])],
      rows.map(r => h('tr', {class: r.bad ? 'bad' : ''},
                 h('th', {scope: 'row'}, r.name, r.bad && h('small', {}, ' not legal')),
                 h('td', {class: 'chart'}, bar(r.before, [], changed)),
                 changed && h('td', {class: 'chart'}, bar(r.after)))),
      title));
}
function sideBySide(before, after, key) { // two lists of {[key], p}, as rows for chances()
  const names = new Map();
  before.forEach(x => names.set(x[key], {...x, before: x.p, after: 0}));
  after.forEach(x => names.set(x[key], {...(names.get(x[key]) || {...x, before: 0}), after: x.p}));
  return [...names.values()].sort((a, b) => Math.max(b.before, b.after) - Math.max(a.before, a.after));
}
function drawNext(now, reads) {
  if (!reads) return redraw(panels.next);
  const at = desk.cursor === null ? plain.tokens.length - 1 : Math.min(desk.cursor, plain.tokens.length - 1);
  const list = reader => Array.from(reader.records[at].p, (p, token) => ({token, p}));
  const tokens = sideBySide(list(plain), changed ? list(changed) : [], 'token')
                   .slice(0, 8)
                   .map(x => ({...x, name: h('code', {}, shownToken(x.token))}));
  const parts = [];
  if (now && !now.error && legalMoves(now.position).length) {
    const number = moveNumber(now.position),
          begun = now.rest.startsWith(number) ? now.rest.slice(number.length) : null;
    if (now.rest === '' || begun !== null) {
      const moves = reader => reader.moves = reader.moves || nextMoves(reader, now.position, begun || ''),
            before = moves(plain), after = changed ? moves(changed) : [];
      const share = m => sum(m.filter(x => !x.move).map(x => x.p));
      parts.push(
        chances('The next move', 'move',
          sideBySide(before, after, 'san').slice(0, 10).map(m => ({...m, name: m.san || '∅', bad: !m.move}))),
        h('p', {class: 'note'},
          `Not legal: ${percent(share(before), 1)}${
            changed ? `, changed ${percent(share(after), 1)}`
                    : ''}. Found in all: ${percent(sum(before.map(m => m.p)), 1)} of what it may write.`));
    }
  }
  parts.push(chances(`The next ${chess ? 'character' : 'token'}` + (desk.cursor === null ? '' : ' there'),
    chess ? 'character' : 'token', tokens));
  redraw(panels.next, parts);
}

// The same changes as flags of the programs (dev/run/routing.h), '' if there is one that they have no flag for.
function flagsOf(list) {
  if (list.some(c => c.unit === null && !c.off)) return '';
  const at = ({layer, expert, unit}) => [layer, expert, unit].filter(x => x !== null).join('/');
  const flag = (name, part, text = at) => part.length ? [`--${name} ${part.map(text).join(',')}`] : [];
  return [
    ...flag('experts-off', list.filter(c => c.off)),
    ...flag('units-off', list.filter(c => c.unit !== null && c.factor === 0)),
    ...flag('units-scale', list.filter(c => c.unit !== null && c.factor !== 0), c => `${at(c)}=${c.factor}`)
  ].join(' ');
}
function drawChanges() {
  const line = c => {
    const expert = c.unit === null, key = `${c.layer}/${c.expert}/${c.unit}`;
    return h('li', {}, h('span', {}, thingName(c)[0].toUpperCase() + thingName(c).slice(1)),
      expert &&
        h('label', {}, h('input', {
          type: 'checkbox',
          checked: c.off,
          'data-key': key + 'off',
          input: event => setChange(c, {off: event.target.checked, factor: c.factor})
        }),
          ' never chosen'),
      h('label', {}, expert ? 'output times ' : 'value times ', h('input', {
        type: 'number',
        step: '.5',
        value: c.factor,
        'data-key': key + 'factor',
        disabled: c.off,
        change: event =>
          number(event.target.valueAsNumber) && setChange(c, {off: c.off, factor: event.target.valueAsNumber})
      })),
      button('As it was', () => setChange(c, null),
        {'data-key': key + 'undo', 'aria-label': thingName(c) + ' as it was'}));
  };
  redraw(panels.changes, desk.changes.length > 0 && [
    h('h3', {}, 'Changed'), h('ul', {}, desk.changes.map(line)),
    h('p', {class: 'hint'}, button('Reset', reset, {class: 'small', 'data-key': 'reset'}), ' or ',
      h('kbd', {}, 'Esc'), ' puts everything back.'),
    flagsOf(desk.changes) &&
      h('p', {class: 'note'}, 'The same by flags of ', h('code', {}, 'sample_cpu'), ' and ', h('code', {}, 'evaluate'),
        ': ', h('code', {class: 'flags'}, flagsOf(desk.changes)))
  ]);
}

// What a unit was found to detect, if features has it.
const foundOf = (layer, expert, unit) =>
  units.find(u => u.layer === layer && u.expert === expert && u.unit === unit);
function drawInside(reads) {
  if (!reads) return redraw(panels.inside);
  const {tokens, records} = active(),
                 at = desk.cursor === null ? tokens.length - 1 : Math.min(desk.cursor, tokens.length - 1);
  const go = to => {
    clearInterval(alongTimer);
    lookAt(to);
  };
  const most = Math.max(1e-9, ...records[at].layers.flat().flatMap(e => e.units.map(u => u.value)));
  const unitLine = (layer, e, u) => {
    const found = foundOf(layer, e.expert, u.unit), thing = {layer, expert: e.expert, unit: u.unit},
          now = changeIn(thing);
    const light = () => {
      if (!chess || desk.unit === (found || null)) return;
      desk.unit = found || null;
      drawBoard(game());
    };
    const text = !found ? `unit ${u.unit}`
      : found.verdict === 'knows' ? found.property
      : found.verdict === 'reads' ? found.text
                                  : `unit ${u.unit}, nothing found`;
    return h('li', {class: now ? 'changed' : '', pointerenter: light, focusin: light},
      h('i', {style: `width:${(100 * u.value / most).toFixed(1)}%`}),
      found ? h('a', {href: place(found)}, text) : h('span', {}, text),
      h('span', {class: 'value'}, fix(u.value) + (now ? ` × ${now.factor}` : '')),
      button(now ? 'on' : 'off', () => setChange(thing, now ? null : {off: false, factor: 0}), {
        class: 'small',
        'data-key': `${layer}/${e.expert}/${u.unit}`,
        'aria-pressed': String(Boolean(now)),
        'aria-label': `Switch ${thingName(thing)} ${now ? 'on' : 'off'}`
      }));
  };
  const expertPart = (layer, e) => {
    const thing = {layer, expert: e.expert, unit: null}, now = changeIn(thing);
    return h('div', {class: 'expert', style: `border-color:${expertColour(e.expert)}`},
      h('p', {class: now ? 'changed' : ''},
        moe && [h('strong', {}, `Expert ${e.expert}`), ` weight ${fix(e.weight)}, `],
        `${e.active} units fire`,
        moe && button(now ? 'on' : 'off', () => setChange(thing, now ? null : {off: true, factor: 0}), {
          class: 'small',
          'data-key': `${layer}/${e.expert}`,
          'aria-pressed': String(Boolean(now)),
          'aria-label': `Switch ${thingName(thing)} ${now ? 'on' : 'off'}`
        })),
      h('ul', {class: 'strongest'}, e.units.map(u => unitLine(layer, e, u))));
  };
  redraw(panels.inside, h('h3', {}, `Inside, while it reads “${shownToken(tokens[at])}”`),
    h('div', {class: 'strip', 'aria-hidden': 'true'},
      tokens.map((t, i) => h('span', {class: i === at ? 'here' : '', click: () => go(i)}, shownToken(t)))),
    h('label', {class: 'reader'}, `Token ${at + 1} of ${tokens.length} `, h('input', {
      type: 'range',
      min: '1',
      max: String(tokens.length),
      value: String(at + 1),
      'data-key': 'cursor',
      input: event => go(event.target.value - 1)
    }),
      button('From the beginning', lookAlong, {class: 'small', 'data-key': 'along'})),
    h('div', {class: 'grid two'},
      records[at].layers.map((experts, layer) => h('div', {class: 'layer'}, h('h4', {}, `Layer ${layer}`),
                               experts.map(e => expertPart(layer, e))))),
    h('p', {class: 'note'},
      `Of each ${moe ? 'chosen expert' : 'layer'} the ${strongestUnits} units that say most` +
        (moe ? ', by value times gate weight' : '') +
        (features ? ', named by what they were found to tell; a name leads to its evidence.'
                  : '. What they tell, features measures.') +
        (chess ? ' Pointing at one shows its squares on the board.' : '') +
        (moe ? ' An expert that is off is never chosen: the next best takes its place.' : '')));
}

// --- The section

const runs = embedded && !embedded.none && (chess || config.tokenizer === 'bytes');
// For the card of a unit, or of an expert (unit: null): a button that switches it off up here.
function switchOff({layer, expert, unit}) {
  return runs && h('p', {}, button('Switch it off in the model at work', () => {
    startPlay();
    setChange({layer, expert, unit}, unit === null ? {off: true, factor: 1} : {off: false, factor: 0});
    document.getElementById('play').scrollIntoView();
  }, {class: 'small'}));
}

function play() {
  if (!embedded || embedded.none)
    return [h('p', {class: 'absent'}, embedded ? embedded.none : 'The model is not in this page.')];
  if (!runs)
    return [h('p', {class: 'absent'},
      'This page has the model but not its tokenizer, so that nothing can be typed for it to read.')];
  const begin = h('p', {class: 'note'}, 'Unpacking the model …');
  const host = h('div', {class: 'desk'}, begin);
  setTimeout(() => startPlay());
  play.start = () => {
    plain = newReader(readModel(embedded, config));
    if (!chess) desk.text = 'The ';
    host.replaceChildren(announced,
      h('div', {}, chess && panels.board, !chess && panels.text, panels.changes),
      h('div', {}, chess && panels.text, panels.next), panels.inside);
    show();
  };
  document.addEventListener('keydown', event => {
    if (event.key === 'Escape' && desk.changes.length) event.preventDefault(), reset();
  });
  return [
    h('p', {class: 'lede'},
      chess
        ? 'Play a move on the board, or type: the model answers. What it would play is beside it, ' +
            'what happens inside below; units and experts can be switched off.'
        : 'Type something: what the model would write next is beside it, what happens inside ' +
            'below; units and experts can be switched off.'),
    host, h('p', {class: 'note'}, roundingNote())
  ];
}
// Unpacks the model, once; the page is there before.
function startPlay() {
  if (!play.start) return;
  const start = play.start;
  play.start = null;
  start();
}

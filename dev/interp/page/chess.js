// The rules of chess: positions, legal moves, SAN, the game text that models read (data/chess.h). Squares run
// a1 = 0, b1 = 1, .. h8 = 63; a piece is its letter in a FEN, '' for none.

// --- Positions

const startFen = 'rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1';
// castling: letters as in a FEN; passed: the square a pawn has just passed over, or -1; full: number of the
// move
function positionOf(fen) {
  const [, turn, castling, passed, , full] = fen.split(' ');
  return {
    board: squares(fen),
    white: turn === 'w',
    castling: castling.replace('-', ''),
    passed: passed === '-' ? -1 : squareOf(passed),
    full: +full
  };
}
const squareOf = name => 'abcdefgh'.indexOf(name[0]) + 8 * (name[1] - 1);
const isWhite = piece => piece !== '' && piece < 'a';
// The square so many files and ranks on, or -1 beyond the board.
function stepFrom(s, files, ranks) {
  const f = s % 8 + files, r = (s >> 3) + ranks;
  return f < 0 || f > 7 || r < 0 || r > 7 ? -1 : 8 * r + f;
}
const straight = [[1, 0], [-1, 0], [0, 1], [0, -1]], diagonal = [[1, 1], [1, -1], [-1, 1], [-1, -1]];
const steps = {
  n: [[1, 2], [2, 1], [2, -1], [1, -2], [-1, -2], [-2, -1], [-2, 1], [-1, 2]],
  b: diagonal,
  r: straight,
  q: [...straight, ...diagonal],
  k: [...straight, ...diagonal]
};

// --- Moves: {from, to, promotion}, promotion a letter of q r b n or ''

// Is a square attacked by a side? Looking from it as each kind of piece finds the pieces of that kind.
function attacked(board, s, byWhite) {
  const is = (at, letters) => at >= 0 && board[at] !== '' && isWhite(board[at]) === byWhite &&
    letters.includes(board[at].toLowerCase());
  const along = (moves, letters) => moves.some(([f, r]) => {
    let at = stepFrom(s, f, r);
    while (at >= 0 && board[at] === '') at = stepFrom(at, f, r);
    return is(at, letters);
  });
  const up = byWhite ? -1 : 1; // where a pawn that attacks it stands
  return is(stepFrom(s, 1, up), 'p') || is(stepFrom(s, -1, up), 'p') ||
    steps.n.some(([f, r]) => is(stepFrom(s, f, r), 'n')) ||
    steps.k.some(([f, r]) => is(stepFrom(s, f, r), 'k')) || along(straight, 'rq') || along(diagonal, 'bq');
}
const inCheck = (p, white = p.white) => attacked(p.board, p.board.indexOf(white ? 'K' : 'k'), !white);

// Moves that may leave the king in check.
function pseudoMoves({board, white, castling, passed}) {
  const moves = [], own = s => board[s] !== '' && isWhite(board[s]) === white;
  const add = (from, to, pawn) => {
    if (pawn && (to < 8 || to > 55))
      for (const promotion of 'qrbn') moves.push({from, to, promotion});
    else
      moves.push({from, to, promotion: ''});
  };
  for (let s = 0; s < 64; s++) {
    if (!own(s)) continue;
    const kind = board[s].toLowerCase();
    if (kind === 'p') {
      const up = white ? 1 : -1, one = stepFrom(s, 0, up), two = stepFrom(s, 0, 2 * up);
      if (board[one] === '') {
        add(s, one, true);
        if (s >> 3 === (white ? 1 : 6) && board[two] === '') add(s, two);
      }
      for (const side of [-1, 1]) {
        const to = stepFrom(s, side, up);
        if (to >= 0 && (board[to] !== '' && !own(to) || to === passed)) add(s, to, true);
      }
      continue;
    }
    for (const [f, r] of steps[kind])
      for (let to = stepFrom(s, f, r); to >= 0 && !own(to); to = stepFrom(to, f, r)) {
        add(s, to);
        if (board[to] !== '' || kind === 'k' || kind === 'n') break;
      }
  }
  const king = white ? 4 : 60, safe = s => !attacked(board, s, !white);
  for (const [letter, way, empty] of [['k', 1, [1, 2]], ['q', -1, [-1, -2, -3]]])
    if (castling.includes(white ? letter.toUpperCase() : letter) &&
      empty.every(i => board[king + i] === '') && [0, way, 2 * way].every(i => safe(king + i)))
      add(king, king + 2 * way);
  return moves;
}
// Those that lose a right to castle when something moves from them or to them.
const rights = {
  0: 'Q',
  4: 'KQ',
  7: 'K',
  56: 'q',
  60: 'kq',
  63: 'k'
};
function afterMove(p, {from, to, promotion}) {
  const board = [...p.board], piece = board[from], pawn = piece.toLowerCase() === 'p',
        king = piece.toLowerCase() === 'k';
  if (pawn && to === p.passed) board[to + (p.white ? -8 : 8)] = '';
  if (king && Math.abs(to - from) === 2) { // the rook hops over
    const [rook, place] = to > from ? [from + 3, from + 1] : [from - 4, from - 1];
    board[place] = board[rook], board[rook] = '';
  }
  board[to] = promotion ? (p.white ? promotion.toUpperCase() : promotion) : piece, board[from] = '';
  const lost = (rights[from] || '') + (rights[to] || '');
  return {
    board,
    white: !p.white,
    castling: [...p.castling].filter(c => !lost.includes(c)).join(''),
    passed: pawn && Math.abs(to - from) === 16 ? (from + to) / 2 : -1,
    full: p.full + (p.white ? 0 : 1)
  };
}
const legalMoves = p => pseudoMoves(p).filter(m => !inCheck(afterMove(p, m), p.white));
function perft(p, depth) {
  const moves = legalMoves(p);
  return depth < 2 ? moves.length : moves.reduce((n, m) => n + perft(afterMove(p, m), depth - 1), 0);
}

// --- SAN and game text

function sanOf(p, m, legal) {
  const piece = p.board[m.from], kind = piece.toLowerCase(), next = afterMove(p, m);
  let text;
  if (kind === 'k' && Math.abs(m.to - m.from) === 2)
    text = m.to > m.from ? 'O-O' : 'O-O-O';
  else {
    const captures = p.board[m.to] !== '' || kind === 'p' && m.to === p.passed;
    const rivals = legal.filter(o => o.to === m.to && o.from !== m.from && p.board[o.from] === piece);
    const sameFile = rivals.some(o => o.from % 8 === m.from % 8),
          sameRank = rivals.some(o => o.from >> 3 === m.from >> 3);
    const from = square(m.from);
    text = kind === 'p' ? (captures ? from[0] : '')
                        : kind.toUpperCase() + (rivals.length && (!sameFile || sameRank) ? from[0] : '') +
        (sameFile ? from[1] : '');
    text += (captures ? 'x' : '') + square(m.to) + (m.promotion ? '=' + m.promotion.toUpperCase() : '');
  }
  return text + (inCheck(next) ? legalMoves(next).length ? '+' : '#' : '');
}
const unmarked = san => san.replace(/[+#]+$/, '');
// The legal moves, each with its SAN.
function namedMoves(p) {
  const legal = legalMoves(p);
  return legal.map(m => ({...m, san: sanOf(p, m, legal)}));
}
// The legal move that a SAN names, its check mark right or wrong.
function moveNamed(p, san) {
  const legal = legalMoves(p), goes = m => san[0] === 'O' || san.includes(square(m.to));
  const named = legal.filter(goes).map(m => ({...m, san: sanOf(p, m, legal)}));
  return named.find(m => unmarked(m.san) === unmarked(san));
}
const moveNumber = p => p.white ? p.full + '.' : '';

// Reads the last game of a text: its moves, the position behind them, what stands there of a move that is not
// complete, and what is wrong with the first move that is not legal (at: where in the text it begins). A move
// is complete when a space follows it.
function readGame(text) {
  const begin = text.lastIndexOf(';'), moves = [];
  let p = positionOf(startFen), at = begin + 1, error = begin < 0 ? 'A game begins with “;”.' : '', rest = '';
  for (const word of begin < 0 ? [] : text.slice(at).split(/(?<= )/)) {
    if (!word.endsWith(' ')) {
      rest = word;
      break;
    }
    const number = moveNumber(p),
          move = word.startsWith(number) && moveNamed(p, word.slice(number.length, -1));
    if (!move) {
      error = `“${word.trim()}” is not a legal move here.`;
      break;
    }
    moves.push({...move, before: p});
    p = afterMove(p, move), at += word.length;
  }
  return {moves, position: p, rest, at, error};
}

// The model at work in the page: what it would write next, what happens inside while it reads, and what changes when
// its units or experts are changed.

// --- What the page has of the model

const embedded = read('model');
const canRun = embedded && !embedded.none;
// What rounding the weights to 8 bits costs.
function roundingNote() {
  const c = embedded.cost;
  return 'Its weights are in this page, rounded to 8 bits. ' +
    (c ? `On ${whole(c.tokens)} tokens of ${c.data} its loss is ${fix(c.rounded, 4)} nats, that of the weights as trained ${
           fix(c.loss, 4)}: rounding costs ${fix(c.rounded - c.loss, 4)}${number(c.error) ? ' ± ' + fix(c.error, 4) : ''}.`
       : 'What that costs in loss was not measured: report does it when it is given games or held-out tokens.');
}
function play() {
  if (!canRun) return [h('p', {class: 'absent'}, embedded ? embedded.none : 'The model is not in this page.')];
  return [h('p', {class: 'note'}, roundingNote())];
}

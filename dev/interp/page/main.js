// The sections of the page, in their order; drawn when everything above is known.

// --- The page

const sections = [
  {id: 'play', name: 'The model at work', title: 'The model at work', make: play}, {id: 'training', name: 'Training', title: 'Training', make: training}, {
    id: 'board',
    name: 'Board state',
    title: 'Do its units tell the board, beyond the text?',
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
  {
    id: 'experts',
    name: 'Experts',
    title: 'What decides a token’s expert, and what experts take',
    make: specialists,
    tool: 'experts',
    when: () => moe
  },
  {
    id: 'probes',
    name: 'Probes',
    title: moe ? 'What a few units of an expert tell' : 'What a few units of a layer tell',
    make: probing,
    tool: 'probe',
    when: () => moe || config.ffn === 'dense'
  },
  {id: 'units', name: 'Units', title: 'What single units tell', make: browse, tool: 'features'}
];
const measured = {
  bsp,
  sparsity,
  router,
  experts,
  probe,
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
function safely(make) { // a number that is not there must not take the page with it
  try {
    return make();
  } catch (error) {
    console.error(error);
    return h('p', {class: 'absent'}, `This part could not be drawn: ${error.message}.`);
  }
}
document.getElementById('page').append(
  safely(head), ...sections.filter(q => !q.when || q.when()).map(section), safely(foot_notes));
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

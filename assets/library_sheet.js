// One entry, opened: what is known of it, what is said of it, and what can be done with it.
const ASKS = { compare: 'submit', reuse: 'retry', download: 'download', xray: 'expand' };
let shown = null;

function show(found) {
  if (found.failed) { at('.told').textContent = found.told; return; }
  shown = found;
  at('h3').textContent = found.title;
  at('.problem').hidden = !found.problem; at('.problem').textContent = found.problem;
  at('.origin').textContent = found.origin; at('.origin').hidden = !found.origin;
  at('dl').replaceChildren(...found.facts.map(([label, value]) => { const box = make('div'); box.append(make('dt', label), make('dd', value)); return box; }));
  at('.measured').innerHTML = found.measured; at('.measured').hidden = !found.measured; // HTML of the page's own
  for (const name of ['name', 'tags', 'note']) {
    const field = at(`[name=${name}]`);
    at(`.l-${name}`).textContent = found.words[name]; field.placeholder = found.words[`${name}_hint`]; field.disabled = found.fixed;
    if (field !== document.activeElement) field.value = found[name]; // what is being typed stays
  }
  for (const node of element.querySelectorAll('.acts button')) {
    const act = node.dataset.act;
    node.textContent = act === 'star' ? (found.star ? found.words.unstar : found.words.star) : found.words[act];
    node.hidden = act === 'star' ? found.fixed : !found.can[act];
  }
  at('.close').title = found.words.close; at('.close').setAttribute('aria-label', found.words.close);
  at('.told').textContent = found.told || '';
}

async function look() {
  const id = props.value || '';
  at('.ls-sheet').hidden = !id;
  if (!id) { shown = null; return; }
  const found = await server.described({ id });
  if (id === props.value) show(found);
}

async function say(words) {
  if (!shown) return;
  const { id } = shown, found = await server.say({ id, words });
  if (id === props.value) show(found);
  document.querySelector('#library .ls-library')?.dispatchEvent(new CustomEvent('library-stale', { bubbles: true }));
}

element.addEventListener('change', (event) => {
  const field = event.target;
  if (shown && field.name && field.value !== shown[field.name]) say({ [field.name]: field.value });
});
element.addEventListener('click', (event) => {
  const act = event.target.closest('button[data-act]')?.dataset.act;
  if (!act || !shown) return;
  if (act === 'star') return say({ star: !shown.star });
  if (act === 'delete') return document.querySelector('#library .ls-library')?.dispatchEvent(new CustomEvent('library-delete', { bubbles: true, detail: { ids: [shown.id] } }));
  if (act === 'close') return document.querySelector(`#library tr[data-id="${CSS.escape(shown.id)}"] [data-act=open]`)?.click();
  trigger(ASKS[act], { id: shown.id });
});
// What the table has changed is seen here too.
onDocument('library-changed', () => { if (shown) look(); });
watch('value', async () => { await look(); if (props.value) at('.ls-sheet').scrollIntoView({ block: 'nearest', behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth' }); });
look();

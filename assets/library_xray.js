// The x-ray: a cell for each module, the directions of one or of all, and what a lower rank would lose.
let data = null, picked = '', asked = 0;

const percent = (share) => (share === null ? data.words.unknown : `${(100 * share).toPrecision(2)} %`);
const said = (one) => fillIn(data.words.cell, { module: one.name, share: percent(one.share), directions: one.effective, of: one.rank });

// The largest of the modules that share a cell.
function cells() {
  const found = new Map();
  for (const one of data.modules) { const key = `${one.part} ${one.layer}`, before = found.get(key); if (!before || (one.share || 0) > (before.share || 0)) found.set(key, one); }
  return found;
}

function heat() {
  const found = cells(), most = Math.max(...data.modules.map((one) => one.share || 0)), columns = [...data.layers, ...(data.modules.some((one) => one.layer === null) ? [null] : [])];
  const head = make('tr'); head.append(make('th', data.words.layer, 'corner'), ...columns.map((layer) => { const cell = make('th', layer === null ? data.words.outside : layer); cell.scope = 'col'; return cell; }));
  const rows = data.parts.map((part) => {
    const line = make('tr'), name = make('th', part); name.scope = 'row'; line.append(name);
    for (const layer of columns) {
      const one = found.get(`${part} ${layer}`), cell = make('td');
      if (one) { const button = make('button'); button.type = 'button'; button.dataset.name = one.name; button.tabIndex = -1; button.style.setProperty('--share', `${Math.round(100 * (most ? (one.share || 0) / most : 0))}%`); button.title = said(one); button.setAttribute('aria-label', said(one)); cell.append(button); }
      line.append(cell);
    }
    return line;
  });
  at('.heat').replaceChildren(head, ...rows);
  const first = at('.heat button'); if (first) first.tabIndex = 0;
}

function pick(name) {
  picked = name;
  const one = data.modules.find((module) => module.name === name);
  at('select').value = name;
  for (const node of element.querySelectorAll('.heat button')) node.setAttribute('aria-pressed', node.dataset.name === name);
  at('.cell').textContent = one ? said(one) : '';
  const values = one ? one.values : data.whole, lives = one ? one.effective : data.effective, most = Math.max(...values, 1e-9);
  at('.bars').replaceChildren(...values.map((value, i) => { const bar = make('i', undefined, i < lives ? 'lives' : ''); bar.style.height = `${Math.max(100 * value / most, value ? 1 : 0)}%`; bar.title = `${i + 1}: ${(100 * value).toPrecision(2)} %`; return bar; }));
  at('.bars').setAttribute('aria-label', fillIn(data.words.heard, { directions: lives, of: values.length, module: one ? one.name : data.words.every }));
}

function lower(rank) {
  asked = rank;
  const found = data.ranks.find((one) => one.rank === rank);
  if (!found) return;
  at('input').value = rank; at('output').textContent = rank;
  at('.loses').textContent = fillIn(data.words.loses, found);
}

function show() {
  data = given();
  at('.ls-xray').hidden = !data;
  if (!data) return;
  const words = data.words;
  for (const [name, text] of [['.title', words.title], ['.lead', words.said], ['.l-heat', words.heat], ['.heat-why', words.heat_why], ['.l-spectrum', words.spectrum], ['.spectrum-why', words.spectrum_why], ['.l-shrink', words.shrink], ['.shrink-why', words.shrink_why], ['.picking span', words.pick], ['.to', words.to_rank], ['.shrink button', words.make]]) at(name).textContent = text;
  at('select').replaceChildren(...['', ...data.modules.map((one) => one.name)].map((name) => { const one = make('option', name || words.every); one.value = name; return one; }));
  heat(); pick('');
  const can = data.ranks.length > 0;
  for (const name of ['.l-shrink', '.shrink-why', '.shrink']) at(name).hidden = !can;
  if (can) { at('input').max = data.ranks.length; lower(Math.min(Math.max(data.effective, 1), data.ranks.length)); }
}

element.addEventListener('click', (event) => {
  const cell = event.target.closest('.heat button');
  if (cell) return pick(cell.dataset.name === picked ? '' : cell.dataset.name);
  if (event.target.closest('.shrink button') && data) trigger('apply', { id: data.id, rank: asked });
});
// In the picture one goes with the arrows; only one cell is a stop of the tab key.
at('.heat').addEventListener('keydown', (event) => {
  const node = event.target.closest('button'), step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!node || !step) return;
  const row = node.closest('tr'), rows = [...at('.heat').querySelectorAll('tr')], to = rows[rows.indexOf(row) + step[0]]?.children[[...row.children].indexOf(node.closest('td')) + step[1]]?.querySelector('button');
  if (!to) return;
  event.preventDefault(); node.tabIndex = -1; to.tabIndex = 0; to.focus(); at('.cell').textContent = to.title;
});
at('input').addEventListener('input', (event) => lower(Number(event.target.value)));
at('select').addEventListener('change', (event) => pick(event.target.value));
watch('value', show);
show();

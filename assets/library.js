// The table of runs and adapters: asks for what a search finds, draws it, and changes what is said of it.
const asked = { words: '', kind: '', tag: '', starred: false, by: 'created', falling: true, limit: 100 };
let words = null, heads = {}, falls = [], drawn = '', open = '', chosen = new Set(), undo = [], roomy = '', known = [];

function options(name, list, value) {
  const node = at(name), now = JSON.stringify(list);
  if (node.dataset.list !== now) {
    node.dataset.list = now;
    node.replaceChildren(...list.map(([key, text]) => { const one = make('option', text); one.value = key; return one; }));
  }
  node.value = value;
}

function head() {
  const row = at('thead tr'), cells = [make('th', undefined, 'pick'), make('th', undefined, 'star')];
  const all = make('input'); all.type = 'checkbox'; all.dataset.act = 'all'; all.setAttribute('aria-label', words.choose); cells[0].append(all);
  cells[1].append(button('sort', '★', words.star)); cells[1].firstChild.dataset.by = 'star';
  for (const [name, title] of Object.entries(heads)) { const cell = make('th', undefined, name), node = button('sort', title); node.dataset.by = name; cell.append(node); cells.push(cell); }
  row.replaceChildren(...cells);
}

function sorted() {
  for (const node of at('thead').querySelectorAll('[data-act=sort]')) {
    const is = node.dataset.by === asked.by, cell = node.closest('th');
    if (is) cell.setAttribute('aria-sort', asked.falling ? 'descending' : 'ascending'); else cell.removeAttribute('aria-sort');
  }
}

function rowOf(item) {
  const row = make('tr'), pick = make('td', undefined, 'pick'), star = make('td', undefined, 'star'), name = make('td', undefined, 'name');
  row.dataset.id = item.id;
  const box = make('input'); box.type = 'checkbox'; box.dataset.act = 'pick'; pick.append(box);
  star.append(button('star'));
  const link = button('open'); name.append(link, ...['status', 'tags', 'note'].map((part) => make('span', undefined, part)));
  row.append(pick, star, name, ...Object.keys(heads).slice(1).map((column) => make('td', undefined, column)));
  return row;
}

function fill(row, item) {
  const box = row.querySelector('[data-act=pick]'), star = row.querySelector('[data-act=star]');
  box.checked = chosen.has(item.id); box.setAttribute('aria-label', `${words.choose}: ${item.name}`);
  const starred = `${item.star ? words.unstar : words.star}: ${item.name}`;
  star.textContent = item.star ? '★' : '☆'; star.setAttribute('aria-pressed', item.star); star.setAttribute('aria-label', starred); star.title = starred; star.disabled = item.fixed;
  row.querySelector('[data-act=open]').textContent = item.name;
  row.querySelector('.status').textContent = item.status;
  row.querySelector('.note').textContent = item.note; row.querySelector('.note').title = item.note;
  row.querySelector('.tags').replaceChildren(...item.tags.map((tag) => { const chip = button('by-tag', tag); chip.dataset.tag = tag; return chip; }));
  for (const column of Object.keys(heads).slice(1)) { const cell = row.querySelector(`td.${column}`); cell.textContent = item[column] || '–'; cell.title = item[column] || ''; }
  row.classList.toggle('open', item.id === open); row.classList.toggle('chosen', chosen.has(item.id));
}

// Rows that stay keep their node, so that what has the focus keeps it.
function draw(answer) {
  const body = at('tbody'), held = body.contains(document.activeElement) ? document.activeElement : null;
  const where = held ? [...body.children].indexOf(held.closest('tr')) : -1;
  const old = new Map([...body.children].map((row) => [row.dataset.id, row]));
  const rows = answer.rows.map((item) => { const row = old.get(item.id) || rowOf(item); fill(row, item); return row; });
  if (rows.length !== body.children.length || rows.some((row, i) => row !== body.children[i])) body.replaceChildren(...rows);
  if (held && held !== document.activeElement) (body.contains(held) ? held : rows[Math.min(where, rows.length - 1)]?.querySelector('[data-act=open]'))?.focus();
}

function show(answer) {
  if (answer.failed) return tell(answer.told);
  const first = words === null;
  words = answer.words; heads = answer.heads; falls = answer.falling; known = answer.rows;
  if (first) { head(); name(); }
  at('.loading')?.remove();
  write('.count', answer.count);
  options('.kind', [['', words.all], ['run', words.runs], ['adapter', words.adapters]], asked.kind);
  if (asked.tag && !answer.tags.includes(asked.tag)) asked.tag = '';
  options('.tag', [['', words.any_tag], ...answer.tags.map((tag) => [tag, tag])], asked.tag);
  at('.tag').hidden = !answer.tags.length;
  const ids = new Set(answer.rows.map((row) => row.id)), gone = [...chosen].filter((id) => !ids.has(id));
  const now = JSON.stringify([answer.rows, [...chosen], open]);
  if (now !== drawn) { drawn = now; draw(answer); }
  if (gone.length && !asked.words && !asked.kind && !asked.tag && !asked.starred && answer.found <= answer.rows.length) { gone.forEach((id) => chosen.delete(id)); choose(); }
  sorted(); picked();
  const empty = !answer.rows.length;
  at('.rows').hidden = empty; at('.nothing').hidden = !empty; at('.bar').hidden = !answer.total;
  if (empty) {
    write('.nothing .lead', answer.total ? words.nothing_found : words.nothing); write('.nothing .why', answer.total ? '' : words.nothing_why);
    write('.nothing button', answer.total ? words.show_all : words.to_train);
  }
  at('.more').hidden = answer.found <= answer.rows.length; write('.more', words.more);
}

// What has a name of its own in the page's language.
function name() {
  at('.search').placeholder = words.search; at('.search').setAttribute('aria-label', words.search);
  at('.kind').setAttribute('aria-label', words.all); at('.tag').setAttribute('aria-label', words.any_tag);
  write('.starred span', words.starred); at('.rows').setAttribute('aria-label', words.all);
  for (const [act, text] of [['star-all', words.star], ['tag-all', words.tag], ['delete-all', words.delete], ['clear', words.clear], ['undo', words.undo], ['empty', words.empty], ['empty-sure', words.empty], ['empty-not', words.empty_not]]) at(`[data-act=${act}]`).textContent = text;
  at('.new-tag').placeholder = words.tag_ask; at('.new-tag').setAttribute('aria-label', words.tag_ask);
  write('.hint', words.side_by_side); write('.trash .why', words.trash_why); write('.sure b', words.empty_sure);
}

function picked() {
  at('.chosen').hidden = !chosen.size;
  write('.many', fillIn(words.chosen, { count: chosen.size }));
  at('.hint').hidden = chosen.size !== 1;
  const all = at('[data-act=all]'); if (all) { const shown = known.filter((row) => chosen.has(row.id)).length; all.checked = shown > 0 && shown === known.length; all.indeterminate = shown > 0 && shown < known.length; }
}

function choose() { trigger('select', { open, chosen: [...chosen] }); }
function tell(text, keys) {
  at('.told span').textContent = text || '';
  if (keys !== undefined) undo = keys;
  at('[data-act=undo]').hidden = !undo.length;
}

const look = () => drawNewest(server.found({ ...asked }), show);

async function disk() {
  const answer = await server.room({});
  if (answer.failed) return;
  const now = JSON.stringify(answer);
  at('.disk').hidden = false;
  if (now === roomy) return;
  roomy = now;
  write('.disk .said', answer.said);
  at('.bar-of').setAttribute('aria-label', answer.said);
  at('.bar-of').replaceChildren(...answer.parts.map((part, i) => { const bar = make('i', undefined, `p${i}`); bar.style.width = `${100 * part.share}%`; bar.title = `${part.name} ${part.size}`; return bar; }));
  at('.parts').replaceChildren(...answer.parts.map((part, i) => { const item = make('li'); item.append(make('i', undefined, `p${i}`), make('span', part.name), make('b', part.size)); return item; }));
  at('.trash').hidden = !answer.trash.length;
  write('.trash summary', answer.title);
  at('.trash ul').replaceChildren(...answer.trash.map((one) => { const item = make('li'), back = button('put-back', words.put_back, `${words.put_back}: ${one.name}`); back.dataset.key = one.key; item.append(make('b', one.name), make('span', one.about), back); return item; }));
  sure(false);
}

function sure(asks) { at('.sure').hidden = !asks; at('[data-act=empty]').hidden = asks; if (asks) at('[data-act=empty-not]').focus(); }
// What lies on the disk is measured anew only where that may have changed: it takes a walk over all of it.
const tidy = async (moved) => { await look(); if (moved) await disk(); document.dispatchEvent(new CustomEvent('library-changed')); };

async function change(answer, keys) {
  tell(answer.told, keys);
  await tidy(keys !== undefined);
}

async function remove(ids) {
  const answer = await server.remove({ ids });
  if (answer.failed) return tell(answer.told);
  ids.forEach((id) => chosen.delete(id));
  if (ids.includes(open)) open = '';
  choose();
  await change(answer, answer.keys);
  at('[data-act=undo]').focus();
}

const ACTS = {
  async star(node) { const row = node.closest('tr'); await change(await server.star({ ids: [row.dataset.id], star: node.getAttribute('aria-pressed') !== 'true' })); },
  open(node) { const id = node.closest('tr').dataset.id; open = open === id ? '' : id; look(); choose(); },
  sort(node) { const by = node.dataset.by; asked.falling = asked.by === by ? !asked.falling : falls.includes(by); asked.by = by; look(); },
  'by-tag': (node) => { asked.tag = asked.tag === node.dataset.tag ? '' : node.dataset.tag; look(); },
  'star-all': async () => change(await server.star({ ids: [...chosen], star: true })),
  'tag-all': async () => { const box = at('.new-tag'), tag = box.value.trim(); if (!tag) return box.focus(); const answer = await server.tag({ ids: [...chosen], tag }); if (!answer.failed) box.value = ''; await change(answer); },
  'delete-all': () => remove([...chosen]),
  clear() { chosen.clear(); look(); choose(); },
  undo: async () => { const keys = undo; await change(await server.put_back({ ids: keys }), []); },
  'put-back': async (node) => change(await server.put_back({ ids: [node.dataset.key] }), undo.filter((key) => key !== node.dataset.key)),
  empty: () => sure(true),
  'empty-not': () => { sure(false); at('[data-act=empty]').focus(); },
  'empty-sure': async () => change(await server.empty({}), []),
  more() { asked.limit = 5000; look(); },
  first() {
    if (!asked.words && !asked.kind && !asked.tag && !asked.starred) return document.querySelector('#tab-train-button')?.click();
    Object.assign(asked, { words: '', kind: '', tag: '', starred: false }); at('.search').value = ''; at('.starred input').checked = false; look();
  },
};

element.addEventListener('click', (event) => {
  const node = event.target.closest('button[data-act]');
  if (node) ACTS[node.dataset.act](node);
});
element.addEventListener('change', (event) => {
  const node = event.target;
  if (node.dataset.act === 'pick') { const id = node.closest('tr').dataset.id; if (node.checked) chosen.add(id); else chosen.delete(id); look(); choose(); }
  else if (node.dataset.act === 'all') { known.forEach((row) => (node.checked ? chosen.add(row.id) : chosen.delete(row.id))); look(); choose(); }
  else if (node.matches('.kind, .tag')) { asked[node.classList[0]] = node.value; look(); }
  else if (node.closest('.starred')) { asked.starred = node.checked; look(); }
});
let typing = 0;
at('.search').addEventListener('input', (event) => { clearTimeout(typing); typing = setTimeout(() => { asked.words = event.target.value; look(); }, 120); });
at('.new-tag').addEventListener('keydown', (event) => { if (event.key === 'Enter') ACTS['tag-all'](); });
element.addEventListener('library-delete', (event) => remove(event.detail.ids));
element.addEventListener('library-stale', () => { look(); });

// The value changes when something came in: it is shown, and opened, and told once the sheet has it too.
watch('value', () => { if (!props.value) return; open = props.value; chosen.clear(); setTimeout(choose); tidy(true); });

let looks = 0, seen = false;
every(1000, async () => {
  const visible = !document.hidden && element.offsetParent !== null, opened = visible && !seen, due = opened || looks % 4 === 0;
  seen = visible; looks += 1;
  if (!visible) return 300;
  if (due) await look();
  if (opened) await disk();
});

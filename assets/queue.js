// The runs that wait: asks who stands where, and lets them move or leave.
let words = {}, busy = null, free = 0;

function rowOf(run) {
  const row = make('li');
  row.dataset.run = run;
  const about = make('div', undefined, 'about');
  about.append(make('b', run, 'name'), make('span', undefined, 'what'));
  row.append(make('span', undefined, 'place'), about, button('up', '↑'), button('down', '↓'), button('leave'));
  return row;
}

function fill(row, item, place, count) {
  row.querySelector('.place').textContent = place + 1;
  row.querySelector('.what').textContent = item.about;
  row.querySelector('.leave').textContent = words.leave;
  for (const act of ['up', 'down', 'leave']) {
    const node = row.querySelector(`.${act}`);
    node.title = words[act]; node.setAttribute('aria-label', `${words[act]}: ${item.run}`);
  }
  row.querySelector('.up').disabled = place === 0;
  row.querySelector('.down').disabled = place === count - 1;
}

// A button keeps the focus while its row moves; where it can do no more, its neighbour has it.
function draw(line) {
  const list = at('ol'), held = list.contains(document.activeElement) ? document.activeElement : null;
  const where = held ? [...list.children].indexOf(held.closest('li')) : -1;
  const old = new Map([...list.children].map((row) => [row.dataset.run, row]));
  const rows = line.rows.map((item, place) => {
    const row = old.get(item.run) || rowOf(item.run);
    fill(row, item, place, line.rows.length);
    return row;
  });
  if (rows.length !== list.children.length || rows.some((row, place) => row !== list.children[place])) list.replaceChildren(...rows);
  if (!held || document.activeElement === held && !held.disabled) return;
  const row = list.contains(held) ? held.closest('li') : rows[Math.min(where, rows.length - 1)];
  if (row) [row.querySelector(`.${held.dataset.act}`), row.querySelector('.down'), row.querySelector('.up'), row.querySelector('.leave')].find((node) => !node.disabled).focus();
}

function show(line) {
  words = line.words;
  at('.ls-queue').hidden = !line.rows.length && !line.told;
  write('.title', line.title); write('.why', line.rows.length ? line.why : '');
  if (line.told) write('.told', line.told);
  draw(line);
  // What the start button says follows from it. Between two runs the device looks free for a moment:
  // that is believed when it is seen again.
  free = line.busy ? 0 : free + 1;
  if (busy !== line.busy && free !== 1) { busy = line.busy; trigger('tick', { busy }); }
}

element.addEventListener('click', async (event) => {
  const node = event.target.closest('button[data-act]');
  if (!node) return;
  const row = node.closest('li'), place = [...at('ol').children].indexOf(row), run = row.dataset.run;
  if (node.dataset.act === 'leave') return drawAct(server.leave({ run }), show);
  drawAct(server.move({ run, to: place + (node.dataset.act === 'up' ? -1 : 1) }), show);
});

every(2000, async () => { if (!document.hidden) await drawNewest(server.line({}), show); });

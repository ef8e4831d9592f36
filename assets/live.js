// The live view: asks the server for what is new since its cursor and draws only that.
let cursor = [0, 0, 0], shown = '', words = {}, smooth = null, drawn = false;
let first = null, last = null, sorts = false, told = '', app = '', resumes = null, marked = '';

const layout = (title, extra) => ({
  margin: { l: 52, r: 52, t: 34, b: 36 }, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
  font: { family: 'system-ui, sans-serif', size: 12, color: css('--quiet') },
  title: { text: title, font: { size: 13, color: css('--ink') }, x: 0, xanchor: 'left', y: 0.98, yanchor: 'top' },
  xaxis: { title: { text: words.step, standoff: 6 }, gridcolor: css('--line'), zeroline: false, rangemode: 'tozero' },
  yaxis: { gridcolor: css('--line'), zeroline: false, nticks: 6 },
  legend: { orientation: 'h', x: 1, xanchor: 'right', y: 1.16, font: { size: 11 } },
  hovermode: 'x unified', hoverlabel: { bgcolor: css('--panel'), font: { color: css('--ink') } }, uirevision: shown, ...extra,
});
const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ['lasso2d', 'select2d', 'autoScale2d'] };

const lossTraces = () => [
  { x: [], y: [], mode: 'markers', name: words.raw, marker: { color: css('--trained'), size: 4, opacity: 0.35 } },
  { x: [], y: [], mode: 'lines', name: words.smoothed, line: { color: css('--trained'), width: 2 } },
  { x: [], y: [], mode: 'lines+markers', name: words.held_out, cliponaxis: false, marker: { color: css('--ink'), size: 8, symbol: 'diamond' }, line: { color: css('--ink'), width: 1, dash: 'dot' } },
  ...(sorts ? [{ x: [], y: [], mode: 'lines+markers', name: words.accuracy, yaxis: 'y2', cliponaxis: false, marker: { color: css('--warn'), size: 7 }, line: { color: css('--warn'), width: 2 } }] : []),
  { x: [], y: [], mode: 'markers', name: words.best, cliponaxis: false, marker: { color: css('--trained'), size: 15, symbol: 'star', line: { color: css('--panel'), width: 1 } } },
];
const lossTitle = () => (sorts ? words.chart_sorting : words.chart_loss);
const lossAxes = () => (sorts ? { yaxis2: { overlaying: 'y', side: 'right', showgrid: false, zeroline: false, tickmode: 'array', tickvals: [0, 0.25, 0.5, 0.75, 1], tickformat: '.0%', range: [0, 1] } } : {});
const rateTraces = () => [
  { x: [], y: [], mode: 'lines', name: words.learning_rate, line: { color: css('--frozen'), width: 2 } },
  { x: [], y: [], mode: 'lines', name: words.grad_norm, yaxis: 'y2', line: { color: css('--trained'), width: 1 } },
];

async function begin() {
  await plotly();
  at('.plots').hidden = false;
  await Plotly.react(at('.loss'), lossTraces(), layout(lossTitle(), lossAxes()), options);
  await Plotly.react(at('.rate'), rateTraces(), layout(words.chart_rate, {
    yaxis: { gridcolor: css('--line'), tickformat: '.0e', zeroline: false, nticks: 5, rangemode: 'tozero' },
    yaxis2: { overlaying: 'y', side: 'right', showgrid: false, zeroline: false, nticks: 4, tickformat: '.2~f', rangemode: 'tozero' } }), options);
  drawn = true;
}

function recolour() {
  if (!drawn) return;
  const restyle = (div, traces, title) => {
    const now = traces();
    div.data.forEach((trace, i) => { if (now[i].marker) trace.marker.color = now[i].marker.color; if (now[i].line) trace.line.color = now[i].line.color; });
    const fresh = layout(title, {});
    Object.assign(div.layout, { font: fresh.font, title: fresh.title, hoverlabel: fresh.hoverlabel });
    for (const axis of ['xaxis', 'yaxis']) div.layout[axis].gridcolor = css('--line');
    Plotly.redraw(div);
  };
  restyle(at('.loss'), lossTraces, lossTitle());
  restyle(at('.rate'), rateTraces, words.chart_rate);
  marked = '';
}

// A star on the best measurement, a line where the run stopped early.
async function milestones(news) {
  const now = JSON.stringify([news.best, news.early]), best = news.best || [];
  if (!drawn || now === marked) return;
  marked = now;
  await Plotly.restyle(at('.loss'), { x: [best.slice(0, 1)], y: [best.slice(1)] }, [at('.loss').data.length - 1]);
  if (news.early === null) return Plotly.relayout(at('.loss'), { shapes: [], annotations: [] });
  const line = { type: 'line', x0: news.early, x1: news.early, yref: 'paper', y0: 0, y1: 1, line: { color: css('--warn'), width: 1, dash: 'dash' } };
  const note = { x: news.early, y: 0.9, yref: 'paper', text: words.early, showarrow: false, xanchor: 'right', yanchor: 'top', font: { size: 11, color: css('--quiet') } };
  await Plotly.relayout(at('.loss'), { shapes: [line], annotations: [note] });
}

async function draw(news) {
  const s = news.steps;
  if (!drawn && (s.step.length || news.evals.length)) await begin();
  if (s.step.length) {
    const line = s.loss.map((y) => (y === null ? null : (smooth = smooth === null ? y : 0.7 * smooth + 0.3 * y)));
    await Plotly.extendTraces(at('.loss'), { x: [s.step, s.step], y: [s.loss, line] }, [0, 1]);
    await Plotly.extendTraces(at('.rate'), { x: [s.step, s.step], y: [s.learning_rate, s.grad_norm] }, [0, 1]);
    if (first === null) first = s.loss[0];
    last = s.loss[s.loss.length - 1];
    at('.loss').setAttribute('aria-label', `${words.chart_loss}: ${first?.toFixed(3)} → ${last?.toFixed(3)}, ${news.when}`);
    at('.rate').setAttribute('aria-label', words.chart_rate);
  }
  if (news.evals.length) {
    const when = news.evals.map((e) => e.step);
    await Plotly.extendTraces(at('.loss'), { x: [when], y: [news.evals.map((e) => e.loss)] }, [2]);
    if (sorts) await Plotly.extendTraces(at('.loss'), { x: [when], y: [news.evals.map((e) => e.accuracy)] }, [3]);
  }
  if ('confusion' in news) confusion(news.confusion);
}

// What was taken for what: a row for each true class, a column for each that was said.
function matrix(found) {
  const table = make('table'), head = make('tr'), share = (part, whole) => (whole ? part / whole : 0);
  table.append(make('caption', found.title));
  const axes = make('th', `${words.true_class} ↓ \u00a0 ${words.predicted_class} →`, 'axes'); head.append(axes);
  for (const label of found.labels) { const cell = make('th'); cell.scope = 'col'; cell.title = label; cell.append(make('span', label)); head.append(cell); }
  head.append(make('th', words.found_share, 'share')); table.append(head);
  found.rows.forEach((row, i) => {
    const line = make('tr'), whole = row.reduce((sum, count) => sum + count, 0), name = make('th', found.labels[i]);
    name.scope = 'row'; name.title = found.labels[i]; line.append(name);
    row.forEach((count, j) => {
      const cell = make('td', count || '·', i === j ? 'right' : count ? 'wrong' : 'none');
      cell.style.setProperty('--share', `${Math.round(45 * share(count, whole))}%`);
      cell.title = `${found.labels[i]} → ${found.labels[j]}: ${count}`; line.append(cell);
    });
    line.append(make('td', whole ? `${Math.round(100 * share(row[i], whole))} %` : '–', 'share')); table.append(line);
  });
  table.classList.toggle('many', found.labels.length > 6);
  return table;
}

function confusion(found) {
  const box = at('.confusion');
  box.hidden = !found;
  if (!found) return;
  if (found.labels) return box.replaceChildren(matrix(found));
  const list = make('ul');
  list.append(...found.pairs.map((pair) => make('li', pair)));
  box.replaceChildren(make('h3', found.title), list);
}

// Built anew only when they change, so that a button keeps its focus.
function same(box, list) {
  const now = JSON.stringify(list), was = box.dataset.list;
  box.dataset.list = now;
  return now === (was || '[]');
}

function concerns(list) {
  const box = at('.concerns');
  if (!same(box, list)) box.replaceChildren(...(list.length ? [make('h3', words.warnings)] : []), ...list.map((text) => make('p', text, 'ls-say warn')));
}

function retry(list) {
  const box = at('.retry');
  if (same(box, list)) return;
  box.hidden = !list.length;
  at('.retry h3').textContent = words.retry;
  at('.retry .fixes').replaceChildren(...list.map((text, i) => {
    const button = make('button', text, 'ls-fix'); button.type = 'button';
    button.addEventListener('click', () => trigger('click', { run: shown, remedy: i }));
    return button;
  }));
}

function tiles(list) {
  const box = at('.tiles');
  while (box.children.length > list.length) box.lastChild.remove();
  list.forEach(([label, value], i) => {
    let tile = box.children[i];
    if (!tile) { tile = document.createElement('div'); tile.className = 'tile'; tile.append(document.createElement('span'), document.createElement('b')); box.append(tile); }
    if (tile.firstChild.textContent !== label) tile.firstChild.textContent = label;
    if (tile.lastChild.textContent !== value) tile.lastChild.textContent = value;
  });
}

function samples(list) {
  for (const sample of list) {
    let card = [...at('.samples').children].find((node) => node.dataset.prompt === sample.prompt);
    if (!card) {
      card = document.createElement('div'); card.className = 'sample'; card.dataset.prompt = sample.prompt;
      const q = document.createElement('div'); q.className = 'q'; q.textContent = sample.prompt; card.append(q); at('.samples').append(card);
    }
    const line = document.createElement('p'), when = document.createElement('span'), text = document.createElement('span');
    if (!sample.step) line.className = 'base';
    when.className = 's'; when.textContent = sample.when;
    text.className = 'x'; text.textContent = sample.answer || '…'; line.append(when, text);
    // The first answer and the latest three tell the story; the rest is in the events file.
    card.append(line); if (card.children.length > 5) card.children[2].remove();
  }
  at('.heading').hidden = !at('.samples').children.length;
}

function forget() {
  cursor = [0, 0, 0]; smooth = null; first = last = null; drawn = false; marked = '';
  if (window.Plotly) { Plotly.purge(at('.loss')); Plotly.purge(at('.rate')); }
  at('.plots').hidden = true; at('.samples').replaceChildren(); at('.tiles').replaceChildren(); at('.heading').hidden = true;
  at('.confusion').hidden = true;
  retry([]); concerns([]);
  at('.cause').hidden = true; at('details').open = false;
}

// A restarted app knows nothing of this tab: the page begins anew, its draft comes back.
function meet(news) {
  if (app && news.app !== app) location.reload();
  app = news.app;
}

async function ask() {
  const run = props.value || '';
  at('.ls-live').hidden = !run;
  if (!run) { shown = ''; meet(await server.delta({ run })); return 3000; }
  if (run !== shown) { shown = run; forget(); }
  const [steps, evals, past] = cursor;
  const news = await server.delta({ run, steps, evals, samples: past, resumes });
  meet(news);
  if (news.run !== shown || run !== props.value) return 200;
  sorts = news.sorts;
  if (news.words) { words = news.words; write('.heading', sorts ? words.verdicts : words.samples); write('.log summary', words.log); at('details').hidden = false; }
  if (cursor.some((count, i) => news.from[i] < count)) forget();
  await draw(news);
  await milestones(news);
  samples(news.samples); tiles(news.tiles); write('.spent', news.spent); cursor = news.cursor; resumes = news.resumes;
  write('.name', news.run); write('.state', news.state);
  at('.ls-bar i').style.width = `${Math.round(news.share * 100)}%`;
  at('.ls-bar').setAttribute('aria-valuenow', Math.round(news.share * 100));
  at('.cause').hidden = !news.cause; at('.cause').className = 'ls-say cause bad'; write('.cause', news.cause);
  retry(news.retry); concerns(news.concerns);
  element.dataset.status = news.status;
  // The buttons beside the run change with its status, and with nothing else.
  if (told !== `${news.run} ${news.status}`) { told = `${news.run} ${news.status}`; trigger('tick', { status: news.status }); }
  return news.over ? 3000 : 1000;
}

at('details').addEventListener('toggle', async (event) => {
  if (event.target.open) at('pre').textContent = await server.log_tail({ run: shown });
});
onTheme(recolour);

// Another run only wakes the loop.
watch('value', every(1000, async () => {
  try { if (!document.hidden) return await ask(); } catch (error) { write('.state', words.reconnecting || '…'); return 2000; }
}));

// How long the rows are; the line of the maximum length follows its slider without the server.
const BARS = 30;
let data = null, asked = 0;

const number = (n) => n.toLocaleString('en-US');
const fill = (text, values) => fillIn(text, Object.fromEntries(Object.entries(values).map(([name, n]) => [name, number(n)])));
const limit = () => {
  const box = document.querySelector('#max-length input[type=number]') || document.querySelector('#max-length input');
  return Math.max(0, Math.round(Number(box?.value)) || 0);
};
const drops = () => document.querySelector('#truncation input:checked')?.value === 'drop';

// Bars of one whole-number width, so that a bar means the same lengths at every place.
function bars(lengths) {
  const low = Math.min(...lengths.map(([length]) => length)), high = Math.max(...lengths.map(([length]) => length));
  const width = Math.floor((high - low) / BARS) + 1;
  const counts = new Array(Math.floor((high - low) / width) + 1).fill(0);
  for (const [length, rows] of lengths) counts[Math.floor((length - low) / width)] += rows;
  return counts.map((rows, i) => [low + i * width, low + (i + 1) * width - 1, rows]);
}

function middle(lengths, total) {
  let seen = 0;
  for (const [length, rows] of [...lengths].sort((a, b) => a[0] - b[0])) { seen += rows; if (2 * seen >= total) return length; }
  return 0;
}

const sum = (pairs) => pairs.reduce((all, pair) => all + pair[pair.length - 1], 0);

function say() {
  const max = limit(), total = sum(data.lengths), over = sum(data.lengths.filter(([length]) => length > max));
  const key = !data.lengths.length ? 'text' : !over ? 'whole' : drops() ? 'drop' : 'cut';
  const text = fill(data.words[key], { n: over, rows: total, length: max });
  if (at('.said').textContent !== text) at('.said').textContent = text;
  at('.ls-lengths').dataset.over = over;
}

function layout(shown, max) {
  const high = shown[shown.length - 1][1];
  const end = Math.max(high * 1.04, max <= high * 1.5 ? max * 1.04 : 0);
  const beyond = max > end;
  const label = { text: fill(data.words.limit, { length: max }) + (beyond ? ' →' : ''), showarrow: false, yref: 'paper', y: 1.12, font: { size: 11, color: css('--ink') },
    xref: 'x', x: beyond ? end : max, xanchor: beyond || max > end * 0.6 ? 'right' : 'left' };
  return {
    margin: { l: 44, r: 12, t: 26, b: 28 }, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', bargap: 0.08, showlegend: false,
    font: { family: 'system-ui, sans-serif', size: 12, color: css('--quiet') },
    xaxis: { range: [Math.min(0, shown[0][0]), end], gridcolor: 'rgba(0,0,0,0)', zeroline: false, fixedrange: true, tickformat: ',d' },
    yaxis: { gridcolor: css('--line'), zeroline: false, nticks: 4, tickformat: ',d', fixedrange: true, title: { text: data.words.rows, font: { size: 11 } } },
    hoverlabel: { bgcolor: css('--panel'), font: { color: css('--ink') } },
    shapes: beyond ? [] : [{ type: 'line', x0: max, x1: max, yref: 'paper', y0: 0, y1: 1.04, line: { color: css('--ink'), width: 2, dash: 'dot' } }],
    annotations: [label],
  };
}

async function draw() {
  const mine = ++asked;
  say();
  await plotly();
  if (mine !== asked || !element.isConnected || !data) return;
  const shown = data.lengths.length ? bars(data.lengths) : data.bars, max = limit();
  const trace = {
    type: 'bar', x: shown.map(([low, high]) => (low + high) / 2), y: shown.map((bar) => bar[2]), width: shown.map(([low, high]) => (high - low + 1) * 0.92),
    text: shown.map(([low, high]) => (low === high ? number(low) : `${number(low)}–${number(high)}`)), textposition: 'none', hovertemplate: `%{text}: %{y:,}<extra></extra>`,
    // What is over the line is read, but not learned to its end.
    marker: { color: shown.map(([low, high]) => (data.lengths.length && (low + high) / 2 > max ? css('--frozen') : css('--trained'))) },
  };
  await Plotly.react(at('.plot'), [trace], layout(shown, max), { responsive: true, displayModeBar: false });
}

function show() {
  data = given();
  const empty = !data || !(data.lengths.length || data.bars.length);
  at('.ls-lengths').hidden = empty;
  if (empty) return;
  at('.title').textContent = data.words.title;
  const pairs = data.lengths.length ? data.lengths : data.bars, total = sum(pairs);
  at('.plot').setAttribute('aria-label', fill(data.words.heard, {
    rows: total, low: Math.min(...pairs.map((pair) => pair[0])), high: Math.max(...pairs.map((pair) => pair[pair.length - 2])), middle: middle(pairs, total),
  }));
  draw();
}

const follow = (event) => { if (data && event.target.closest?.('#max-length, #truncation')) draw(); };
onDocument('input', follow);
onDocument('change', follow);
onTheme(() => { if (data) draw(); });
watch('value', show);
show();

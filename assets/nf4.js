// A real weight before and after NF4, and the 16 levels it is rounded to.
let data = null;

const layout = (title, extra) => ({
  margin: { l: 46, r: 10, t: 46, b: 30 }, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', bargap: 0.04, barmode: 'overlay',
  font: { family: 'system-ui, sans-serif', size: 12, color: css('--quiet') }, hoverlabel: { bgcolor: css('--panel'), font: { color: css('--ink') } },
  title: { text: title, font: { size: 13, color: css('--ink') }, x: 0, xanchor: 'left', y: 0.98, yanchor: 'top' },
  xaxis: { gridcolor: 'rgba(0,0,0,0)', zeroline: false, fixedrange: true, nticks: 7 },
  yaxis: { gridcolor: css('--line'), zeroline: false, nticks: 5, tickformat: '.0%', fixedrange: true },
  legend: { orientation: 'h', x: 0, y: 1.06, yanchor: 'bottom', font: { size: 11 } }, ...extra,
});
const options = { responsive: true, displayModeBar: false };

const weights = () => [
  { type: 'bar', name: data.words.before, x: data.edges, y: data.before, marker: { color: css('--frozen') }, hovertemplate: '%{x:.3f}: %{y:.2%}<extra></extra>' },
  { type: 'scatter', mode: 'lines', name: data.words.after, x: data.edges, y: data.after, line: { color: css('--trained'), width: 2, shape: 'hvh' }, hovertemplate: '%{x:.3f}: %{y:.2%}<extra></extra>' },
];
const scaled = () => [
  { type: 'bar', name: data.words.before, x: data.scaled_edges, y: data.scaled, marker: { color: css('--frozen') }, hovertemplate: '%{x:.3f}: %{y:.2%}<extra></extra>' },
  { type: 'bar', name: data.words.share, x: data.levels, y: data.shares, width: data.levels.map(() => 0.012), marker: { color: css('--trained') },
    hovertemplate: `${data.words.level} %{x:.3f}: %{y:.1%}<extra></extra>` },
];

async function draw() {
  await plotly();
  if (!data || !element.isConnected) return;
  await Plotly.react(at('.weights'), weights(), layout(data.words.weights), options);
  await Plotly.react(at('.scaled'), scaled(), layout(data.words.scaled), options);
}

function show() {
  data = given();
  at('.ls-nf4').hidden = !data;
  if (!data) return;
  at('.shape').textContent = data.words.shape; at('.said').textContent = data.words.error;
  at('.weights').setAttribute('aria-label', data.words.heard); at('.scaled').setAttribute('aria-label', data.words.scaled);
  draw();
}

onTheme(() => { if (data) draw(); });
watch('value', show);
show();

// Runs side by side: curves over each other, the settings that differ, the last answers.
const COLOURS = ['--trained', '--warn', '--frozen', '--second', '--third', '--bad'], DASHES = ['solid', 'dash', 'dot', 'dashdot', 'longdash', 'longdashdot'];
let data = null;

const layout = () => ({
  margin: { l: 52, r: 16, t: 34, b: 36 }, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
  font: { family: 'system-ui, sans-serif', size: 12, color: css('--quiet') },
  title: { text: data.words.curves, font: { size: 13, color: css('--ink') }, x: 0, xanchor: 'left', y: 0.98, yanchor: 'top' },
  xaxis: { title: { text: data.words.step, standoff: 6 }, gridcolor: css('--line'), zeroline: false, rangemode: 'tozero' },
  yaxis: { title: { text: data.words.curve_loss, standoff: 6 }, gridcolor: css('--line'), zeroline: false, nticks: 6 },
  legend: element.clientWidth < 600 ? { orientation: 'h', x: 0, y: -0.22, yanchor: 'top', font: { size: 11 } } : { orientation: 'h', x: 1, xanchor: 'right', y: 1.14, font: { size: 11 } },
  hovermode: 'x unified', hoverlabel: { bgcolor: css('--panel'), font: { color: css('--ink') } },
});

const smoothed = (points) => { let held = null; return points.map(([, loss]) => (held = held === null ? loss : 0.7 * held + 0.3 * loss)); };
const traces = () => data.curves.flatMap((curve, i) => {
  const colour = css(COLOURS[i]), name = data.names[i];
  return [
    { x: curve.train.map(([step]) => step), y: smoothed(curve.train), mode: 'lines', name, legendgroup: name, line: { color: colour, width: 2, dash: DASHES[i] } },
    { x: curve.held_out.map(([step]) => step), y: curve.held_out.map(([, loss]) => loss), mode: 'markers', name: `${name}, ${data.words.held_out}`, legendgroup: name, cliponaxis: false, marker: { color: colour, size: 9, symbol: 'diamond', line: { color: css('--panel'), width: 1 } } },
  ];
});

async function draw() {
  await plotly();
  if (data && element.isConnected) await Plotly.react(at('.plot'), traces(), layout(), { responsive: true, displaylogo: false, modeBarButtonsToRemove: ['lasso2d', 'select2d', 'autoScale2d'] });
}

// What the chart says to who does not see it.
function heard() {
  return data.curves.map((curve, i) => {
    const shown = (points) => (points.length ? points[points.length - 1][1].toFixed(3) : '–');
    return fillIn(data.words.curve_of, { name: data.names[i], loss: shown(curve.train), held_out: shown(curve.held_out) });
  }).join(' ');
}

function table() {
  const head = make('tr'); head.append(make('th', data.words.setting), ...data.names.map((name) => { const cell = make('th', name); cell.scope = 'col'; return cell; }));
  const rows = data.differences.map((row) => { const line = make('tr'), name = make('th'); name.scope = 'row'; name.append(make('code', row.name)); line.append(name, ...row.values.map((value) => make('td', value))); return line; });
  at('.differences').replaceChildren(head, ...rows);
  at('.differences').hidden = !rows.length; at('.none').hidden = rows.length > 0; at('.none').textContent = data.words.none_differs;
}

function answers() {
  at('.answers').replaceChildren(...data.answers.map((one) => {
    const card = make('div', undefined, 'sample'), sides = make('div', undefined, 'sides');
    one.said.forEach((said, i) => {
      const side = make('div'); side.style.borderTopColor = `var(${COLOURS[i]})`;
      side.append(make('b', data.names[i]), make('span', said ? said.when : '', 's'), make('p', said ? said.text || '…' : '–')); sides.append(side);
    });
    card.append(make('p', one.prompt, 'q'), sides);
    return card;
  }));
  at('.l-answers').hidden = !data.answers.length;
}

async function show() {
  const ids = JSON.parse(props.value || '[]'), asked = props.value;
  at('.ls-together').hidden = ids.length < 2;
  if (ids.length < 2) { data = null; return; }
  const found = await server.beside({ ids });
  if (asked !== props.value) return;
  data = found.failed ? null : found;
  at('.told').textContent = found.failed ? found.told : found.left_out; at('.seen').hidden = found.failed === true;
  if (!data) return;
  at('.title').textContent = data.words.beside; at('.l-differs').textContent = data.words.differs; at('.l-answers').textContent = data.words.answers;
  table(); answers();
  at('.plot').setAttribute('aria-label', heard());
  await draw();
}

onTheme(() => { if (data) draw(); });
watch('value', show);
show();

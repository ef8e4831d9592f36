// What the views share: lora_studio/ui/view.py puts it before the script of each, in one scope with it.
const at = (name) => element.querySelector(name);
const css = (name) => getComputedStyle(document.querySelector('.gradio-container') || document.body).getPropertyValue(name).trim();
const make = (tag, text, name) => { const node = document.createElement(tag); if (text !== undefined) node.textContent = text; if (name) node.className = name; return node; };
const button = (act, text, label) => { const node = make('button', text, act); node.type = 'button'; node.dataset.act = act; if (label) { node.title = label; node.setAttribute('aria-label', label); } return node; };
const write = (name, text) => { const node = at(name); if (node.textContent !== text) node.textContent = text; };
const fillIn = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
const given = () => { try { return JSON.parse(props.value || 'null'); } catch (error) { return null; } };

let loading = null;
const plotly = () => loading || (loading = new Promise((done, fail) => {
  if (window.Plotly) return done();
  const tag = document.createElement('script');
  tag.src = 'PLOTLY_URL'; tag.onload = done; tag.onerror = () => { loading = null; fail(new Error('plotly')); };
  document.head.appendChild(tag);
}));

// What listens outside of the view, or goes on, ends by itself when the view is gone.
function onDocument(name, callback) {
  const heard = (event) => { if (element.isConnected) callback(event); else document.removeEventListener(name, heard); };
  document.addEventListener(name, heard);
}

function onTheme(callback) {
  const watcher = new MutationObserver(() => { if (element.isConnected) callback(); else watcher.disconnect(); });
  watcher.observe(document.body, { attributes: true, attributeFilter: ['class'] });
}

// Draws what a look finds, unless a later look has begun by then or an act has ended: those know better.
let newest = 0;
async function drawNewest(look, draw) { const mine = ++newest, found = await look; if (mine === newest) draw(found); }
async function drawAct(act, draw) { const done = await act; newest += 1; draw(done); }

// One look after the other, so that no two answers are ever drawn at once. A look may return another
// pause, and its failure is the next look's to mend; what is returned ends the pause.
function every(ms, look) {
  let wake = () => {};
  const sleep = (pause) => new Promise((done) => { wake = done; setTimeout(done, pause); });
  (async () => {
    while (element.isConnected) {
      let pause = ms;
      try { pause = (await look()) ?? ms; } catch (error) { /* the next look asks again */ }
      await sleep(pause);
    }
  })();
  return () => wake();
}

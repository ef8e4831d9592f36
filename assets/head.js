// The head: what the page runs on, what is training, the switches, and the tab's title and icon.
// Over HTTPS the page may stand in a frame of a Space, where only a partitioned cookie is kept.
const kind = location.protocol === 'https:' ? 'samesite=none;secure;partitioned' : 'samesite=lax';
const keep = (name, value) => { document.cookie = `${name}=${value};path=/;max-age=31536000;${kind}`; };
const kept = (name) => document.cookie.includes(`${name}=yes`);

at('.language').addEventListener('change', (event) => { keep('COOKIE', event.target.value); location.reload(); });
at('.shade').addEventListener('click', () => {
  const dark = document.body.classList.toggle('dark');
  document.documentElement.style.colorScheme = dark ? 'dark' : 'light';
  keep('lora_studio_shade', dark ? 'dark' : 'light');
});
at('.run').addEventListener('click', () => {
  const tab = document.querySelector('#tab-train-button') || document.querySelector('[role=tab]');
  if (tab) tab.click();
  window.scrollTo({ top: 0, behavior: 'smooth' });
});

// Progress where it is seen from another tab: in this one's title and icon.
const TITLE = 'LoRA Studio', icons = [...document.querySelectorAll('link[rel~=icon]')], ring = document.createElement('link');
ring.rel = 'icon';

function draw(share, colour) {
  const canvas = document.createElement('canvas'), pen = canvas.getContext('2d'), up = -Math.PI / 2;
  canvas.width = canvas.height = 32;
  for (const [part, stroke, width] of [[1, css('--frozen'), 3], [share, colour, 8]]) {
    pen.beginPath(); pen.arc(16, 16, 11.5, up, up + 2 * Math.PI * part);
    pen.lineWidth = width; pen.strokeStyle = stroke; pen.stroke();
  }
  return canvas.toDataURL();
}

function dress(title, share, colour) {
  document.title = title;
  ring.href = draw(share, colour);
  for (const icon of icons) icon.remove();
  document.head.append(ring);
}

function undress() {
  document.title = TITLE;
  if (!ring.isConnected) return;
  ring.remove(); document.head.append(...icons);
}

// What ended stays in the title until somebody looks.
let watched = '', unseen = false;
function noticed() { unseen = false; if (!watched) undress(); }
window.addEventListener('focus', noticed);
document.addEventListener('visibilitychange', () => { if (!document.hidden) noticed(); });

function progress(seen) {
  const ended = seen.ended;
  watched = seen.active;
  if (ended) { tell(ended); unseen = document.hidden || !document.hasFocus(); }
  if (watched) dress(seen.title, seen.share, css('--trained'));
  else if (ended && unseen) dress(ended.title, 1, css(ended.failed ? '--bad' : '--trained'));
  else if (!unseen) undress();
}

// A notification of the browser at the end, once a person has asked for it.
const NOTES = 'lora_studio_notify', box = at('.notify input'), canNotify = 'Notification' in window;
box.checked = canNotify && kept(NOTES) && Notification.permission === 'granted';
box.addEventListener('change', async () => {
  const wanted = box.checked;
  box.checked = wanted && (await Notification.requestPermission()) === 'granted';
  keep(NOTES, box.checked ? 'yes' : 'no');
  at('.refused').hidden = !wanted || box.checked;
});

function tell(ended) {
  if (!box.checked) return;
  try {
    const note = new Notification(ended.run, { body: ended.said, tag: ended.run });
    note.onclick = () => { window.focus(); note.close(); };
  } catch (error) { /* some browsers let only a service worker notify */ }
}

every(3000, async () => {
  if (document.hidden && !watched) return;
  const seen = await server.glance({ run: watched });
  at('.language').value = seen.language;
  at('.device').textContent = seen.device; at('.device').title = seen.why;
  at('.shade').title = seen.shade; at('.shade').setAttribute('aria-label', seen.shade);
  at('.run').hidden = !seen.run; at('.run').textContent = seen.run;
  at('.notify').hidden = !seen.run || !canNotify; at('.notify').title = seen.notify_why;
  at('.notify span').textContent = seen.notify; at('.refused').textContent = seen.notify_refused;
  if (!seen.run) at('.refused').hidden = true;
  progress(seen);
});

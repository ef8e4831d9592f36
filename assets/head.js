// The head: what the page runs on, what is training, and the two switches.
const at = (name) => element.querySelector(name);
// Over HTTPS the page may stand in a frame of a Space, where only a partitioned cookie is kept.
const kind = location.protocol === 'https:' ? 'samesite=none;secure;partitioned' : 'samesite=lax';
const keep = (name, value) => { document.cookie = `${name}=${value};path=/;max-age=31536000;${kind}`; };

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

async function look() {
  try {
    if (!document.hidden) {
      const seen = await server.glance({});
      at('.language').value = seen.language;
      at('.device').textContent = seen.device; at('.device').title = seen.why;
      at('.shade').title = seen.shade; at('.shade').setAttribute('aria-label', seen.shade);
      at('.run').hidden = !seen.run; at('.run').textContent = seen.run;
    }
  } catch (error) { /* the next look asks again */ }
  if (element.isConnected) setTimeout(look, 3000);
}
look();

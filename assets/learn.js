// The LoRA picture: W₀ + (alpha/r)·B·A in the proportions of a real layer, moving with the sliders.
const SVG = 'http://www.w3.org/2000/svg';
const SIDE = 150, LEAST = 4, GAP = 30, EDGE = 20;
let data = null, r = 0, alpha = 0;

const number = (n) => n.toLocaleString('en-US');
const slider = (id) => document.querySelector(`${id} input[type=number]`) || document.querySelector(`${id} input`);
const seen = (node) => !!node && node.offsetParent !== null;

function node(kind, attributes, text) {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function box(x, y, width, height, kind, name) {
  const shape = node('rect', { x, y, width, height, rx: 2, class: kind });
  if (!name) return [shape];
  return [shape, node('text', { x: x + width / 2, y: y + height / 2 + 5, class: `name ${kind}` }, name)];
}

const upright = (x, y, text) => node('text', { x, y, class: 'side', transform: `rotate(-90 ${x} ${y})` }, text);
const flat = (x, y, text) => node('text', { x, y, class: 'side' }, text);

function size(svg, width, height) {
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.setAttribute('width', width);
  svg.setAttribute('height', height);
}

// Everything in one scale, so that B and A are as thin as they are; only a hairline is widened.
function draw(d, k) {
  const unit = SIDE / Math.max(d, k), thin = Math.min(Math.max(r * unit, LEAST), SIDE);
  const high = Math.max(d * unit, 16), wide = Math.max(k * unit, 16);
  const frozen = at('.frozen'), product = at('.product');
  size(frozen, wide + EDGE + 2, high + EDGE + 2);
  frozen.replaceChildren(...box(EDGE, EDGE, wide, high, 'base', 'W₀'), flat(EDGE + wide / 2, 14, `k ${number(k)}`), upright(14, EDGE + high / 2, `d ${number(d)}`));
  const right = EDGE + thin + GAP;
  size(product, right + EDGE + wide + 2, Math.max(high, thin) + EDGE + 2);
  product.replaceChildren(
    ...box(EDGE, EDGE, thin, high, 'learned', thin > 24 ? 'B' : ''), ...box(right + EDGE, EDGE, wide, thin, 'learned', thin > 18 ? 'A' : ''),
    upright(14, EDGE + high / 2, `d ${number(d)}`), flat(Math.max(EDGE + thin / 2, 18), 14, `r ${r}`),
    node('text', { x: EDGE + thin + GAP / 2, y: EDGE + 16, class: 'times' }, '×'),
    upright(right + 14, EDGE + Math.max(thin / 2, 14), `r ${r}`), flat(right + EDGE + wide / 2, 14, `k ${number(k)}`),
    ...(thin > 24 ? [] : [flat(EDGE + thin + 14, EDGE + high * 0.7, 'B')]), ...(thin > 18 ? [] : [flat(right + EDGE + wide / 2, EDGE + thin + 18, 'A')]),
  );
}

function say(d, k) {
  const few = r * (d + k), many = d * k, side = Math.min(d, k), root = data.root;
  const values = { r: number(r), alpha: number(alpha), d: number(d), k: number(k), few: number(few), many: number(many), side: number(side),
    scale: Number((alpha / (root ? Math.sqrt(r) : r)).toPrecision(3)), saved: (100 * (1 - few / many)).toFixed(1) };
  write('.scale', fillIn(root ? data.words.scale_root : data.words.scale, values));
  const count = fillIn(few < many ? data.words.count : data.words.more, values);
  write('.said', r > side ? `${count} ${fillIn(data.words.wide, values)}` : count);
  at('.said').dataset.wide = r > side || few >= many;
  at('.picture').setAttribute('aria-label', fillIn(data.words.heard, values));
}

function show() {
  const module = data.modules[Number(at('.module').value)] || data.modules[0];
  if (!module || !(r >= 1)) return;
  write('.copies', fillIn(data.words.copies, { n: number(module.count) }));
  draw(module.d_out, module.d_in);
  say(module.d_out, module.d_in);
  own();
}

// Where the page's sliders are out of sight, the picture has its own.
function own() {
  at('.own').hidden = seen(slider('#r'));
  at('.own-r').value = r; at('.own-alpha').value = alpha;
}

function read() {
  const before = at('.module').selectedOptions[0]?.textContent;
  data = given();
  at('.ls-learn').hidden = !data || !data.modules.length;
  if (!data || !data.modules.length) return;
  ({ r, alpha } = data);
  write('.module-label', data.words.module); write('.own-why', data.words.own); write('.formula', data.words.result);
  write('.frozen-label', data.words.frozen); write('.product-label', `B (${data.words.zero}) · A (${data.words.random})`);
  const options = data.modules.map((module, i) => new Option(`${module.name}  ${number(module.d_in)} → ${number(module.d_out)}`, i));
  at('.module').replaceChildren(...options);
  const same = options.findIndex((option) => option.textContent === before);
  at('.module').value = Math.max(same, 0);
  show();
}

onDocument('input', (event) => {
  const id = data && event.target.closest?.('#r, #lora-alpha')?.id, value = Math.round(Number(event.target.value));
  if (!id || !(value >= 1)) return;
  if (id === 'r') r = value; else alpha = value;
  show();
});
at('.module').addEventListener('change', show);
at('.own-r').addEventListener('input', (event) => { r = Number(event.target.value); show(); });
at('.own-alpha').addEventListener('input', (event) => { alpha = Number(event.target.value); show(); });
new IntersectionObserver(() => { if (data) own(); }).observe(element);
watch('value', read);
read();

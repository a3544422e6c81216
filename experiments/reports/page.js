"use strict";
// Text for markup; numbers for the eye.
const esc = text => String(text).replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
const show = x => x === null ? "-" : x === 0 ? "0"
  : Math.abs(x) >= 1e5 || Math.abs(x) < 1e-3 ? x.toExponential(3).replace(/\.?0+e/, "e")
  : String(Number(x.toPrecision(5)));

// The table: a click on a heading sorts, the field above it filters.
function sortable(table) {
  const order = head => {
    const body = table.tBodies[0], place = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[place].dataset.value ?? row.cells[place].textContent;
    const compare = (a, b) => {
      const x = key(a), y = key(b), numbers = [Number(x), Number(y)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const less = numbers.some(Number.isNaN) ? x.localeCompare(y) : numbers[0] - numbers[1];
      return up ? less : -less;
    };
    body.append(...[...body.rows].sort(compare));
  };
  for (const head of table.tHead.rows[0].cells) {
    head.addEventListener("click", () => order(head));
    head.addEventListener("keydown", event => event.key === "Enter" && order(head));
  }
  document.querySelector("#filter").addEventListener("input", event => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of table.tBodies[0].rows)
      row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  });
}

// Marks of an axis: powers of ten, or steps of 1, 2 or 5 times one.
function marks([low, high], log) {
  const found = [];
  if (log) {
    const decades = Math.log10(high / low), factors = decades < 2 ? [1, 2, 5] : [1];
    const stride = Math.max(1, Math.ceil(decades / 7));
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += stride)
      for (const factor of factors) found.push(Number(`${factor}e${e}`));
  } else {
    const raw = (high - low) / 6, unit = 10 ** Math.floor(Math.log10(raw));
    const step = unit * [1, 2, 5, 10].find(factor => factor * unit >= raw);
    for (let i = Math.ceil(low / step); i * step <= high; i++)
      found.push(Number((i * step).toPrecision(12)));
  }
  return found.filter(x => x >= low && x <= high);
}

function range(numbers, log) {
  const fit = numbers.filter(x => x !== null && (!log || x > 0));
  if (!fit.length) return log ? [0.1, 10] : [0, 1];
  let low = fit.reduce((a, b) => Math.min(a, b)), high = fit.reduce((a, b) => Math.max(a, b));
  if (low === high) return log ? [low / 2, low * 2] : [low - (Math.abs(low) || 1) / 2, low + (Math.abs(low) || 1) / 2];
  if (log) { const edge = (high / low) ** 0.04; return [low / edge, high * edge]; }
  const edge = (high - low) * 0.04;
  return [low - edge, high + edge];
}

const COLOURS = ["#1f77b4", "#d95f02", "#2ca02c", "#d62728", "#7b5fb5", "#8c564b", "#c658a6",
  "#666666", "#9a9a12", "#12a5b5"];
const W = 860, H = 380, LEFT = 74, RIGHT = 14, TOP = 12, BOTTOM = 46;

function chart(home, spec) {
  const groups = [...new Set(spec.series.map(s => s.group).filter(g => g !== undefined))];
  const is = {x: spec.x[0], y: spec.y[0], group: groups[0], off: new Set(), zoom: null};
  const fresh = axis => { is[`log_${axis}`] = (spec.log ?? []).includes(is[axis]); is.zoom = null; };
  fresh("x"); fresh("y");
  const pick = (label, axis, choices) => choices.length < 2 ? "" :
    `<label>${label} <select data-axis="${axis}">${choices.map(c => `<option>${esc(c)}</option>`).join("")}</select></label>`;
  const box = axis => `<label><input type="checkbox" data-log="${axis}"> log ${axis}</label>`;
  home.innerHTML = `<figcaption>${esc(spec.title)}</figcaption><p>${esc(spec.about)}</p>
    <div class="choices">${pick("row", "group", groups)}${pick("y", "y", spec.y)}${pick("x", "x", spec.x)}
    ${box("x")}${box("y")}<button type="button" data-reset>whole range</button></div>
    <div class="plot"></div><div class="legend"></div><output></output>`;
  const [plot, legend, said] = [".plot", ".legend", "output"].map(q => home.querySelector(q));
  let points = [], back = null;

  function draw() {
    const shown = spec.series.filter(s => s.group === is.group);
    const seen = shown.map((s, i) => ({s, i, colour: COLOURS[i % COLOURS.length]}))
      .filter(({s}) => !is.off.has(s.name) && s.data[is.x] && s.data[is.y]);
    const band = s => s.band?.[is.y] ??
      (s.half?.[is.y] && [-1, 1].map(sign => s.half[is.y].map((h, i) => s.data[is.y][i] + sign * (h ?? 0))));
    const xs = is.zoom?.x ?? range(seen.flatMap(({s}) => s.data[is.x]), is.log_x);
    const ys = is.zoom?.y ?? range(seen.flatMap(({s}) => [...s.data[is.y], ...(band(s) ?? []).flat()]), is.log_y);
    const scale = ([low, high], log, from, to) => {
      const f = log ? Math.log : x => x, [a, b] = [f(low), f(high)];
      const g = x => from + (f(x) - a) / (b - a) * (to - from);
      g.back = p => { const v = a + (p - from) / (to - from) * (b - a); return log ? Math.exp(v) : v; };
      g.has = x => x !== null && x !== undefined && (!log || x > 0);
      return g;
    };
    const px = scale(xs, is.log_x, LEFT, W - RIGHT), py = scale(ys, is.log_y, H - BOTTOM, TOP);
    back = {x: px.back, y: py.back};
    points = [];
    let out = "";
    for (const t of marks(xs, is.log_x)) { const p = px(t).toFixed(1);
      out += `<path class="grid" d="M${p} ${TOP}V${H - BOTTOM}"/><text x="${p}" y="${H - BOTTOM + 17}" text-anchor="middle">${show(t)}</text>`; }
    for (const t of marks(ys, is.log_y)) { const p = py(t).toFixed(1);
      out += `<path class="grid" d="M${LEFT} ${p}H${W - RIGHT}"/><text x="${LEFT - 6}" y="${+p + 4}" text-anchor="end">${show(t)}</text>`; }
    const clip = `clip-${home.id}`;
    out += `<clipPath id="${clip}"><rect x="${LEFT}" y="${TOP}" width="${W - LEFT - RIGHT}" height="${H - TOP - BOTTOM}"/></clipPath><g clip-path="url(#${clip})">`;
    for (const {s, colour} of seen) {
      const X = s.data[is.x], Y = s.data[is.y], sides = band(s);
      const at = (x, y) => `${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
      const path = column => { let d = "", pen = false;
        X.forEach((x, i) => { const good = px.has(x) && py.has(column[i]);
          if (good) d += (pen ? "L" : "M") + at(x, column[i]); pen = good; });
        return d; };
      if (sides && s.half) X.forEach((x, i) => { if (px.has(x) && sides.every(side => py.has(side[i])))
        out += `<path stroke="${colour}" d="M${at(x, sides[0][i])}L${at(x, sides[1][i])}"/>`; });
      else if (sides) { const ends = X.map((x, i) => i).filter(i => px.has(X[i]) && sides.every(side => py.has(side[i])));
        const there = ends.map(i => at(X[i], sides[0][i])), home = ends.map(i => at(X[i], sides[1][i])).reverse();
        if (ends.length) out += `<path fill="${colour}" opacity=".13" d="M${[...there, ...home].join("L")}Z"/>`; }
      if (!s.points || s.line) out += `<path class="line" stroke="${colour}" d="${path(Y)}"/>`;
      X.forEach((x, i) => { if (!px.has(x) || !py.has(Y[i])) return;
        points.push({px: px(x), py: py(Y[i]), x, y: Y[i], s, i, sides, colour});
        if (s.points) out += `<circle cx="${px(x).toFixed(1)}" cy="${py(Y[i]).toFixed(1)}" r="4" fill="${colour}"/>`; });
    }
    out += `</g><path class="axis" d="M${LEFT} ${TOP}V${H - BOTTOM}H${W - RIGHT}"/>
      <text x="${(LEFT + W - RIGHT) / 2}" y="${H - 8}" text-anchor="middle">${esc(is.x)}</text>
      <text transform="translate(14 ${(TOP + H - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">${esc(is.y)}</text>
      <rect class="chosen" height="0" width="0"/><circle class="near" r="5" visibility="hidden"/>`;
    plot.innerHTML = `<svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${esc(spec.title)}">${out}</svg>`;
    legend.innerHTML = shown.map((s, i) => `<button type="button" aria-pressed="${!is.off.has(s.name)}">` +
      `<i style="background:${COLOURS[i % COLOURS.length]}"></i>${esc(s.name)}</button>`).join("");
    legend.childNodes.forEach((button, i) => button.addEventListener("click", () => {
      const name = shown[i].name;
      if (!is.off.delete(name)) is.off.add(name);
      is.zoom = null; draw(); }));
    for (const axis of ["x", "y"]) home.querySelector(`[data-log=${axis}]`).checked = is[`log_${axis}`];
  }

  // Where the pointer is, in the picture's own units.
  const place = event => { const r = plot.firstChild.getBoundingClientRect();
    return [(event.clientX - r.left) / r.width * W, (event.clientY - r.top) / r.height * H]; };
  let from = null;
  plot.addEventListener("pointerdown", event => { from = place(event); event.preventDefault(); });
  plot.addEventListener("pointermove", event => {
    const [x, y] = place(event), mark = plot.querySelector(".near");
    if (from) {
      const frame = plot.querySelector(".chosen");
      frame.setAttribute("x", Math.min(x, from[0])); frame.setAttribute("width", Math.abs(x - from[0]));
      frame.setAttribute("y", Math.min(y, from[1])); frame.setAttribute("height", Math.abs(y - from[1]));
    }
    let best = null, least = 40 ** 2;
    for (const p of points) { const d = (p.px - x) ** 2 + (p.py - y) ** 2; if (d < least) { least = d; best = p; } }
    mark.setAttribute("visibility", best ? "visible" : "hidden");
    if (!best) { said.textContent = ""; return; }
    mark.setAttribute("cx", best.px); mark.setAttribute("cy", best.py); mark.setAttribute("stroke", best.colour);
    const text = best.s.texts?.[best.i] ?? (best.sides ? `from ${show(best.sides[0][best.i])} to ${show(best.sides[1][best.i])}` : "");
    said.textContent = `${best.s.name}: ${is.y} ${show(best.y)}${text && ` (${text})`} at ${is.x} ${show(best.x)}`;
  });
  window.addEventListener("pointerup", event => {
    if (!from) return;
    const [a, b] = [from, place(event)];
    from = null;
    if (Math.abs(a[0] - b[0]) > 8 && Math.abs(a[1] - b[1]) > 8)
      is.zoom = {x: [a[0], b[0]].sort((p, q) => p - q).map(back.x), y: [a[1], b[1]].sort((p, q) => q - p).map(back.y)};
    draw();
  });
  plot.addEventListener("dblclick", () => { is.zoom = null; draw(); });
  home.querySelector("[data-reset]").addEventListener("click", () => { is.zoom = null; draw(); });
  for (const select of home.querySelectorAll("select")) select.addEventListener("change", () => {
    is[select.dataset.axis] = select.value;
    if (select.dataset.axis !== "group") fresh(select.dataset.axis);
    is.zoom = null; draw(); });
  for (const input of home.querySelectorAll("input")) input.addEventListener("change", () => {
    is[`log_${input.dataset.log}`] = input.checked; is.zoom = null; draw(); });
  draw();
}

sortable(document.querySelector("table"));
for (const spec of JSON.parse(document.querySelector("#charts").textContent)) {
  const home = document.createElement("figure");
  home.id = `chart-${document.querySelectorAll("figure").length}`;
  document.querySelector("#plots").append(home);
  chart(home, spec);
}
const again = document.querySelector("#again");
if (again) setInterval(() => again.checked && location.reload(), again.dataset.seconds * 1000);

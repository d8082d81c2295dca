// Scales, ticks and the frame of a chart.

function nice_ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough - power * 1e-9);
  const ticks = [];
  for (
    let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1
  ) ticks.push(Number((at * step).toPrecision(12)));
  return ticks;
}

function log_ticks(low, high) {
  const ticks = [], decades = Math.log10(high / low), factors = decades < 1.2
    ? [1, 2, 3, 5, 7]
    : decades < 3.5
    ? [1, 2, 5]
    : [1];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= low * 0.9999 && tick <= high * 1.0001) ticks.push(Number(tick.toPrecision(6)));
    }
  }
  return ticks;
}

// A function from value to pixel; `ticks` and `invert` beside it. `from` and `to` are pixels.
function make_scale(values, from, to, { log = false, count = 5, pad = 0.06, within = null } = {}) {
  const found = values.filter((value) => known(value) && (!log || value > 0));
  let low = Math.min(...found.length ? [found.reduce((a, b) => Math.min(a, b))] : [0]);
  let high = found.length ? found.reduce((a, b) => Math.max(a, b)) : 1;
  const turn = log ? Math.log10 : (value) => value, back = log ? (value) => 10 ** value : (value) => value;
  let a = turn(low), b = turn(high);
  if (a === b) { const half = log ? 0.3 : Math.abs(a) * 0.2 || 0.5; a -= half; b += half; }
  const margin = (b - a) * pad;
  a -= margin; b += margin;
  if (within) {
    a = Math.max(a, within[0] - (within[1] - within[0]) * 0.03);
    b = Math.min(b, within[1] + (within[1] - within[0]) * 0.03);
  }
  if (!log && low >= 0 && a < 0) a = low === 0 ? -((b - a) * 0.02) : 0;
  low = back(a); high = back(b);
  const place = (value) => from + ((turn(Math.max(value, log ? low / 10 : value)) - a) / (b - a)) * (to - from);
  place.invert = (pixel) => back(a + ((pixel - from) / (to - from)) * (b - a));
  place.ticks = (
    log ? log_ticks(low, high) : nice_ticks(low, high, count)
  ).filter((tick) => tick >= low - 1e-12 && tick <= high + 1e-12);
  place.domain = [low, high];
  return place;
}

// Whether a logarithmic axis says more: positive values over more than a decade and a half.
function spans_decades(values) {
  const found = values.filter(known);
  if (found.length < 2) return false;
  const low = found.reduce((a, b) => Math.min(a, b)), high = found.reduce((a, b) => Math.max(a, b));
  return low > 0 && high / low >= 30;
}

function tick_text(value) {
  const size = Math.abs(value);
  if (size >= 1e9 || (size > 0 && size < 1e-4)) return significant(value, 2);
  if (size >= 10000) return value % 1000 === 0 ? `${whole(value / 1000)}k` : whole(value);
  return String(Number(value.toPrecision(6)));
}

// The frame: grid, ticks, titles. `box` = {left, right, top, bottom} in pixels.
function frame(x, y, box, names, shape) {
  const kids = [];
  let last = -Infinity;
  for (const tick of y.ticks) {
    const at = Math.round(y(tick)) + 0.5;
    kids.push(
      svg("line", { class: "grid", x1: box.left, x2: box.right, y1: at, y2: at }),
      svg(
        "text",
        { class: "tick", x: box.left - 8, y: at, dy: "0.35em", "text-anchor": "end" },
        (shape?.y || tick_text)(tick),
      ),
    );
  }
  for (const tick of x.ticks) {
    const at = Math.round(x(tick)) + 0.5, said = (shape?.x || tick_text)(tick);
    kids.push(svg("line", { class: "grid", x1: at, x2: at, y1: box.top, y2: box.bottom }));
    if (at - last > said.length * 6.5 + 10) {
      kids.push(svg("text", { class: "tick", x: at, y: box.bottom + 17, "text-anchor": "middle" }, said));
      last = at;
    }
  }
  kids.push(svg("path", { class: "axis", d: `M${box.left + 0.5},${box.top}V${box.bottom + 0.5}H${box.right}` }));
  if (names.x) kids.push(
    svg("text", { class: "name", x: box.right, y: box.bottom + 36, "text-anchor": "end" }, names.x)
  );
  if (names.y) kids.push(svg("text", { class: "name", x: 2, y: box.top - 12 }, names.y));
  return svg("g", { "aria-hidden": "true" }, kids);
}

// A chart that draws itself anew when its width or the selection changes.
function chart(className, draw) {
  const box = el("div", { class: "chart " + className });
  let width = 0;
  const paint = () => {
    if (!width || !box.isConnected) return;
    const focus = box.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
    box.replaceChildren(draw(width));
    if (focus !== null) [...box.querySelectorAll("[tabindex]")].find(
      (one) => one.getAttribute("aria-label") === focus
    )?.focus({ preventScroll: true });
  };
  new ResizeObserver((entries) => {
    const now = Math.floor(entries[0].contentRect.width);
    if (now > 0 && now !== width) { width = now; paint(); }
  }).observe(box);
  painters.push(paint);
  return box;
}

// Many dots as one path: zero-length strokes with round caps.
const dots = (points) => points.map(([x, y]) => `M${x.toFixed(1)},${y.toFixed(1)}h0`).join("");
const line = (points) => points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");
const diamond = (x, y, r) => `M${x},${y - r}L${x + r},${y}L${x},${y + r}L${x - r},${y}Z`;

function show_tip(content, x, y) {
  const tip = document.getElementById("tip");
  tip.replaceChildren(content);
  tip.hidden = false;
  const size = tip.getBoundingClientRect(), edge = document.documentElement.clientWidth;
  const left = x + 16 + size.width > edge - 8 ? Math.max(8, x - 16 - size.width) : x + 16;
  const top = Math.min(Math.max(8, y - size.height / 2), Math.max(8, innerHeight - size.height - 8));
  Object.assign(tip.style, { left: `${Math.min(left, Math.max(8, edge - size.width - 8))}px`, top: `${top}px` });
}
function hide_tip() { document.getElementById("tip").hidden = true; }

// Elements, texts and numbers. Every text of a run passes `visible`, and nothing is ever parsed as markup.

const SVG = "http://www.w3.org/2000/svg";
const code = (sign) => "⟨U+" + sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "⟩";

// Signs that turn the direction of writing, hide, or control: shown by name, so that a text looks like what it is.
function visible(text) {
  return String(text)
    .replace(/\r\n/g, "\n")
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (sign) => String.fromCharCode(0x2400 + sign.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g, code)
    .replace(/[\ud800-\udfff]/gu, code)
    .replace(/[\u{e0000}-\u{e0fff}]/gu, code);
}

function fill(node, kids) {
  for (const kid of kids.flat(Infinity)) {
    if (kid === null || kid === undefined || kid === false) continue;
    node.append(kid instanceof Node ? kid : document.createTextNode(visible(kid)));
  }
  return node;
}

function dress(node, attributes) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : visible(value));
  }
  return node;
}

const el = (name, attributes, ...kids) => fill(dress(document.createElement(name), attributes), kids);
const svg = (name, attributes, ...kids) => fill(dress(document.createElementNS(SVG, name), attributes), kids);
const clear = (node) => { node.replaceChildren(); return node; };
const plural = (count, one, many) => `${whole(count)} ${count === 1 ? one : many || one + "s"}`;
const whole = (value) => Math.round(value).toLocaleString("en-US");
const known = (value) => typeof value === "number" && Number.isFinite(value);
const own = (map, key, other) => (Object.hasOwn(map, key) ? map[key] : other);

function significant(value, digits) {
  if (value === 0) return "0";
  const text = Number(value.toPrecision(digits));
  return Math.abs(text) >= 1e6 || Math.abs(text) < 1e-4
    ? text.toExponential(digits - 1).replace("e+", "e")
    : String(text);
}

function money(usd) {
  if (!known(usd)) return "–";
  if (usd === 0) return "$0";
  if (usd >= 100) return "$" + whole(usd);
  return "$" + (usd >= 1 ? usd.toFixed(2) : significant(usd, 3));
}

function span(seconds) {
  if (!known(seconds)) return "–";
  if (seconds < 90) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

const percent = (share) => `${share > 0 && share < 0.01 ? "<1" : Math.round(share * 100)} %`;

// A press on something that is not a button, with the keyboard too.
function press(action) {
  return {
    tabindex: "0",
    onclick: action,
    onkeydown: (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); action(event); }
    },
  };
}

// A row of buttons of which one is on.
function choices(label, options, current, change) {
  return el("div", { class: "choices", role: "group", "aria-label": label },
    options.map(([value, text, count]) => el("button", {
      type: "button", "aria-pressed": String(value === current), onclick: () => change(value),
    }, text, count === undefined ? null : el("span", { class: "count" }, " " + whole(count)))));
}

function pick(label, options, current, change) {
  return el("label", { class: "pick" }, el("span", { class: "unseen" }, label),
    el("select", { "aria-label": label, onchange: (event) => change(event.target.value) },
      options.map(([value, text]) => el("option", { value, selected: value === current }, text))));
}

const scrolled = (label, ...kids) => el(
  "div", { class: "scroll", role: "region", "aria-label": label, tabindex: "0" }, kids
);

function section(id, title, about, ...kids) {
  return el("section", { id, "aria-labelledby": id + "-title" },
    el("h2", { id: id + "-title" }, title), about ? el("p", { class: "about" }, about) : null, kids);
}

function bar(share, kind) {
  return el("span", { class: "bar", "aria-hidden": "true" },
    el("span", { class: "fill " + (kind || ""), style: { width: `${Math.max(0, Math.min(1, share || 0)) * 100}%` } }));
}

function tell(text) { document.getElementById("live").textContent = visible(text); }

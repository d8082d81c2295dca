// The facts of the page and what the reader has chosen; how measures and genes are named and written.

let F = null;
const state = {
  selected: null, split: null, plots: null, brushes: {}, show: "all", pairs: "changed", pairSearch: "", pairsShown: 10,
  failSplit: null, sort: ["", -1], rowsShown: 25, search: "", open: {}, theme: "",
};
const painters = [];

const text = (number) => (number < 0 ? null : F.texts.all[number]);

// A text with a note of what was cut off it.
function whole_text(number, empty) {
  if (number === undefined || number < 0) return el("span", { class: "none" }, empty || "not kept");
  const found = F.texts.all[number], cut = F.texts.cut[number];
  if (found === "" ) return el("span", { class: "none" }, "(empty)");
  return el(
    "span", { class: "said" }, found,
    cut ? el("span", { class: "cut" }, ` … ${whole(cut)} characters more were cut here`) : null,
  );
}

const aim = (name) => F.aims.find((one) => one.name === name) || {
  name, source: name, direction: "max", aggregate: "mean",
};
const scale_of = (one) => (one.source === "cost_usd" ? 1e6 : 1);
const better = (one, a, b) => (one.direction === "max" ? a > b : a < b);

function title(one) {
  const plain = own({ latency_ms: "latency", cost_usd: "cost" }, one.name, one.name);
  return one.aggregate === "p95" && !plain.includes("p95") ? `${plain} (p95)` : plain;
}
const unit = (one) => own({ latency_ms: "ms", cost_usd: "USD per 1M queries", tokens: "tokens" }, one.source, "");
const unit_after = (one) => (unit(one) && unit(one) !== title(one) ? unit(one) : "");
const sense = (one) => (one.direction === "max" ? "higher is better" : "lower is better");
const label_of = (one) => title(one) + (unit_after(one) ? `, ${unit_after(one)}` : "");

// One value, as evocluster show writes it.
function figure(one, value) {
  if (!known(value)) return "–";
  if (one.source === "latency_ms") return value >= 10 ? whole(value) : significant(value, 2);
  if (one.source === "cost_usd") { const v = value * 1e6; return Math.abs(v) >= 100 ? whole(v) : significant(v, 3); }
  return Math.abs(value) < 100 ? value.toFixed(2) : Math.abs(value) < 1e6 ? value.toFixed(0) : significant(value, 3);
}
const short_unit = (one) => (one.source === "latency_ms" ? " ms" : "");
const figured = (one, value) => figure(one, value) + (known(value) ? short_unit(one) : "");
const interval = (one, values) => (
  values && known(values[0])
    ? `[${known(values[1]) ? figure(one, values[1]) : "inf"} – ${known(values[2]) ? figure(one, values[2]) : "inf"}]`
    : ""
);

const size = () => F.genomes.id.length;
const short = (g) => F.genomes.id[g].slice(0, 8);
const measured = (g, name, split) => {
  const part = F.genomes.splits[split];
  return part ? own(part.values, name)?.[g] ?? null : null;
};
const count_of = (g, split) => F.genomes.splits[split]?.n[g] || 0;
const member = (g) => F.members.find((one) => one.genome === g)
  || (F.start?.genome === g ? F.start : F.winner?.genome === g ? F.winner : null);
const is_start = (g) => F.start?.genome === g;
const is_winner = (g) => F.winner?.genome === g;
const on_front = (g) => F.members.some((one) => one.genome === g);
const breaks = (g) => member(g)?.feasible === false;
const sentence = (limit) => `${limit.name} ${limit.operator} ${significant(limit.limit, 6)}`;
const settled = () => Boolean(F.winner?.recommended);
const winner_name = () => (settled() ? "recommended" : "leading");

// [value, low, high] where the front was measured with intervals, else the plain mean.
function values_of(g, name, split) {
  const with_interval = own(member(g)?.splits[split] || {}, name);
  if (with_interval) return with_interval;
  const value = measured(g, name, split);
  return known(value) ? [value, null, null] : null;
}

function mark_of(g) {
  const marks = [];
  if (is_winner(g)) marks.push(winner_name());
  if (is_start(g)) marks.push("start");
  if (on_front(g) && !is_winner(g)) marks.push("front");
  if (breaks(g)) marks.push("infeasible");
  return marks;
}

const gene_names = () => Object.keys(F.genomes.genes);
const gene_at = (g, name) => { const one = F.genomes.genes[name]; return one.values[one.at[g]]; };
const varying = () => gene_names().filter((name) => F.genomes.genes[name].values.length > 1);

// A gene's value in a few words.
function gene_brief(name, value) {
  const kind = F.genomes.genes[name].kind;
  if (value === null) return "none";
  if (kind === "text") {
    const said = text(value).replace(/\s+/g, " ").trim();
    return said.length > 64 ? said.slice(0, 63) + "…" : said;
  }
  if (kind === "list") return plural(value.length, name === "demos" ? "demo" : "item");
  return kind === "number" ? significant(value, 4) : String(value);
}

// What differs from the start (or from another genome), as chips.
function differences(g, from) {
  const other = from ?? F.start?.genome;
  return gene_names().filter((name) => other === undefined || other === null || g === other
    || F.genomes.genes[name].at[g] !== F.genomes.genes[name].at[other]);
}

function chips(g, from) {
  const names = g === (from ?? F.start?.genome) ? [] : differences(g, from);
  if (!names.length) return el("span", { class: "none" }, is_start(g) ? "the start itself" : "as the start");
  return el("span", { class: "chips" }, names.map((name) => el("span", { class: "chip" },
    el("b", {}, name), " ", chip_value(name, g, from ?? F.start?.genome))));
}

// A text gene by what is new in it: from the first word that differs on.
function chip_value(name, g, from) {
  const gene = F.genomes.genes[name], value = gene_at(g, name);
  const before = gene.kind === "text" && known(from) ? gene_at(from, name) : null;
  if (value === null || before === null || before === undefined) return gene_brief(name, value);
  const old = text(before), now = text(value);
  let at = 0;
  while (at < old.length && old[at] === now[at]) at += 1;
  while (at > 0 && /\w/.test(now[at - 1])) at -= 1;
  const rest = now.slice(at).replace(/\s+/g, " ").trim();
  return rest ? (at ? "… " : "") + clip(rest, 60) : "shortened";
}

const clip = (said, length) => (said.length > length ? said.slice(0, length - 1) + "…" : said);

function select(g, quiet) {
  state.selected = state.selected === g ? null : g;
  for (const paint of painters) paint();
  show_inspector();
  if (!quiet && state.selected !== null) tell(`Configuration ${short(g)} selected`);
}

function badge(kind, said) { return el("span", { class: "badge " + kind }, said); }
function badges(g) { return mark_of(g).map((mark) => badge(mark, mark)); }

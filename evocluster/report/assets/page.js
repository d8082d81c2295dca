// Puts the sections together, keeps the reader's place, and asks for news while a run goes on.

const SECTIONS = [
  ["summary", "Summary"], ["front", "Trade-offs"], ["genes", "Genes"], ["search", "Search"], ["lineage", "Lineage"],
  ["examples", "Examples"], ["failures", "Failures"], ["tasks", "Tasks"], ["spend", "Spend"], ["genomes", "All"],
  ["configuration", "Configuration"],
];

const watched = () => document.documentElement.dataset.watch !== undefined;

function dark() { return state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches; }

function set_theme(theme) {
  state.theme = theme;
  if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme;
  try {
    if (theme) localStorage.setItem("evocluster-theme", theme);
  } catch { /* a page from a file may not keep anything */ }
}

function top_bar() {
  const top = clear(document.getElementById("top"));
  const toggle = el(
    "button",
    {
      type: "button", class: "quiet theme", "aria-pressed": String(dark()),
      onclick: () => {
        set_theme(dark() ? "light" : "dark");
        toggle.textContent = dark() ? "Light" : "Dark";
        toggle.setAttribute("aria-pressed", String(dark()));
      },
    },
    dark() ? "Light" : "Dark",
  );
  toggle.title = "Switch between light and dark";
  const present = SECTIONS.filter(([id]) => document.getElementById(id));
  fill(
    top,
    [
      el("span", { class: "brand" }, "evocluster"),
      el("nav", { "aria-label": "Sections" }, present.map(([id, name]) => el("a", { href: "#" + id }, name))),
      el("span", { class: "live", id: "watching" }), toggle,
    ],
  );
}

function render() {
  const main = document.getElementById("main"), focus = document.activeElement;
  const anchor = [...main.children].filter(
    (one) => one.getBoundingClientRect().top <= innerHeight / 2
  ).at(-1), above = anchor?.getBoundingClientRect().top;
  const lost = focus && main.contains(focus)
    ? [focus.tagName, focus.getAttribute("aria-label") || focus.textContent]
    : null;
  const rows = [...main.querySelectorAll(".scroll")].map((box) => [box.getAttribute("aria-label"), box.scrollLeft]);
  main.style.minHeight = `${main.offsetHeight}px`;
  painters.length = 0;
  enough_cache = 0;
  hide_tip();
  const parts = [
    headline, pareto_section, parallel_section, curves_section, lineage_section, pairs_section, failures_section,
    tasks_section, spend_section, genomes_section, configuration_section,
  ];
  main.replaceChildren(...parts.map((part) => part()).filter(Boolean));
  top_bar();
  const made = `Made by evocluster ${F.run.versions?.evocluster || ""} from the run folder ${F.run.folder}.`;
  const asks = `This page asks no server for anything${watched() ? " but the one that watches the run" : ""}.`;
  fill(clear(document.getElementById("foot")), [el("p", { class: "muted" }, made, " ", asks)]);
  show_inspector();
  requestAnimationFrame(() => requestAnimationFrame(() => {
    main.style.minHeight = "";
    const again = anchor && document.getElementById(anchor.id);
    if (again) scrollBy({ top: again.getBoundingClientRect().top - above, behavior: "instant" });
    for (const [label, left] of rows) {
      const box = [...main.querySelectorAll(".scroll")].find((one) => one.getAttribute("aria-label") === label);
      if (box) box.scrollLeft = left;
    }
    if (lost) [...main.querySelectorAll(lost[0])].find(
      (one) => (one.getAttribute("aria-label") || one.textContent) === lost[1]
    )?.focus({ preventScroll: true });
  }));
}

// New facts: what was selected is found again by its id.
function take(facts) {
  const chosen = state.selected === null || !F ? null : F.genomes.id[state.selected];
  const before = F?.split;
  F = facts;
  state.selected = chosen === null ? null : F.genomes.id.indexOf(chosen);
  if (state.selected === -1) state.selected = null;
  if (state.split === null || before !== F.split) state.split = F.split;
  if (!F.pairs || !(F.pairs.counts.fixed || F.pairs.counts.broken)) state.pairs = state.pairs === "changed"
    ? "all"
    : state.pairs;
  render();
}

const POLL_MS = 1500;
let stamp = null, silent = 0;

async function poll() {
  try {
    const news = await (await fetch("stamp", { cache: "no-store" })).json();
    silent = 0;
    if (news.stamp !== stamp) {
      const reply = await fetch("facts", { cache: "no-store" });
      if (reply.ok) { take(await reply.json()); stamp = news.stamp; }
      else news.error = await reply.text();
    }
    said(
      news.error
        ? `cannot read the folder: ${news.error}`
        : news.status === "running"
        ? `live, ${news.age_s > 60 ? `nothing new for ${span(news.age_s)}` : "updates by itself"}`
        : `the run is ${news.status}`,
      news.status,
    );
  } catch {
    silent += 1;
    said("the watching server has ended; this is its last state", "ended");
  }
  setTimeout(poll, Math.min(POLL_MS * (1 + silent), 15000));
}

function said(words, status) {
  const box = document.getElementById("watching");
  if (box && box.textContent !== words) { box.textContent = visible(words); box.className = "live " + status; }
}

addEventListener(
  "keydown", (event) => { if (event.key === "Escape" && state.selected !== null) select(state.selected, true); }
);
addEventListener("scroll", hide_tip, { passive: true });
addEventListener(
  "beforeprint",
  () => { for (const one of document.querySelectorAll("#configuration details, .group")) one.open = true; },
);
try { set_theme(localStorage.getItem("evocluster-theme") || ""); } catch { /* as the system says */ }
take(JSON.parse(document.getElementById("facts").textContent));
if (watched()) { stamp = document.documentElement.dataset.watch; poll(); }

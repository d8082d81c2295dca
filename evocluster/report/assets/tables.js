// Spend, tasks, all genomes, the recommended configuration in full, and what the run was made with.

function spend_table(label, heads, rows, names) {
  const dearest = Math.max(
    1e-12, ...rows.map((row) => row.usd)
  ), sum = (key) => rows.reduce((total, row) => total + row[key], 0);
  const cells = (row) => [
    el("td", { class: "num" }, whole(row.calls)),
    el("td", { class: "num" }, percent(row.calls ? row.cached / row.calls : 0)),
    el("td", { class: "num" }, whole(row.prompt_tokens)), el("td", { class: "num" }, whole(row.completion_tokens)),
    el("td", { class: "num" }, money(row.paid_usd)),
    el(
      "td", { class: "num" }, row === rows.total ? null : bar(row.usd / dearest),
      el("span", { class: "sum" }, money(row.usd)),
    ),
  ];
  const total = Object.fromEntries(
    ["calls", "cached", "prompt_tokens", "completion_tokens", "usd", "paid_usd"].map((key) => [key, sum(key)])
  );
  rows.total = total;
  return [
    el("h3", {}, label),
    scrolled(
      label,
      el(
        "table", {},
        el(
          "thead", {},
          el(
            "tr", {}, heads.map((name) => el("th", { scope: "col" }, name)),
            [
              "calls", "from cache", "prompt tokens", "completion tokens", "paid", "at list price"
            ].map((name) => el("th", { scope: "col", class: "num" }, name)),
          ),
        ),
        el(
          "tbody", {},
          rows.map(
            (row) => el(
              "tr", {}, names.map((name, at) => el(at ? "td" : "th", at ? {} : { scope: "row" }, row[name])), cells(row)
            )
          ),
        ),
        rows.length > 1
          ? el("tfoot", {}, el("tr", {}, el("th", { scope: "row", colspan: heads.length }, "all"), cells(total)))
          : null,
      ),
    ),
  ];
}

function spend_section() {
  const { models, splits, operators, guessed, told } = F.spend;
  if (!models.length) return null;
  const note = guessed
    ? el(
      "p", { class: "muted" },
      told
        ? `${plural(guessed, "trial")} of this folder did not note the spend by model; ` +
          "for these it is counted under the genome's own model."
        : "This folder does not note the spend by model: evaluations are counted under the genome's own model, and " +
          "calls that made a genome as rewrites by it.",
    )
    : null;
  return section(
    "spend", "What it cost",
    "Paid is what the providers charged: answers from the cache cost nothing again. The list price is what it " +
      "would have been without the cache.",
    spend_table("By model and purpose", ["model", "purpose"], models, ["model", "purpose"]),
    note, spend_table("By split", ["split"], splits, ["name"]),
    spend_table("By what made the genome", ["operator"], operators, ["name"]),
  );
}

function tasks_section() {
  const names = [...new Set([F.start, ...F.members].filter(Boolean).flatMap((one) => Object.keys(one.tasks)))];
  if (!names.length) return null;
  const rows = [F.start, F.winner].filter(Boolean).filter(
    (one, at, all) => all.findIndex((other) => other.genome === one.genome) === at
  );
  return section(
    "tasks", "Task by task",
    `One configuration serves all of these; values on ${F.split}.`,
    scrolled(
      "Tasks",
      el(
        "table", {},
        el(
          "thead", {},
          el(
            "tr", {}, el("th", { scope: "col" }, "task"), el("th", { scope: "col" }, "configuration"),
            F.objectives.map((name) => el("th", { scope: "col", class: "num" }, label_of(aim(name)))),
          ),
        ),
        el(
          "tbody", {},
          names.map(
            (task) => rows.map(
              (one, at) => el(
                "tr", {},
                at ? null : el("th", { scope: "rowgroup", rowspan: rows.length }, task),
                el("td", {}, badges(one.genome)),
                F.objectives.map(
                  (name) => {
                    const values = one.tasks[task]?.[F.split]?.[name];
                    return el(
                      "td", { class: "num" }, values ? figured(aim(name), values[0]) : "–",
                      values ? el("span", { class: "range" }, interval(aim(name), values)) : null,
                    );
                  }
                ),
              )
            )
          ),
        ),
      ),
    ),
  );
}

function genome_columns() {
  return [
    ["genome", (g) => F.genomes.id[g], (g) => [el("code", {}, short(g)), " ", badges(g)]],
    ["made by", (g) => F.genomes.operator[g]], ["gen.", (g) => F.genomes.generation[g], null, true],
    ["train n", (g) => count_of(g, "train"), null, true],
    ...F.aims.map(
      (one) => [
        title(one) + (one.source === "latency_ms" ? ", ms" : one.source === "cost_usd" ? ", $/1M" : ""),
        (g) => measured(g, one.name, "train"), (g) => figure(one, measured(g, one.name, "train")), true,
      ]
    ),
    ...["validation", "test"].filter((split) => F.genomes.splits[split]).map(
      (split) => [
        split, (g) => measured(g, "quality", split),
        (g) => { const v = measured(g, "quality", split); return known(v) ? v.toFixed(2) : "–"; },
        true,
      ]
    ),
    ["differs from the start by", null, (g) => chips(g)],
  ];
}

function genomes_section() {
  const columns = genome_columns(), holder = el("div", {}), more = el("div", { class: "row" });
  if (!state.sort[0]) state.sort = [title(aim("quality")), -1];
  const haystack = (g) => [
    F.genomes.id[g], F.genomes.operator[g],
    ...gene_names().map(
      (name) => {
        const v = gene_at(g, name);
        return v === null ? "" : F.genomes.genes[name].kind === "text" ? text(v) : `${name}=${gene_brief(name, v)}`;
      }
    )
  ].join(" ").toLowerCase();
  const again = () => {
    const column = columns.find((one) => one[0] === state.sort[0])
      || columns[0], key = column[1]
      || ((g) => g), [, turn] = state.sort, wanted = state.search.toLowerCase();
    let list = F.genomes.id.map((_, g) => g);
    if (wanted) list = list.filter((g) => haystack(g).includes(wanted));
    list.sort((p, q) => {
      const a = key(p), b = key(q), lacks = (a === null) - (b === null);
      if (lacks) return lacks;
      return turn * (typeof a === "string" ? a.localeCompare(b) : a - b) || p - q;
    });
    clear(holder); clear(more);
    fill(
      holder,
      [
        scrolled(
          "Genomes",
          el(
            "table", { class: "genomes" },
            el(
              "thead", {},
              el(
                "tr", {},
                columns.map(
                  ([name, by, , num]) => el(
                    "th",
                    {
                      scope: "col", class: num ? "num" : "",
                      "aria-sort": name === column[0] ? (turn > 0 ? "ascending" : "descending") : null,
                    },
                    by
                      ? el(
                        "button",
                        {
                          type: "button",
                          onclick: () => {
                            state.sort = [name, state.sort[0] === name ? -state.sort[1] : num ? -1 : 1];
                            again();
                          },
                        },
                        name,
                        el(
                          "span", { "aria-hidden": "true", class: "arrow-sort" },
                          name === column[0] ? (turn > 0 ? " ▲" : " ▼") : "",
                        ),
                      )
                      : name,
                  )
                ),
              ),
            ),
            el(
              "tbody", {},
              list.slice(0, state.rowsShown).map(
                (g) => el(
                  "tr",
                  {
                    class: (g === state.selected ? "chosen " : "") + "pick-row", "data-genome": g,
                    ...press(() => select(g))
                  },
                  columns.map(([, by, show, num]) => el("td", { class: num ? "num" : "" }, show ? show(g) : by(g))),
                )
              ),
            ),
          ),
        )
      ],
    );
    if (list.length > state.rowsShown) fill(
      more,
      [
        el(
          "button",
          { type: "button", onclick: () => { state.rowsShown += 100; again(); } },
          `Show more (${whole(list.length - state.rowsShown)} left)`,
        )
      ],
    );
  };
  again();
  painters.push(() => {
    for (const row of holder.querySelectorAll("tr.pick-row")) row.classList.toggle(
      "chosen", Number(row.dataset.genome) === state.selected
    );
  });
  return section(
    "genomes", "All configurations",
    "Means on the train examples each was given (n): few examples make an uncertain mean; validation and test are " +
      "quality there. Click a row to see it whole.",
    el(
      "div", { class: "row spread" },
      el("span", { class: "muted" }, plural(size(), "configuration")),
      el(
        "input",
        {
          type: "search", placeholder: "Search ids, genes, prompts", "aria-label": "Search configurations",
          value: state.search,
          oninput: (event) => { state.search = event.target.value; again(); },
        },
      ),
    ),
    holder, more,
  );
}

function genes_json(g) {
  const value = (name) => {
    const kind = F.genomes.genes[name].kind, v = gene_at(g, name);
    return v === null
      ? null
      : kind === "text"
      ? text(v)
      : kind === "list"
      ? v.map(text)
      : kind === "choice"
      ? plain(v)
      : v;
  };
  return JSON.stringify(Object.fromEntries(gene_names().map((name) => [name, value(name)])), null, 2);
}
const plain = (said) => {
  try { const v = JSON.parse(said); return typeof v === "string" ? said : v; } catch { return said; }
};

async function copy(said, button) {
  let done = false;
  try { await navigator.clipboard.writeText(said); done = true; } catch {
    const area = el("textarea", { class: "unseen" });
    area.value = said; document.body.append(area); area.select();
    try { done = document.execCommand("copy"); } catch { done = false; }
    area.remove();
  }
  button.textContent = done ? "Copied" : "Copying is not allowed here";
  setTimeout(() => { button.textContent = "Copy genes as JSON"; }, 2000);
}

function configuration_section() {
  if (!F.winner) return null;
  const g = F.winner.genome, button = el(
    "button", { type: "button", class: "quiet", onclick: () => copy(genes_json(g), button) }, "Copy genes as JSON"
  );
  const run = F.run, table = (name, found) => (
    found && Object.keys(found).length
      ? el(
        "div", {}, el("h3", {}, name),
        el(
          "table", { class: "mini" },
          el(
            "tbody", {},
            Object.entries(found).map(
              ([key, value]) => el("tr", {}, el("th", { scope: "row" }, key), el("td", {}, el("code", {}, value)))
            ),
          ),
        ),
      )
      : null
  );
  const remembered = (key) => (
    { open: state.open[key], ontoggle: (event) => { state.open[key] = event.target.open; } }
  );
  return section(
    "configuration", `The ${winner_name()} configuration in full`, null,
    el(
      "div", { class: "card" },
      el("div", { class: "row spread" }, el("h3", {}, el("code", {}, F.genomes.id[g])), button),
      el("dl", { class: "genes full" }, gene_rows(g, true)),
    ),
    el("h2", { id: "made-with" }, "What the run was made with"),
    el(
      "div", { class: "made-with" }, table("Versions", run.versions), table("Models", run.models),
      table("Data (sha256)", run.data), table("Your code (sha256)", run.code),
      table(
        "Run",
        {
          seed: run.seed, folder: run.folder,
          started: String(run.started_at || "?").replace("T", " ").replace("+00:00", " UTC"),
        },
      ),
    ),
    F.config
      ? el(
        "details", { class: "card", ...remembered("config") }, el("summary", {}, "config.yaml, as resolved"),
        el("pre", { class: "prompt code" }, F.config),
      )
      : null,
  );
}

// The card of the selected configuration: its values, its genes, where it came from.

function measures_table(g) {
  const splits = ["train", "validation", "test"].filter((split) => count_of(g, split));
  return el(
    "table", { class: "mini wide" },
    el(
      "thead", {},
      el(
        "tr", {}, el("td", {}),
        splits.map(
          (split) => el("th", { scope: "col" }, split, el("span", { class: "muted" }, ` n ${count_of(g, split)}`))
        ),
      ),
    ),
    el(
      "tbody", {},
      F.aims.map(
        (one) => el(
          "tr", {},
          el(
            "th", { scope: "row" }, title(one),
            one.source === "cost_usd" ? el("span", { class: "muted" }, " $/1M") : null,
          ),
          splits.map(
            (split) => {
              const values = values_of(g, one.name, split);
              return el(
                "td", {}, values ? figured(one, values[0]) : "–",
                values && known(values[1]) ? el("span", { class: "range" }, interval(one, values)) : null,
              );
            }
          ),
        )
      ),
    ),
  );
}

function gene_rows(g, full) {
  return gene_names().map((name) => {
    const gene = F.genomes.genes[name], value = gene_at(g, name);
    const differs = F.start && g !== F.start.genome && gene.at[g] !== gene.at[F.start.genome];
    let said = gene_brief(name, value);
    if (gene.kind === "text" && value !== null) said = el("pre", { class: "prompt" }, whole_text(value));
    else if (gene.kind === "list" && value !== null) said = full && name === "demos"
      ? demo_list(value)
      : el(
        "span", {}, gene_brief(name, value),
        value.length ? el("span", { class: "muted" }, `: ${value.map(text).join(", ")}`) : null,
      );
    return el(
      "div", { class: "gene" + (differs ? " differs" : "") },
      el(
        "dt", {}, name,
        differs ? el("span", { class: "differ-mark", title: "differs from the start" }, " changed") : null,
      ),
      el("dd", {}, said),
    );
  });
}

function demo_list(ids) {
  if (!ids.length) return el("span", { class: "none" }, "none");
  const byId = new Map(F.demos.map(([id, input, expected]) => [id, [input, expected]]));
  return el("ol", { class: "demos" }, ids.map((id) => {
    const found = byId.get(id);
    return el(
      "li", {}, el("code", {}, text(id)),
      found
        ? [el("span", { class: "said" }, " ", text(found[0]) ?? ""), el("b", {}, " → ", text(found[1]) ?? "")]
        : null,
    );
  }));
}

function show_inspector() {
  const box = document.getElementById("inspector"), g = state.selected;
  box.hidden = g === null;
  document.body.classList.toggle("inspecting", g !== null);
  if (g === null) return;
  const parents = F.genomes.parents[g];
  clear(box);
  fill(box, [
    el("div", { class: "row spread" }, el("h3", {}, el("code", {}, short(g)), " ", badges(g)),
      el("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => select(g, true) }, "×")),
    el(
      "p", { class: "muted" },
      `${F.genomes.operator[g]}, generation ${F.genomes.generation[g]}`,
      parents.length
        ? [
          ", from ",
          parents.map(
            (p, at) => [
              at ? ", " : "", el("button", { type: "button", class: "link", onclick: () => select(p) }, short(p))
            ]
          ),
        ]
        : null,
    ),
    el("div", { class: "scroll-y" }, measures_table(g), el("dl", { class: "genes" }, gene_rows(g, false))),
  ]);
}

// From the start to the winner: the family as a graph, and what each step of the main line changed.

function layers() {
  const nodes = new Map(F.lineage.nodes.map((node) => [node.genome, { ...node, level: null }]));
  const level = (node, trail) => {
    if (node.level !== null) return node.level;
    if (trail.has(node.genome)) return 0;
    trail.add(node.genome);
    node.level = 1 + Math.max(-1, ...node.parents.filter((p) => nodes.has(p)).map((p) => level(nodes.get(p), trail)));
    return node.level;
  };
  for (const node of nodes.values()) level(node, new Set());
  return [...nodes.values()];
}

function draw_family(width) {
  const nodes = layers(), depth = Math.max(
    ...nodes.map((node) => node.level)
  ), steps = F.lineage.steps.map((one) => one.genome);
  const columns = Array.from({ length: depth + 1 }, (_, at) => nodes.filter((node) => node.level === at));
  const widest = Math.max(...columns.map((column) => column.length)), gap = Math.max(
    64, Math.min(260, (width - 110) / Math.max(1, depth))
  );
  const total = Math.max(width, depth * gap + 110), height = widest * 58 + 30, place = new Map();
  columns.forEach((column, at) => {
    const order = column.map(
      (node) => {
        const ys = node.parents.map((p) => place.get(p)?.y).filter(known);
        return [
          node,
          steps.includes(node.genome) ? height / 2 : ys.length ? ys.reduce((a, b) => a + b, 0) / ys.length : height / 2,
        ];
      }
    ).sort((p, q) => p[1] - q[1]);
    order.forEach(
      ([node], row) => place.set(
        node.genome, { x: 52 + at * gap, y: height / 2 - 12 + (row - (order.length - 1) / 2) * 58 }
      )
    );
  });
  const main = new Set(steps.slice(1).map((g, at) => `${steps[at]} ${g}`));
  const links = nodes.flatMap((node) => node.parents.filter((p) => place.has(p)).map((p) => {
    const a = place.get(p), b = place.get(node.genome), middle = (a.x + b.x) / 2;
    return svg(
      "path",
      {
        class: "kin" + (main.has(`${p} ${node.genome}`) ? " main" : ""),
        d: `M${a.x},${a.y}C${middle},${a.y} ${middle},${b.y} ${b.x},${b.y}`,
      },
    );
  }));
  const marks = nodes.map((node) => {
    const { x, y } = place.get(node.genome), g = node.genome, quality = measured(g, "quality", "train");
    return svg(
      "g",
      {
        class: "node", role: "button",
        "aria-label": `${short(g)}, ${F.genomes.operator[g]}, ${mark_of(g).join(", ")} ` +
          `quality on train ${known(quality) ? quality.toFixed(2) : "unknown"}`,
        ...press(() => select(g)),
        onpointerenter: (event) => event.pointerType === "mouse"
          && show_tip(tip_for(g, F.objectives), event.clientX, event.clientY),
        onpointerleave: hide_tip,
      },
      svg("circle", { class: "touch", cx: x, cy: y, r: 20 }), glyph(g, x, y),
      state.selected === g ? svg("circle", { class: "ring chosen", r: 11, cx: x, cy: y }) : null,
      svg(
        "text",
        { class: "tick strong halo", x, y: y + 23, "text-anchor": "middle" },
        known(quality) ? quality.toFixed(2) : "",
      ),
      svg(
        "text",
        { class: "tick halo", x, y: y + 36, "text-anchor": "middle" },
        clip(F.genomes.operator[g], gap < 80 ? 9 : 16),
      ),
    );
  });
  return svg(
    "svg",
    {
      width: total, height, viewBox: `0 0 ${total} ${height}`, role: "group", class: "plot",
      "aria-label": `${plural(nodes.length, "configuration")} from the first to the ${winner_name()} one`,
    },
    links, marks,
  );
}

function diff_text(segments) {
  const many = segments.reduce((sum, [, said]) => sum + said.length, 0) > 1200;
  return el("div", { class: "prompt diff" }, segments.map(([kind, said], at) => {
    if (kind === "=") return el("span", {}, many ? shorten(said, at === 0, at === segments.length - 1) : said);
    return kind === "-"
      ? el("del", {}, el("span", { class: "unseen" }, "removed: "), said)
      : el("ins", {}, el("span", { class: "unseen" }, "added: "), said);
  }));
}

// Long stretches that did not change are folded; they can be opened.
function shorten(said, first, last) {
  if (said.length < 400) return said;
  const head = first ? "" : said.slice(0, 120), tail = last ? "" : said.slice(-120);
  const middle = said.slice(head.length, said.length - tail.length);
  const fold = el(
    "button",
    { type: "button", class: "fold", onclick: () => fold.replaceWith(document.createTextNode(visible(middle))) },
    ` … ${whole(middle.length)} characters unchanged … `,
  );
  return [head, fold, tail];
}

function change_row(one) {
  if (one.diff) return el("div", { class: "change" }, el("b", {}, one.gene), diff_text(one.diff));
  if (one.added) return el(
    "div", { class: "change" }, el("b", {}, one.gene), ` now ${one.count}: `,
    one.removed.length
      ? [el("del", {}, el("span", { class: "unseen" }, "removed: "), one.removed.join(", ")), " "]
      : null,
    one.added.length ? el("ins", {}, el("span", { class: "unseen" }, "added: "), one.added.join(", ")) : null,
    !one.added.length && !one.removed.length ? "in another order" : null,
  );
  return el(
    "div", { class: "change" }, el("b", {}, one.gene), " ",
    el("del", {}, el("span", { class: "unseen" }, "was "), one.before),
    " → ",
    el("ins", {}, el("span", { class: "unseen" }, "now "), one.after),
  );
}

function step_item(one, at) {
  const g = one.genome, splits = ["train", "validation", "test"].filter(
    (split) => known(measured(g, "quality", split))
  );
  return el(
    "li", {},
    el(
      "div", { class: "step-head" }, el("span", { class: "step-number" }, at), el("b", {}, F.genomes.operator[g]),
      el("button", { type: "button", class: "link", onclick: () => select(g) }, el("code", {}, short(g))),
      badges(g),
      splits.map(
        (split) => el(
          "span", { class: "muted" }, `${split} ${measured(g, "quality", split).toFixed(2)} `,
          el("small", {}, `n ${count_of(g, split)}`),
        )
      ),
    ),
    one.others.length
      ? el(
        "p", { class: "muted small" }, "other parent: ",
        one.others.map((p) => el("button", { type: "button", class: "link", onclick: () => select(p) }, short(p))),
      )
      : null,
    one.changes.length
      ? one.changes.map(change_row)
      : at === 0
      ? el(
        "div", { class: "change" },
        is_start(g)
          ? "What the user gave."
          : F.genomes.operator[g] === "seed"
          ? ["Drawn at random when the search began. Against the start: ", chips(g)]
          : "Given at the beginning.",
        first_prompt(g),
      )
      : el("p", { class: "muted" }, "nothing changed"),
  );
}

function first_prompt(g) {
  return gene_names().filter(
    (name) => F.genomes.genes[name].kind === "text" && gene_at(g, name) !== null
  ).map((name) => el("div", { class: "prompt" }, whole_text(gene_at(g, name))));
}

function lineage_section() {
  if (!F.lineage) return null;
  const alone = F.lineage.nodes.length === 1;
  return section(
    "lineage", `How the ${winner_name()} configuration came about`,
    alone
      ? null
      : "Numbers are quality on train. The strong line follows, at each step back, the parent it is most like.",
    alone
      ? el(
        "p", {},
        is_start(F.winner.genome)
          ? "It is the configuration the search began with."
          : "It was there from the beginning; nothing was bred on the way to it.",
      )
      : el(
        "div",
        { class: "card scroll", tabindex: "0", role: "region", "aria-label": "Family" },
        chart("family", draw_family),
      ),
    F.lineage.left_out
      ? el("p", { class: "muted" }, `${whole(F.lineage.left_out)} earlier ancestors are not drawn.`)
      : null,
    alone ? null : el("ol", { class: "steps" }, F.lineage.steps.map(step_item)),
  );
}

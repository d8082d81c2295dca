// Parallel coordinates: genes that vary, then the measures. Brush an axis to filter; narrow pages turn it on its side.

function axes_of() {
  const list = varying().map((name) => {
    const gene = F.genomes.genes[name];
    const order = gene.kind === "choice"
      ? gene.values.map((v, at) => [v, at]).sort((p, q) => String(p[0]).localeCompare(String(q[0]))).map((p) => p[1])
      : null;
    const rank = order ? order.reduce((found, at, place) => { found[at] = place; return found; }, []) : null;
    const value = gene.kind === "number" ? (g) => gene.values[gene.at[g]]
      : gene.kind === "list" ? (g) => gene.values[gene.at[g]]?.length ?? null
      : gene.kind === "text" ? (g) => gene.at[g] : (g) => rank[gene.at[g]];
    const steps = gene.kind === "choice" ? order.map((at) => gene_brief(name, gene.values[at])) : null;
    const about = gene.kind === "list" ? "count" : gene.kind === "text" ? `${gene.values.length} texts` : "";
    return {
      key: "gene " + name, name, kind: gene.kind, value, steps, about,
      whole: gene.kind === "list" || gene.kind === "text", log: gene.kind === "number" && spans_decades(gene.values),
    };
  });
  for (const one of F.aims.filter((it) => F.objectives.includes(it.name))) {
    list.push(
      {
        key: "aim " + one.name, name: title(one), kind: "measure", aim: one,
        log: spans_decades(F.genomes.splits.train?.values[one.name] || []),
        value: (g) => { const v = measured(g, one.name, "train"); return known(v) ? v * scale_of(one) : null; },
        about: own({ latency_ms: "ms ", cost_usd: "$/1M " }, one.source, "") + (one.direction === "max" ? "↑" : "↓"),
      }
    );
  }
  return list;
}

const passes = (g, axes) => axes.every((axis) => {
  const range = state.brushes[axis.key];
  if (!range) return true;
  const value = axis.value(g);
  return known(value) && value >= range[0] && value <= range[1];
});

function shown(g) {
  if (state.show === "front") return on_front(g) || is_start(g);
  return state.show === "all" || count_of(g, "train") >= known_enough();
}

function draw_parallel(axes, width, counted) {
  const tall = width < 700, n = axes.length;
  const long = tall ? Math.max(320, n * 62) : 360, room = tall ? {
    from: 14, to: width - 16, first: 34, last: long - 18,
  } : { from: 300, to: 44, first: 46, last: width - 56 };
  if (!tall) { room.from = long - 14; room.to = 62; }
  const along = (i) => (n === 1 ? (room.first + room.last) / 2 : room.first + (i * (room.last - room.first)) / (n - 1));
  for (const axis of axes) {
    const all = F.genomes.id.map((_, g) => axis.value(g));
    axis.scale = axis.steps ? make_scale(axis.steps.map((_, at) => at), room.from, room.to, { pad: 0.04 })
      : make_scale(all, room.from, room.to, { pad: 0.03, count: 4, log: axis.log });
    const distinct = axis.steps ? [] : [...new Set(all.filter(known))].sort((a, b) => a - b);
    if (axis.kind !== "measure" && distinct.length && distinct.length <= 6) axis.scale.ticks = distinct;
    else if (axis.whole) axis.scale.ticks = [...new Set(axis.scale.ticks.map(Math.round))].filter(
      (tick) => tick >= axis.scale.domain[0] && tick <= axis.scale.domain[1]
    );
  }
  const at = (i, value) => (tall ? [axes[i].scale(value), along(i)] : [along(i), axes[i].scale(value)]);
  const path = (g) => {
    const parts = []; let run = [];
    axes.forEach(
      (axis, i) => {
        const value = axis.value(g);
        if (known(value)) run.push(at(i, value));
        else if (run.length) { parts.push(run); run = []; }
      }
    );
    parts.push(run);
    return parts.map(line).join("");
  };
  const kept = [], off = [];
  for (let g = 0; g < size(); g += 1) if (shown(g)) (passes(g, axes) ? kept : off).push(g);
  counted(kept.length, size());
  const special = kept.filter((g) => kind_of(g) !== "other").sort((p, q) => is_winner(p) - is_winner(q));
  const hover = svg("path", { class: "pc hover" });
  const drawing = svg(
    "svg",
    {
      width, height: long, viewBox: `0 0 ${width} ${long}`, role: "img", class: "plot",
      "aria-label": `Parallel coordinates of ${plural(kept.length, "configuration")} over ` +
        `${axes.map((axis) => axis.name).join(", ")}; the table of all configurations holds the same values.`,
    },
    svg("path", { class: "pc off", d: off.slice(0, 3000).map(path).join("") }),
    svg("path", { class: "pc", d: kept.filter((g) => kind_of(g) === "other").slice(0, 4000).map(path).join("") }),
    special.map((g) => svg("path", { class: "pc " + kind_of(g), d: path(g) })),
    state.selected !== null && shown(state.selected)
      ? svg("path", { class: "pc chosen", d: path(state.selected) })
      : null,
    hover,
    axes.map((axis, i) => draw_axis(axis, i, along(i), tall, room)),
  );
  hover_lines(drawing, hover, kept, axes, along, tall, path);
  return drawing;
}

function draw_axis(axis, i, place, tall, room) {
  const spot = (value) => (tall ? { x: axis.scale(value), y: place } : { x: place, y: axis.scale(value) });
  const ticks = axis.steps ? axis.steps.map((_, at) => at) : axis.scale.ticks, texts = [];
  let last = -Infinity;
  ticks.forEach((tick) => {
    const { x, y } = spot(tick), said = axis.steps
      ? clip(axis.steps[tick], tall ? 12 : 14)
      : tick_text(tick), here = tall
      ? x
      : -y;
    const need = tall ? said.length * 6.2 + 8 : 13;
    texts.push(
      svg(
        "line",
        { class: "axis", ...(tall ? { x1: x, x2: x, y1: y - 3, y2: y + 3 } : { x1: x - 3, x2: x + 3, y1: y, y2: y }) },
      )
    );
    if (Math.abs(here - last) < need && last !== -Infinity) return;
    last = here;
    texts.push(
      svg(
        "text",
        {
          class: "tick halo",
          x: tall ? Math.min(Math.max(x, room.from + said.length * 3), room.to - said.length * 3 + 8) : x + 7,
          y: tall ? y + 15 : y, dy: tall ? 0 : "0.35em", "text-anchor": tall ? "middle" : "start",
        },
        said,
      )
    );
  });
  const range = state.brushes[axis.key], brush = [];
  if (range) {
    const [a, b] = [axis.scale(range[0]), axis.scale(range[1])].sort((p, q) => p - q);
    brush.push(
      svg(
        "rect",
        {
          class: "brush",
          ...(
            tall ? {
              x: a, y: place - 8, width: Math.max(4, b - a), height: 16,
            } : { x: place - 8, y: a, width: 16, height: Math.max(4, b - a) }
          )
        },
      )
    );
  }
  const top = Math.min(room.from, room.to), length = Math.abs(room.from - room.to);
  const strip = svg(
    "rect",
    {
      class: "strip",
      ...(
        tall ? {
          x: top - 6, y: place - 12, width: length + 12, height: 24,
        } : { x: place - 12, y: top - 6, width: 24, height: length + 12 }
      ),
      style: { touchAction: tall ? "pan-y" : "pan-x" },
    },
    svg("title", {}, `Drag along ${axis.name} to filter; click to take the filter off`),
  );
  drag(strip, axis, tall);
  const name = clip(axis.name, 16), about = axis.about ? ` ${axis.about}` : "";
  const head = tall
    ? svg(
      "text",
      { class: "name strong halo", x: room.from - 6, y: place - 12 },
      axis.name, svg("tspan", { class: "muted-svg" }, about),
    )
    : [
      svg(
        "text",
        {
          class: "name strong", x: place, y: 20 + (i % 2) * 15, "text-anchor": i === 0 ? "start" : "middle",
          dx: i === 0 ? -10 : 0,
        },
        name,
        svg("tspan", { class: "muted-svg" }, about && about.length < 12 ? about : ""),
      )
    ];
  const pole = svg(
    "line",
    {
      class: "axis",
      ...(
        tall ? {
          x1: room.from, x2: room.to, y1: place, y2: place,
        } : { x1: place, x2: place, y1: room.from, y2: room.to }
      )
    },
  );
  return svg("g", {}, pole, brush, texts, head, strip);
}

function drag(strip, axis, tall) {
  const read = (event) => {
    const box = strip.ownerSVGElement.getBoundingClientRect();
    return tall ? event.clientX - box.left : event.clientY - box.top;
  };
  let from = null;
  strip.addEventListener("pointerdown", (event) => { from = read(event); strip.setPointerCapture(event.pointerId); });
  strip.addEventListener("pointerup", (event) => {
    if (from === null) return;
    const to = read(event), step = axis.steps || axis.whole ? 0.5 : 0;
    if (Math.abs(to - from) < 5) {
      if (state.brushes[axis.key]) delete state.brushes[axis.key];
      else if (axis.steps) {
        const v = Math.round(axis.scale.invert(to));
        state.brushes[axis.key] = [v - step, v + step];
      }
    } else state.brushes[axis.key] = [axis.scale.invert(from), axis.scale.invert(to)].sort((p, q) => p - q);
    from = null;
    brushed();
  });
  strip.addEventListener("pointercancel", () => { from = null; });
}

function brushed() { hide_tip(); painters.forEach((paint) => paint()); }

function hover_lines(drawing, hover, kept, axes, along, tall, path) {
  const nearest = (event) => {
    const box = drawing.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const here = tall ? y : x, across = tall ? x : y;
    let i = axes.findIndex((_, at) => along(at) > here) - 1;
    if (i < 0) i = here < along(0) ? 0 : axes.length - 2;
    if (axes.length < 2) return null;
    const share = Math.max(0, Math.min(1, (here - along(i)) / (along(i + 1) - along(i))));
    let best = null, least = 12;
    for (const g of kept) {
      const a = axes[i].value(g), b = axes[i + 1].value(g);
      if (!known(a) || !known(b)) continue;
      const away = Math.abs(
        axes[i].scale(a) * (1 - share) + axes[i + 1].scale(b) * share - across
      ) - (kind_of(g) === "other" ? 0 : 3);
      if (away < least) { least = away; best = g; }
    }
    return best;
  };
  drawing.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse" || event.buttons) return;
    const g = nearest(event);
    hover.setAttribute("d", g === null ? "" : path(g));
    if (g === null) hide_tip(); else show_tip(tip_for(g, F.objectives), event.clientX, event.clientY);
  });
  drawing.addEventListener("pointerleave", () => { hover.setAttribute("d", ""); hide_tip(); });
  drawing.addEventListener(
    "click",
    (event) => {
      if (event.target.classList.contains("strip")) return;
      const g = nearest(event);
      if (g !== null) { hide_tip(); select(g); }
    },
  );
}

// The same filter without a pointer: a choice or two numbers an axis.
function filter_form(axes, box) {
  const set = (axis, at, value) => {
    const all = F.genomes.id.map((_, g) => axis.value(g)).filter(known);
    const range = state.brushes[axis.key]
      || [all.reduce((a, b) => Math.min(a, b)), all.reduce((a, b) => Math.max(a, b))];
    range[at] = Number(value);
    if (value === "") delete state.brushes[axis.key]; else state.brushes[axis.key] = range;
    brushed();
  };
  return el(
    "details",
    { class: "filters", open: state.open.filters, ontoggle: (event) => { state.open.filters = event.target.open; } },
    el("summary", {}, "Filter by exact values"),
    el(
      "div", { class: "filter-grid" },
      axes.map(
        (axis) => el(
          "fieldset", {}, el("legend", {}, axis.name),
          axis.steps
            ? el(
              "select",
              {
                "aria-label": axis.name,
                onchange: (event) => {
                  const v = event.target.value;
                  if (v === "") delete state.brushes[axis.key];
                  else state.brushes[axis.key] = [Number(v) - 0.5, Number(v) + 0.5];
                  brushed();
                },
              },
              el("option", { value: "" }, "any"),
              axis.steps.map(
                (said, at) => el(
                  "option",
                  {
                    value: at,
                    selected: state.brushes[axis.key]
                      && Math.round((state.brushes[axis.key][0] + state.brushes[axis.key][1]) / 2) === at,
                  },
                  clip(said, 40),
                )
              ),
            )
            : ["from", "to"].map(
              (end, at) => el(
                "input",
                {
                  type: "number", step: "any", placeholder: end, "aria-label": `${axis.name} ${end}`,
                  value: state.brushes[axis.key] ? significant(state.brushes[axis.key][at], 4) : null,
                  onchange: (event) => set(axis, at, event.target.value),
                },
              )
            ),
        )
      ),
    ),
  );
}

function parallel_section() {
  const axes = axes_of();
  if (axes.length < 2 || size() < 2) return null;
  const count = el("span", { class: "muted", role: "status" });
  const counted = (kept, all) => { count.textContent = `${whole(kept)} of ${whole(all)} configurations`; };
  const drawing = chart("parallel", (width) => draw_parallel(axes, width, counted));
  const change = (value) => { state.show = value; render(); };
  const off = el(
    "button",
    { type: "button", class: "quiet", onclick: () => { state.brushes = {}; render(); } },
    "Take all filters off",
  );
  return section(
    "genes", "What the good ones have in common",
    "Every line is a configuration, through its genes on one side and what it measured on train on the other. " +
      "Drag along an axis to keep only lines that pass there. ↑ more is better, ↓ less is better.",
    el(
      "div", { class: "row spread" },
      el(
        "div", { class: "row" },
        choices(
          "which configurations",
          [["all", "all"], ["enough", "well measured"], ["front", "front and start"]],
          state.show, change,
        ),
        count,
      ),
      off,
    ),
    el("div", { class: "card" }, drawing, rubric_key()), filter_form(axes),
  );
}

// Which number of the axis is which prompt.
function rubric_key() {
  const names = varying().filter((name) => F.genomes.genes[name].kind === "text");
  return names.map((name) => {
    const values = F.genomes.genes[name].values;
    return el(
      "details",
      {
        class: "key", open: state.open["key " + name],
        ontoggle: (event) => { state.open["key " + name] = event.target.open; },
      },
      el("summary", {}, `The ${values.length} texts of ${name}, by number`),
      el(
        "ol", { start: "0" },
        values.slice(0, 100).map((value) => el("li", {}, value === null ? "none" : gene_brief(name, value))),
      ),
      values.length > 100 ? el("p", { class: "muted" }, `and ${whole(values.length - 100)} more`) : null,
    );
  });
}

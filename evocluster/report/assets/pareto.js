// Any two objectives against each other: every genome a faint dot, the front with its intervals.

function tip_for(g, names) {
  const split = state.split, rows = [];
  for (const name of names) {
    const one = aim(name), values = values_of(g, name, on_front(g) || is_start(g) || is_winner(g) ? split : "train");
    if (!values) continue;
    rows.push(el("tr", {}, el("th", { scope: "row" }, title(one)), el("td", {}, figured(one, values[0])),
      el("td", { class: "range" }, interval(one, known(values[1]) ? values : null))));
  }
  const where = on_front(g) || is_start(g) || is_winner(g)
    ? split
    : `train, ${plural(count_of(g, "train"), "evaluation")}`;
  return el("div", {}, el("p", { class: "tip-head" }, el("code", {}, short(g)), " ", badges(g),
    el("span", { class: "muted" }, ` ${F.genomes.operator[g]}, on ${where}`)),
    el("table", { class: "mini" }, el("tbody", {}, rows)), chips(g));
}

// The dots and marks of one plot, in pixels; `drawn` says where each genome stands.
function placed(plot, x, y) {
  const faint = [], marks = [];
  for (let g = 0; g < size(); g += 1) {
    const special = on_front(g) || is_start(g) || is_winner(g);
    const a = special
      ? values_of(g, plot.x, state.split) || values_of(g, plot.x, "train")
      : values_of(g, plot.x, "train");
    const b = special
      ? values_of(g, plot.y, state.split) || values_of(g, plot.y, "train")
      : values_of(g, plot.y, "train");
    if (!a || !b || !known(a[0]) || !known(b[0]) || (plot.logx && a[0] <= 0) || (plot.logy && b[0] <= 0)) continue;
    (special ? marks : faint).push({ g, a, b, x: x(a[0]), y: y(b[0]), few: count_of(g, "train") < known_enough() });
  }
  return { faint, marks };
}

// From so many train evaluations on a mean is drawn as a full dot: twice the least portion.
let enough_cache = 0;
function known_enough() {
  if (!enough_cache) {
    const counts = (F.genomes.splits.train?.n || []).filter((n) => n > 0);
    enough_cache = counts.length
      ? Math.min(2 * counts.reduce((a, b) => Math.min(a, b)), counts.reduce((a, b) => Math.max(a, b)))
      : 1;
  }
  return enough_cache;
}

// The staircase of those that nobody beats in both of these two measures.
function stairs(marks, plot, x, y, box) {
  const one = aim(plot.x), two = aim(plot.y);
  const front = marks.filter((mark) => on_front(mark.g));
  const best = front.filter((mark) => !front.some((other) => other !== mark
    && !better(one, mark.a[0], other.a[0]) && !better(two, mark.b[0], other.b[0])
    && (better(one, other.a[0], mark.a[0]) || better(two, other.b[0], mark.b[0]))));
  best.sort((p, q) => p.x - q.x);
  if (!best.length) return null;
  const up = one.direction === "min";
  let path = "";
  best.forEach((mark, at) => {
    if (!at) path = `M${mark.x},${mark.y}`;
    else path += up ? `H${mark.x}V${mark.y}` : `V${mark.y}H${mark.x}`;
  });
  const [near, far] = up ? [best[0], best.at(-1)] : [best.at(-1), best[0]];
  const worst = two.direction === "max" ? box.bottom : box.top;
  const ends = `M${near.x},${worst}V${near.y}M${far.x},${far.y}H${up ? box.right : box.left}`;
  return [svg("path", { class: "stairs ends", d: ends }), svg("path", { class: "stairs", d: path })];
}

function error_bars(mark, x, y) {
  const bars = [];
  const [, xl, xh] = mark.a, [, yl, yh] = mark.b;
  if (known(xl) && known(xh)) bars.push(`M${x(xl)},${mark.y}H${x(xh)}`);
  if (known(yl) && known(yh)) bars.push(`M${mark.x},${y(yl)}V${y(yh)}`);
  return bars.length ? svg("path", { class: "error " + kind_of(mark.g), d: bars.join("") }) : null;
}

const kind_of = (g) => (is_winner(g) ? "winner" : is_start(g) ? "start" : on_front(g) ? "front" : "other");

function glyph(g, x, y, more) {
  const kind = kind_of(g), broken = breaks(g) ? " broken" : "";
  if (kind === "winner") return svg(
    "path", { class: "glyph winner" + (is_start(g) ? " both" : "") + broken, d: diamond(x, y, 8), ...more }
  );
  if (kind === "start") return svg(
    "rect", { class: "glyph start" + broken, x: x - 5.5, y: y - 5.5, width: 11, height: 11, ...more }
  );
  return svg("circle", { class: "glyph " + kind + broken, cx: x, cy: y, r: kind === "front" ? 5 : 4, ...more });
}

// A line where a constraint on one of the two measures begins to be broken.
function limit_lines(plot, px, py, box) {
  const line = (limit, along, at, attributes) => (at < box[along[0]] || at > box[along[1]] ? null : [
    svg("line", { class: "limit", ...attributes }),
    along[0] === "left"
      ? svg("text", { class: "limit-name halo", x: at + 4, y: box.top + 10 }, sentence(limit))
      : svg("text", { class: "limit-name halo", x: box.left + 5, y: at - 4 }, sentence(limit)),
  ]);
  return F.constraints.filter((limit) => !(plot.logx && limit.name === plot.x && limit.limit <= 0)
    && !(plot.logy && limit.name === plot.y && limit.limit <= 0)).map((limit) => {
    if (limit.name === plot.x) {
      const at = px(limit.limit);
      return line(limit, ["left", "right"], at, { x1: at, x2: at, y1: box.top, y2: box.bottom });
    }
    if (limit.name !== plot.y) return null;
    const at = py(limit.limit);
    return line(limit, ["top", "bottom"], at, { x1: box.left, x2: box.right, y1: at, y2: at });
  });
}

// Values with the limits on their measure that are not far from them.
function with_limits(one, found) {
  if (!found.length) return found;
  const low = found.reduce((a, b) => Math.min(a, b)), high = found.reduce((a, b) => Math.max(a, b));
  const room = (high - low || Math.abs(high) || 1) / 2;
  const near = F.constraints.filter(
    (limit) => limit.name === one.name && limit.limit >= low - room && limit.limit <= high + room
  );
  return [...found, ...near.map((limit) => limit.limit)];
}

function draw_pareto(plot, width) {
  const height = Math.max(280, Math.min(400, width * 0.72)), room = {
    left: 54, right: width - 14, top: 34, bottom: height - 46,
  };
  const one = aim(plot.x), two = aim(plot.y), share = (it) => (
    it.source === "quality" || it.source === "robustness" || it.source === "composite" ? [0, 1] : null
  );
  const gathered = (it) => {
    const found = (F.genomes.splits.train?.values[it.name] || []).filter((_, g) => !member(g));
    for (const g of [...F.members, F.start, F.winner].filter(Boolean).map((m) => m.genome)) {
      found.push(...(values_of(g, it.name, state.split) || values_of(g, it.name, "train") || []));
    }
    return with_limits(it, found.filter(known));
  };
  const xs = gathered(one), ys = gathered(two);
  const x = make_scale(
    xs.map((v) => v * scale_of(one)), room.left, room.right,
    { log: plot.logx, count: width < 420 ? 4 : 6, within: share(one) },
  );
  const y = make_scale(ys.map((v) => v * scale_of(two)), room.bottom, room.top, { log: plot.logy, within: share(two) });
  const px = (value) => x(value * scale_of(one)), py = (value) => y(value * scale_of(two));
  const { faint, marks } = placed(plot, px, py);
  const order = { other: 0, front: 1, start: 2, winner: 3 };
  marks.sort((p, q) => order[kind_of(p.g)] - order[kind_of(q.g)]);
  const start = marks.find((mark) => is_start(mark.g)), winner = marks.find((mark) => is_winner(mark.g));
  const far = start && winner && Math.hypot(start.x - winner.x, start.y - winner.y) > 26;
  const chosen = [...marks, ...faint].find((mark) => mark.g === state.selected);
  const ring = svg("circle", { class: "ring", r: 11, visibility: "hidden" });
  const said = `Plot of ${title(two)} against ${title(one)}: ${plural(faint.length, "genome")} as dots, ` +
    `${plural(F.members.length, "member")} of the front. ` +
    "Arrow keys go along the front, with Shift along all; Enter selects.";
  const drawing = svg(
    "svg",
    {
      width, height, viewBox: `0 0 ${width} ${height}`, role: "application", "aria-label": said, tabindex: "0",
      class: "plot",
    },
    frame(x, y, room, { x: `${label_of(one)} (${sense(one)})`, y: `${label_of(two)} (${sense(two)})` }),
    svg("path", { class: "dot few", d: dots(faint.filter((m) => m.few).map((m) => [m.x, m.y])) }),
    svg("path", { class: "dot", d: dots(faint.filter((m) => !m.few).map((m) => [m.x, m.y])) }),
    limit_lines(plot, px, py, room), stairs(marks, plot, px, py, room), marks.map((mark) => error_bars(mark, px, py)),
    far ? svg("line", { class: "move", x1: start.x, y1: start.y, x2: winner.x, y2: winner.y }) : null,
    marks.map((mark) => glyph(mark.g, mark.x, mark.y)),
    chosen ? svg("circle", { class: "ring chosen", r: 12, cx: chosen.x, cy: chosen.y }) : null,
    ring,
  );
  watch_points(drawing, ring, marks, faint, [...new Set([plot.y, plot.x, ...F.objectives])]);
  return drawing;
}

// Pointer and keys: the nearest point within reach gets the ring and the tip.
function watch_points(drawing, ring, marks, faint, names) {
  let at = null;
  const show = (point, x, y) => {
    at = point;
    ring.setAttribute("visibility", point ? "visible" : "hidden");
    if (!point) { hide_tip(); return; }
    ring.setAttribute("cx", point.x); ring.setAttribute("cy", point.y);
    const frame_box = drawing.getBoundingClientRect();
    show_tip(tip_for(point.g, names), x ?? frame_box.left + point.x, y ?? frame_box.top + point.y);
  };
  const nearest = (event) => {
    const found = drawing.getBoundingClientRect(), x = event.clientX - found.left, y = event.clientY - found.top;
    let best = null, least = event.pointerType === "mouse" ? 18 : 28;
    for (const [points, bonus] of [[marks, 5], [faint, 0]]) {
      for (const point of points) {
        const away = Math.hypot(point.x - x, point.y - y) - bonus;
        if (away <= least) { least = away; best = point; }
      }
    }
    return best;
  };
  drawing.addEventListener(
    "pointermove", (event) => { if (event.pointerType === "mouse") show(nearest(event), event.clientX, event.clientY); }
  );
  drawing.addEventListener("pointerleave", () => show(null));
  drawing.addEventListener(
    "click", (event) => { const point = nearest(event); if (point) { hide_tip(); select(point.g); } }
  );
  drawing.addEventListener("blur", () => show(null));
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) {
      const all = (event.shiftKey ? [...marks, ...faint] : [...marks]).sort((p, q) => p.x - q.x || p.y - q.y);
      if (!all.length) return;
      const now = all.findIndex((point) => point.g === (at?.g ?? state.selected));
      const next = all[now < 0 ? 0 : (now + step + all.length) % all.length];
      event.preventDefault();
      show(next);
      const value = (name) => values_of(next.g, name, state.split)?.[0] ?? measured(next.g, name, "train");
      const told = names.map((name) => `${title(aim(name))} ${figured(aim(name), value(name))}`);
      tell(`${short(next.g)} ${mark_of(next.g).join(", ")}: ${told.join(", ")}`);
    } else if ((event.key === "Enter" || event.key === " ") && at) {
      event.preventDefault();
      select(at.g, true);
    } else if (event.key === "Escape") show(null);
  });
}

function pareto_card(plot) {
  const options = F.aims.map((one) => [one.name, title(one)]);
  const card = el("div", { class: "card plot-card" });
  const draw = chart("pareto", (width) => draw_pareto(plot, width));
  const controls = () => {
    const toggles = [["logx", "x", plot.x], ["logy", "y", plot.y]].map(([key, axis, name]) => {
      const possible = spans_decades(F.genomes.splits.train?.values[name] || []);
      if (!possible) { plot[key] = false; return null; }
      return el(
        "label", { class: "check" },
        el(
          "input",
          { type: "checkbox", checked: plot[key], onchange: (event) => { plot[key] = event.target.checked; again(); } },
        ),
        `log ${axis}`,
      );
    });
    return el(
      "div", { class: "row controls" },
      pick("vertical axis", options, plot.y, (value) => { plot.y = value; again(); }),
      el("span", { class: "muted" }, "against"),
      pick("horizontal axis", options, plot.x, (value) => { plot.x = value; again(); }),
      toggles,
    );
  };
  const again = () => {
    card.firstChild.replaceWith(controls());
    draw.isConnected && painters.forEach((paint) => paint());
  };
  return fill(card, [controls(), draw]);
}

function default_plots() {
  const has = (name) => F.aims.some((one) => one.name === name), names = F.objectives;
  const y = has("quality") ? "quality" : names[0];
  const others = ["cost_usd", "latency_ms", ...names].filter((name) => name !== y && has(name));
  return [...new Set(others)].slice(0, 2).map(
    (x) => ({ x, y, logx: spans_decades(F.genomes.splits.train?.values[x] || []), logy: false })
  );
}

function legend() {
  const sign = (kind, draw) => svg(
    "svg", { width: 20, height: 16, viewBox: "0 0 20 16", "aria-hidden": "true" }, draw(kind)
  );
  const item = (kind, said, draw) => el("li", {}, sign(kind, draw), said);
  return el(
    "ul", { class: "legend" },
    item("winner", winner_name(), () => svg("path", { class: "glyph winner", d: diamond(10, 8, 7) })),
    item("start", "start", () => svg("rect", { class: "glyph start", x: 5, y: 3, width: 10, height: 10 })),
    F.members.length
      ? item(
        "front", "front, with 95 % intervals",
        () => [
          svg("path", { class: "error front", d: "M0,8H20" }),
          svg("circle", { class: "glyph front", cx: 10, cy: 8, r: 5 }),
        ],
      )
      : null,
    item(
      "dot",
      "every other genome, mean on train (fainter: few evaluations)",
      () => svg("path", { class: "dot", d: "M6,8h0M14,8h0" }),
    ),
    F.constraints.length
      ? item(
        "limit", `constraints: ${F.constraints.map(sentence).join(", ")}; broken on validation where dashed`,
        () => svg("line", { class: "limit", x1: 0, x2: 20, y1: 8, y2: 8 }),
      )
      : null,
  );
}

function pareto_section() {
  state.plots ??= default_plots();
  const splits = ["test", "validation", "train"].filter((split) => F.members.some((one) => one.splits[split]));
  const holder = el("div", { class: "pair-of-plots" }, state.plots.map((plot) => pareto_card(plot)));
  const change = (split) => { state.split = split; render(); };
  return section(
    "front", "The trade-offs",
    "Each point is one whole configuration. No configuration on the front is beaten by another in every " +
      "objective; choosing among them is a matter of what you are willing to pay. Hover, tap or use the arrow keys " +
      "for what a point is; click to keep it in sight.",
    el(
      "div", { class: "row spread" }, legend(),
      splits.length > 1
        ? el(
          "div", { class: "row" },
          el("span", { class: "muted" }, "front and start measured on"),
          choices("split of the front", splits.map((split) => [split, split]), state.split, change),
        )
        : null,
    ),
    F.members.length && state.split !== "train"
      ? el(
        "p", { class: "muted small" },
        `Dots are means on train, front and start values on ${state.split}: compare each with its own kind only.`,
      )
      : null,
    holder,
  );
}

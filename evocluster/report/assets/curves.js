// How the search came along over its LLM calls, and what each operator brought.

function draw_curve(width, series, options) {
  const height = options.height || 200, box = {
    left: 54, right: width - 14, top: 28, bottom: height - (options.bare ? 24 : 42),
  };
  const calls = [0, ...series.flatMap((one) => one.points.map((p) => p[0])), options.most || 0];
  const x = make_scale(calls, box.left, box.right, { pad: 0, count: width < 420 ? 4 : 7 });
  const y = make_scale(
    [...series.flatMap((one) => one.points.map((p) => p[1])), ...(options.levels || []).map((one) => one[1])],
    box.bottom, box.top, { count: 4 },
  );
  const drawing = svg(
    "svg",
    { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", class: "plot", "aria-label": options.said },
    frame(x, y, box, { x: options.bare ? "" : "LLM calls", y: options.name }),
    (F.curves.generations || []).length <= 40
      ? F.curves.generations.map(
        (at) => svg("line", { class: "generation", x1: x(at), x2: x(at), y1: box.top, y2: box.bottom })
      )
      : null,
    (options.levels || []).map(
      ([said, value]) => [
        svg("line", { class: "level", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
        svg("text", { class: "tick halo", x: box.left + 6, y: y(value) - 5 }, said),
      ]
    ),
    series.map(
      (one) => svg(
        "path",
        {
          class: "curve " + one.kind,
          d: one.stepped
            ? stepped(one.points.map(([a, b]) => [x(a), y(b)]))
            : line(one.points.map(([a, b]) => [x(a), y(b)])),
        },
      )
    ),
    series.map(
      (one) => (
        one.points.length <= 40
          ? one.points.map(([a, b]) => svg("circle", { class: "curve-dot " + one.kind, cx: x(a), cy: y(b), r: 2.5 }))
          : null
      )
    ),
  );
  follow(drawing, series, x, options);
  return drawing;
}

const stepped = (points) => points.map(
  ([x, y], at) => (at ? `H${x.toFixed(1)}V${y.toFixed(1)}` : `M${x.toFixed(1)},${y.toFixed(1)}`)
).join("");

function follow(drawing, series, x, options) {
  drawing.addEventListener("pointermove", (event) => {
    const at = x.invert(event.clientX - drawing.getBoundingClientRect().left);
    const rows = series.map(
      (one) => {
        const p = one.points.reduce(
          (best, now) => (Math.abs(now[0] - at) < Math.abs(best[0] - at) ? now : best), one.points[0]
        );
        return p ? `${whole(p[0])} calls: ${options.name} ${significant(p[1], 4)}` : "";
      }
    );
    show_tip(el("p", {}, rows.join("; ")), event.clientX, event.clientY);
  });
  drawing.addEventListener("pointerleave", hide_tip);
}

function draw_births(width) {
  const rows = F.operators.filter((one) => one.children > 0), step = 30, left = 92;
  const height = rows.length * step + 50, most = Math.max(F.curves.calls.at(-1) || 0, ...F.genomes.born, 1);
  const x = make_scale([0, most], left, width - 14, { pad: 0, count: width < 420 ? 3 : 7 });
  const kids = rows.map((row, at) => {
    const y = 16 + at * step, few = [], more = [], front = [];
    F.genomes.operator.forEach((name, g) => {
      if (name !== row.name) return;
      const place = x(Math.min(F.genomes.born[g], most));
      if (on_front(g) || is_winner(g)) front.push(glyph(g, place, y));
      else (count_of(g, "train") >= known_enough() ? more : few).push(`M${place.toFixed(1)},${y - 6}V${y + 6}`);
    });
    return [
      svg("line", { class: "grid", x1: left, x2: width - 14, y1: y + 0.5, y2: y + 0.5 }),
      svg("text", { class: "tick strong", x: 2, y, dy: "0.35em" }, clip(row.name, 14)),
      svg("path", { class: "birth", d: few.join("") }), svg("path", { class: "birth more", d: more.join("") }), front,
    ];
  });
  const bottom = rows.length * step + 8;
  return svg(
    "svg",
    {
      width, height, viewBox: `0 0 ${width} ${height}`, role: "img", class: "plot",
      "aria-label": "When each operator made its genomes, over LLM calls; the table beside it counts them.",
    },
    kids,
    svg("path", { class: "axis", d: `M${left},${bottom}H${width - 14}` }),
    x.ticks.map(
      (tick) => svg("text", { class: "tick", x: x(tick), y: bottom + 17, "text-anchor": "middle" }, tick_text(tick))
    ),
    svg("text", { class: "name", x: width - 14, y: bottom + 36, "text-anchor": "end" }, "LLM calls when it came in"),
  );
}

function operators_table() {
  const most = Math.max(
    1, ...F.operators.map((one) => one.children)
  ), gains = F.operators.some((one) => known(one.gain));
  const signed = (value) => (
    known(value)
      ? `${value >= 0.005 ? "+" : value <= -0.005 ? "−" : "±"}${Math.abs(value).toFixed(2)}`
      : "–"
  );
  const about = el(
    "p", { class: "muted small" },
    "Survived: stayed in the population when it came. Measured more: earned more than its first train examples. " +
      "Gain: quality against the better parent, on the train examples both answered.",
  );
  return [
    about,
    scrolled(
      "Operators",
      el(
        "table", {},
        el(
          "thead", {},
          el(
            "tr", {},
            [
              "operator", "genomes", "survived", "measured more", "validated", "on the front",
              ...(gains ? ["mean gain", "best gain"] : []), "own calls", "spent on it",
            ].map((name, at) => el("th", { scope: "col", class: at ? "num" : "" }, name)),
          ),
        ),
        el(
          "tbody", {},
          F.operators.map(
            (one) => el(
              "tr", {}, el("th", { scope: "row" }, one.name),
              el(
                "td", { class: "num" }, bar(one.children / most), whole(one.children),
                one.failed ? el("span", { class: "muted" }, ` (+${whole(one.failed)} failed)`) : null,
              ),
              [one.survived, one.extended, one.checked, one.front].map(
                (value) => el("td", { class: "num" }, value === null ? "–" : whole(value))
              ),
              gains
                ? [el("td", { class: "num" }, signed(one.gain)), el("td", { class: "num" }, signed(one.best_gain))]
                : null,
              el("td", { class: "num" }, whole(one.own_calls)), el("td", { class: "num" }, money(one.usd)),
            )
          ),
        ),
      ),
    ),
  ];
}

function curves_section() {
  const curves = F.curves, most = curves.calls.at(-1) || 0;
  const quality = curves.calls.map((at, i) => [at, curves.quality[i]]).filter((p) => known(p[1]));
  const volume = curves.hypervolume.calls.map((at, i) => [at, curves.hypervolume.values[i]]).filter((p) => known(p[1]));
  if (!quality.length && !volume.length) return null;
  const start = F.start && measured(F.start.genome, "quality", "train");
  return section(
    "search", "How the search came along",
    "During the search only train examples are answered; what comes after these calls is the check on validation " +
      "and test.",
    el(
      "div", { class: "pair-of-plots" },
      quality.length
        ? el(
          "div", { class: "card" }, el("h3", {}, "Best quality on train"),
          chart(
            "curve-chart",
            (width) => draw_curve(
              width, [{ kind: "winner", points: quality, stepped: true }],
              {
                name: "best quality so far", most, levels: known(start) ? [["start", start]] : [],
                said: `Best quality on train over ${whole(most)} calls: ` +
                  `from ${significant(quality[0][1], 3)} to ${significant(quality.at(-1)[1], 3)}`,
              },
            ),
          ),
          el(
            "p", { class: "muted small" },
            "Mean over the train examples it was given, of genomes given at least two portions. A mean may fall " +
              "when more examples come in.",
          ),
        )
        : null,
      volume.length
        ? el(
          "div", { class: "card" }, el("h3", {}, "Hypervolume of the front"),
          chart(
            "curve-chart",
            (width) => draw_curve(
              width, [{ kind: "front", points: volume, stepped: true }],
              {
                name: "hypervolume", most,
                said: `Hypervolume over ${whole(most)} calls: ` +
                  `from ${significant(volume[0][1], 3)} to ${significant(volume.at(-1)[1], 3)}`,
              },
            ),
          ),
          el(
            "p", { class: "muted small" },
            curves.hypervolume.computed
              ? "Computed from the table of trials: train means of all genomes so far, from the worst of the seeds " +
                "(0) to the ideal (1)."
              : "As the run noted it after every generation: from the worst of the seeds (0) to the ideal (1).",
          ),
        )
        : null,
    ),
    el("h3", {}, "Operators"),
    el(
      "div", { class: "card" }, chart("births", draw_births),
      el(
        "p", { class: "muted small" },
        "Each stroke is a genome when it came in; strong strokes were measured further, symbols reached the front.",
      ),
    ),
    operators_table(),
  );
}

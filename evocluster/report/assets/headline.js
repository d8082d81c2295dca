// The first screen: what was found, on which data, at what cost, and what to keep in mind.

function tile(name) {
  const one = aim(name), split = F.split;
  const a = F.start && values_of(F.start.genome, name, split), b = F.winner && values_of(F.winner.genome, name, split);
  if (!a && !b) return null;
  const same = F.start && F.winner && F.start.genome === F.winner.genome;
  return el(
    "div", { class: "tile card" },
    el("h3", {}, title(one), unit_after(one) ? el("span", { class: "muted" }, ` ${unit_after(one)}`) : null),
    el(
      "p", { class: "tile-values" },
      same || !a
        ? null
        : [el("span", { class: "from" }, figure(one, a[0])), el("span", { class: "arrow", "aria-label": "to" }, " → ")],
      el("strong", {}, b ? figure(one, b[0]) : "–"),
    ),
    el(
      "p", { class: "tile-range" },
      b && known(b[1]) ? `95 %: ${figure(one, b[1])} – ${known(b[2]) ? figure(one, b[2]) : "inf"}` : "no interval yet",
    ),
    whiskers(one, same ? null : a, b), same || !a || !b ? null : verdict(one, a, b),
  );
}

// Start above, recommended below, on one scale with their intervals.
function whiskers(one, a, b) {
  const rows = [["start", a], ["winner", b]].filter(([, values]) => values && known(values[0]));
  if (!rows.length) return null;
  return chart("whiskers", (width) => {
    const all = rows.flatMap(([, values]) => values).filter(known);
    const x = make_scale(all, 8, width - 8, { pad: 0.08 }), height = 14 + rows.length * 16;
    return svg(
      "svg",
      { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
      svg("line", { class: "grid", x1: 0, x2: width, y1: height - 6, y2: height - 6 }),
      rows.map(
        ([kind, values], at) => {
          const y = 10 + at * 16, [value, low, high] = values;
          return [
            known(low) && known(high)
              ? svg("path", { class: "error thick " + kind, d: `M${x(low)},${y}H${x(high)}` })
              : null,
            kind === "winner"
              ? svg("path", { class: "glyph winner", d: diamond(x(value), y, 6) })
              : svg("rect", { class: "glyph start", x: x(value) - 4.5, y: y - 4.5, width: 9, height: 9 }),
          ];
        }
      ),
    );
  });
}

// Better, worse or not told apart: by the paired test where there is one, else where the intervals do not meet.
function verdict(one, a, b) {
  const certain = [a, b].every((v) => known(v[1]) && known(v[2])), paired = F.tested[one.name];
  const apart = paired === undefined ? certain && (a[2] < b[1] || b[2] < a[1]) : paired !== 0;
  const up = better(one, b[0], a[0]), equal = a[0] === b[0];
  const by = ` (${changed_by(one, a[0], b[0])})`;
  if (equal) return el("p", { class: "verdict" }, "the same as the start");
  if (!apart) return el(
    "p", { class: "verdict" },
    `${up ? "better" : "worse"}${by}${paired === 0 ? ", which may be chance" : certain ? ", but the intervals overlap" : " so far"}`
  );
  return el("p", { class: "verdict " + (up ? "good" : "bad") }, `${up ? "▲ better" : "▼ worse"}${by}`);
}

function changed_by(one, a, b) {
  const sign = b >= a ? "+" : "−";
  if (one.direction === "max" || a <= 0) return sign + figure(one, Math.abs(b - a));
  return b / a >= 3 ? `${significant(b / a, 2)} times as much` : `${sign}${Math.abs(Math.round((b / a - 1) * 100))} %`;
}

function fact(name, value, more) {
  return el(
    "div", { class: "fact" }, el("dt", {}, name),
    el("dd", {}, value, more ? el("span", { class: "muted" }, ` ${more}`) : null),
  );
}

function headline() {
  const run = F.run, examples = run.examples?.[F.split], split = F.split;
  const saved = run.usd > run.paid_usd && money(run.usd) !== money(run.paid_usd);
  const what = settled() ? "Start → recommended configuration" : "Start → what leads so far";
  const many = F.winner && settled() && examples
    ? plural(examples, "example")
    : F.winner && plural(count_of(F.winner.genome, split), "evaluation");
  const about = F.winner ? `${what}, measured on ${split} (${many})` : "Nothing has been measured yet.";
  return el(
    "section", { id: "summary", "aria-labelledby": "summary-title" },
    el(
      "div", { class: "title-row" }, el("h1", { id: "summary-title" }, run.name),
      badge("status " + run.status, run.status),
    ),
    el("p", { class: "lead" }, about), el("div", { class: "tiles" }, F.objectives.map(tile)),
    F.winner && settled()
      ? el(
        "p", { class: "why" }, el("b", {}, "Recommended: "),
        el(
          "button",
          { type: "button", class: "link", onclick: () => select(F.winner.genome) },
          el("code", {}, short(F.winner.genome)),
        ),
        ", by ", F.winner.why, " (decided on validation). ",
        F.start && F.start.genome !== F.winner.genome
          ? ["Against the start it changes: ", chips(F.winner.genome)]
          : null,
      )
      : null,
    F.honest ? el("p", { class: "why honest" }, el("b", {}, "Honestly: "), F.honest, ".") : null,
    F.caveats.length
      ? el(
        "ul", { class: "caveats", "aria-label": "What to keep in mind" },
        F.caveats.map((one) => el("li", { class: one.kind }, one.text)),
      )
      : null,
    el(
      "dl", { class: "facts" }, fact("The search ended by", run.ended_by || "nothing yet"),
      fact(
        "LLM calls",
        whole(run.calls || 0) + (run.status === "running" && run.budget?.calls ? ` of ${whole(run.budget.calls)}` : ""),
        run.cached ? `${percent(run.cached / Math.max(1, run.calls))} from the cache` : "",
      ),
      fact("Evaluations", whole(run.evaluations || 0), `of ${plural(size(), "genome")}`),
      fact("Paid", money(run.paid_usd), saved ? `${money(run.usd)} without the cache` : ""),
      fact("Time", span(run.elapsed_s)),
    ),
  );
}

// What the start and the winner answered, example by example; and the winner's failures by kind.

const SIGN = { "both right": "✓ ✓", "both wrong": "✗ ✗", fixed: "✗ → ✓", broken: "✓ → ✗", "not compared": "–" };
const FILTERS = [
  ["changed", "changed"], ["fixed", "fixed"], ["broken", "broken"], ["both wrong", "both wrong"],
  ["both right", "both right"], ["all", "all"],
];

// The object that a text is as JSON; null when it is none, or was cut.
function object_of(number) {
  const said = number < 0 || number === undefined ? null : text(number);
  if (said === null || said.trimStart()[0] !== "{") return null;
  try { return JSON.parse(said); } catch { return null; }
}

// A JSON object as a list of fields in the order of the expected one; what differs from it is marked.
function fields(number, expected) {
  const found = object_of(number), wanted = object_of(expected);
  if (found === null) return null;
  const names = [...new Set([...Object.keys(wanted || {}), ...Object.keys(found)])];
  return el("dl", { class: "fields" }, names.map((name) => {
    const value = own(found, name), right = wanted === null || same(value, own(wanted, name));
    return el(
      "div", { class: right ? null : "differs-field" }, el("dt", {}, name),
      el("dd", {}, value === undefined ? "missing" : said_value(value), right ? null : el("b", {}, " ✗")),
    );
  }));
}

const said_value = (value) => (typeof value === "string" ? value || "(empty)" : JSON.stringify(value));
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

function answer_box(name, answer, expected) {
  if (!answer) return el("div", { class: "answer" }, el("h4", {}, name), el("p", { class: "none" }, "not evaluated"));
  const right = answer.quality >= F.right && answer.error < 0;
  return el(
    "div", { class: "answer " + (right ? "right" : "wrong") },
    el(
      "h4", {}, name,
      el("span", { class: "grade" }, right ? " ✓ " : " ✗ ", known(answer.quality) ? answer.quality.toFixed(2) : ""),
      el(
        "span", { class: "took" },
        [
          known(answer.latency_ms) ? `${significant(answer.latency_ms, 3)} ms` : null,
          known(answer.usd) ? `$${significant(answer.usd * 1e6, 3)} per 1M` : null,
        ].filter(Boolean).join(", "),
      ),
    ),
    fields(answer.output, expected) || el("div", { class: "output" }, whole_text(answer.output, "no output")),
    answer.error >= 0 ? el("p", { class: "problem" }, "error: ", whole_text(answer.error)) : null,
    answer.schema ? null : el("p", { class: "problem" }, "the schema was not held"),
    answer.flags.length ? el("p", { class: "problem" }, `flagged: ${answer.flags.join(", ")}`) : null,
    answer.repairs ? el("p", { class: "problem" }, `asked again ${plural(answer.repairs, "time")}`) : null,
    answer.scores.length > 1 || answer.scores.some((one) => one[2] >= 0)
      ? el(
        "ul", { class: "scores" },
        answer.scores.map(
          ([scorer, value, reason]) => el(
            "li", {}, el("b", {}, scorer), " ", known(value) ? significant(value, 3) : "–",
            reason >= 0 ? [": ", whole_text(reason)] : null,
          )
        ),
      )
      : null,
  );
}

function example_head(row, more) {
  return el(
    "div", { class: "example-head" }, more, el("code", {}, text(row.example)),
    row.twin ? badge("twin", `twin ${row.twin}`) : null,
    row.replicate ? badge("twin", `repeat ${row.replicate}`) : null,
  );
}

function question(row) {
  return [
    row.input >= 0
      ? el(
        "div", { class: "field" },
        el("h4", {}, row.twin ? "input (of which this is a perturbed twin)" : "input"),
        fields(row.input, -1) || el("div", { class: "output" }, whole_text(row.input)),
      )
      : null,
    row.expected >= 0
      ? el(
        "div", { class: "field" }, el("h4", {}, "expected"),
        fields(row.expected, -1) || el("div", { class: "output" }, whole_text(row.expected)),
      )
      : null,
  ];
}

function trace_list(steps) {
  return steps
    ? el(
      "details", { class: "trace" },
      el("summary", {}, `What was asked, step by step (${steps.length})`),
      steps.map(
        ([purpose, prompt, reply]) => el(
          "div", {}, el("h4", {}, purpose), el("pre", { class: "prompt" }, whole_text(prompt)),
          el("pre", { class: "prompt reply" }, whole_text(reply)),
        )
      ),
    )
    : null;
}

function pair_item(row) {
  return el(
    "article", { class: "pair card" },
    example_head(
      row,
      el(
        "span", { class: "state " + row.state.replace(" ", "-") },
        el("span", { "aria-hidden": "true" }, SIGN[row.state] + " "),
        row.state,
      ),
    ),
    el(
      "div", { class: "columns" }, el("div", { class: "question" }, question(row)), answer_box("start", row.start, row.expected),
      answer_box(winner_name(), row.winner, row.expected),
    ),
    trace_list(row.trace),
  );
}

function matches(row) {
  const wanted = state.pairSearch.toLowerCase();
  if (!wanted) return true;
  return [
    row.example, row.input, row.expected, row.start?.output, row.winner?.output
  ].some((number) => number >= 0 && text(number).toLowerCase().includes(wanted));
}

function pairs_section() {
  const found = F.pairs;
  if (!found || !found.rows.length) return null;
  const count = (name) => (
    name === "all"
      ? Object.values(found.counts).reduce((a, b) => a + b, 0)
      : name === "changed"
      ? (found.counts.fixed || 0) + (found.counts.broken || 0)
      : found.counts[name] || 0
  );
  const list = el("div", { class: "pairs" }), more = el("div", { class: "row" });
  const fill_list = () => {
    const rows = found.rows.filter(
      (row) => (
        state.pairs === "all"
          || (state.pairs === "changed" ? row.state === "fixed" || row.state === "broken" : row.state === state.pairs)
      ) && matches(row)
    );
    clear(list); clear(more);
    fill(list, rows.slice(0, state.pairsShown).map(pair_item));
    if (!rows.length) fill(list, [el("p", { class: "none" }, "None.")]);
    if (rows.length > state.pairsShown) fill(
      more,
      [
        el(
          "button",
          { type: "button", onclick: () => { state.pairsShown += 30; fill_list(); } },
          `Show more (${whole(rows.length - state.pairsShown)} left)`,
        )
      ],
    );
  };
  const buttons = el("div", {});
  const fill_buttons = () => {
    clear(buttons);
    fill(
      buttons,
      [
        choices(
          "which examples", FILTERS.map(([value, said]) => [value, said, count(value)]), state.pairs,
          (value) => { state.pairs = value; state.pairsShown = 10; fill_buttons(); fill_list(); },
        )
      ],
    );
  };
  fill_buttons(); fill_list();
  return section(
    "examples", `Start against ${winner_name()}, example by example`,
    `Every evaluation on ${found.split} that both had; right means a quality of at least ${F.right}. ` +
      "Twins are slightly perturbed copies that test robustness.",
    el(
      "div", { class: "row spread" }, buttons,
      el(
        "input",
        {
          type: "search", placeholder: "Search these texts", "aria-label": "Search examples", value: state.pairSearch,
          oninput: (event) => { state.pairSearch = event.target.value; state.pairsShown = 10; fill_list(); },
        },
      ),
    ),
    list, more,
    found.left_out
      ? el("p", { class: "muted" }, `${whole(found.left_out)} more, of the last kinds, are only in trials/*.parquet.`)
      : null,
  );
}

const KINDS = {
  error: "error", schema: "schema", flag: "safety flag", repair: "repaired", wrong: "wrong answer",
  "wrong answer": "wrong answer",
};

function group_item(group, most, total, key) {
  const labels = group.label.map((number) => text(number)), pair = group.kind === "wrong";
  const head = el(
    "summary", {},
    badge("kind " + group.kind.replace(" ", "-"), own(KINDS, group.kind, group.kind)),
    el(
      "span", { class: "group-label" },
      pair
        ? [
          el("span", { class: "said" }, clip(labels[0], 90)), el("span", { class: "muted" }, " → got "),
          el("span", { class: "said strong" }, labels[1] === "" ? "(empty)" : clip(labels[1], 90)),
        ]
        : clip(labels.join(" "), 200),
    ),
    el("span", { class: "group-count" }, bar(group.count / most, "bad"), `${whole(group.count)} of ${whole(total)}`),
  );
  return el(
    "details",
    { class: "group", open: state.open[key], ontoggle: (event) => { state.open[key] = event.target.open; } },
    head,
    group.examples.map(
      (one) => el(
        "div", { class: "group-example" }, example_head(one),
        el(
          "div", { class: "columns two" }, el("div", { class: "question" }, question(one)),
          answer_box(winner_name(), one.answer, one.expected),
        ),
      )
    ),
    group.count > group.examples.length
      ? el("p", { class: "muted" }, `and ${whole(group.count - group.examples.length)} more`)
      : null,
  );
}

function failures_section() {
  const splits = ["test", "validation", "train"].filter((split) => F.failures[split]);
  if (!splits.length) return null;
  if (!splits.includes(state.failSplit)) state.failSplit = splits[0];
  const holder = el("div", {});
  const again = () => {
    const found = F.failures[state.failSplit], most = Math.max(1, ...found.groups.map((one) => one.count));
    clear(holder);
    fill(
      holder,
      [
        el(
          "div", { class: "row spread" },
          splits.length > 1
            ? choices(
              "split",
              splits.map((split) => [split, split, F.failures[split].failed]),
              state.failSplit, (split) => { state.failSplit = split; again(); },
            )
            : null,
          el(
            "span", { class: "muted" },
            `${whole(found.failed)} of ${plural(found.evaluations, "evaluation")} on ${state.failSplit} ` +
              `(${percent(found.failed / Math.max(1, found.evaluations))})`,
          ),
        ),
        found.groups.length
          ? el(
            "div", { class: "groups card" },
            found.groups.map(
              (group) => group_item(
                group, most, found.evaluations, `${state.failSplit} ${group.kind} ${group.label.join(" ")}`
              )
            ),
          )
          : el("p", { class: "none" }, "It failed nowhere on this split."),
        found.left_out ? el("p", { class: "muted" }, `${whole(found.left_out)} rarer kinds are left out.`) : null,
      ],
    );
  };
  again();
  return section(
    "failures", `Where the ${winner_name()} configuration still fails`,
    "By kind, the most frequent first; open one to read examples. An evaluation can stand in several kinds. Twins " +
      "count as evaluations of their own.",
    holder,
  );
}

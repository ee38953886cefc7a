// Rules with their verdicts: the list, its filters, and a violation with both sides.

const STATES = { violated: "Violated", held: "Held", "not-exercised": "Not exercised" };
const GLYPHS = { violated: "✕", held: "✓", "not-exercised": "–" };
const REPLAYS_SHOWN = 50;
const OPEN_AT_FIRST = 3;

/** A replay in words: the trace, and what tells it from others of the same trace. */
function replayName(replay) {
  return `${replay.trace}${replay.parameters}`;
}

/** Kernel, engine and VMM of a replay. */
function replaySetting(replay) {
  return [replay.profile, replay.engine, replay.vmm && `VMM ${replay.vmm}`].filter(Boolean).join(" · ");
}

/** The class of a state: a violated SHOULD is advice. */
const tone = (state, level) => (state === "violated" && level === "SHOULD" ? "advised" : state);

/** What a verdict says in a few words. */
function outcomeWords(verdict) {
  const times = `${count(verdict.exercised)}×`;
  if (verdict.state === "violated") return `violated ${count(verdict.violations)} of ${times}`;
  return verdict.state === "held" ? `held ${times}` : "not exercised";
}

/** The link to an event in the timeline, or nothing if there is no timeline. */
function timelineLink(replay, number, event) {
  if (!replay.timeline) return null;
  return el("a", { href: `#t${number}e${event}` }, "Show in timeline");
}

function place(finding) {
  const where = finding.event < 0 ? "before the first event" : `event ${finding.event} (line ${finding.line})`;
  const vcpu = finding.vcpu === null ? "" : `, vCPU ${finding.vcpu}`;
  return `${finding.after ? "after " : ""}${where}${vcpu}`;
}

/** Both sides of an outcome that differs from the recording. */
function sides(divergence) {
  return facts(
    [
      ["recorded", divergence.recorded],
      ["replayed", divergence.happened === divergence.recorded ? "" : divergence.happened],
      [divergence.kind, `expected ${divergence.expected}, observed ${divergence.observed}`],
    ],
    "sides",
  );
}

function findingCard(replay, number, finding) {
  const differs = replay.divergences.filter((d) => d.event === finding.event && !finding.after);
  return el(
    "div",
    { class: "finding" },
    el("div", { class: "where" }, el("span", {}, place(finding)), timelineLink(replay, number, finding.event)),
    el("p", { class: "words" }, finding.words),
    el("p", { class: "message" }, finding.message),
    differs.map(sides),
  );
}

function divergenceCard(replay, number, divergence) {
  return el(
    "div",
    { class: "finding divergence" },
    el(
      "div",
      { class: "where" },
      el("span", {}, `${place(divergence)}: ${divergence.kind} differs`),
      timelineLink(replay, number, divergence.event),
    ),
    sides(divergence),
  );
}

/** The first `shown` of the items' elements, and a button for the rest. */
function firstOf(items, shown, make) {
  const holder = el("div", {}, items.slice(0, shown).map(make));
  if (items.length > shown) {
    const more = button(`Show ${count(items.length - shown)} more`, () => {
      more.remove();
      holder.append(...items.slice(shown).map(make));
    }, { class: "more" });
    holder.append(more);
  }
  return holder;
}

/** One row for each rule and verdict, with the text that a search looks through. */
function verdictIndex(report) {
  const rules = new Map(report.rules.map((rule) => [rule.rule, { ...rule, verdicts: [] }]));
  report.replays.forEach((replay, number) => {
    for (const verdict of replay.verdicts) {
      const rule = rules.get(verdict.rule);
      if (!rule) continue;
      const said = verdict.findings.map((finding) => `${finding.words} ${finding.message}`).join(" ");
      const text = `${rule.rule} ${rule.title} ${rule.citation} ${replayName(replay)} ${replaySetting(replay)} ${said}`;
      rule.verdicts.push({ ...verdict, replay, number, text });
    }
  });
  return [...rules.values()];
}

class RuleList {
  constructor(report) {
    this.rules = verdictIndex(report);
    this.state = "";
    this.wanted = { level: "", judges: "", family: "", replay: "" };
    this.buildFilters(report);
    this.update();
    const violated = document.querySelectorAll("#rule-list > .violated, #rule-list > .advised");
    if (violated.length <= OPEN_AT_FIRST) for (const row of violated) row.open = true;
  }

  buildFilters(report) {
    const pick = (key) => (event) => {
      this.wanted[key] = event.target.value;
      this.update();
    };
    const families = [...new Set(this.rules.map((rule) => rule.rule.split(".")[0]))].sort();
    const replays = report.replays.map((replay, number) => [number, `${replayName(replay)} · ${replaySetting(replay)}`]);
    this.search = el("input", {
      type: "search",
      placeholder: "Search rules, traces, messages",
      "aria-label": "Search rules, traces and messages",
      oninput: soon(() => this.update()),
    });
    this.states = el("span", { class: "switch", role: "group", "aria-label": "State" });
    for (const [value, text] of [["", "All"], ...Object.entries(STATES)]) {
      const toggle = button(text, () => {
        this.state = value;
        this.update();
      }, { "data-state": value, "aria-pressed": value === "" });
      this.states.append(toggle);
    }
    const form = byId("filters");
    form.addEventListener("submit", (event) => event.preventDefault());
    form.append(
      this.search,
      this.states,
      choice("Level", [["", "Any level"], ["MUST", "MUST"], ["SHOULD", "SHOULD"]], pick("level")),
      choice("Judges", [["", "Kernel and VMM"], ["host", "Kernel"], ["vmm", "VMM"]], pick("judges")),
      choice("Rule family", [["", "All families"], ...families.map((name) => [name, name])], pick("family")),
    );
    if (replays.length > 1) form.append(choice("Replay", [["", "All replays"], ...replays], pick("replay")));
  }

  /** Show what the filters let through. */
  update() {
    const started = performance.now();
    const { level, judges, family, replay } = this.wanted;
    const matches = matcher(this.search.value);
    const open = new Set([...document.querySelectorAll("#rule-list > [open]")].map((row) => row.dataset.rule));
    const rows = { violated: [], held: [], "not-exercised": [] };
    let verdicts = 0;
    for (const rule of this.rules) {
      if ((level && rule.level !== level) || (judges && rule.judges !== judges)) continue;
      if (family && rule.rule.split(".")[0] !== family) continue;
      const some = rule.verdicts.filter(
        (verdict) =>
          (!this.state || verdict.state === this.state) &&
          (!replay || verdict.number === Number(replay)) &&
          matches(verdict.text),
      );
      if (!some.length) continue;
      verdicts += some.length;
      const worst = Object.keys(STATES).find((state) => some.some((verdict) => verdict.state === state));
      rows[worst].push(this.row(rule, some, worst, open.has(rule.rule)));
    }
    const all = Object.values(rows).flat();
    for (const toggle of this.states.children) {
      toggle.setAttribute("aria-pressed", String(toggle.dataset.state === this.state));
    }
    byId("rule-list").replaceChildren(...(all.length ? all : [el("p", { class: "empty" }, "No verdict matches.")]));
    byId("rules-count").textContent = `${counted(all.length, "rule")}, ${counted(verdicts, "verdict")}`;
    byId("rule-list").dataset.filterMs = (performance.now() - started).toFixed(2);
  }

  row(rule, verdicts, state, isOpen) {
    const by = (one) => verdicts.filter((verdict) => verdict.state === one).length;
    const words = verdicts.length === 1
      ? outcomeWords(verdicts[0])
      : Object.keys(STATES).filter(by).map((one) => `${count(by(one))} ${STATES[one].toLowerCase()}`).join(" · ");
    const row = el("details", { class: `rule ${tone(state, rule.level)}`, "data-rule": rule.rule, open: isOpen });
    row.append(
      el(
        "summary",
        {},
        el("span", { class: "glyph", "aria-hidden": "true" }, GLYPHS[state]),
        el("span", { class: "id" }, rule.rule),
        el("span", { class: "level" }, rule.level),
        el("span", { class: "judges" }, rule.judges === "host" ? "kernel" : "VMM"),
        el("span", { class: "title", title: rule.title }, rule.title),
        el("span", { class: "outcome" }, words),
      ),
    );
    row.fill = () => {
      if (row.children.length === 1) row.append(this.body(rule, verdicts));
    };
    row.addEventListener("toggle", row.fill);
    if (isOpen) row.fill();
    return row;
  }

  body(rule, verdicts) {
    const order = Object.keys(STATES);
    const sorted = [...verdicts].sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state) || a.number - b.number);
    return el(
      "div",
      { class: "body" },
      facts([
        ["Demands", rule.title],
        ["Source", rule.citation],
        ["Why", rule.explanation],
        ["Advice", sorted[0].state === "violated" ? rule.advice : ""],
      ]),
      firstOf(sorted, REPLAYS_SHOWN, (verdict) => this.ofReplay(verdict)),
    );
  }

  ofReplay(verdict) {
    const { replay, number, findings } = verdict;
    const unshown = verdict.violations - findings.length;
    return el(
      "div",
      { class: `of-replay ${tone(verdict.state, verdict.level)}` },
      el(
        "p",
        {},
        el("b", {}, replayName(replay)),
        el("span", { class: "dim" }, replaySetting(replay)),
        el("span", { class: "outcome" }, outcomeWords(verdict)),
        verdict.reason && el("span", { class: "dim" }, verdict.reason),
      ),
      findings.length ? firstOf(findings, 10, (finding) => findingCard(replay, number, finding)) : null,
      unshown > 0 && el("p", { class: "dim more" }, `${counted(unshown, "more violation")} not kept in the report.`),
    );
  }
}

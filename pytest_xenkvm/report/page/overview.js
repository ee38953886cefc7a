// What comes first and last in a glance: the verdict over all, and the table of replays.

const VERDICTS = {
  error: ["Not everything could be judged", "violated"],
  failed: ["Violated", "violated"],
  advised: ["Held, with advice", "advised"],
  held: ["Held", "held"],
  nothing: ["Nothing was judged", "not-exercised"],
};

/** The summary at the top: the verdict, how many rules, and what kept replays from their end. */
function showSummary(report) {
  const { summary } = report;
  const { verdict, rules } = summary;
  const [words, cls] = VERDICTS[verdict] || [verdict, "not-exercised"];
  const judged = rules.held + rules.violated;
  const place = byId("summary");
  const sentence = judged
    ? `${count(rules.held)} of ${counted(judged, "exercised rule")} held` +
      (rules["not-exercised"] ? `, ${count(rules["not-exercised"])} not exercised.` : ".")
    : "No rule was exercised.";
  const numbers = [
    ["Violated rules", rules.violated],
    ["Divergences", summary.divergences],
    ["Replays", summary.replays],
    ["Events", summary.events],
    ["Hypercalls", summary.hypercalls],
    ["Unjudged outcomes", summary.unjudged],
  ];
  place.classList.add(cls);
  place.append(
    el("p", { class: "verdict" }, el("strong", {}, words), sentence),
    el("dl", {}, numbers.map(([term, number]) => el("div", {}, el("dt", {}, term), el("dd", {}, count(number))))),
  );
  const errors = report.replays.flatMap((replay) => replay.errors.map((error) => `${replayName(replay)}: ${error}`));
  if (errors.length) place.append(el("ul", {}, errors.map((error) => el("li", {}, error))));
}

/** The table of replays, and beneath it those that differ from their recordings. */
function showReplays(report) {
  const place = byId("replay-list");
  if (!report.replays.length) {
    place.append(el("p", { class: "empty" }, "Nothing was replayed."));
    return;
  }
  const heads = ["Trace", "Emulated", "Engine", "VMM", "Events", "Hypercalls", "Held", "Violated", "Divergences", ""];
  const rows = el("tbody");
  const fill = (replays, from) => replays.forEach((replay, number) => rows.append(replayRow(replay, from + number)));
  fill(report.replays.slice(0, REPLAYS_SHOWN), 0);
  const columns = heads.map((head, at) => el("th", { scope: "col", class: at > 3 && at < 9 ? "number" : null }, head));
  place.append(el("div", { class: "scroll" }, el("table", { "aria-labelledby": "replays-title" }, el("thead", {}, el("tr", {}, columns)), rows)));
  const rest = report.replays.length - REPLAYS_SHOWN;
  if (rest > 0) {
    const more = button(`Show ${count(rest)} more`, () => {
      more.remove();
      fill(report.replays.slice(REPLAYS_SHOWN), REPLAYS_SHOWN);
    }, { class: "more" });
    place.append(more);
  }
  const diverged = report.replays.flatMap((replay, number) => (replay.divergences.length ? [number] : []));
  if (diverged.length) {
    byId("divergence-list").append(...diverged.map((number) => divergencesOf(report.replays[number], number)));
    byId("divergence-list").hidden = false;
    if (diverged.length === 1) byId("divergence-list").firstChild.open = true;
  }
}

function replayRow(replay, number) {
  const states = (state) => replay.verdicts.filter((verdict) => verdict.state === state).length;
  const violated = states("violated");
  const total = replay.divergences_total;
  const kernel = replay.header && replay.header.kernel ? `recorded on ${replay.header.kernel}` : null;
  return el(
    "tr",
    {},
    el("td", { class: "name" }, replayName(replay), kernel && el("div", { class: "dim" }, kernel)),
    el("td", {}, replay.profile || "–"),
    el("td", {}, replay.engine),
    el("td", {}, replay.vmm || "recorded"),
    el("td", { class: "number" }, count(replay.events)),
    el("td", { class: "number" }, count(replay.hypercalls)),
    el("td", { class: "number" }, count(states("held"))),
    el("td", { class: "number" }, el("span", { class: violated ? "outcome violated" : "" }, count(violated))),
    el("td", { class: "number" }, el("span", { class: total ? "outcome violated" : "" }, count(total))),
    el("td", {}, replay.timeline && el("a", { href: `#t${number}` }, "Timeline")),
  );
}

/** The divergences of a replay, folded; they are made when first looked at. */
function divergencesOf(replay, number) {
  const { divergences, divergences_total: total } = replay;
  const row = el(
    "details",
    { class: "rule violated" },
    el(
      "summary",
      {},
      el("span", { class: "glyph", "aria-hidden": "true" }, "≠"),
      el("span", { class: "id" }, replayName(replay)),
      el("span", { class: "title" }, replaySetting(replay)),
      el("span", { class: "outcome" }, `${counted(total, "divergence")} from the recording`),
    ),
  );
  row.fill = () => {
    if (row.children.length > 1) return;
    const unshown = total - divergences.length;
    const rest = unshown > 0 && el("p", { class: "dim more" }, `${counted(unshown, "more divergence")} not kept in the report.`);
    const cards = firstOf(divergences, 10, (divergence) => divergenceCard(replay, number, divergence));
    row.append(el("div", { class: "body" }, el("div", {}, cards, rest)));
  };
  row.addEventListener("toggle", row.fill);
  return row;
}

// Puts the page together, follows links to events (#t<replay>e<event>), colours and printing.

const report = JSON.parse(byId("report").textContent);
let timeline = null;

function showTimeline(number) {
  if (timeline && timeline.number === number) return;
  timeline = null;
  try {
    timeline = new Timeline(report.replays[number], number, byId("timeline-of"));
  } catch (error) {
    const words = `The timeline of ${replayName(report.replays[number])} can't be shown: ${error.message}`;
    byId("timeline-of").replaceChildren(el("p", { class: "panel empty" }, words));
  }
}

/** The choice of a replay, if there are several, and the first one's timeline. */
function startTimelines() {
  const place = byId("timeline-view");
  const numbers = report.replays.flatMap((replay, number) => (replay.timeline ? [number] : []));
  if (!numbers.length) {
    place.append(el("p", { class: "panel empty" }, "This report has no timeline."));
    return;
  }
  if (numbers.length > 1) {
    const options = numbers.map((number) => {
      const replay = report.replays[number];
      return [number, `${replayName(replay)} · ${replaySetting(replay)}`];
    });
    const select = choice("Replay of the timeline", options, () => showTimeline(Number(select.value)));
    select.id = "timeline-replay";
    byId("timeline-title").after(select);
  } else {
    byId("timeline-title").after(el("p", {}, replayName(report.replays[numbers[0]])));
  }
  place.append(el("div", { id: "timeline-of" }));
  const worst = numbers.find((number) => report.replays[number].verdicts.some((one) => one.state === "violated"));
  const first = worst ?? numbers.find((number) => report.replays[number].divergences.length) ?? numbers[0];
  if (numbers.length > 1) byId("timeline-replay").value = String(first);
  showTimeline(first);
}

/** Follow a link to a timeline, or an event in one. */
function follow() {
  const [, replay, event] = /^#t(\d+)(?:e(-?\d+))?$/.exec(location.hash) || [];
  const number = Number(replay);
  if (replay === undefined || !report.replays[number] || !report.replays[number].timeline) return;
  const select = byId("timeline-replay");
  if (select) select.value = String(number);
  showTimeline(number);
  byId("timeline").scrollIntoView();
  if (!timeline) return;
  if (event !== undefined) timeline.reveal(Number(event));
  timeline.canvas.focus({ preventScroll: true });
}

/** Use the colours of the new scheme where they were read from the style sheet. */
function recolour() {
  if (!timeline) return;
  timeline.palette.read();
  timeline.draw();
}

function startSwitch() {
  const buttons = [...document.querySelectorAll("[data-theme]")];
  for (const one of buttons) {
    one.addEventListener("click", () => {
      document.documentElement.style.colorScheme = one.dataset.theme;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === one));
      recolour();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
}

/** On paper: violated rules unfolded, light colours. */
function startPrinting() {
  let scheme = "";
  addEventListener("beforeprint", () => {
    for (const row of document.querySelectorAll("#rule-list > .violated, #rule-list > .advised, #divergence-list details")) {
      row.open = true;
      row.fill();
    }
    scheme = document.documentElement.style.colorScheme;
    document.documentElement.style.colorScheme = "light";
    recolour();
  });
  addEventListener("afterprint", () => {
    document.documentElement.style.colorScheme = scheme;
    recolour();
  });
}

showSummary(report);
new RuleList(report);
showReplays(report);
startSwitch();
startPrinting();
startTimelines();
addEventListener("hashchange", follow);
follow();
document.documentElement.dataset.ready = "true";

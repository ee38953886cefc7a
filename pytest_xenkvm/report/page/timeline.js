// The timeline of a replay: what the user does to it, and the same marks as a table.

const HELP = "← → pan · + − zoom · ↑ ↓ marks · Page keys: findings · 0 all";
const LEAST_SPAN = 100;
const PAGE = 100;
const INKS = ["text", "dim", "line", "surface", "raised", "accent", "bad", "warn"];

class Timeline {
  constructor(replay, number, place) {
    const started = performance.now();
    Object.assign(this, { replay, number, place });
    this.marks = new Marks(replay.timeline);
    this.kinds = this.marks.kinds.map(() => true);
    this.selected = -1;
    this.view = { from: this.marks.start, to: this.marks.end };
    this.page = 0;
    this.pins = this.findPins();
    this.build();
    this.chart = new Chart(this.marks, this.canvas, this.overview, this.palette);
    this.redraw = soon(() => this.draw());
    this.watch();
    this.draw();
    this.place.dataset.readyMs = (performance.now() - started).toFixed(2);
  }

  /** Where findings and divergences are: {mark, tone, words, event}, in the order of the trace. */
  findPins() {
    const pins = [];
    for (const verdict of this.replay.verdicts) {
      for (const finding of verdict.findings) {
        const mark = this.marks.ofEvent(finding.event);
        const words = `${verdict.rule} (${verdict.level}): ${finding.message}`;
        pins.push({ mark, words, tone: verdict.level === "MUST" ? "bad" : "warn", event: finding.event });
      }
    }
    for (const { event, kind } of this.replay.divergences) {
      pins.push({ mark: this.marks.ofEvent(event), words: `${kind} differs from the recording`, tone: "warn", event });
    }
    return pins.filter((pin) => pin.mark >= 0).sort((a, b) => a.mark - b.mark);
  }

  build() {
    const { marks } = this;
    this.search = el("input", {
      type: "search",
      placeholder: "Filter by name: singleshot, port 18, -ENOSYS",
      "aria-label": "Filter marks by name",
      oninput: soon(() => this.filter()),
    });
    this.findings = [
      button("◂ Finding", () => this.toPin(-1), { "aria-label": "Previous finding", disabled: !this.pins.length }),
      button("Finding ▸", () => this.toPin(1), { "aria-label": "Next finding", disabled: !this.pins.length }),
    ];
    const bar = el(
      "div",
      { class: "bar" },
      this.search,
      el(
        "span",
        { class: "group" },
        button("−", () => this.zoom(2), { "aria-label": "Zoom out" }),
        button("+", () => this.zoom(0.5), { "aria-label": "Zoom in" }),
        button("All", () => this.show(marks.start, marks.end), { "aria-label": "Show the whole trace" }),
      ),
      el("span", { class: "group" }, this.findings),
      el("span", { class: "keys", id: "timeline-help" }, HELP),
    );
    const chips = el("div", { id: "kinds", role: "group", "aria-label": "Kinds of marks" });
    marks.kinds.forEach((kind, number) => {
      if (marks.perKind[number]) chips.append(this.chip(kind, number));
    });
    const what = `${replayName(this.replay)}, ${counted(marks.timeline.events, "event")}, ${counted(this.pins.length, "finding")}`;
    this.canvas = el("canvas", {
      tabindex: "0",
      role: "application",
      "aria-roledescription": "timeline",
      "aria-label": `Timeline of ${what}`,
      "aria-describedby": "timeline-help",
    });
    this.overview = el("canvas", { class: "overview", "aria-hidden": "true" });
    this.tip = el("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.stage = el("div", { class: "stage" }, this.overview, this.canvas, this.tip);
    this.palette = new Palette(this.stage, [...INKS, ...marks.kinds.map((kind) => kind.id)]);
    this.details = el("div", { class: "selected", "aria-live": "polite" });
    this.table = new MarkTable(this);
    this.place.replaceChildren(
      el("div", { class: "panel" }, bar, chips, this.stage, this.details, this.table.element, this.notes()),
    );
    this.palette.read();
    this.tell();
  }

  chip(kind, number) {
    const toggle = button("", () => {
      this.kinds[number] = !this.kinds[number];
      toggle.setAttribute("aria-pressed", String(this.kinds[number]));
      this.filter();
    }, { "aria-pressed": "true", "data-kind": kind.id });
    const size = el("span", { class: "count" }, count(this.marks.perKind[number]));
    toggle.append(el("span", { class: `swatch ${kind.id}`, "aria-hidden": "true" }), kind.label, size);
    return toggle;
  }

  /** What the timeline doesn't show, said in words. */
  notes() {
    const { timed, unseen, gaps, lanes } = this.marks.timeline;
    const left = gaps.reduce((sum, [, missing]) => sum + missing, 0);
    const has = (id) => this.marks.perKind[this.marks.kinds.findIndex((kind) => kind.id === id)] > 0;
    const instead = has("acknowledged") ? ": upcalls show where the guest acknowledged one in vcpu_info" : "";
    return el(
      "div",
      { class: "notes" },
      unseen.includes("irq") &&
        el("p", {}, `The recorder saw no interrupts${instead}.`),
      has("expired") &&
        el("p", {}, "A timer expires when the time comes for which it was armed; no recorder sees it fire."),
      !timed && el("p", {}, "The trace has no times: events are drawn 1 µs apart."),
      left > 0 && el("p", {}, `${counted(left, "mark")} left out, far from the start and from findings.`),
      lanes.length > MAX_LANES && el("p", {}, `Drawn are the first ${count(MAX_LANES)} lanes; the table has all.`),
    );
  }

  watch() {
    new ResizeObserver(this.redraw).observe(this.stage);
    const { canvas, overview } = this;
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("dblclick", (event) => this.zoom(0.25, this.chart.time(event.offsetX)));
    canvas.addEventListener("pointerleave", () => (this.tip.hidden = true));
    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      drag = { x: event.offsetX, view: { ...this.view }, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!drag) return this.hover(event);
      if (Math.abs(event.offsetX - drag.x) > 3) drag.moved = true;
      const by = ((drag.x - event.offsetX) / this.chart.plot) * (drag.view.to - drag.view.from);
      if (drag.moved) this.show(drag.view.from + by, drag.view.to + by);
    });
    canvas.addEventListener("pointerup", (event) => {
      const hit = drag && !drag.moved && this.chart.hit(event.offsetX, event.offsetY);
      drag = null;
      if (hit) this.select(hit.mark);
    });
    canvas.addEventListener("pointercancel", () => (drag = null));
    const brush = (event) => {
      if (event.buttons & 1) this.centre(this.chart.overviewTime(event.offsetX));
    };
    overview.addEventListener("pointerdown", (event) => {
      overview.setPointerCapture(event.pointerId);
      brush(event);
    });
    overview.addEventListener("pointermove", brush);
  }

  draw() {
    if (!this.canvas.isConnected) return;
    this.chart.draw(this.view, this.pins, this.selected);
    byId("timeline-count").textContent =
      `${counted(this.marks.shownCount, "mark")}, ${count(this.chart.seen)} in view: ` +
      `${seconds(this.view.from, 1e6)} to ${seconds(this.view.to, 1e6)}`;
    this.table.update();
  }

  /** Show [from, to] (ns), as far as the trace goes. */
  show(from, to) {
    const { start, end } = this.marks;
    const span = Math.min(Math.max(to - from, LEAST_SPAN), end - start);
    const at = Math.min(Math.max(from, start), end - span);
    this.view = { from: at, to: at + span };
    this.page = 0;
    this.redraw();
  }

  zoom(times, around = null) {
    const { from, to } = this.view;
    const chosen = this.selected >= 0 ? this.marks.times[this.selected] : -1;
    const fixed = around ?? (chosen >= from && chosen <= to ? chosen : (from + to) / 2);
    this.show(fixed - (fixed - from) * times, fixed + (to - fixed) * times);
  }

  pan(share) {
    const by = (this.view.to - this.view.from) * share;
    this.show(this.view.from + by, this.view.to + by);
  }

  centre(time) {
    const half = (this.view.to - this.view.from) / 2;
    this.show(time - half, time + half);
  }

  /** Select a mark and bring it into view. */
  select(mark) {
    this.selected = mark;
    const time = this.marks.times[mark];
    if (time < this.view.from || time > this.view.to) this.centre(time);
    this.tell();
    this.redraw();
  }

  /** Zoom to an event, as a link from a finding asks for it. */
  reveal(event) {
    const mark = this.marks.ofEvent(event);
    if (mark < 0) return;
    const time = this.marks.times[mark];
    const around = Math.min(Math.max((this.marks.end - this.marks.start) / 2000, 2e6), 5e7);
    this.show(time - around, time + around);
    if (!this.marks.isShown(mark)) this.unfilter();
    this.select(mark);
  }

  toPin(step) {
    const at = this.selected;
    const pins = step > 0 ? this.pins : [...this.pins].reverse();
    const pin = pins.find((one) => (step > 0 ? one.mark > at : one.mark < at)) || pins[0];
    if (pin) this.reveal(pin.event);
  }

  filter() {
    const started = performance.now();
    this.marks.filter(this.kinds, matcher(this.search.value));
    this.page = 0;
    this.draw();
    this.place.dataset.filterMs = (performance.now() - started).toFixed(2);
  }

  unfilter() {
    this.search.value = "";
    this.kinds.fill(true);
    for (const chip of this.place.querySelectorAll("#kinds button")) chip.setAttribute("aria-pressed", "true");
    this.filter();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = (by) => {
      const { marks, selected, view } = this;
      const from = selected >= 0 ? selected : by > 0 ? marks.at(view.from) - 1 : marks.at(view.to + 1);
      const next = marks.next(from, by);
      if (next >= 0) this.select(next);
    };
    const acts = {
      ArrowLeft: () => this.pan(event.shiftKey ? -0.9 : -0.15),
      ArrowRight: () => this.pan(event.shiftKey ? 0.9 : 0.15),
      ArrowUp: () => step(-1),
      ArrowDown: () => step(1),
      PageUp: () => this.toPin(-1),
      PageDown: () => this.toPin(1),
      Home: () => this.centre(this.marks.start),
      End: () => this.centre(this.marks.end),
      "+": () => this.zoom(0.5),
      "=": () => this.zoom(0.5),
      "-": () => this.zoom(2),
      0: () => this.show(this.marks.start, this.marks.end),
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  }

  wheel(event) {
    if (event.ctrlKey || event.metaKey || event.shiftKey) {
      event.preventDefault();
      this.zoom(2 ** ((event.deltaY || event.deltaX) / 300), this.chart.time(event.offsetX));
    } else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      this.pan(event.deltaX / this.chart.plot);
    }
  }

  hover(event) {
    const hit = this.chart.hit(event.offsetX, event.offsetY);
    this.tip.hidden = !hit;
    if (!hit) return;
    const { name, outcome, kind, time, event: which, flags } = this.marks.words(hit.mark);
    this.tip.replaceChildren(
      el("b", {}, outcome ? `${name} → ${outcome}` : name),
      el("span", {}, `${kind} · ${time} · event ${which}`),
      flags && el("span", {}, flags),
      hit.others > 0 ? el("span", {}, `and ${count(hit.others)} more here`) : "",
    );
    const right = event.offsetX > this.chart.width / 2;
    const x = right ? event.offsetX - this.tip.offsetWidth - 14 : event.offsetX + 14;
    this.tip.style.transform = `translate(${Math.max(x, 4)}px, ${event.offsetY + OVERVIEW + 14}px)`;
  }

  /** The selected mark in words. */
  tell() {
    if (this.selected < 0) {
      const idle = "Select a mark to see it here: click one, or press ↓ in the timeline.";
      this.details.replaceChildren(el("p", { class: "dim" }, idle));
      return;
    }
    const words = this.marks.words(this.selected);
    const event = this.marks.events[this.selected];
    const found = this.pins.filter((pin) => pin.event === event).map((pin) => pin.words);
    this.details.replaceChildren(
      facts([
        [words.lane, el("span", { class: "mono" }, words.outcome ? `${words.name} → ${words.outcome}` : words.name)],
        ["Kind", words.kind + (words.flags ? ` (${words.flags})` : "")],
        ["Event", `${words.event}, at ${words.time}`],
        ...found.map((message) => ["Finding", el("span", { class: "outcome-text" }, message)]),
      ]),
    );
  }
}

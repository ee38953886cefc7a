// The marks in view as a table: for screen readers, for copying, for print.

class MarkTable {
  constructor(timeline) {
    this.timeline = timeline;
    this.body = el("tbody");
    this.status = el("span", { class: "dim" });
    this.buttons = [
      button("Previous", () => this.turn(-1)),
      button("Next", () => this.turn(1)),
    ];
    const heads = ["Time", "Event", "Lane", "Kind", "What", "Outcome"];
    const table = el(
      "table",
      { "aria-label": "Marks in view" },
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
      this.body,
    );
    this.element = el(
      "details",
      { class: "marks", ontoggle: () => this.update() },
      el("summary", {}, "Marks in view as a table"),
      el("div", { class: "bar" }, this.buttons, this.status),
      el("div", { class: "scroll" }, table),
    );
  }

  turn(by) {
    this.timeline.page += by;
    this.update();
  }

  /** Show a page of what is in view; nothing is made while the table is closed. */
  update() {
    if (!this.element.open) return;
    const { marks, view, chart, page, selected } = this.timeline;
    const pages = Math.max(Math.ceil(chart.seen / PAGE), 1);
    const rows = [];
    let skip = page * PAGE;
    for (let mark = marks.at(view.from); mark < marks.at(view.to + 1) && rows.length < PAGE; mark++) {
      if (!marks.isShown(mark) || skip-- > 0) continue;
      const { time, event, lane, kind, name, outcome } = marks.words(mark);
      const cells = [time, event, lane, kind, name, outcome].map((text) => el("td", {}, text));
      rows.push(el("tr", { "aria-selected": mark === selected ? "true" : null }, cells));
    }
    this.body.replaceChildren(...rows);
    this.status.textContent = `Page ${count(page + 1)} of ${count(pages)}, ${counted(chart.seen, "mark")}`;
    this.buttons[0].disabled = page === 0;
    this.buttons[1].disabled = page + 1 >= pages;
  }
}

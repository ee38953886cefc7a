// A timeline's marks, unpacked from their columns. Times are ns; nothing here draws.

const FLAGS = [
  [1, "failed"],
  [2, "inferred from a recorded outcome"],
  [4, "by the VMM under test"],
  [8, "differs from the recording"],
  [16, "in part not seen by the recorder"],
];
const FAILED = 1;
const VERSION = 1;

function summed(steps, Kind) {
  const values = new Kind(steps.length);
  let value = 0;
  for (let i = 0; i < steps.length; i++) values[i] = value += steps[i];
  return values;
}

class Marks {
  constructor(timeline) {
    if (timeline.version !== VERSION) throw new Error(`version ${timeline.version}, expected ${VERSION}`);
    this.timeline = timeline;
    this.kinds = timeline.kinds;
    this.lanes = timeline.lanes;
    this.rows = timeline.rows.map(([lane, kind, name, outcome, flags]) => ({ lane, kind, name, outcome, flags }));
    this.times = summed(timeline.t, Float64Array);
    for (let i = 0; i < this.times.length; i++) this.times[i] *= timeline.tick_ns;
    this.events = summed(timeline.event, Float64Array);
    this.row = Uint32Array.from(timeline.row);
    this.ahead = new Map();
    summed(timeline.ahead, Float64Array).forEach((mark, i) => this.ahead.set(mark, timeline.ahead_ns[i]));
    this.length = this.times.length;
    this.start = this.length ? this.times[0] : 0;
    this.end = Math.max(timeline.end_ns, this.length ? this.times[this.length - 1] : 0, this.start + 1000);
    this.shown = new Uint8Array(this.rows.length).fill(1);
    this.perKind = new Array(this.kinds.length).fill(0);
    for (const row of this.row) this.perKind[this.rows[row].kind]++;
    this.shownCount = this.length;
  }

  /** Show only marks of kinds for which `kinds` has true, and whose words match. */
  filter(kinds, matches) {
    this.rows.forEach((row, number) => {
      this.shown[number] = kinds[row.kind] && matches(`${row.name} ${row.outcome}`) ? 1 : 0;
    });
    let shown = 0;
    for (const row of this.row) shown += this.shown[row];
    this.shownCount = shown;
  }

  /** The number of the first mark at or after a time. */
  at(time) {
    let low = 0;
    let high = this.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.times[middle] < time) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  isShown(mark) {
    return this.shown[this.row[mark]] === 1;
  }

  /** The next shown mark from `mark` in steps of `step` (1 or -1), not itself; -1 if there is none. */
  next(mark, step) {
    for (let i = mark + step; i >= 0 && i < this.length; i += step) if (this.isShown(i)) return i;
    return -1;
  }

  /** The mark of an event: the first that is its own, else the nearest of an earlier one; -1 without marks. */
  ofEvent(event) {
    let nearest = this.length ? 0 : -1;
    for (let i = 0; i < this.length; i++) {
      if (this.events[i] === event && this.kinds[this.rows[this.row[i]].kind].id !== "expired") return i;
      if (this.events[i] <= event && this.events[i] > this.events[nearest]) nearest = i;
    }
    return nearest;
  }

  /** A mark in words: what it is, what it did, when. */
  words(mark) {
    const row = this.rows[this.row[mark]];
    const ahead = this.ahead.get(mark);
    const event = this.events[mark];
    return {
      lane: this.lanes[row.lane].label,
      kind: this.kinds[row.kind].label,
      name: row.name + (ahead === undefined ? "" : `, ${duration(ahead)} ahead`),
      outcome: row.outcome,
      time: seconds(this.times[mark], this.timeline.tick_ns),
      event: event < 0 ? "before the first event" : `${event} (line ${event + 2})`,
      flags: FLAGS.filter(([flag]) => row.flags & flag).map(([, words]) => words).join(", "),
    };
  }
}

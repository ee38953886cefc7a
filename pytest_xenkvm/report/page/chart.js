// Draws marks on a canvas: lanes of tracks, each with a band for every kind of mark in it.
//
// Where marks are dense, a column of a band is as tall as the logarithm of how many marks fall into it; where
// they are sparse, each is a tick with its name beside it.

const AXIS = 26;
const GUTTER = 88;
const LANE_HEAD = 22;
const TRACK = { height: 20, gap: 3 };
const MANY_LANES = 10;
const MAX_LANES = 500;
const OVERVIEW = 40;
const NEAR = 6;
const FONT = "11px system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif";

/** Colours as the style sheet has them for the scheme in use. */
class Palette {
  constructor(parent, names) {
    this.probes = new Map(names.map((name) => [name, el("span", { class: `swatch ${name}` })]));
    parent.append(el("span", { class: "hidden", "aria-hidden": "true" }, ...this.probes.values()));
  }

  /** To be called when the probes are in the page, and when the scheme has changed. */
  read() {
    this.colours = new Map([...this.probes].map(([name, probe]) => [name, getComputedStyle(probe).color]));
  }

  get(name) {
    return this.colours.get(name);
  }
}

/** A canvas with as many pixels as the screen has, to be drawn on in CSS pixels. */
function sharp(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = FONT;
  pen.textBaseline = "middle";
  return pen;
}

/** The step of an axis: 1, 2 or 5 times a power of ten, at least `least` (ns). */
function axisStep(least) {
  const power = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  return [1, 2, 5, 10].map((times) => times * power).find((step) => step >= least);
}

class Chart {
  constructor(marks, canvas, overview, palette) {
    Object.assign(this, { marks, canvas, overview, palette });
    this.arrange();
  }

  /** Where lanes, tracks and bands go. */
  arrange() {
    const { marks } = this;
    const compact = marks.lanes.length > MANY_LANES;
    const present = new Set(marks.row);
    const bands = new Map();
    this.bandsOf = marks.rows.map((row, number) => {
      if (!present.has(number) || row.lane >= MAX_LANES) return [];
      const { id, tracks } = marks.kinds[row.kind];
      return (compact ? [""] : tracks).map((track, at) => {
        const kind = at < tracks.length - 1 && !compact ? track : id;
        const key = `${row.lane}|${track}|${kind}`;
        if (!bands.has(key)) {
          const order = marks.kinds.findIndex((one) => one.id === kind);
          bands.set(key, { lane: row.lane, track, kind, order });
        }
        return bands.get(key);
      });
    });
    this.bands = [...bands.values()].sort((a, b) => a.lane - b.lane || a.order - b.order);
    this.bands.forEach((band, number) => (band.number = number));
    this.tracks = [];
    this.heads = [];
    let top = AXIS;
    marks.lanes.slice(0, MAX_LANES).forEach((lane, number) => {
      this.heads.push({ label: lane.label, top, compact });
      if (!compact) top += LANE_HEAD;
      for (const track of new Set(this.bands.filter((band) => band.lane === number).map((band) => band.track))) {
        const own = this.bands.filter((band) => band.lane === number && band.track === track);
        const height = TRACK.height + (compact ? 0 : 12 * (own.length - 1));
        const each = compact ? height : height / own.length;
        own.forEach((band, at) => Object.assign(band, { top: compact ? top : top + at * each, height: each - 1 }));
        this.tracks.push({ label: track, top, height, bands: own });
        top += height + TRACK.gap;
      }
      top += compact ? 1 : 6;
    });
    this.height = top;
  }

  x(time) {
    return GUTTER + ((time - this.view.from) / (this.view.to - this.view.from)) * this.plot;
  }

  time(x) {
    return this.view.from + ((x - GUTTER) / this.plot) * (this.view.to - this.view.from);
  }

  /** Draw the marks of a view. `pins` are {mark, tone}; `selected` is a mark or -1. */
  draw(view, pins, selected) {
    const started = performance.now();
    this.view = view;
    this.width = this.canvas.clientWidth;
    this.plot = Math.max(this.width - GUTTER - 12, 50);
    const pen = sharp(this.canvas, this.width, this.height);
    this.drawFrame(pen);
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER - 1, 0, this.plot + 3, this.height);
    pen.clip();
    this.drawMarks(pen);
    this.drawPins(pen, pins);
    if (selected >= 0) this.drawSelected(pen, selected);
    pen.restore();
    this.drawOverview(pins);
    this.canvas.dataset.drawMs = (performance.now() - started).toFixed(2);
  }

  drawFrame(pen) {
    const { palette, view } = this;
    const step = axisStep(((view.to - view.from) / this.plot) * 95);
    pen.lineWidth = 1;
    for (const track of this.tracks) {
      pen.fillStyle = palette.get("raised");
      pen.fillRect(GUTTER, track.top, this.plot, track.height);
      pen.fillStyle = palette.get("dim");
      pen.textAlign = "right";
      pen.fillText(track.label, GUTTER - 8, track.top + track.height / 2);
    }
    pen.textAlign = "left";
    for (const head of this.heads) {
      pen.fillStyle = palette.get("text");
      pen.font = `600 ${FONT}`;
      pen.fillText(head.label, 16, head.top + (head.compact ? TRACK.height / 2 : LANE_HEAD / 2 + 1));
      pen.font = FONT;
    }
    for (let time = Math.ceil(view.from / step) * step; time <= view.to; time += step) {
      const x = Math.round(this.x(time)) + 0.5;
      pen.strokeStyle = palette.get("line");
      pen.beginPath();
      pen.moveTo(x, AXIS - 6);
      pen.lineTo(x, this.height);
      pen.stroke();
      pen.fillStyle = palette.get("dim");
      const text = seconds(time, step);
      if (x + pen.measureText(text).width + 6 < this.width) pen.fillText(text, x + 4, AXIS / 2);
    }
  }

  drawMarks(pen) {
    const { marks, view, bands } = this;
    const width = Math.ceil(this.plot) + 1;
    const first = marks.at(view.from);
    const last = marks.at(view.to + 1);
    const scale = this.plot / (view.to - view.from);
    const counts = new Uint32Array(bands.length * width);
    let seen = 0;
    for (let mark = first; mark < last; mark++) {
      const row = marks.row[mark];
      if (!marks.shown[row]) continue;
      seen++;
      const column = Math.floor((marks.times[mark] - view.from) * scale);
      for (const band of this.bandsOf[row]) counts[band.number * width + column]++;
    }
    this.seen = seen;
    const sparse = seen * 4 < width;
    for (const band of bands) {
      const offset = band.number * width;
      let most = 1;
      for (let i = offset; i < offset + width; i++) if (counts[i] > most) most = counts[i];
      const full = Math.log2(1 + most);
      pen.fillStyle = this.palette.get(band.kind);
      for (let column = 0; column < width; column++) {
        const number = counts[offset + column];
        if (!number) continue;
        const height = Math.max(band.height * (Math.log2(1 + number) / full), 3);
        pen.fillRect(GUTTER + column, band.top + band.height - height, sparse ? 2 : 1, height);
      }
    }
    if (sparse) this.drawNames(pen, first, last);
  }

  /** Names beside ticks where they fit, and how far ahead timers were armed. */
  drawNames(pen, first, last) {
    const { marks, palette } = this;
    const free = this.bands.map(() => GUTTER + this.plot);
    for (let mark = last - 1; mark >= first; mark--) {
      const row = marks.row[mark];
      if (!marks.shown[row]) continue;
      const x = this.x(marks.times[mark]);
      const band = this.bandsOf[row][0];
      if (!band) continue;
      const ahead = marks.ahead.get(mark);
      const timer = this.bandsOf[row].at(-1);
      if (ahead !== undefined) {
        pen.strokeStyle = palette.get(timer.kind);
        pen.globalAlpha = 0.45;
        pen.beginPath();
        pen.moveTo(x, timer.top + timer.height / 2);
        pen.lineTo(this.x(marks.times[mark] + ahead), timer.top + timer.height / 2);
        pen.stroke();
        pen.globalAlpha = 1;
      }
      const { name, flags } = marks.rows[row];
      if (pen.measureText(name).width + 9 < free[band.number] - x) {
        pen.fillStyle = palette.get(flags & FAILED ? "bad" : "text");
        pen.fillText(name, x + 5, band.top + band.height / 2);
      }
      free[band.number] = x;
    }
  }

  drawPins(pen, pins) {
    for (const pin of pins) {
      const x = Math.round(this.x(this.marks.times[pin.mark])) + 0.5;
      if (x < GUTTER - 6 || x > this.width) continue;
      pen.strokeStyle = pen.fillStyle = this.palette.get(pin.tone);
      pen.globalAlpha = 0.55;
      pen.beginPath();
      pen.moveTo(x, AXIS);
      pen.lineTo(x, this.height);
      pen.stroke();
      pen.globalAlpha = 1;
      pen.beginPath();
      pen.moveTo(x - 5, AXIS - 9);
      pen.lineTo(x + 5, AXIS - 9);
      pen.lineTo(x, AXIS);
      pen.fill();
    }
  }

  drawSelected(pen, mark) {
    const x = Math.round(this.x(this.marks.times[mark])) + 0.5;
    pen.strokeStyle = this.palette.get("accent");
    pen.beginPath();
    pen.moveTo(x, AXIS - 4);
    pen.lineTo(x, this.height);
    pen.stroke();
    pen.lineWidth = 2;
    for (const band of this.bandsOf[this.marks.row[mark]]) {
      pen.strokeRect(x - 4, band.top - 1, 9, band.height + 2);
    }
  }

  /** The whole trace in a strip, with the view marked. */
  drawOverview(pins) {
    const { marks, palette, view } = this;
    const pen = sharp(this.overview, this.width, OVERVIEW);
    const scale = this.plot / (marks.end - marks.start);
    const counts = new Uint32Array(Math.ceil(this.plot) + 1);
    for (let mark = 0; mark < marks.length; mark++) {
      if (marks.shown[marks.row[mark]]) counts[Math.floor((marks.times[mark] - marks.start) * scale)]++;
    }
    const full = Math.log2(1 + Math.max(1, ...counts));
    pen.fillStyle = palette.get("dim");
    pen.fillText("whole trace", 16, OVERVIEW / 2);
    pen.globalAlpha = 0.65;
    counts.forEach((number, column) => {
      const height = (OVERVIEW - 12) * (Math.log2(1 + number) / full);
      pen.fillRect(GUTTER + column, OVERVIEW - 5 - height, 1, height);
    });
    pen.globalAlpha = 1;
    for (const pin of pins) {
      pen.fillStyle = palette.get(pin.tone);
      pen.fillRect(GUTTER + (marks.times[pin.mark] - marks.start) * scale - 1, 3, 2, OVERVIEW - 6);
    }
    const from = GUTTER + (view.from - marks.start) * scale;
    const width = Math.max((view.to - view.from) * scale, 3);
    pen.strokeStyle = pen.fillStyle = palette.get("accent");
    pen.globalAlpha = 0.12;
    pen.fillRect(from, 2, width, OVERVIEW - 4);
    pen.globalAlpha = 1;
    pen.strokeRect(from + 0.5, 2.5, Math.max(width - 1, 2), OVERVIEW - 5);
  }

  /** The time of the whole trace that a place in the overview stands for. */
  overviewTime(x) {
    return this.marks.start + ((x - GUTTER) / this.plot) * (this.marks.end - this.marks.start);
  }

  /** The shown mark nearest to a point, and how many more are as near as makes no difference; or null. */
  hit(x, y) {
    const { marks } = this;
    const track = this.tracks.find((one) => y >= one.top && y < one.top + one.height);
    if (!track || x < GUTTER - NEAR) return null;
    const within = track.bands.find((band) => y < band.top + band.height + 1) || track.bands.at(-1);
    const wanted = this.heads[0].compact ? track.bands : [within];
    const reach = ((this.view.to - this.view.from) / this.plot) * NEAR;
    const time = this.time(x);
    let best = null;
    let near = 0;
    for (let mark = marks.at(time - reach); mark < marks.length && marks.times[mark] <= time + reach; mark++) {
      if (!marks.isShown(mark) || !this.bandsOf[marks.row[mark]].some((band) => wanted.includes(band))) continue;
      near++;
      const off = Math.abs(marks.times[mark] - time);
      if (!best || off < best.off) best = { mark, off };
    }
    return best && { mark: best.mark, others: near - 1 };
  }
}

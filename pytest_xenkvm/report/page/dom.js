// Small helpers: elements, numbers and times in words. Text goes in as text, never as HTML.

/** An element. `props`: "class", "on<event>" (a function), or attributes; false and null leave one out. */
function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** An element by its id. */
const byId = (id) => document.getElementById(id);

/** 35143 -> "35,143"; null -> an en dash. */
const count = (number) => (number === null || number === undefined ? "–" : number.toLocaleString("en-US"));

/** "1 event", "2 events". */
const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** A time in ns, in seconds: with as many digits as `step` (ns) asks for. */
function seconds(ns, step = 1000) {
  const digits = Math.min(9, Math.max(0, Math.ceil(9 - Math.log10(Math.max(step, 1)))));
  return `${(ns / 1e9).toFixed(digits)} s`;
}

/** A length of time in ns, in the unit that suits it: "3.14 ms". */
function duration(ns) {
  for (const [size, unit] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
    if (Math.abs(ns) >= size) return `${Number((ns / size).toPrecision(4))} ${unit}`;
  }
  return `${ns} ns`;
}

/** Whether every word of `query` is in the text, in any case. */
function matcher(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return (text) => {
    const lower = text.toLowerCase();
    return words.every((word) => lower.includes(word));
  };
}

/** `act` as soon as the events that ask for it pause, at the next frame. */
function soon(act) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      act();
    });
  };
}

/** A button with text; `pressed` makes it a toggle. */
function button(text, onclick, props = {}) {
  return el("button", { type: "button", onclick, ...props }, text);
}

/** A choice: options are [value, text]. The label is for screen readers; the first option says the same. */
function choice(label, options, onchange) {
  const select = el("select", { "aria-label": label, onchange });
  for (const [value, text] of options) select.append(el("option", { value }, text));
  return select;
}

/** A description list of [term, description] pairs; those without a description are left out. */
function facts(pairs, cls = "facts") {
  const list = el("dl", { class: cls });
  for (const [term, description] of pairs) {
    if (description === "" || description === null || description === undefined) continue;
    list.append(el("dt", {}, term), el("dd", {}, description));
  }
  return list;
}

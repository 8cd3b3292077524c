// The minutes that a vehicle's efficiency rests on: by height and shade, and counted in words.

import { el, svg } from "./dom.js";
import { count, duration, moment } from "./format.js";

const HEIGHT = { paired: 1, shared: 0.66, unpaired: 0.33 };
const MEANING = {
  paired: "the meter covers it, and no other vehicle does",
  shared: "another vehicle was at the same meter",
  unpaired: "no meter is known, or it is silent",
};

export function strip() {
  const graph = el("div", { class: "strip", "aria-hidden": "true" });
  const summary = el("p", { class: "summary" });
  const legend = el("ul", { class: "legend" }, Object.entries(MEANING).map(([kind, meaning]) => el("li", { class: `key ${kind}`, title: meaning }, kind)));
  const figure = el("figure", { class: "card chart" }, el("figcaption", {}, el("h2", {}, "Minutes"), legend, summary), graph);
  return {
    figure,
    draw({ from, to, columns }) {
      const span = to - from;
      const totals = { paired: 0, shared: 0, unpaired: 0 };
      const picture = svg("svg", { viewBox: `0 0 ${span} 100`, preserveAspectRatio: "none" });
      columns.t.forEach((t, i) => {
        const kind = columns.kind[i];
        totals[kind] += columns.minutes[i];
        const [start, end] = [Math.max(t, from), Math.min(t + 60 * columns.minutes[i], to)];
        if (end <= start) return;
        const height = 100 * HEIGHT[kind];
        const title = svg("title", {}, `${kind}: ${moment(1000 * t)}, ${duration(60 * columns.minutes[i])}`);
        picture.append(svg("rect", { x: start - from, width: end - start, y: 100 - height, height, class: kind }, title));
      });
      graph.replaceChildren(picture);
      const all = totals.paired + totals.shared + totals.unpaired;
      summary.textContent = all
        ? `Of ${count(all)} covered minutes, ${count(totals.paired)} are paired, ${count(totals.shared)} shared, ${count(totals.unpaired)} unpaired. Only paired ones prove an efficiency.`
        : "No covered minutes in this range.";
    },
    fail(message) {
      graph.replaceChildren();
      summary.textContent = message;
    },
  };
}

// The time that a vehicle's efficiency rests on: by height and shade, and counted in words.

import { el, svg } from "./dom.js";
import { count, duration, moment } from "./format.js";

const HEIGHT = { paired: 1, shared: 0.66, unpaired: 0.33 };
const MEANING = {
  paired: "the vehicle takes energy, the meter covers it, and no other vehicle takes any",
  shared: "another vehicle takes energy at the same meter",
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
        const [start, end] = [Math.max(t, from), Math.min(t + columns.seconds[i], to)];
        if (end <= start) return;
        totals[kind] += end - start;
        const height = 100 * HEIGHT[kind];
        const doubt = columns.doubtful[i] ? ", doubtful: another vehicle that was not seen may have taken energy" : "";
        const title = svg("title", {}, `${kind}: ${moment(1000 * t)}, ${duration(Math.round(columns.seconds[i]))}${doubt}`);
        picture.append(svg("rect", { x: start - from, width: end - start, y: 100 - height, height, class: kind }, title));
      });
      graph.replaceChildren(picture);
      const [paired, shared, unpaired] = ["paired", "shared", "unpaired"].map((kind) => Math.round(totals[kind] / 60));
      summary.textContent = columns.t.length
        ? `It took energy in ${count(paired + shared + unpaired)} minutes: ${count(paired)} are paired, ${count(shared)} shared, ${count(unpaired)} unpaired. Only paired ones prove an efficiency.`
        : "It took no energy in this range.";
    },
    fail(message) {
      graph.replaceChildren();
      summary.textContent = message;
    },
  };
}

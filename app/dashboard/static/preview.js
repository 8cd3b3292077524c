// Draws a chart's lines at once, without axes: on a slow machine, the library takes seconds to draw it whole.

import { svg } from "./dom.js";

const SIZE = 1000;

export function preview({ from, to, lines, yMin = 0, yMax }) {
  const most = yMax ?? 1.05 * lines.flatMap(({ y }) => y).reduce((greatest, value) => Math.max(greatest, value ?? 0), 0);
  const across = (t) => ((t - from) / (to - from)) * SIZE;
  const down = (value) => SIZE - ((value - yMin) / (most - yMin || 1)) * SIZE;
  const paths = lines.map(({ x, y, color }) => {
    const path = x.map((t, i) => (y[i] == null ? "" : `${y[i - 1] == null ? "M" : "L"}${across(t).toFixed(1)} ${down(y[i]).toFixed(1)}`)).join("");
    return svg("path", { d: path, stroke: `var(--${color})`, fill: "none", "vector-effect": "non-scaling-stroke" });
  });
  return svg("svg", { class: "preview", viewBox: `0 0 ${SIZE} ${SIZE}`, preserveAspectRatio: "none" }, ...paths);
}

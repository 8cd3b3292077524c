// Time charts, drawn by plotly.js, which is large: it loads after the first numbers are shown.

import { el } from "./dom.js";
import { moment } from "./format.js";
import { preview } from "./preview.js";
import { zoom } from "./state.js";

// The margins are in rem, as for .preview and .strip in the style sheet.
const MARGIN = { l: 3.6, r: 1, t: 0.6, b: 2.8 };
let library;

function load() {
  library ??= new Promise((resolve, reject) => {
    const script = el("script", { src: document.documentElement.dataset.charts });
    script.onload = () => resolve(globalThis.Plotly);
    script.onerror = () => {
      library = undefined;
      script.remove();
      reject(new Error("The chart library could not be loaded."));
    };
    // It waits for the next paint, so that the numbers and the lines are seen first.
    requestAnimationFrame(() => setTimeout(() => document.head.append(script)));
  });
  return library;
}

const local = (seconds) => {
  const offset = new Date(1000 * seconds).getTimezoneOffset() * 60;
  return new Date(1000 * (seconds - offset)).toISOString().slice(0, 19);
};

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// A figure has a title, a summary in words, and its values as a table. draw() takes
// {from, to, lines: [{name, unit, digits, color, x, y, alone, details}], low?, yMin?, summary}. Zooming changes the
// range that the address names.
export function chart(title, { tall = false, zooms = true } = {}) {
  const plot = el("div", { class: tall ? "plot tall" : "plot", "aria-hidden": "true" });
  const summary = el("p", { class: "summary" });
  const legend = el("ul", { class: "legend", "aria-hidden": "true" });
  const caption = el("figcaption", {}, el("h2", {}, title), legend, summary);
  const values = el("details", { class: "values", ontoggle: () => values.open && fill() }, el("summary", {}, "Values"));
  const figure = el("figure", { class: "card chart" }, caption, plot, values);
  let drawn = null;
  let drawing = Promise.resolve();

  async function render() {
    const Plotly = await load();
    if (!drawn || !plot.isConnected) return;
    plot.querySelector(".preview")?.remove();
    await Plotly.react(plot, traces(drawn), layout({ ...drawn, zooms }), { displayModeBar: false, responsive: true, doubleClick: false });
    if (!plot.dataset.drawn && zooms) {
      plot.on("plotly_relayout", (change) => {
        const ends = ["xaxis.range[0]", "xaxis.range[1]"].map((name) => Date.parse(change[name]) / 1000);
        if (ends.every(Number.isFinite)) zoom(...ends);
      });
      plot.on("plotly_doubleclick", () => history.length > 1 && zoom(1.5 * drawn.from - drawn.to / 2, 1.5 * drawn.to - drawn.from / 2));
    }
    plot.dataset.drawn = "true";
  }

  function draw(next) {
    next.isEmpty = !next.lines.some(({ y }) => y.some((value) => value != null));
    if (next.summary !== summary.textContent) summary.textContent = next.summary;
    if (values.open) fill(next);
    if (next.lines.length > 1 && !legend.firstChild) {
      legend.append(...next.lines.map(({ name, color }) => el("li", { class: `key ${color}` }, name)));
    }
    const key = JSON.stringify([next.lines.map(({ x, y }) => [x, y]), Math.round(next.from / 10), Math.round(next.to / 10)]);
    if (drawn?.key === key) return;
    drawn = { ...next, key };
    if (!plot.dataset.drawn) plot.replaceChildren(preview(drawn));
    drawing = drawing.then(render).catch((error) => {
      summary.textContent = error.message;
    });
  }

  function fill({ lines } = drawn ?? { lines: [] }) {
    const heads = ["Time", ...lines.map(({ name, unit }) => `${name}, ${unit}`)];
    const at = new Map();
    lines.forEach(({ x, y, digits }, i) =>
      x.forEach((t, j) => {
        if (y[j] == null) return;
        if (!at.has(t)) at.set(t, lines.map(() => "–"));
        at.get(t)[i] = y[j].toFixed(digits);
      }),
    );
    const rows = [...at].sort(([a], [b]) => b - a);
    const body = rows.map(([t, cells]) =>
      el("tr", {}, el("th", { scope: "row" }, moment(1000 * t)), cells.map((cell) => el("td", {}, cell))),
    );
    const head = el("tr", {}, heads.map((name) => el("th", { scope: "col" }, name)));
    const table = el("table", {}, el("caption", {}, title), el("thead", {}, head), el("tbody", {}, body));
    const scroll = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}: values` }, table);
    values.replaceChildren(values.firstChild, scroll);
  }

  const restyle = () => {
    drawing = drawing.then(render).catch(() => {});
  };
  document.addEventListener("theme", restyle);
  return {
    figure,
    draw,
    plot,
    leave() {
      document.removeEventListener("theme", restyle);
      drawn = null;
      if (plot.dataset.drawn) globalThis.Plotly.purge(plot);
    },
  };
}

function traces({ lines }) {
  return lines.flatMap(({ name, unit, digits, color: of, x, y, alone, details, fill }) => {
    const common = {
      x: x.map(local),
      name,
      type: "scatter",
      connectgaps: false,
      hovertemplate: `%{y:,.${digits}f} ${unit}${details ? " · %{text}" : ""}<extra>${name}</extra>`,
      text: details,
    };
    const drawn = { ...common, y, mode: "lines", line: { color: color(of), width: x.length > 500 ? 1.25 : 1.75 } };
    const dots = { ...common, y: alone, mode: "markers", marker: { color: color(of), size: 4 }, hoverinfo: "skip", hovertemplate: null };
    const area = fill && { ...ground(x, y), mode: "lines", line: { width: 0 }, fill: "tozeroy", fillcolor: color(`${of}-soft`), hoverinfo: "skip" };
    return [drawn, area, alone && dots].filter(Boolean);
  });
}

// The library fills across a gap, so the outline goes along the ground there.
function ground(x, y) {
  const points = x.flatMap((t, i) => (y[i] == null ? [[x[i - 1] ?? t, 0], [x[i + 1] ?? t, 0]] : [[t, y[i]]]));
  return { x: points.map(([t]) => local(t)), y: points.map(([, value]) => value) };
}

// Ticks are times, with the date below where a day begins; in long ranges, they are days.
const TICKS = [
  { dtickrange: [null, 86_399_999], value: "%H:%M\n%-d %b" },
  { dtickrange: [86_400_000, null], value: "%-d %b\n%Y" },
];

function layout({ from, to, low, yMin, yMax, percent, isEmpty, zooms }) {
  const ink = color("muted");
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const size = Math.round(0.8 * rem);
  const axis = { gridcolor: color("grid"), linecolor: color("line"), zeroline: false, tickfont: { color: ink, size } };
  const shapes = low == null || isEmpty ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: low, y1: low, line: { color: color("warn"), width: 1.5, dash: "dash" } }];
  const annotations = low == null ? [] : [{ xref: "paper", x: 0, xanchor: "left", y: low, yanchor: "top", text: `low below ${+low.toFixed(2)} %`, showarrow: false, font: { color: color("warn"), size } }];
  if (isEmpty) annotations.splice(0, 1, { xref: "paper", yref: "paper", x: 0.5, y: 0.5, text: "Nothing to show in this range", showarrow: false, font: { color: ink, size } });
  return {
    margin: Object.fromEntries(Object.entries(MARGIN).map(([side, width]) => [side, width * rem])),
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { family: getComputedStyle(document.body).fontFamily, color: color("ink"), size },
    showlegend: false,
    hovermode: "x unified",
    hoverlabel: { bgcolor: color("surface"), bordercolor: color("line"), font: { color: color("ink") } },
    dragmode: zooms && "zoom",
    selectdirection: "h",
    xaxis: { ...axis, type: "date", range: [local(from), local(to)], fixedrange: !zooms, showgrid: false, ticks: "outside", tickcolor: color("line"), nticks: innerWidth < 640 ? 4 : 8, tickangle: 0, tickformatstops: TICKS, hoverformat: "%-d %b, %H:%M" },
    yaxis: { ...axis, visible: !isEmpty, fixedrange: true, rangemode: "tozero", ...(yMin == null ? {} : { range: [yMin, yMax] }), ticksuffix: percent ? " %" : "", separatethousands: true, nticks: 6 },
    shapes,
    annotations,
  };
}

// What is stored: its size over time, its compression, its policies, and what is dropped next. Nothing here changes it.

import { ask } from "./api.js";
import { chart } from "./chart.js";
import { el, setText } from "./dom.js";
import { figures } from "./figures.js";
import { age, ahead, count, fixed, moment, percent, size, sizeUnit, until } from "./format.js";
import { live } from "./live.js";
import { differs, failed, policiesPanel } from "./policies.js";
import { alone, sum } from "./series.js";
import { link } from "./state.js";

const AGAIN_MS = 60_000;
const DAY = 86400;
// Sizes older than two days are one a day.
const LONGEST_SECONDS = 1.05 * DAY;
const COLORS = ["ac", "dc", "efficiency", "fourth"];

export function showStorage(main) {
  document.title = "Storage · Wattline";
  const seen = el("p", { class: "seen" });
  const wrong = el("p", { class: "wrong", role: "alert" });
  const numbers = figures("Storage now", {
    database: "Database",
    compressed: "Compressed",
    policies: "Policies",
    dropped: "Dropped next",
  });
  const sizes = chart("Size", { tall: true, zooms: false });
  const place = el("div");
  const tables = tablesPanel();
  const policies = policiesPanel();
  const rest = el("div", { class: "charts", hidden: true }, numbers.element, place, tables.element, policies.element);
  const back = el("a", { class: "back", href: link("fleet") }, "← Fleet");
  const title = el("div", { class: "name" }, back, el("h1", {}, "Storage"), seen);
  main.append(el("div", { class: "top" }, title), wrong, rest);

  const leaving = new AbortController();
  let largest = null; // the lines keep their colours while the page is open

  async function load() {
    try {
      const { storage, history } = await ask("storage", {}, leaving.signal);
      setText(wrong, "");
      rest.hidden = false;
      const engine = storage.engine === "plain" ? "Plain PostgreSQL" : "TimescaleDB";
      seen.replaceChildren(`${engine}, as of `, age(storage.at));
      showNumbers(storage, history);
      showSizes(history);
      tables.show(storage);
      policies.show(storage);
    } catch (error) {
      if (error.name !== "AbortError") setText(wrong, `The storage could not be loaded. ${error.message}`);
    }
  }

  function showNumbers({ bytes, engine, tables }, history) {
    const [amount, unit] = size(bytes).split(" ");
    numbers.set("database", amount, unit, growth(history));
    const [parts, compressed] = ["parts", "compressedParts"].map((name) => sum(tables.map((table) => table[name])));
    const share = parts ? percent(compressed / parts, 0) : "–";
    if (engine === "plain") numbers.set("compressed", "–", "", "not available on plain PostgreSQL");
    else numbers.set("compressed", share, "%", `${count(compressed)} of ${count(parts)} parts`);
    const all = tables.flatMap(({ policies }) => policies);
    const [changed, broken] = [differs, failed].map((is) => all.filter(is).length);
    const faults = [changed && `${count(changed)} not as in the file`, broken && `${count(broken)} failed`];
    const said = faults.filter(Boolean).join(", ") || "all as in the file";
    numbers.set("policies", count(all.length), "", said, broken ? "bad" : changed ? "warn" : "");
    const coming = tables.map(({ droppedNext }) => droppedNext).filter(Boolean);
    const [next] = coming.sort((a, b) => Date.parse(a.at) - Date.parse(b.at));
    if (!next) numbers.set("dropped", "–", "", "nothing is to be dropped");
    else numbers.set("dropped", ahead(next.at), "", `${next.part.name}, ${size(next.part.bytes)}, ${moment(next.at)}`);
  }

  function showSizes(history) {
    const x = history.at.map((at) => Date.parse(at) / 1000);
    if (x.length < 2) {
      const words = "Sizes are recorded each hour. The chart begins with the second hour.";
      const heading = el("h2", { id: "size-title" }, "Size");
      const summary = el("p", { class: "summary" }, words);
      place.replaceChildren(el("section", { class: "card chart", "aria-labelledby": "size-title" }, heading, summary));
      return;
    }
    if (sizes.figure.parentNode !== place) place.replaceChildren(sizes.figure);
    const last = (name) => history.bytes[name].findLast((bytes) => bytes != null);
    const names = Object.keys(history.bytes);
    largest ??= names.toSorted((a, b) => last(b) - last(a)).slice(0, COLORS.length);
    const others = names.filter((name) => !largest.includes(name));
    const columns = largest.map((name) => [name, x.map((_, i) => total(history, [name], i))]);
    columns.push([`${count(others.length)} others`, x.map((_, i) => total(history, others, i))]);
    const most = columns.flatMap(([, bytes]) => bytes).reduce((greatest, bytes) => Math.max(greatest, bytes ?? 0), 0);
    const [divisor, unit] = sizeUnit(most);
    sizes.draw({
      from: x[0],
      to: Math.max(x.at(-1), Date.now() / 1000),
      lines: columns.map(([name, bytes], i) => {
        const y = bytes.map((value) => (value == null ? null : value / divisor));
        return { name, unit, digits: 1, color: COLORS[i] ?? "muted", ...cut(x, y) };
      }),
      summary: `With indexes, ${unit}: the last two days by hour, before that by day.`,
    });
  }

  live.addEventListener("again", load);
  const timer = setInterval(load, AGAIN_MS);
  load();
  return {
    update() {},
    leave() {
      leaving.abort();
      clearInterval(timer);
      live.removeEventListener("again", load);
      sizes.leave();
    },
  };
}

// The bytes of these tables together at a point; null when none was recorded.
function total({ bytes }, names, i) {
  const known = names.map((name) => bytes[name]?.[i]).filter((value) => value != null);
  return known.length ? sum(known) : null;
}

function growth(history) {
  const at = history.at.map((instant) => Date.parse(instant) / 1000);
  const before = at.indexOf(at.at(-1) - DAY);
  if (before === -1) return "";
  const names = Object.keys(history.bytes);
  const grown = total(history, names, at.length - 1) - total(history, names, before);
  return `${grown < 0 ? "−" : "+"}${size(Math.abs(grown))} in 24 hours`;
}

// A line with a gap where no size was recorded, as while the service was stopped.
function cut(x, y) {
  const gaps = x.flatMap((t, i) => (t - x[i - 1] > LONGEST_SECONDS ? [i] : []));
  const points = x.map((t, i) => [t, y[i]]);
  for (const i of gaps.reverse()) points.splice(i, 0, [x[i - 1] + 1, null]);
  const values = points.map(([, value]) => value);
  return { x: points.map(([t]) => t), y: values, alone: alone(values) };
}

// A name that a narrow column may break where it has an underscore.
function breakable(name) {
  return name.split("_").map((word, i) => (i ? ["_", el("wbr"), word] : word));
}

function tablesPanel() {
  const table = el("table", { class: "storage" });
  const element = el(
    "section",
    { class: "card panel", "aria-labelledby": "tables-title" },
    el("div", { class: "title" }, el("h2", { id: "tables-title" }, "Tables and aggregates")),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Tables and aggregates" }, table),
  );
  return {
    element,
    show({ engine, tables }) {
      const columns = COLUMNS.filter(({ key }) => !(engine === "plain" && key === "compressed"));
      const attributes = ({ key, wide }) => ({ class: wide ? "numeric wide" : "numeric", "data-key": key });
      const heads = columns.map((column) =>
        el("th", { scope: "col", title: column.hint, ...attributes(column) }, column.name),
      );
      const rows = tables.map((stored) => {
        const cells = columns.map((column) => el("td", attributes(column), column.cell(stored)));
        return el("tr", { "data-id": stored.name }, el("th", { scope: "row" }, breakable(stored.name)), cells);
      });
      const caption = el("caption", { class: "visually-hidden" }, "Tables and aggregates");
      const head = el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Name"), heads));
      table.replaceChildren(caption, head, el("tbody", {}, rows));
    },
  };
}

const COLUMNS = [
  { key: "size", name: "Size", hint: "With indexes", cell: ({ bytes }) => size(bytes) },
  { key: "rows", name: "Rows, about", wide: true, cell: ({ rowsEstimated }) => count(rowsEstimated) },
  { key: "parts", name: "Parts", hint: "Chunks or days", wide: true, cell: ({ parts }) => count(parts || null) },
  { key: "compressed", name: "Compressed", hint: "Share of the parts", cell: compression },
  { key: "oldest", name: "From", wide: true, cell: ({ oldest }) => moment(oldest) },
  { key: "dropped", name: "Dropped next", cell: dropped },
];

function compression({ compressedShare, compressionRatio }) {
  if (!compressedShare) return "–";
  const ratio = compressionRatio && el("span", { class: "wide" }, `, ${fixed(compressionRatio, 1)} times smaller`);
  return [`${percent(compressedShare, 0)} %`, ratio];
}

function dropped({ parts, policies, droppedNext }) {
  const kept = policies.find(({ kind }) => kind === "retention")?.live;
  if (!kept) return "kept for good";
  if (!droppedNext) return parts ? "–" : `rows after ${kept}`;
  const { at, part } = droppedNext;
  const when = Date.parse(at) > Date.now() ? until(at) : "at the next run";
  return [when, el("span", { class: "wide" }, `, ${size(part.bytes)}`)];
}

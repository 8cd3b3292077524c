// The fleet: its figures, power and efficiency over time, alerts and devices.

import { alertsPanel } from "./alerts.js";
import { ask } from "./api.js";
import { chart } from "./chart.js";
import { rangeControls } from "./controls.js";
import { SILENT_MINUTES, devicesPanel } from "./devices.js";
import { el, setText } from "./dom.js";
import { figures } from "./figures.js";
import { clock, count, fixed, kwhDigits, moment, percent, rate } from "./format.js";
import { connection, live } from "./live.js";
import { PER, line, merge, sum, trim } from "./series.js";
import { change, range, read } from "./state.js";

const LOW = Number(document.documentElement.dataset.lowEfficiency);
const AGAIN_MS = 60_000;
// Devices' clocks may be this far ahead, and their readings count.
const AHEAD_SECONDS = 300;

export function showFleet(main) {
  document.title = "Fleet · Wattline";
  const controls = rangeControls();
  const numbers = figures("Totals of the range, and the fleet now", {
    ac: "AC from the grid",
    dc: "DC to batteries",
    loss: "Lost",
    efficiency: "Efficiency",
    devices: "Devices reporting",
    rate: "Readings",
  });
  const energy = chart("Power", { tall: true });
  const efficiency = chart("Efficiency");
  const alerts = alertsPanel();
  const list = deviceList();
  const charts = el("div", { class: "charts" }, energy.figure, efficiency.figure);
  const grid = el("div", { class: "grid" }, charts, alerts.element, list.element);
  const empty = emptyDatabase();
  const silentLink = el("button", { type: "button", class: "link", onclick: () => (change({ silent: "1" }), list.element.scrollIntoView({ block: "nearest" })) });
  const wrong = el("p", { class: "wrong", role: "alert" });
  main.append(el("h1", { class: "visually-hidden" }, "Fleet"), el("div", { class: "top" }, controls.element), empty, wrong, numbers.element, grid);

  let series = null;
  let asking = null;
  let asked = "";

  // Returns true when the address names another range than before, not just another search or order.
  function isOther() {
    const { name, from, to } = range();
    const before = asked;
    asked = name ?? `${from} ${to}`;
    return asked !== before;
  }

  async function load() {
    asking?.abort();
    asking = new AbortController();
    const { name, from, to } = range();
    try {
      const next = await ask("analytics/fleet/series", { from: iso(from), to: iso(name ? to + AHEAD_SECONDS : to) }, asking.signal);
      series = next;
      setText(wrong, "");
      show();
    } catch (error) {
      if (error.name === "AbortError") return;
      setText(wrong, `The series could not be loaded. ${error.message}`);
      if (!series) clear();
    }
  }

  // The values of another range must not stand under this one.
  function clear() {
    for (const key of ["ac", "dc", "loss", "efficiency"]) numbers.set(key, "–");
    const span = { from: range().from, to: range().to, lines: [], summary: "" };
    energy.draw(span);
    efficiency.draw(span);
  }

  function show() {
    if (!series) return;
    const now = range();
    controls.update();
    const { columns, bucket } = series;
    if (now.name) trim(columns, now.from - 60);
    totals(columns);
    const span = { from: now.from, to: now.to };
    const ac = line(columns.t, columns.acKw, bucket, span);
    const dc = line(columns.t, columns.dcKw, bucket, span);
    energy.draw({
      ...span,
      lines: [
        { name: "AC from the grid", unit: "kW", digits: 1, color: "ac", ...ac },
        { name: "DC to batteries", unit: "kW", digits: 1, color: "dc", fill: true, ...dc },
      ],
      summary: `Average ${bucket === "1m" ? "over five minutes" : `by ${PER[bucket]}`}, kW. ${peak("AC", ac, series.peakKw.ac)}`,
    });
    const ratio = line(columns.t, columns.efficiencyRatio.map((value) => value && 100 * value), bucket, span);
    efficiency.draw({
      ...span,
      lines: [{ name: "Efficiency", unit: "%", digits: 1, color: "efficiency", ...ratio }],
      low: 100 * LOW,
      percent: true,
      ...efficiencyAxis(ratio.y),
      summary: `${beyondAxis(ratio.y)}All DC over all AC, ${bucket === "1m" ? "of the hour before each minute" : `by ${PER[bucket]}`}.`,
    });
  }

  function totals(columns) {
    const [ac, dc] = [columns.acKwh, columns.dcKwh].map((values) => (values.some((value) => value != null) ? sum(values) : null));
    const ratio = ac > 0 && dc != null ? dc / ac : null;
    // All have the digits of the greatest, so that the numbers shown add up.
    const digits = kwhDigits(Math.max(ac, dc));
    const rounded = (value) => Number((value ?? 0).toFixed(digits));
    const loss = ac == null && dc == null ? null : rounded(ac) - rounded(dc);
    numbers.set("ac", fixed(ac, digits), "kWh");
    numbers.set("dc", fixed(dc, digits), "kWh");
    numbers.set("loss", fixed(loss, digits), "kWh", ac > 0 ? `${percent((ac - dc) / ac)} % of AC` : "");
    const low = ratio != null && ratio < LOW;
    numbers.set("efficiency", percent(ratio), "%", low ? `below ${percent(LOW, 0)} %` : "all DC over all AC", low ? "warn" : "");
  }

  function showNow() {
    const { fleet, state } = connection;
    if (!fleet) return;
    const { devicesReporting: reporting, devicesExpected: expected, readingsPerSecond, lagSeconds, asOf } = fleet;
    empty.hidden = expected > 0;
    grid.hidden = numbers.element.hidden = controls.element.hidden = expected === 0;
    const silent = expected - reporting;
    if (silent) setText(silentLink, `${count(silent)} without a reading for ${SILENT_MINUTES} minutes`);
    numbers.set("devices", count(reporting), `of ${count(expected)}`, silent ? silentLink : "none is silent", silent ? "warn" : "");
    const age = lagSeconds == null ? "freshness unknown" : `complete up to ${clock(asOf, true)}`;
    numbers.set("rate", rate(readingsPerSecond), "per second", state === "live" ? age : `as of ${clock(connection.since, true)}`);
  }

  const onFleet = ({ detail }) => {
    if (series?.bucket === "1m" && range().name) {
      merge(series.columns, structuredClone(detail.minutes));
      show();
    }
    showNow();
  };
  const again = () => range().name && load();
  live.addEventListener("fleet", onFleet);
  live.addEventListener("connection", showNow);
  live.addEventListener("again", load);
  const timer = setInterval(again, AGAIN_MS);
  isOther();
  load();
  showNow();
  return {
    update() {
      controls.update();
      list.update();
      alerts.update();
      if (isOther()) {
        series = null;
        load();
      }
    },
    leave() {
      asking?.abort();
      clearInterval(timer);
      live.removeEventListener("fleet", onFleet);
      live.removeEventListener("connection", showNow);
      live.removeEventListener("again", load);
      [energy, efficiency, alerts, list].forEach((part) => part.leave());
    },
  };
}

const iso = (seconds) => new Date(1000 * seconds).toISOString();

export function highest(values) {
  const known = values.filter((value) => value != null);
  return known.length ? known.reduce((most, value) => Math.max(most, value)) : null;
}

// The demand is over 15 minutes; it is null where only hours or days are known.
export function peak(what, { x, y }, demand) {
  const most = demand ?? highest(y);
  if (most == null) return "The power of this range is not known.";
  if (!most) return "Nothing flowed.";
  const at = demand == null ? `, ${moment(1000 * x[y.indexOf(most)])}` : " over 15 minutes";
  const last = y.length - 1;
  return `${what} at most ${fixed(most, 1)} kW${at}${last < 0 ? "" : `; last ${fixed(y[last], 1)} kW, ${moment(1000 * x[last])}`}.`;
}

// The axis is wide enough for nearly all points; a single point far off is only in the table of values.
export function efficiencyAxis(percents) {
  const known = percents.filter((value) => value != null).sort((a, b) => a - b);
  const at = (share) => known[Math.floor(share * (known.length - 1))] ?? 100;
  return { yMin: Math.max(-2, Math.min(100 * LOW - 8, at(0.01) - 2)), yMax: Math.min(150, Math.max(100, at(0.99) + 2)) };
}

// Says in words what the axis leaves out.
export function beyondAxis(percents) {
  const { yMin, yMax } = efficiencyAxis(percents);
  const known = percents.filter((value) => value != null);
  const number = known.filter((value) => value < yMin || value > yMax).length;
  return number ? `${count(number)} of ${count(known.length)} points lie beyond the axis: Values lists them. ` : "";
}

function deviceList() {
  const search = el("input", { type: "search", placeholder: "Search", "aria-label": "Search by name or site", spellcheck: "false", autocomplete: "off" });
  const tabs = ["vehicle", "meter"].map((kind) =>
    el("button", { type: "button", "data-kind": kind, onclick: () => change({ list: kind === "meter" ? "meters" : null, sort: null }) }, kind === "vehicle" ? "Vehicles" : "Meters"),
  );
  const silent = el("button", { type: "button", class: "quiet", onclick: () => change({ silent: read().parameters.has("silent") ? null : "1" }) }, "Silent only");
  const title = el("div", { class: "title" }, el("h2", { class: "visually-hidden" }, "Devices"), el("div", { class: "segments", role: "group", "aria-label": "List" }, tabs), search, silent);
  const place = el("div", { class: "place" });
  const element = el("section", { class: "card panel list" }, title, place);
  let panel = null;
  let shownKind = null;
  search.addEventListener("input", () => {
    change({ q: search.value }, { replace: true });
    panel.update();
  });

  function update() {
    const { parameters } = read();
    const kind = parameters.get("list") === "meters" ? "meter" : "vehicle";
    if (search.value !== (parameters.get("q") ?? "")) search.value = parameters.get("q") ?? "";
    silent.setAttribute("aria-pressed", parameters.has("silent"));
    for (const tab of tabs) tab.setAttribute("aria-pressed", tab.dataset.kind === kind);
    if (kind === shownKind) {
      panel.update();
      return;
    }
    panel?.leave();
    panel = devicesPanel(kind);
    shownKind = kind;
    title.querySelector(".note")?.remove();
    title.append(panel.note);
    place.replaceChildren(panel.element);
  }
  update();
  return { element, update, leave: () => panel.leave() };
}

function emptyDatabase() {
  const command = [
    `curl ${location.origin}/v1/telemetry -H 'Content-Type: application/json' -d "[`,
    `  {\\"meterId\\": \\"M1\\", \\"timestamp\\": \\"$(date -u +%FT%TZ)\\", \\"kwhConsumedAc\\": 0.48, \\"voltage\\": 232},`,
    `  {\\"vehicleId\\": \\"V1\\", \\"meterId\\": \\"M1\\", \\"timestamp\\": \\"$(date -u +%FT%TZ)\\", \\"kwhDeliveredDc\\": 0.42, \\"soc\\": 20.7}`,
    `]"`,
  ].join("\n");
  return el(
    "section",
    { class: "card empty", hidden: true, "aria-labelledby": "empty-title" },
    el("h2", { id: "empty-title" }, "No readings yet"),
    el("p", {}, "This page comes to life with the first reading. Send one from a meter and one from a vehicle:"),
    el("pre", { tabindex: "0" }, el("code", {}, command)),
    el("p", {}, "Or let a simulated fleet send them: ", el("code", {}, "make demo"), " has sent a day within half a minute."),
  );
}

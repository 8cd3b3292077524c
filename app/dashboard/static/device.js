// One vehicle or one meter: its figures, series, minutes, mappings and alerts.

import { alertsPanel } from "./alerts.js";
import { ask, device, lines } from "./api.js";
import { chart } from "./chart.js";
import { rangeControls } from "./controls.js";
import { el } from "./dom.js";
import { figures } from "./figures.js";
import { beyondAxis, efficiencyAxis, highest, peak } from "./fleet.js";
import { age, costing, count, fixed, kwh, moment, percent } from "./format.js";
import { connection, live } from "./live.js";
import { PER, SECONDS, energyMinutes, line, sum, trim } from "./series.js";
import { link, range } from "./state.js";
import { strip } from "./strip.js";
import { VERDICTS } from "./verdict.js";

const LOW = Number(document.documentElement.dataset.lowEfficiency);
const AGAIN_MS = 10_000;
const REST_MS = 60_000;
const PROVING_MINUTES = 15;
// The service pairs at most this much at once.
const PAIRED_SECONDS = 90 * 86400;
const TOO_LONG = "This needs a range of at most 90 days.";
const NAMES = {
  vehicle: { dc: "DC to the battery", efficiency: "Efficiency", loss: "Lost", soc: "Average charge", temperature: "Average of the battery", readings: "Readings" },
  meter: { ac: "AC from the grid", peak: "Highest power", voltage: "Voltage", readings: "Readings" },
};

export function showDevice(main, kind, id) {
  document.title = `${id} · Wattline`;
  const isVehicle = kind === "vehicle";
  const controls = rangeControls();
  const seen = el("p", { class: "seen" });
  const wrong = el("p", { class: "wrong", role: "alert" });
  const numbers = figures(`Totals of the range`, NAMES[kind]);
  const charts = isVehicle
    ? { power: chart("Power", { tall: true }), efficiency: chart("Efficiency"), soc: chart("State of charge"), temperature: chart("Battery temperature") }
    : { power: chart("Power", { tall: true }), voltage: chart("Voltage") };
  const minutes = strip();
  const history = el("div", { class: "place" });
  const named = el("p", { class: "note" });
  const mappings = el("section", { class: "card panel", "aria-labelledby": "mapping" }, el("div", { class: "title" }, el("h2", { id: "mapping" }, "Mapping history")), isVehicle ? named : null, history);
  const alerts = alertsPanel({ [`${kind}Id`]: id });
  const [first, ...others] = Object.values(charts).map(({ figure }) => figure);
  const left = el("div", { class: "charts" }, first, isVehicle ? minutes.figure : null, others);
  const right = el("div", { class: "side" }, alerts.element, mappings);
  const title = el("div", { class: "name" }, el("a", { class: "back", href: link("fleet") }, "← Fleet"), el("h1", {}, el("span", { class: "kind" }, isVehicle ? "Vehicle" : "Meter"), " ", id), seen);
  const grid = el("div", { class: "grid device" }, left, right);
  main.append(el("div", { class: "top" }, title, controls.element), wrong, numbers.element, grid);

  let asking = null;
  let timer;
  let restAt = 0; // pairing and mappings cost more than a series
  let hasState = false;
  let delivered = null;
  let latest = null; // the end of the last bucket
  let isShown = false; // whether the page shows the range that its address names

  // A new range is loaded at once, the same range only after its last answers have come.
  async function load() {
    clearTimeout(timer);
    asking?.abort();
    const mine = (asking = new AbortController());
    await show(mine.signal);
    if (asking !== mine) return;
    asking = null;
    timer = setTimeout(again, AGAIN_MS);
  }

  async function show(signal) {
    const now = range();
    const bounds = { from: iso(now.from), to: iso(now.to) };
    controls.update();
    try {
      const series = await ask(`${device(kind, id)}/series`, bounds, signal);
      wrong.textContent = "";
      isShown = true;
      latest = series.columns.t.length ? Math.min(series.columns.t.at(-1) + SECONDS[series.bucket], Date.now() / 1000) : null;
      showSeries(series, now);
    } catch (error) {
      if (error.name === "AbortError") return;
      wrong.textContent = error.message;
      grid.hidden = numbers.element.hidden = !isShown || error.code === "unknown_device";
      return;
    }
    if (Date.now() < restAt) return;
    await Promise.all([showMappings(signal), ...(isVehicle ? [showPerformance(now, bounds, signal), showMinutes(now, signal), showNamed(signal)] : [])]);
    if (!signal.aborted) restAt = Date.now() + REST_MS;
  }

  function showSeries({ columns, bucket, peakKw }, now) {
    grid.hidden = numbers.element.hidden = false;
    const span = { from: now.from, to: now.to, ofDevice: true };
    const of = (name) => line(columns.t, columns[name], bucket, span);
    trim(columns, now.from - SECONDS[bucket] + 1);
    const power = columns.powerKw;
    const watts = line(columns.t, power, bucket, span);
    const shown = isVehicle ? ["DC to the battery", "dc", "DC"] : ["AC from the grid", "ac", "AC"];
    charts.power.draw({
      ...span,
      lines: [{ name: shown[0], unit: "kW", digits: 2, color: shown[1], fill: isVehicle, ...watts }],
      summary: `Average by ${PER[bucket]}, kW. ${peak(shown[2], watts, peakKw)}`,
    });
    if (!hasState) seen.replaceChildren(...lastSeen(columns, bucket, now));
    numbers.set("readings", count(sum(columns.readings)), "", columns.t.length ? `in ${count(columns.t.length)} ${PER[bucket]}s` : "none in this range");
    const plain = (chart, name, column, unit, color, more = {}) =>
      chart.draw({ ...span, lines: [{ name, unit, digits: 1, color, ...of(column) }], summary: `Average by ${PER[bucket]}, ${unit}.`, ...more });
    if (!isVehicle) {
      numbers.set("ac", columns.t.length ? kwh(sum(columns.acKwh)) : "–", "kWh");
      const most = bucket === "1m" ? peakKw : highest(power);
      numbers.set("peak", fixed(most, 1), "kW", `over ${{ "1m": "15 minutes", "1h": "an hour", "1d": "a day" }[bucket]}`);
      const [low, high] = extremes(columns, "Voltage");
      numbers.set("voltage", mean(columns, "avgVoltage"), "V", low == null ? "" : `${fixed(low, 1)} to ${fixed(high, 1)} V`);
      plain(charts.voltage, "Voltage", "avgVoltage", "V", "ac", around(columns.avgVoltage, 5));
      return;
    }
    delivered = columns.t.length ? sum(columns.dcKwh) : null;
    plain(charts.soc, "State of charge", "avgSoc", "%", "dc", { yMin: 0, yMax: 102, percent: true });
    plain(charts.temperature, "Battery temperature", "avgBatteryTemp", "°C", "efficiency", around(columns.avgBatteryTemp, 2));
    // Less energy would compare two clocks: the end of a tapering charge has many minutes with the energy of few.
    const isProven = (i) => columns.pairedMinutes[i] >= PROVING_MINUTES && (bucket !== "1m" || energyMinutes(columns, power, i) >= PROVING_MINUTES);
    const proven = columns.efficiencyRatio.map((value, i) => (isProven(i) ? value : null));
    const ratio = line(columns.t, proven.map((value) => value && 100 * value), bucket, span);
    charts.efficiency.draw({
      ...span,
      lines: [{ name: "Efficiency", unit: "%", digits: 1, color: "efficiency", ...ratio }],
      low: 100 * LOW,
      percent: true,
      ...efficiencyAxis(ratio.y),
      summary: `${beyondAxis(ratio.y)}Over the paired time of ${bucket === "1m" ? "the hour before each minute" : `each ${PER[bucket]}`}, where these have the energy of ${PROVING_MINUTES} minutes at full power.`,
    });
  }

  async function showPerformance(now, bounds, signal) {
    try {
      if (now.to - now.from > PAIRED_SECONDS) throw new Error(TOO_LONG);
      const { totalDcDelivery, efficiencyRatio, uncertainty, energyLossKwh, lossCost, currency, totalAcConsumption, avgSoc, avgBatteryTemp, status, coverage } = await ask(`analytics/performance/${encodeURIComponent(id)}`, bounds, signal);
      const [state, , word] = VERDICTS[status];
      numbers.set("dc", kwh(totalDcDelivery), "kWh");
      numbers.set("efficiency", percent(efficiencyRatio), "%", `${uncertainty ? `± ${fixed(100 * uncertainty, 1)}; ` : ""}${word}; ${count(coverage.paired)} minutes paired`, state);
      numbers.set("loss", coverage.paired ? kwh(energyLossKwh) : "–", "kWh", coverage.paired ? `of ${kwh(totalAcConsumption)} kWh AC, paired${costing(lossCost, currency)}` : "");
      numbers.set("soc", fixed(avgSoc, 1), "%", avgSoc == null ? "" : "of the range");
      numbers.set("temperature", fixed(avgBatteryTemp, 1), "°C", avgBatteryTemp == null ? "" : "of the range");
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.message === TOO_LONG) numbers.set("dc", kwh(delivered), "kWh");
      else numbers.set("dc", "–");
      for (const key of ["loss", "soc", "temperature"]) numbers.set(key, "–");
      numbers.set("efficiency", "–", "", error.code === "no_charging_data" ? "No charging data in this range." : error.message);
    }
  }

  async function showMinutes(now, signal) {
    try {
      if (now.to - now.from > PAIRED_SECONDS) throw new Error(TOO_LONG);
      const [from, to] = [now.from, now.to].map((end) => iso(60 * Math.floor(end / 60)));
      const { columns } = await ask(`${device(kind, id)}/coverage`, { from, to }, signal);
      minutes.draw({ from: now.from, to: now.to, columns });
    } catch (error) {
      if (error.name !== "AbortError") minutes.fail(error.message);
    }
  }

  // Shows the meters that the latest readings name, those of the hour that ends with the last bucket.
  async function showNamed(signal) {
    if (!latest) return named.replaceChildren();
    try {
      const readings = await lines(`${device(kind, id)}/readings`, { from: iso(latest - 3600), to: iso(latest) }, signal);
      const meters = [...new Set(readings.map(({ meterId }) => meterId).filter(Boolean))];
      named.replaceChildren(...(meters.length ? ["Its latest readings name ", ...meters.flatMap((meter, i) => [i ? ", " : "", el("a", { href: link("meter", meter) }, meter)]), "."] : []));
    } catch (error) {
      if (error.name !== "AbortError") named.replaceChildren();
    }
  }

  async function showMappings(signal) {
    try {
      const all = (await ask("ingestion/mapping", { [`${kind}Id`]: id }, signal)).reverse();
      const other = isVehicle ? "meter" : "vehicle";
      const rows = all.map(({ validFrom, validTo, ...ids }) =>
        el("tr", {}, el("th", { scope: "row" }, el("a", { href: link(other, ids[`${other}Id`]) }, ids[`${other}Id`])), el("td", {}, validFrom ? moment(validFrom) : "ever"), el("td", {}, validTo ? moment(validTo) : "now")),
      );
      const head = el("tr", {}, [isVehicle ? "Meter" : "Vehicle", "From", "To"].map((name) => el("th", { scope: "col" }, name)));
      history.replaceChildren(
        all.length ? el("table", {}, el("caption", { class: "visually-hidden" }, "Mapping history, newest first"), el("thead", {}, head), el("tbody", {}, rows)) : el("p", { class: "note" }, isVehicle ? "No mapping." : "No vehicle is mapped to this meter; vehicles that name it in their readings need no mapping."),
      );
    } catch (error) {
      if (error.name === "AbortError") return;
      history.replaceChildren(el("p", { class: "note" }, `The mappings could not be loaded. ${error.message}`));
    }
  }

  const onStates = ({ detail }) => {
    const state = detail.find(({ vehicleId }) => isVehicle && vehicleId === id);
    if (!state) return;
    hasState = true;
    if (range().name && !asking) load();
    seen.replaceChildren(...seenAt(state.lastUpdated, state.soc));
  };
  const again = () => {
    if (connection.state === "live" && range().name) load();
    else timer = setTimeout(again, AGAIN_MS);
  };
  const all = () => {
    restAt = 0;
    load();
  };
  const update = () => {
    alerts.update();
    isShown = false;
    all();
  };
  live.addEventListener("again", all);
  live.addEventListener("states", onStates);
  all();
  return {
    update,
    leave() {
      asking?.abort();
      asking = null;
      clearTimeout(timer);
      live.removeEventListener("again", all);
      live.removeEventListener("states", onStates);
      [...Object.values(charts), alerts].forEach((part) => part.leave());
    },
  };
}

const iso = (seconds) => new Date(1000 * seconds).toISOString();

const seenAt = (instant, soc) => ["Last seen ", age(instant), soc == null ? "" : `, charge ${fixed(soc, 1)} %`];

// A series tells no more: the last reading of an hour or a day is somewhere in it.
function lastSeen({ t, avgSoc }, bucket, { name }) {
  if (!t.length) return ["No readings in this range"];
  const last = t.at(-1);
  if (bucket === "1m" && name) return seenAt(iso(last), avgSoc?.at(-1));
  const of = name ? "Last seen" : "Last reading of this range";
  return [bucket === "1m" ? `${of} ${moment(1000 * last)}` : `${of} within the ${PER[bucket]} from ${moment(1000 * last)}`];
}

function mean(columns, name) {
  const known = columns[name].map((value, i) => [value, columns.readings[i]]).filter(([value]) => value != null);
  const weight = sum(known.map(([, readings]) => readings));
  return weight ? fixed(sum(known.map(([value, readings]) => value * readings)) / weight, 1) : "–";
}

function extremes(columns, name) {
  const least = columns[`min${name}`].filter((value) => value != null);
  const most = columns[`max${name}`].filter((value) => value != null);
  return least.length ? [least.reduce((a, b) => Math.min(a, b)), most.reduce((a, b) => Math.max(a, b))] : [null, null];
}

function around(values, margin) {
  const known = values.filter((value) => value != null);
  if (!known.length) return {};
  return { yMin: known.reduce((a, b) => Math.min(a, b)) - margin, yMax: known.reduce((a, b) => Math.max(a, b)) + margin };
}

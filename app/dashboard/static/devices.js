// The list of vehicles or meters, with search, sorting, latest states and efficiencies of the last 24 hours.

import { ask } from "./api.js";
import { el, setText } from "./dom.js";
import { ago, count, fixed, percent } from "./format.js";
import { live } from "./live.js";
import { change, link, read } from "./state.js";
import { virtualTable } from "./table.js";
import { VERDICTS, verdict } from "./verdict.js";

const AGAIN_MS = 60_000;
const AGO_MS = 1_000;
const UNJUDGED_MS = 5_000;
const WORST_FIRST = "efficiency";

// The service counts reporting devices by the same limit.
export const SILENT_MINUTES = 10;
const isSilent = ({ lastUpdated }) => Date.now() - Date.parse(lastUpdated) > SILENT_MINUTES * 60_000;
const silent = (text) => el("span", { class: "verdict", "data-state": "warn" }, el("span", { "aria-hidden": "true" }, "○"), ` ${text}`);

const SEEN = { key: "seen", name: "Last seen", numeric: true, value: (row) => Date.parse(row.lastUpdated), cell: (row) => (isSilent(row) ? silent(ago(row.lastUpdated)) : ago(row.lastUpdated)) };
const EFFICIENCY = [
  { key: "efficiency", name: "Efficiency, 24 h", hint: "Of the last 24 whole hours", numeric: true, value: (row) => (row.status === "insufficient_data" ? null : row.efficiency), cell: (row) => efficient(row) },
  { key: "status", name: "Status", wide: true, value: (row) => row.status, cell: (row) => (isSilent(row) ? silent("silent") : verdict(row.status)) },
];

function efficient({ efficiency, status }) {
  if (efficiency == null) return "–";
  const [state, shape] = VERDICTS[status] ?? VERDICTS.no_meter;
  return el("span", { class: "verdict", "data-state": state }, el("span", { class: "narrow", "aria-hidden": "true" }, `${shape} `), `${percent(efficiency)} %`);
}

const lastReading = (register, energy) => (register == null ? `${fixed(energy, 4)} kWh` : `at ${fixed(register, 1)} kWh`);

const COLUMNS = {
  vehicle: [
    { key: "soc", name: "Charge", numeric: true, value: (row) => row.soc, cell: (row) => (row.soc == null ? "–" : `${fixed(row.soc, 1)} %`) },
    { key: "temperature", name: "Battery", numeric: true, wide: true, value: (row) => row.batteryTemp, cell: (row) => (row.batteryTemp == null ? "–" : `${fixed(row.batteryTemp, 1)} °C`) },
    { key: "energy", name: "Last reading", numeric: true, wide: true, value: (row) => row.kwhRegisterDc ?? row.kwhDeliveredDc, cell: (row) => lastReading(row.kwhRegisterDc, row.kwhDeliveredDc) },
  ],
  meter: [
    { key: "voltage", name: "Voltage", numeric: true, value: (row) => row.voltage, cell: (row) => (row.voltage == null ? "–" : `${fixed(row.voltage, 1)} V`) },
    { key: "energy", name: "Last reading", numeric: true, wide: true, value: (row) => row.kwhRegisterAc ?? row.kwhConsumedAc, cell: (row) => lastReading(row.kwhRegisterAc, row.kwhConsumedAc) },
  ],
};

function columnsOf(kind) {
  const name = { key: "id", name: kind === "vehicle" ? "Vehicle" : "Meter", value: (row) => row.id, cell: (row) => el("a", { href: link(kind, row.id) }, row.id) };
  return [name, ...EFFICIENCY, ...COLUMNS[kind], SEEN];
}

const order = new Intl.Collator("en", { numeric: true });

function compare(a, b) {
  if (a == null || b == null || Number.isNaN(a) || Number.isNaN(b)) return 0;
  return typeof a === "string" ? order.compare(a, b) : a - b;
}

const missing = (value) => value == null || Number.isNaN(value);

export function devicesPanel(kind) {
  const columns = columnsOf(kind);
  const rows = new Map();
  let isJudged = true;
  let soon;
  const note = el("p", { class: "note", role: "status" }, "Loading");
  const table = virtualTable(kind === "vehicle" ? "Vehicles" : "Meters", columns, (key) => {
    const { by, descending } = sorting();
    const turned = by === key ? !descending : false;
    change({ sort: turned ? `-${key}` : key }, { replace: true });
    table.top();
    arrange();
  });
  const stopObserving = table.observe();
  const leaving = new AbortController();

  function sorting() {
    const wanted = read().parameters.get("sort") ?? WORST_FIRST;
    const by = wanted.replace(/^-/, "");
    return columns.some(({ key }) => key === by) ? { by, descending: wanted.startsWith("-") } : { by: WORST_FIRST, descending: false };
  }

  function arrange() {
    const search = (read().parameters.get("q") ?? "").trim().toLowerCase();
    const { by, descending } = sorting();
    const { value } = columns.find(({ key }) => key === by);
    const onlySilent = read().parameters.has("silent");
    const found = [...rows.values()].filter((row) => [row.id, row.site ?? ""].some((text) => text.toLowerCase().includes(search)) && !(onlySilent && !isSilent(row)));
    found.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (missing(x) !== missing(y)) return missing(x) ? 1 : -1; // missing values come last in either order
      return (descending ? -1 : 1) * compare(x, y) || order.compare(a.id, b.id);
    });
    table.show(found, { by, descending });
    const all = search || onlySilent ? `${count(found.length)} of ${count(rows.size)}` : count(rows.size);
    const words = onlySilent ? " silent; devices that have never reported are not listed" : isJudged ? "" : "; no efficiency has been judged yet";
    setText(note, `${all}${words}`);
  }

  function take(states) {
    let isNew = false;
    for (const state of states) {
      const id = state[`${kind}Id`];
      const row = rows.get(id);
      if (row) Object.assign(row, state);
      else {
        rows.set(id, { id, ...state });
        isNew = true;
      }
    }
    return isNew;
  }

  async function load() {
    try {
      const states = await ask(`analytics/${kind}s/states`, {}, leaving.signal);
      const known = new Set(states.map((state) => state[`${kind}Id`]));
      for (const id of rows.keys()) if (!known.has(id)) rows.delete(id);
      take(states);
      arrange();
      table.refresh();
      loadEfficiency();
    } catch (error) {
      if (error.name !== "AbortError") setText(note, `The list could not be loaded. ${error.message}`);
    }
  }

  async function loadEfficiency() {
    try {
      const { asOf, ranking } = await ask("analytics/efficiency", { by: kind, worst: 100_000 }, leaving.signal);
      isJudged = asOf !== null;
      clearTimeout(soon);
      if (!isJudged) soon = setTimeout(loadEfficiency, UNJUDGED_MS);
      const of = new Map(ranking.map((one) => [one.id, one]));
      for (const row of rows.values()) {
        const { efficiencyRatio = null, status = null } = of.get(row.id) ?? {};
        Object.assign(row, { efficiency: efficiencyRatio, status });
      }
      arrange();
      table.refresh();
    } catch (error) {
      if (error.name !== "AbortError") setText(note, `The efficiencies could not be loaded. ${error.message}`);
    }
  }

  const onStates = ({ detail }) => {
    if (kind !== "vehicle") return;
    if (take(detail)) arrange();
    table.refresh();
  };
  live.addEventListener("states", onStates);
  live.addEventListener("again", load);
  const timers = [setInterval(load, AGAIN_MS), setInterval(() => table.refresh(), AGO_MS)];
  load();
  return {
    element: table.element,
    note,
    update: arrange,
    leave() {
      leaving.abort();
      stopObserving();
      live.removeEventListener("states", onStates);
      live.removeEventListener("again", load);
      clearTimeout(soon);
      timers.forEach(clearInterval);
    },
  };
}

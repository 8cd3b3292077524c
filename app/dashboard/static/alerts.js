// Alerts, newest first, each with the numbers that it rests on.

import { ask } from "./api.js";
import { el } from "./dom.js";
import { age, count, fixed, kwh, moment, percent } from "./format.js";
import { live } from "./live.js";
import { link } from "./state.js";

const SHOWN = 50;
const KINDS = {
  low_efficiency: ["warn", "▼", "Low efficiency"],
  impossible_efficiency: ["bad", "▲", "Impossible efficiency"],
  frozen_meter: ["bad", "■", "Frozen meter"],
  frozen_vehicle: ["bad", "■", "Frozen vehicle"],
  no_data: ["warn", "○", "No data"],
};

// efficiencyRatio -> "Efficiency", "85.1 %": the unit is the last word of the name.
function evidenceOf([name, value]) {
  const words = name.replace(/([A-Z])/g, " $1").toLowerCase().split(" ");
  const unit = words.at(-1);
  const plain = words.slice(0, -1).join(" ");
  const title = (text) => text.charAt(0).toUpperCase() + text.slice(1).replace(/^(Ac|Dc|ac|dc)\b/, (code) => code.toUpperCase());
  if (unit === "ratio") return [title(plain), `${percent(value)} %`];
  if (unit === "kwh") return [title(plain).replace(/^(Ac|Dc)/, (code) => code.toUpperCase()), `${kwh(value)} kWh`];
  if (unit === "minutes") return [title(plain || "minutes"), `${count(value)} min`];
  if (typeof value === "string" && /^\d{4}-\d\d-\d\dT/.test(value)) return [title(words.join(" ")), moment(value)];
  if (typeof value === "number") return [title(words.join(" ")), fixed(value, Number.isInteger(value) ? 0 : 3)];
  return [title(words.join(" ")), Array.isArray(value) ? value.join(", ") : String(value ?? "–")];
}

const ORDER = ["efficiencyRatio", "acKwh", "dcKwh", "lossKwh", "minutes", "pairedMinutes", "sharedMinutes"];

// The numbers in this order, then what else there is.
function ordered(evidence) {
  const place = ([name]) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length + ["from", "to"].indexOf(name));
  return Object.entries(evidence).sort((a, b) => place(a) - place(b));
}

function item({ kind, stream, deviceId, meterIds, vehicleIds, openedAt, closedAt, text, evidence }) {
  const [state, shape, name] = KINDS[kind] ?? ["warn", "●", kind];
  const when = closedAt ? el("span", {}, "closed ", age(closedAt)) : "open";
  const numbers = ordered(evidence).map(evidenceOf);
  const other = stream === "meter" ? "vehicle" : "meter";
  const others = stream === "meter" ? vehicleIds : meterIds;
  return el(
    "li",
    { class: "alert", "data-state": closedAt ? "none" : state },
    el("p", { class: "head" }, el("strong", {}, el("span", { "aria-hidden": "true" }, shape), ` ${name}`), el("span", { class: "when" }, age(openedAt), " · ", when)),
    el("p", {}, el("a", { href: link(stream, deviceId) }, deviceId), others.map((id, i) => [i ? ", " : stream === "meter" ? " with " : " at ", el("a", { href: link(other, id) }, id)])),
    el("p", { class: "text" }, text),
    numbers.length ? el("dl", { class: "evidence" }, numbers.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value)))) : null,
  );
}

export function alertsPanel(parameters = {}) {
  const list = el("ol", { class: "alerts" });
  const note = el("p", { class: "note" }, "Loading");
  const box = el("input", { type: "checkbox", id: "closed", onchange: load });
  const switched = el("label", { class: "switch", for: "closed" }, box, " closed ones too");
  const scroll = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Alerts, newest first" }, list);
  const element = el("section", { class: "card panel alerts-panel", "aria-labelledby": "alerts-title" }, el("div", { class: "title" }, el("h2", { id: "alerts-title" }, "Alerts"), switched), note, scroll);

  let asking = null;

  async function load() {
    asking?.abort();
    asking = new AbortController();
    try {
      const open = box.checked ? null : true;
      const { alerts } = await ask("analytics/alerts", { ...parameters, open, limit: SHOWN }, asking.signal);
      list.replaceChildren(...alerts.map(item));
      const closed = box.checked ? "" : " open";
      note.textContent = alerts.length === 0 ? `There are no${closed} alerts.` : alerts.length === SHOWN ? `The newest ${SHOWN}${closed} alerts.` : "";
      note.hidden = !note.textContent;
      scroll.hidden = alerts.length === 0;
    } catch (error) {
      if (error.name === "AbortError") return;
      note.hidden = false;
      note.textContent = `The alerts could not be loaded. ${error.message}`;
    }
  }

  live.addEventListener("alerts", load);
  live.addEventListener("again", load);
  load();
  return {
    element,
    leave() {
      asking?.abort();
      live.removeEventListener("alerts", load);
      live.removeEventListener("again", load);
    },
  };
}

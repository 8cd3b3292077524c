// Alerts by their loss to date, each with the numbers that it rests on and those since it opened.

import { ask } from "./api.js";
import { el } from "./dom.js";
import { age, costing, count, fixed, moment, percent } from "./format.js";
import { live } from "./live.js";
import { change, link, read } from "./state.js";

const SHOWN = 50;
const AGAIN_MS = 60_000;
const UNJUDGED_MS = 5_000;
const KINDS = {
  low_efficiency: ["warn", "▼", "Low efficiency"],
  impossible_efficiency: ["bad", "▲", "Impossible efficiency"],
  frozen_meter: ["bad", "■", "Frozen meter"],
  frozen_vehicle: ["bad", "■", "Frozen vehicle"],
  no_data: ["warn", "○", "No data"],
  implausible_energy: ["bad", "◆", "Implausible energy"],
};

const INSTANT = /\d{4}-\d\d-\d\dT[\d:.]+Z/;

// lossKwh -> "Loss", "5.162 kWh": the unit is the last word of the name.
function evidenceOf([name, value]) {
  const words = name.replace(/([A-Z])/g, " $1").toLowerCase().split(" ");
  const unit = words.at(-1);
  const plain = words.slice(0, -1).join(" ");
  const title = (text) => text.charAt(0).toUpperCase() + text.slice(1).replace(/^(Ac|Dc|ac|dc)\b/, (code) => code.toUpperCase());
  if (unit === "kwh") return [title(plain).replace(/^(Ac|Dc)/, (code) => code.toUpperCase()), `${fixed(value, 3)} kWh`];
  if (unit === "kw") return [title(plain), `${fixed(value, 1)} kW`];
  if (unit === "minutes") return [title(plain || "minutes"), `${count(value)} min`];
  if (typeof value === "string" && INSTANT.test(value)) return [title(words.join(" ")), moment(value)];
  if (typeof value === "number") return [title(words.join(" ")), fixed(value, Number.isInteger(value) ? 0 : 3)];
  return [title(words.join(" ")), Array.isArray(value) ? value.join(", ") : String(value ?? "–")];
}

const ORDER = ["acKwh", "dcKwh", "lossKwh", "minutes", "pairedMinutes", "sharedMinutes"];

// The numbers come in this order, then all other evidence, without zeros and without the ratio and the looks, which are
// in the sentence.
function ordered({ from, to, efficiencyRatio, looksLike, ...evidence }) {
  const place = ([name]) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
  return Object.entries(evidence).filter(([, value]) => value !== 0).sort((a, b) => place(a) - place(b));
}

// The efficiency is in the sentence of an alert only as of its opening.
function since({ acKwh, dcKwh, lossKwh, efficiencyRatio }, lossToDateKwh, lossToDateCost, currency) {
  const energies = Object.entries({ acKwh, dcKwh, lossKwh }).map(evidenceOf);
  const together = ["Loss to date, with that before it opened", `${fixed(lossToDateKwh, 3)} kWh${costing(lossToDateCost, currency)}`];
  return [...energies, ["Efficiency", efficiencyRatio == null ? "–" : `${percent(efficiencyRatio)} %`], together];
}

function numbered(heading, numbers) {
  if (!numbers.length) return null;
  return [
    el("p", { class: "opening" }, heading),
    el("dl", { class: "evidence" }, numbers.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value)))),
  ];
}

function item(currency, { kind, stream, deviceId, meterIds, vehicleIds, openedAt, closedAt, text, evidence, current, lossToDateKwh, lossToDateCost, acknowledged }) {
  const [state, shape, name] = KINDS[kind] ?? ["warn", "●", kind];
  const when = closedAt ? el("span", {}, "closed ", age(closedAt)) : "open";
  const opening = `When it opened${evidence.from ? `, since ${moment(evidence.from)}` : ""}`;
  const other = stream === "meter" ? "vehicle" : "meter";
  const others = stream === "meter" ? vehicleIds : meterIds;
  return el(
    "li",
    { class: "alert", "data-state": closedAt ? "none" : state },
    el("p", { class: "head" }, el("strong", {}, el("span", { "aria-hidden": "true" }, shape), ` ${name}`), el("span", { class: "when" }, age(openedAt), " · ", when)),
    el("p", {}, el("a", { href: link(stream, deviceId) }, deviceId), others.map((id, i) => [i ? ", " : stream === "meter" ? " with " : " at ", el("a", { href: link(other, id) }, id)])),
    acknowledged ? el("p", { class: "acknowledged" }, "✓ Acknowledged by ", el("strong", {}, acknowledged.by), " ", age(acknowledged.at), `: ${acknowledged.reason}`) : null,
    el("p", { class: "text" }, text.replace(INSTANT, moment)),
    numbered(`${opening}:`, ordered(evidence).map(evidenceOf)),
    numbered(`Since it opened, ${closedAt ? "until it closed" : "up to the last judged hour"}:`, current ? since(current, lossToDateKwh, lossToDateCost, currency) : []),
  );
}

const wantsClosed = () => read().parameters.has("closed");

export function alertsPanel(parameters = {}) {
  const list = el("ol", { class: "alerts" });
  const note = el("p", { class: "note" }, "Loading");
  const box = el("input", { type: "checkbox", id: "closed", onchange: () => change({ closed: box.checked ? "1" : null }) });
  const switched = el("label", { class: "switch", for: "closed" }, box, " closed alerts too");
  const amount = el("span", { class: "note" });
  const beyond = el("a", { class: "skip", href: "#", onclick: pass }, "Skip the alerts");
  const scroll = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Alerts, those with the largest loss first" }, list);
  const element = el("section", { class: "card panel alerts-panel", "aria-labelledby": "alerts-title" }, el("div", { class: "title" }, el("h2", { id: "alerts-title" }, "Alerts", amount), switched, beyond), note, scroll);

  let asking = null;
  let timer;
  let withClosed = false;
  let shown = ""; // an unchanged list stays, so that it keeps the keyboard's focus

  // Moves the focus past the alerts: each of them has links to stop at.
  function pass(event) {
    event.preventDefault(); // the hash names the view
    const next = element.nextElementSibling?.querySelector("button, input, a, [tabindex]");
    (next ?? document.querySelector(".foot a")).focus();
  }

  async function load() {
    asking?.abort();
    clearTimeout(timer);
    const mine = (asking = new AbortController());
    let wait = AGAIN_MS;
    try {
      withClosed = box.checked = wantsClosed();
      const open = withClosed ? null : true;
      const { asOf, currency, alerts } = await ask("analytics/alerts", { ...parameters, open, limit: SHOWN }, mine.signal);
      if (!asOf) wait = UNJUDGED_MS;
      const next = JSON.stringify(alerts);
      if (shown !== next) list.replaceChildren(...alerts.map((one) => item(currency, one)));
      shown = next;
      const closed = withClosed ? "" : " open";
      const still = alerts.filter(({ closedAt }) => !closedAt).length;
      amount.textContent = still ? ` ${count(still)}${alerts.length === SHOWN ? " or more" : ""} open` : "";
      const none = asOf ? `There are no${closed} alerts.` : "Nothing has been judged yet.";
      note.textContent = alerts.length === 0 ? none : alerts.length === SHOWN ? `The ${SHOWN}${closed} alerts with the largest loss to date.` : "";
      note.hidden = !note.textContent;
      scroll.hidden = alerts.length === 0;
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.code === "unknown_device") {
        element.hidden = true; // the page says so already
        return;
      }
      note.hidden = false;
      note.textContent = `The alerts could not be loaded. ${error.message}`;
    }
    if (asking === mine) timer = setTimeout(load, wait);
  }

  live.addEventListener("alerts", load);
  live.addEventListener("again", load);
  load();
  return {
    element,
    update: () => wantsClosed() !== withClosed && load(),
    leave() {
      asking?.abort();
      asking = null;
      clearTimeout(timer);
      live.removeEventListener("alerts", load);
      live.removeEventListener("again", load);
    },
  };
}

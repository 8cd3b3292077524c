// The status of an efficiency is a word and a shape, not only a colour.

import { el } from "./dom.js";

export const VERDICTS = {
  ok: ["ok", "●", "ok"],
  low_efficiency: ["warn", "▼", "low"],
  impossible: ["bad", "▲", "impossible"],
  insufficient_data: ["none", "○", "little data"],
  no_meter: ["none", "○", "no meter"],
};

export function verdict(status) {
  if (!status) return "–";
  const [state, shape, word] = VERDICTS[status] ?? ["none", "○", status];
  return el("span", { class: "verdict", "data-state": state }, el("span", { "aria-hidden": "true" }, shape), ` ${word}`);
}

// "2 min ago", kept true: one timer for all of them.

import { el, setText } from "./dom.js";
import { ago, moment } from "./format.js";

export function since(instant) {
  return el("time", { datetime: instant, title: moment(instant), "data-since": true }, ago(instant));
}

setInterval(() => {
  for (const time of document.querySelectorAll("time[data-since]")) setText(time, ago(time.dateTime));
}, 1_000);

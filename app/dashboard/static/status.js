// The header's light, and the banner when something is wrong, so that no number stands without a word on its age.

import { setText } from "./dom.js";
import { clock, duration } from "./format.js";
import { connection, live } from "./live.js";

const BEHIND_SECONDS = 180;
const status = document.getElementById("status");
const text = document.getElementById("status-text");
const banner = document.getElementById("banner");

function show(state, word, sentence = "") {
  status.dataset.state = state;
  setText(text, word);
  banner.dataset.state = state;
  setText(banner, sentence);
  banner.hidden = !sentence;
}

export function update() {
  const { state, since, fleet, problem } = connection;
  if (state === "connecting") show("wait", "Connecting");
  else if (state === "lost") {
    show("bad", "Disconnected", `Disconnected since ${clock(since, true)}: this page does not change until the service answers again.`);
  } else if (state === "problem") show("bad", "No data", `The service answers, but its database does not: ${problem.detail}`);
  else if (fleet.lagSeconds == null) show("wait", "Live, freshness unknown");
  else if (fleet.lagSeconds > BEHIND_SECONDS) {
    const since = clock(fleet.asOf, true);
    show("warn", `Behind ${duration(fleet.lagSeconds)}`, `The sums are ${duration(fleet.lagSeconds)} behind: readings stored since ${since} may be missing.`);
  } else show("ok", "Live");
}

export function watchStatus() {
  live.addEventListener("connection", update);
  update();
}

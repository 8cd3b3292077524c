// The controls of the range: presets, two times, and zooming without a mouse.

import { el, setText } from "./dom.js";
import { moment } from "./format.js";
import { MAX_SECONDS, RANGES, choose, fault, range, show, zoom } from "./state.js";

const NAMES = { "1h": "1 hour", "24h": "24 hours", "7d": "7 days" };

const localInput = (seconds) => {
  const offset = new Date(1000 * seconds).getTimezoneOffset() * 60;
  return new Date(1000 * (seconds - offset)).toISOString().slice(0, 16);
};

// A click elsewhere, and Esc, close an open form.
addEventListener("click", ({ target }) => {
  const open = document.querySelector(".custom[open]");
  if (open && !open.contains(target)) open.open = false;
});
addEventListener("keydown", ({ key }) => {
  const open = document.querySelector(".custom[open]");
  if (key !== "Escape" || !open) return;
  open.open = false;
  open.firstChild.focus();
});

export function rangeControls() {
  const presets = Object.keys(RANGES).map((name) =>
    el("button", { type: "button", "data-range": name, onclick: () => choose(name) }, NAMES[name]),
  );
  const from = el("input", { type: "datetime-local", "aria-label": "From", required: true });
  const to = el("input", { type: "datetime-local", "aria-label": "To", required: true });
  const wrong = el("span", { role: "alert", class: "wrong" });
  const submit = (event) => {
    event.preventDefault();
    const ends = [from, to].map((input) => new Date(input.value).getTime() / 1000);
    setText(wrong, fault(...ends));
    if (!wrong.textContent) show(...ends);
  };
  const form = el("form", { onsubmit: submit }, from, el("span", { "aria-hidden": "true" }, "–"), to, el("button", { type: "submit" }, "Show"), wrong);
  const custom = el("details", { class: "custom" }, el("summary", {}, "Choose"), form);
  const step = (label, sign, action) =>
    el("button", { type: "button", class: "step", "aria-label": label, title: label, onclick: () => action(range()) }, sign);
  const steps = [
    step("Earlier", "←", ({ from, to }) => zoom(from - (to - from) / 2, to - (to - from) / 2)),
    step("Later", "→", ({ from, to }) => zoom(from + (to - from) / 2, to + (to - from) / 2)),
    step("Zoom in", "+", ({ from, to }) => zoom(from + (to - from) / 4, to - (to - from) / 4)),
    step("Zoom out", "−", ({ from, to }) => zoom(from - (to - from) / 2, to + (to - from) / 2)),
  ];
  const shown = el("span", { class: "shown" });
  const refused = el("span", { class: "wrong", role: "alert" });
  const element = el("div", { class: "controls", role: "group", "aria-label": "Time range" }, el("div", { class: "segments" }, presets, custom), el("div", { class: "segments" }, steps), shown, refused);
  function update() {
    const now = range();
    for (const preset of presets) preset.setAttribute("aria-pressed", preset.dataset.range === now.name);
    custom.classList.toggle("chosen", now.name === null);
    setText(refused, now.wrong && `${now.wrong} These are the last ${NAMES[now.name]}.`);
    steps[1].disabled = now.to >= Date.now() / 1000 - 1;
    steps[3].disabled = now.to - now.from >= MAX_SECONDS;
    const [start, end] = [now.from, now.to].map((end) => moment(1000 * end));
    setText(shown, `${start} – ${now.name ? "now" : start.includes(",") && !end.includes(",") ? `today, ${end}` : end}`);
    if (!custom.open) {
      from.value = localInput(now.from);
      to.value = localInput(now.to);
    }
  }
  update();
  return { element, update };
}

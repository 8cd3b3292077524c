// The numbers at the top: each has a name, a number, its unit, and its meaning.

import { el, setText } from "./dom.js";

export function figures(label, names) {
  const tiles = Object.fromEntries(
    Object.entries(names).map(([key, name]) => {
      const value = el("span", { class: "value", "data-figure": key }, "–");
      const unit = el("span", { class: "unit" });
      const note = el("dd", { class: "note" });
      return [key, { value, unit, note, tile: el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, value, " ", unit), note) }];
    }),
  );
  return {
    element: el("dl", { class: "tiles", "data-count": Object.keys(names).length, "aria-label": label }, Object.values(tiles).map(({ tile }) => tile)),
    set(key, value, unit = "", note = "", state = "") {
      const tile = tiles[key];
      setText(tile.value, value);
      setText(tile.unit, value === "–" ? "" : unit);
      if (typeof note === "string") setText(tile.note, note);
      else if (note.parentNode !== tile.note) tile.note.replaceChildren(note);
      tile.tile.dataset.state = state;
    },
  };
}

// A table of thousands of devices; only the rows in sight are in the document.

import { el, setText } from "./dom.js";

const ROW_PX = 37;
const BEYOND = 12;

// Columns: {key, name, numeric?, hint?, cell(row) -> text or element}. Rows are objects with an `id`.
export function virtualTable(caption, columns, onSort) {
  const top = el("tr", { class: "space", "aria-hidden": "true" }, el("td"));
  const bottom = el("tr", { class: "space", "aria-hidden": "true" }, el("td"));
  const heads = columns.map(({ key, name, hint, numeric, wide }) =>
    el(
      "th",
      { scope: "col", class: [numeric && "numeric", wide && "wide"].filter(Boolean).join(" ") || null, "data-key": key },
      el("button", { type: "button", title: hint, onclick: () => onSort(key) }, el("span", {}, name), el("span", { class: "arrow", "aria-hidden": "true" })),
    ),
  );
  const body = el("tbody", {}, top, bottom);
  const table = el("table", { class: "devices" }, el("caption", { class: "visually-hidden" }, caption), el("thead", {}, el("tr", { "aria-rowindex": 1 }, heads)), body);
  const element = el("div", { class: "scroll rows", tabindex: "0", role: "region", "aria-label": caption, onscroll: () => plan() }, table);
  const inSight = new Map();
  let rows = [];
  let planned = false;

  function plan() {
    if (planned) return;
    planned = true;
    requestAnimationFrame(() => {
      planned = false;
      render();
    });
  }

  function render() {
    const first = Math.max(0, Math.floor(element.scrollTop / ROW_PX) - BEYOND);
    const last = Math.min(rows.length, Math.ceil((element.scrollTop + element.clientHeight) / ROW_PX) + BEYOND);
    const wanted = new Set(rows.slice(first, last));
    for (const [row, line] of inSight) {
      if (!wanted.has(row)) {
        line.remove();
        inSight.delete(row);
      }
    }
    top.firstChild.style.height = `${first * ROW_PX}px`;
    bottom.firstChild.style.height = `${(rows.length - last) * ROW_PX}px`;
    let before = top;
    for (let i = first; i < last; i++) {
      const line = inSight.get(rows[i]) ?? make(rows[i]);
      line.setAttribute("aria-rowindex", i + 2);
      if (before.nextSibling !== line) before.after(line);
      before = line;
    }
  }

  function make(row) {
    const line = el("tr", { "data-id": row.id }, columns.map(({ key, numeric, wide }, i) => {
      const classes = { class: [numeric && "numeric", wide && "wide"].filter(Boolean).join(" ") || null, "data-key": key };
      return i === 0 ? el("th", { scope: "row", ...classes }) : el("td", classes);
    }));
    inSight.set(row, line);
    fill(row, line);
    return line;
  }

  function fill(row, line) {
    columns.forEach(({ cell }, i) => {
      const content = cell(row);
      const place = line.children[i];
      if (typeof content === "string") {
        setText(place, content);
        delete place.dataset.shown;
      } else if (place.dataset.shown !== content.textContent) {
        place.replaceChildren(content);
        place.dataset.shown = content.textContent;
      }
    });
  }

  return {
    element,
    // The rows come in this order.
    show(next, { by, descending }) {
      rows = next;
      table.setAttribute("aria-rowcount", rows.length + 1);
      heads.forEach((head) => {
        const sorted = head.dataset.key === by;
        if (sorted) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
      render();
    },
    // Values have changed, but not the order.
    refresh() {
      for (const [row, line] of inSight) fill(row, line);
    },
    top() {
      element.scrollTop = 0;
    },
    observe: () => {
      const observer = new ResizeObserver(plan);
      observer.observe(element);
      return () => observer.disconnect();
    },
  };
}

// The policies as they are in force, with the runs of their jobs. One that is not as in the file is marked.

import { el } from "./dom.js";
import { age, count, until } from "./format.js";

const FILE = "timescale/policies.toml";
const KINDS = { chunk_interval: "chunks", refresh: "refresh", columnstore: "compress", retention: "keep" };

export const differs = ({ desired, live }) => desired !== live;
export const failed = ({ lastStatus }) => lastStatus === "failed";

export function policiesPanel() {
  const note = el("p", { class: "note", role: "status" });
  const table = el("table", { class: "storage policies" });
  const element = el(
    "section",
    { class: "card panel", "aria-labelledby": "policies-title" },
    el("div", { class: "title" }, el("h2", { id: "policies-title" }, "Policies")),
    note,
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Policies" }, table),
  );
  return {
    element,
    show({ engine, tables }) {
      const isPlain = engine === "plain";
      const heads = ["Name", "Policy", "In force", ...(isPlain ? [] : ["Last run", "Next run"])];
      const head = heads.map((name, i) => el("th", { scope: "col", class: [1, 2].includes(i) ? null : "wide" }, name));
      const bodies = tables.filter(({ policies }) => policies.length).map((stored) => group(stored, isPlain));
      const caption = el("caption", { class: "visually-hidden" }, "Policies");
      table.replaceChildren(caption, el("thead", {}, el("tr", {}, head)), ...bodies);
      const next = el("p", {}, drift(tables), isPlain ? ON_PLAIN : ON_TIMESCALE);
      if (note.textContent !== next.textContent) note.replaceChildren(...next.childNodes);
    },
  };
}

const ON_PLAIN =
  "The service itself drops what is too old, once a minute. " +
  "Plain PostgreSQL has no columnstore: compression is not available.";
const ON_TIMESCALE = "The service itself deletes the rows of tables that have no job, once a minute.";

function drift(tables) {
  const changed = tables.flatMap(({ name, policies }) =>
    policies.filter(differs).map(({ kind }) => `${KINDS[kind]} of ${name}`),
  );
  if (!changed.length) return `All are as in ${FILE}. `;
  const which = `${count(changed.length)} not as in ${FILE}: ${changed.join(", ")}. `;
  return [which, el("code", {}, "wattline policy plan"), " shows what the file would change. "];
}

// On a phone the name stands above its policies, elsewhere beside them.
function group({ name, policies }, isPlain) {
  const above = el("tr", { class: "narrow" }, el("th", { scope: "rowgroup", colspan: 2 }, name));
  const beside = el("th", { scope: "rowgroup", class: "wide", rowspan: policies.length }, name);
  const rows = policies.map((policy, i) => {
    const state = failed(policy) ? "bad" : differs(policy) ? "warn" : null;
    return el("tr", { "data-kind": policy.kind, "data-state": state }, i ? null : beside, cells(policy, isPlain));
  });
  return el("tbody", { "data-id": name }, above, rows);
}

function cells(policy, isPlain) {
  const { kind, desired, live, lastError } = policy;
  const inForce = el(
    "td",
    { class: "force" },
    live ?? "no policy",
    differs(policy) ? marked("warn", "▲", `differs from ${FILE}: ${desired ?? "no policy"}`) : null,
    lastError && marked("bad", "■", lastError),
    ran(policy) ? el("p", { class: "narrow note" }, "last run ", lastRun(policy), ", next ", nextRun(policy)) : null,
  );
  const runs = isPlain ? [] : [lastRun(policy), nextRun(policy)].map((run) => el("td", { class: "wide" }, run));
  return [el("td", {}, KINDS[kind]), inForce, runs];
}

function marked(state, shape, words) {
  return el("p", { class: "verdict", "data-state": state }, el("span", { "aria-hidden": "true" }, shape), ` ${words}`);
}

const ran = ({ lastRun, nextRun }) => lastRun || nextRun;

function lastRun({ lastRun, lastStatus }) {
  if (!lastRun) return "–";
  return lastStatus === "success" ? age(lastRun) : [age(lastRun), `, ${lastStatus ?? "running"}`];
}

function nextRun({ nextRun }) {
  return nextRun ? until(nextRun) : "–";
}

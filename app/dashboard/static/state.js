// The URL names the view: #/fleet?range=24h&q=0042, #/vehicle/V1?from=…&to=…

export const RANGES = { "1h": 3600, "24h": 86400, "7d": 7 * 86400 };
const DEFAULT_RANGE = "24h";
const MIN_SECONDS = 300;
// A series has at most 1,500 buckets, and the widest are days.
export const MAX_SECONDS = 1498 * 86400;
// The service answers for this calendar.
const EARLIEST = Date.UTC(1900, 0, 2) / 1000;
const LATEST = Date.UTC(2199, 11, 31) / 1000;

export function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [page, ...rest] = path.split("/");
  return { page: page || "fleet", id: decoded(rest.join("/")), parameters: new URLSearchParams(query) };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function link(page, id = "", parameters = {}) {
  const kept = ["range", "from", "to"];
  const all = new URLSearchParams([...read().parameters].filter(([name]) => kept.includes(name)));
  for (const [name, value] of Object.entries(parameters)) all.set(name, value);
  const query = all.toString();
  return `#/${page}${id && "/"}${encodeURIComponent(id)}${query && "?"}${query}`;
}

// Changes some parameters. `replace`, for a search or an order that changes, adds no entry to the history.
export function change(changes, { replace = false } = {}) {
  const { page, id, parameters } = read();
  for (const [name, value] of Object.entries(changes)) {
    if (value == null || value === "") parameters.delete(name);
    else parameters.set(name, value);
  }
  const query = parameters.toString();
  const hash = `#/${page}${id && "/"}${encodeURIComponent(id)}${query && "?"}${query}`;
  if (hash === location.hash) return;
  if (replace) history.replaceState(null, "", hash);
  else location.hash = hash;
}

// The range in seconds since 1970. A named range moves along with the clock. `wrong` says what is wrong with it.
export function range() {
  const { parameters } = read();
  const now = Date.now() / 1000;
  const [from, to] = ["from", "to"].map((name) => Date.parse(parameters.get(name)) / 1000);
  const isWanted = parameters.has("from") || parameters.has("to");
  const problem = isWanted ? fault(from, to) : "";
  if (isWanted && !problem) return { name: null, from, to, wrong: "" };
  const wanted = parameters.get("range") ?? DEFAULT_RANGE;
  const isKnown = Object.hasOwn(RANGES, wanted);
  const name = isKnown ? wanted : DEFAULT_RANGE;
  const wrong = problem || (isKnown ? "" : "There is no such range.");
  return { name, from: now - RANGES[name], to: now, wrong };
}

// Returns a sentence that says why there is no such range; else an empty text.
export function fault(from, to) {
  if (!(from >= EARLIEST && to <= LATEST)) return "A range needs two times between 1900 and 2199.";
  if (to - from < 60) return "The end of a range must lie after its start.";
  return to - from > MAX_SECONDS ? `A range has at most ${Math.floor(MAX_SECONDS / 86400).toLocaleString("en")} days.` : "";
}

// Shows the range, within the limits of width and not beyond now, where there is nothing to see.
export function zoom(from, to) {
  const span = Math.min(Math.max(to - from, MIN_SECONDS), MAX_SECONDS);
  const end = Math.min((from + to + span) / 2, Math.max(Date.now() / 1000, range().to));
  const start = Math.max(end - span, EARLIEST);
  show(start, start + span);
}

export function show(from, to) {
  const iso = (seconds) => new Date(1000 * Math.round(seconds)).toISOString().replace(".000", "");
  change({ from: iso(from), to: iso(to), range: null });
}

export function choose(name) {
  change({ range: name, from: null, to: null });
}

// The view is what the URL says: #/fleet?range=24h&q=0042, #/vehicle/V1?from=…&to=…

export const RANGES = { "1h": 3600, "24h": 86400, "7d": 7 * 86400 };
const DEFAULT_RANGE = "24h";
const MIN_SECONDS = 300;
// The calendar of the service's questions.
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

// Changes some parameters; without a new entry in the history where a search or a sort goes on.
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

// The range in seconds since 1970. A named one moves along with the clock.
export function range() {
  const { parameters } = read();
  const now = Date.now() / 1000;
  const [from, to] = ["from", "to"].map((name) => Date.parse(parameters.get(name)) / 1000);
  if (from >= EARLIEST && to <= LATEST && to - from >= 60) return { name: null, from, to };
  const wanted = parameters.get("range");
  const name = Object.hasOwn(RANGES, wanted) ? wanted : DEFAULT_RANGE;
  return { name, from: now - RANGES[name], to: now };
}

export function zoom(from, to) {
  const middle = (from + to) / 2;
  const half = Math.max(to - from, MIN_SECONDS) / 2;
  const iso = (seconds) => new Date(1000 * Math.round(seconds)).toISOString().replace(".000", "");
  const ends = [Math.max(middle - half, EARLIEST), Math.min(middle + half, LATEST)];
  change({ from: iso(ends[0]), to: iso(ends[1]), range: null });
}

export function choose(name) {
  change({ range: name, from: null, to: null });
}

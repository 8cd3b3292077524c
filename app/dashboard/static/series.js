// Turns columns of buckets into lines, gaps as gaps.

export const SECONDS = { "1m": 60, "1h": 3600, "1d": 86400 };
export const PER = { "1m": "minute", "1h": "hour", "1d": "day" };
// A device that reports every two minutes has no gap; README: gaps of up to five minutes are covered.
const COVERED_SECONDS = 300;
// The energy of the hour that ends with a minute, in minutes at the greatest power of that hour.
export function energyMinutes({ t, dcKwh }, power, last) {
  let energy = 0;
  let greatest = 0;
  for (let i = last; i >= 0 && t[last] - t[i] < 3600; i--) {
    energy += dcKwh[i];
    greatest = Math.max(greatest, power[i]);
  }
  return greatest && (60 * energy) / greatest;
}

// Points of finished buckets in [from, to], with a null wherever buckets are missing.
export function line(t, values, bucket, { from, to, ofDevice }) {
  const step = SECONDS[bucket];
  const longest = ofDevice && bucket === "1m" ? COVERED_SECONDS : step;
  const finished = Math.min(Date.now() / 1000 - step, to);
  const x = [];
  const y = [];
  let last = null;
  for (let i = 0; i < t.length; i++) {
    if (values[i] == null || t[i] <= from - step || t[i] > finished) continue;
    if (last !== null && t[i] - last > longest) {
      x.push(last + step);
      y.push(null);
    }
    x.push(t[i]);
    y.push(values[i]);
    last = t[i];
  }
  return { x, y, alone: alone(y) };
}

// The points without a neighbour, which a line would not show; null when there are none.
export function alone(y) {
  const points = y.map((value, i) => (value != null && y[i - 1] == null && y[i + 1] == null ? value : null));
  return points.some((value) => value != null) ? points : null;
}

export function sum(values) {
  return values.reduce((total, value) => total + (value ?? 0), 0);
}

// Merges newer buckets into older columns, by their start.
export function merge(columns, newer) {
  const at = new Map(columns.t.map((t, i) => [t, i]));
  for (let j = 0; j < newer.t.length; j++) {
    let i = at.get(newer.t[j]);
    if (i === undefined) {
      i = columns.t.findIndex((t) => t > newer.t[j]);
      if (i === -1) i = columns.t.length;
      for (const name of Object.keys(columns)) columns[name].splice(i, 0, newer[name][j]);
    } else for (const name of Object.keys(columns)) columns[name][i] = newer[name][j];
  }
}

// Removes buckets that have left the range.
export function trim(columns, from) {
  const first = columns.t.findIndex((t) => t >= from);
  if (first > 0) for (const name of Object.keys(columns)) columns[name].splice(0, first);
}

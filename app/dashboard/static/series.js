// From columns of buckets to lines: power instead of energy, gaps as gaps.

export const SECONDS = { "1m": 60, "1h": 3600, "1d": 86400 };
export const PER = { "1m": "minute", "1h": "hour", "1d": "day" };
// A device that reports each two minutes has no gap; README: gaps of up to five minutes are covered.
const COVERED_SECONDS = 300;
const AROUND_SECONDS = 300;

// Average power in kW of each bucket.
export function power(columns, name, bucket) {
  return columns[name].map((energy) => (energy == null ? null : (energy * 3600) / SECONDS[bucket]));
}

// Of one device. A reading holds what flowed since the one before, at any second of its minute: single minutes would
// show the beat of two clocks. So in minutes it is the average over the ten around each.
export function devicePower(columns, name, bucket) {
  const energy = columns[name];
  const { t } = columns;
  if (bucket !== "1m") return power(columns, name, bucket);
  let first = 0;
  let last = 0;
  return t.map((at, i) => {
    if (i > 0 && t[i] - t[i - 1] > COVERED_SECONDS) first = last = i;
    while (at - t[first] > AROUND_SECONDS) first++;
    while (last + 1 < t.length && t[last + 1] - at <= AROUND_SECONDS && t[last + 1] - t[last] <= COVERED_SECONDS) last++;
    if (first === last) return (energy[i] * 3600) / SECONDS[bucket];
    return (sum(energy.slice(first + 1, last + 1)) * 3600) / (t[last] - t[first]);
  });
}

// The energy of the hour that ends with a minute, told in minutes at the greatest power of that hour.
export function energyMinutes({ t, dcKwh }, power, last) {
  let energy = 0;
  let greatest = 0;
  for (let i = last; i >= 0 && t[last] - t[i] < 3600; i--) {
    energy += dcKwh[i];
    greatest = Math.max(greatest, power[i]);
  }
  return (60 * energy) / greatest;
}

// Points of finished buckets in [from, to], with a null wherever buckets are missing. `alone` are the points without a
// neighbour, of which a line would show nothing.
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
  const alone = y.map((value, i) => (value != null && y[i - 1] == null && y[i + 1] == null ? value : null));
  return { x, y, alone: alone.some((value) => value != null) ? alone : null };
}

export function sum(values) {
  return values.reduce((total, value) => total + (value ?? 0), 0);
}

// Newer buckets into older columns, by their start.
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

// What has left the range.
export function trim(columns, from) {
  const first = columns.t.findIndex((t) => t >= from);
  if (first > 0) for (const name of Object.keys(columns)) columns[name].splice(0, first);
}

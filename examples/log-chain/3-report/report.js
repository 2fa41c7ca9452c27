// Prints the chain's final report. `cronium` is a global, or require('cronium'); both return plain values.
const found = cronium.input();

const rows = [
  ['requests', found.requests],
  ['clients', found.clients],
  ['delivered', `${(found.bytes / 1e6).toFixed(1)} MB`],
  ['2xx · 3xx · 4xx · 5xx', `${found.ok} · ${found.redirected} · ${found.refused} · ${found.failed}`],
  ['worst path', `${found.worst_path} (${found.worst_count} failures)`],
  ['error share', `${found.error_share} % (limit ${found.limit} %)`],
  ['verdict', found.verdict],
];
const width = Math.max(...rows.map(([name]) => name.length));
for (const [name, value] of rows) console.log(`${name.padEnd(width)}  ${value}`);

cronium.output({ report: cronium.event('name'), ...found });

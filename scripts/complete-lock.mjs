// Completes package-lock.json: npm leaves out optional packages of other platforms when the registry at hand lacks them,
// and `npm ci` then refuses the file. Adds an entry for each, and drops download addresses. Run it after `npm install`.
import { readFileSync, writeFileSync } from "node:fs";

const FILE = new URL("../package-lock.json", import.meta.url);
const SYSTEMS = {
  android: "android",
  darwin: "darwin",
  mac: "darwin",
  freebsd: "freebsd",
  linux: "linux",
  win32: "win32",
  win: "win32",
};
const PROCESSORS = ["arm64", "x64", "ia32", "riscv64", "ppc64", "s390x", "arm"];

const lock = JSON.parse(readFileSync(FILE, "utf8"));
const present = new Set(Object.keys(lock.packages).map((path) => path.split("node_modules/").pop()));
let added = 0;
for (const entry of Object.values(lock.packages)) delete entry.resolved;
for (const entry of Object.values(lock.packages)) {
  for (const [name, range] of Object.entries(entry.optionalDependencies ?? {})) {
    if (present.has(name)) continue;
    const words = name.split(/[-/]/);
    const system = words.map((word) => SYSTEMS[word]).find((word) => word);
    const processor = PROCESSORS.find((word) => words.includes(word));
    lock.packages[`node_modules/${name}`] = {
      version: range.replace(/^[^0-9]*/, ""),
      ...(entry.dev && { dev: true }),
      ...(entry.license && { license: entry.license }),
      optional: true,
      ...(system && { os: [system] }),
      ...(processor && { cpu: [processor] }),
      ...(words.includes("musl") && { libc: ["musl"] }),
    };
    present.add(name);
    added++;
  }
}
lock.packages = Object.fromEntries(Object.entries(lock.packages).sort(([a], [b]) => (a < b ? -1 : 1)));
writeFileSync(FILE, `${JSON.stringify(lock, null, 2)}\n`);
console.log(`package-lock.json: ${added} optional packages added`);

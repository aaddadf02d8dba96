// Engines in Node: lines of JSON in, lines of JSON out. onnxruntime-node runs here, every onnxruntime-web in a
// worker thread of its own, since the number of threads of a wasm module is fixed at its start.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import os from "node:os";
import { Engine, answer, oneRound } from "./engine.mjs";

const modules = process.argv[2];
const output = process.stdout.write.bind(process.stdout);
process.stdout.write = process.stderr.write.bind(process.stderr); // libraries may print; answers may not mix
console.log = console.error;

const engines = new Map();
let count = 0;

async function native(threads) {
  const ort = await import(pathToFileURL(`${modules}/onnxruntime-node/dist/index.js`).href);
  ort.env.logLevel = "error";
  const options = {
    executionProviders: ["cpu"], graphOptimizationLevel: "all", intraOpNumThreads: threads, interOpNumThreads: 1,
    logSeverityLevel: 3,
  };
  const engine = new Engine(ort, options, async (path) => path);
  return { call: (op, rest) => engine[op](rest) };
}

function wasm(threads, level = "extended") {
  const worker = new Worker(new URL("./node_worker.mjs", import.meta.url), { workerData: { modules, threads, level } });
  const waiting = new Map();
  worker.on("message", (data) => {
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    data.error === undefined ? resolve(data.value) : reject(new Error(data.error));
  });
  worker.on("error", (error) => {
    for (const { reject } of waiting.values()) reject(error);
    waiting.clear();
  });
  return {
    call: (op, rest) =>
      new Promise((resolve, reject) => {
        const id = ++count;
        waiting.set(id, { resolve, reject });
        worker.postMessage({ ...rest, id, op });
      }),
  };
}

async function call(name, op, rest) {
  if (!engines.has(name)) {
    const [kind, threads, level] = name.split("-"); // native-1, wasm-2, wasm-1-disabled
    engines.set(name, kind === "native" ? await native(Number(threads)) : wasm(Number(threads), level));
  }
  return engines.get(name).call(op, rest);
}

const host = {
  async handle({ op, engine, ...rest }) {
    if (op === "facts") {
      const cores = os.availableParallelism?.() ?? os.cpus().length; // the first is of Node 18.14
      return { node: process.version, cores, cpu: os.cpus()[0]?.model ?? "", simd: true };
    }
    if (op === "round") return oneRound(rest, call);
    return call(engine, op, rest);
  },
};

const lines = createInterface({ input: process.stdin });
lines.on("line", async (line) => {
  const message = JSON.parse(line);
  output(`${JSON.stringify(await answer({ do: (m) => host.handle(m.command) }, { ...message, op: "do" }))}\n`);
});
lines.on("close", () => process.exit(0));

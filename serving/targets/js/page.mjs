// The page: one worker per engine, since the number of threads of a wasm module is fixed at its start.
// `host.handle(command)` is called through the DevTools protocol.
import { oneRound } from "./engine.mjs";

const workers = new Map();
let count = 0;

function worker(engine) {
  if (!workers.has(engine)) {
    const made = new Worker(`./worker.mjs?engine=${engine}`, { type: "module", name: engine });
    const waiting = new Map();
    made.onmessage = ({ data }) => {
      const { resolve, reject } = waiting.get(data.id);
      waiting.delete(data.id);
      data.error === undefined ? resolve(data.value) : reject(new Error(data.error));
    };
    made.onerror = (event) => {
      for (const { reject } of waiting.values()) reject(new Error(event.message || "the worker failed"));
      waiting.clear();
    };
    workers.set(engine, { made, waiting });
  }
  return workers.get(engine);
}

function call(engine, op, rest) {
  const { made, waiting } = worker(engine);
  return new Promise((resolve, reject) => {
    const id = ++count;
    waiting.set(id, { resolve, reject });
    made.postMessage({ ...rest, id, op });
  });
}

async function gpu() {
  if (!navigator.gpu) return null;
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  if (!adapter) return null;
  const info = adapter.info || {};
  return [info.vendor, info.architecture, info.device, info.description].filter(Boolean).join(" ") || "unnamed";
}

globalThis.host = {
  async handle({ op, engine, ...rest }) {
    if (op === "facts") {
      return {
        agent: navigator.userAgent, cores: navigator.hardwareConcurrency, isolated: crossOriginIsolated,
        gpu: await gpu(), simd: true,
      };
    }
    if (op === "round") return oneRound(rest, call);
    return call(engine, op, rest);
  },
};
document.getElementById("state").textContent = "ready";

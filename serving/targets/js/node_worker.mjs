// One onnxruntime-web in a worker thread of Node.
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";
import { parentPort, workerData } from "node:worker_threads";
import { Engine, answer } from "./engine.mjs";

const { modules, threads, level } = workerData;
const dist = pathToFileURL(`${modules}/onnxruntime-web/dist/`).href;
const made = (async () => {
  const ort = await import(`${dist}ort.node.min.mjs`);
  ort.env.wasm.wasmPaths = dist;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  const options = { executionProviders: ["wasm"], graphOptimizationLevel: level };
  return new Engine(ort, options, (path) => readFile(path));
})();

parentPort.on("message", async (data) => {
  try {
    parentPort.postMessage(await answer(await made, data));
  } catch (error) {
    parentPort.postMessage({ id: data.id, error: String(error) });
  }
});

// One onnxruntime-web in a worker; ?engine=wasm-N (N threads) or webgpu.
import { Engine, answer } from "./engine.mjs";

const name = new URL(self.location.href).searchParams.get("engine");
const dist = new URL("./dist/", self.location.href).href;
const webgpu = name === "webgpu";

const made = (async () => {
  const ort = await import(`${dist}${webgpu ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs"}`);
  ort.env.wasm.wasmPaths = dist;
  ort.env.wasm.numThreads = webgpu ? 1 : Number(name.split("-")[1]);
  ort.env.logLevel = "error";
  // "extended", not "all": the layout passes of "all" change nothing in an encoder and take most of the loading.
  const options = { executionProviders: [webgpu ? "webgpu" : "wasm"], graphOptimizationLevel: "extended" };
  return new Engine(ort, options, async (url) => {
    const reply = await fetch(url);
    if (!reply.ok) throw new Error(`${url}: HTTP ${reply.status}`);
    return new Uint8Array(await reply.arrayBuffer());
  });
})();

self.onmessage = async ({ data }) => {
  try {
    self.postMessage(await answer(await made, data));
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error) });
  }
};

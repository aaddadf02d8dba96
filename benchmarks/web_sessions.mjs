// Session creation and latency of ONNX files on onnxruntime-web in Node, one thread of wasm, in turns.
//
//   node benchmarks/web_sessions.mjs NODE_MODULES ROUNDS TOKENS[,TOKENS] FILE.onnx[@LEVEL] ...
//
// LEVEL is a graphOptimizationLevel: all (the default), extended, basic, disabled. Files are BERT-like encoders.
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const [modules, rounds, lengths, ...asked] = process.argv.slice(2);
const ort = await import(pathToFileURL(`${modules}/onnxruntime-web/dist/ort.node.min.mjs`).href);
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

const sessions = [];
for (const name of asked) {
  const [file, level] = name.split("@");
  const model = new Uint8Array(await readFile(file));
  const begin = performance.now();
  const options = { executionProviders: ["wasm"], graphOptimizationLevel: level ?? "all" };
  const session = await ort.InferenceSession.create(model, options);
  console.log(`${name}: create ${(performance.now() - begin).toFixed(0)} ms`);
  sessions.push({ name, session });
}
for (const tokens of lengths.split(",").map(Number)) {
  const tensor = (value) => new ort.Tensor("int64", BigInt64Array.from({ length: tokens }, value), [1, tokens]);
  const every = {
    input_ids: tensor((_, i) => BigInt(1000 + i)), attention_mask: tensor(() => 1n), token_type_ids: tensor(() => 0n),
  };
  const times = sessions.map(() => []);
  const logits = [];
  for (let round = -1; round < Number(rounds); round++) {
    for (const [index, { session }] of sessions.entries()) {
      const feeds = Object.fromEntries(session.inputNames.map((name) => [name, every[name]]));
      const begin = performance.now();
      const outputs = await session.run(feeds);
      if (round >= 0) times[index].push(performance.now() - begin);
      logits[index] = Array.from(outputs[session.outputNames[0]].data);
    }
  }
  for (const [index, { name }] of sessions.entries()) {
    const sorted = times[index].sort((a, b) => a - b);
    console.log(`${tokens} tokens, ${name}: median ${sorted[sorted.length >> 1].toFixed(1)} ms, logits ${logits[index]}`);
  }
}
process.exit(0);

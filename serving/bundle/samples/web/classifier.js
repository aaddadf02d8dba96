// Loads the model once, then: text in, label and probability out. Nothing leaves the page, and nothing here knows it.
import * as ort from './ort/ort.wasm.min.mjs';
import { WordPiece } from './wordpiece.js';

const fetched = async (path) => {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: HTTP ${answer.status}`);
  return answer;
};
const text = async (path) => (await fetched(path)).text();

/** The model with its tokenizer; `base` is the bundle's folder, where this file is. */
export async function load(base = new URL('.', import.meta.url).href.slice(0, -1)) {
  ort.env.wasm.wasmPaths = new URL('./ort/', import.meta.url).href;
  // Threads need a page that is cross-origin isolated; without the two headers it is one thread.
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  const model = (await fetched(`${base}/model/model.onnx`)).arrayBuffer();
  const about = JSON.parse(await text(`${base}/model/preprocessing.json`));
  const session = await ort.InferenceSession.create(new Uint8Array(await model), {
    executionProviders: ['wasm'], graphOptimizationLevel: 'extended', // 'all' gains nothing here and loads for longer
  });
  const tokenizer = about.tokenizer &&
    new WordPiece(about.tokenizer, await text(`${base}/model/vocab.txt`), await text(`${base}/model/unicode.txt`));
  return new Classifier(session, about, tokenizer);
}

export class Classifier {
  constructor(session, about, tokenizer) {
    Object.assign(this, { session, about, tokenizer });
  }

  /** { label, probability, scores, ms, runtime } of a text or a pair; without a tokenizer `text` is token ids with commas. */
  async classify(text, pair = null) {
    const { input_ids, token_type_ids } = this.tokenizer ? this.tokenizer.encode(text, pair) : idsOf(text, this.about.max_length);
    const rows = { input_ids, token_type_ids, attention_mask: input_ids.map(() => 1) };
    const tensor = (row) => new ort.Tensor('int64', BigInt64Array.from(row, BigInt), [1, row.length]);
    const feeds = Object.fromEntries(this.about.inputs.map((name) => [name, tensor(rows[name])]));
    const begin = performance.now();
    const { logits } = await this.session.run(feeds);
    const ms = performance.now() - begin;
    return { ...answer(Array.from(logits.data), this.about), ms, runtime: ort.env.versions.web };
  }
}

function idsOf(text, maxLength) {
  const input_ids = text.split(',').map((word) => parseInt(word, 10)).slice(0, maxLength);
  if (input_ids.some(Number.isNaN)) throw new Error('give token ids, numbers with commas between them');
  return { input_ids, token_type_ids: input_ids.map(() => 0) };
}

function answer(logits, { kind, labels }) {
  if (kind === 'regression') return { label: 'score', probability: null, scores: { score: logits[0] } };
  const top = Math.max(...logits);
  const powers = logits.map((value) => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b);
  const scores = Object.fromEntries(labels.map((label, index) => [label, powers[index] / sum]));
  const best = logits.indexOf(top);
  return { label: labels[best], probability: powers[best] / sum, scores };
}

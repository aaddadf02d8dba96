// One ONNX Runtime and the files it has open; runs in a worker of a browser and in Node alike.
// Commands are plain objects, tensors travel as {type, dims, data: base64 of little-endian bytes}.

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, int8: Int8Array,
  uint8: Uint8Array, bool: Uint8Array,
};

function toBytes(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

function toText(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let binary = "";
  for (let i = 0; i < bytes.length; i += 8192) binary += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(binary);
}

export class Engine {
  // ort: the module; options: of every session; read: address -> Promise of Uint8Array or a path.
  constructor(ort, options, read) {
    this.ort = ort;
    this.options = options;
    this.read = read;
    this.sessions = new Map();
  }

  async open({ key, url }) {
    if (!this.sessions.has(key)) {
      const source = await this.read(url);
      const begin = performance.now();
      const session = await this.ort.InferenceSession.create(source, this.options);
      this.sessions.set(key, { session, loadMs: performance.now() - begin });
    }
    const { session, loadMs } = this.sessions.get(key);
    return { inputs: session.inputNames, outputs: session.outputNames, loadMs };
  }

  feeds(session, given) {
    const feeds = {};
    for (const name of session.inputNames) {
      const { type, dims, data } = given[name];
      const bytes = toBytes(data);
      feeds[name] = new this.ort.Tensor(type, new ARRAYS[type](bytes.buffer), dims);
    }
    return feeds;
  }

  async run({ key, feeds }) {
    const { session } = this.sessions.get(key);
    const outputs = await session.run(this.feeds(session, feeds));
    const found = {};
    for (const name of session.outputNames) {
      const tensor = outputs[name];
      if (!(tensor.type in ARRAYS)) throw new Error(`output ${name} has the type ${tensor.type}`);
      found[name] = { type: tensor.type, dims: tensor.dims, data: toText(await tensor.getData()) };
    }
    return found;
  }

  // Milliseconds of one run, feeds and first output included, by performance.now.
  async lap({ key, feeds }) {
    const { session } = this.sessions.get(key);
    const made = this.feeds(session, feeds);
    const begin = performance.now();
    const outputs = await session.run(made);
    await outputs[session.outputNames[0]].getData();
    return performance.now() - begin;
  }

  async release({ key }) {
    const held = this.sessions.get(key);
    this.sessions.delete(key);
    if (held) await held.session.release();
    return true;
  }
}

// One round of several engines in turns: name -> milliseconds. It starts with job number `first`, which the caller
// moves on from round to round. jobs: [{name, engine, key}]; call: (engine, op, arguments) -> Promise.
export async function oneRound({ jobs, feeds, first }, call) {
  const times = {};
  for (let i = 0; i < jobs.length; i++) {
    const job = jobs[(first + i) % jobs.length];
    times[job.name] = await call(job.engine, "lap", { key: job.key, feeds });
  }
  return times;
}

// What a worker answers to a message {id, op, ...}.
export async function answer(engine, message) {
  try {
    return { id: message.id, value: await engine[message.op](message) };
  } catch (error) {
    return { id: message.id, error: String(error && error.message ? error.message : error) };
  }
}

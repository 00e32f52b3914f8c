// ONNX files, on onnxruntime-web: what a call takes, and what it answers.
import { bytes, now, rounds, say, sustain } from './turns.js';

// V8 compiles what runs often a second time, better, while it runs: before that nothing is worth timing.
const WARM_UP_MS = 1000;
const SUSTAINED_SAMPLES = 200;
const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  int32: Int32Array,
  int64: BigInt64Array,
  uint8: Uint8Array,
  bool: Uint8Array,
};
// An ONNX file with one Identity in it: opening it makes the runtime ready.
const EMPTY = 'CAg6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEBE=';

let ort;

export async function prepare(job) {
  ort = await import(new URL(job.module, self.location.href));
  const wasm = new URL(job.wasm, self.location.href).href;
  Object.assign(ort.env.wasm, { numThreads: job.threads, proxy: false, wasmPaths: { wasm } });
  ort.env.logLevel = 'fatal'; // what goes wrong is raised
  await Model.open(Uint8Array.from(atob(EMPTY), (letter) => letter.charCodeAt(0)));
  return {
    name: `ONNX Runtime Web ${ort.env.versions.web}`,
    start: () => start(job),
    race: () => race(job),
    outputs: () => outputs(job),
  };
}

class Model {
  constructor(session) {
    this.session = session;
    this.output = session.outputNames[0];
  }

  static async open(model) {
    const options = { executionProviders: ['wasm'], logSeverityLevel: 4 };
    return new Model(await ort.InferenceSession.create(new Uint8Array(model), options));
  }

  async run(feed) {
    return (await this.session.run(feed))[this.output];
  }
}

/** The samples, each as the tensors of one call. */
async function read(inputs) {
  const tensors = await Promise.all(inputs.map(async ({ name, type, shape, path }) => {
    const values = new ARRAYS[type](await bytes(path));
    const size = values.length / shape[0];
    return Array.from({ length: shape[0] }, (_, at) =>
      [name, new ort.Tensor(type, values.slice(at * size, (at + 1) * size), [1, ...shape.slice(1)])]);
  }));
  const count = Math.min(...tensors.map((all) => all.length));
  return Array.from({ length: count }, (_, at) => Object.fromEntries(tensors.map((all) => all[at])));
}

/** Takes samples of one model: the mean time of a call (ms) over calls that last `least` ms together. */
class Lap {
  constructor(model, feeds, least) {
    this.model = model;
    this.feeds = feeds;
    this.least = least;
    this.at = 0;
    this.calls = 1;
  }

  async prepare() {
    await this.meanOf(WARM_UP_MS);
    let elapsed = await this.batch(this.calls);
    while (elapsed < this.least) {
      this.calls *= 2;
      elapsed = await this.batch(this.calls);
    }
    // The quickest of a few: a batch that something slowed down says that fewer calls would do.
    for (let more = 0; more < 3; more += 1) elapsed = Math.min(elapsed, await this.batch(this.calls));
    this.calls = Math.max(1, Math.ceil(this.calls * this.least / elapsed));
  }

  async batch(calls) {
    const { model, feeds } = this;
    const begin = now();
    for (let call = 0; call < calls; call += 1) {
      await model.run(feeds[this.at]);
      this.at = (this.at + 1) % feeds.length;
    }
    return now() - begin;
  }

  async sample() {
    await this.batch(1); // the model before left its own data in the caches
    return this.meanOf(this.least);
  }

  async meanOf(least) {
    let { calls } = this;
    let elapsed = await this.batch(calls);
    while (elapsed < least) { // also where the browser became faster than it was when the calls were counted
      const more = Math.max(1, Math.floor(this.calls / 8));
      elapsed += await this.batch(more);
      calls += more;
    }
    return elapsed / calls;
  }
}

async function start(job) {
  const [path] = Object.values(job.subjects);
  const [feed] = await read(job.inputs);
  const file = await bytes(path);
  const begin = now();
  const model = await Model.open(file);
  const loaded = now();
  await model.run(feed);
  const answered = now();
  await say({ start: { load_ms: loaded - begin, first_inference_ms: answered - loaded } });
}

async function race(job) {
  const feeds = await read(job.inputs);
  const laps = {};
  for (const [name, path] of Object.entries(job.subjects)) {
    laps[name] = new Lap(await Model.open(await bytes(path)), feeds, job.min_sample_ms);
  }
  for (const lap of Object.values(laps)) await lap.prepare();
  await rounds(job, (name) => laps[name].sample(), (round) => ({ round }));
  const least = (seconds) => Math.max(job.min_sample_ms, 1000 * seconds / SUSTAINED_SAMPLES);
  await sustain(job, (name, seconds) => laps[name].meanOf(least(seconds)));
  const calls = Object.fromEntries(Object.entries(laps).map(([name, lap]) => [name, lap.calls]));
  await say({ end: { calls_per_sample: calls } });
}

async function outputs(job) {
  const [path] = Object.values(job.subjects);
  const feeds = await read(job.inputs);
  const model = await Model.open(await bytes(path));
  const answers = [];
  let shape = [];
  for (const feed of feeds) {
    const answer = await model.run(feed);
    shape = answer.dims.slice(1);
    answers.push(answer.data instanceof Float32Array ? answer.data : Float32Array.from(answer.data, Number));
    if (answers.length % 32 === 0) await say({ done: answers.length });
  }
  await fetch('outputs', { method: 'POST', body: new Blob(answers) });
  await say({ outputs: { shape: [answers.length, ...shape] } });
}

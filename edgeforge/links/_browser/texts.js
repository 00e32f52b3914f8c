// Language models (GGUF), on wllama, which is llama.cpp as WebAssembly: how fast they read and write.
//
// wllama takes a text and writes by itself; how long that took are llama.cpp's own times. So the prompt is one word
// again and again, as long as the job's, and each written token is forced to be the same: speed does not depend on
// which they are.
import { now, rounds, say, sustain } from './turns.js';

const WORD = ' the';
const PROBES = [8, 24];
// Its text is one letter or sign in the usual vocabularies. What is no UTF-8, wllama cannot return.
const FORCED_TOKEN = 40;
const FORCED_BIAS = 1000;
// How much of its log llama.cpp writes.
const ERRORS = 2;

export async function prepare(job) {
  const { Wllama } = await import(new URL(job.module, self.location.href));
  const open = async (path) => Model.open(Wllama, job, await (await fetch(path)).blob());
  return {
    name: `wllama, llama.cpp ${Wllama.getLibllamaVersion()}`,
    probe: () => probe(job, open),
    start: () => start(job, open),
    race: () => race(job, open),
  };
}

class Model {
  constructor(wllama, errors) {
    this.wllama = wllama;
    this.errors = errors;
    const { n_vocab: tokens, n_ctx: asked, n_ctx_train: trained } = wllama.getLoadedContextInfo();
    if (!tokens) throw new Error(`llama.cpp cannot load it: ${errors[0]}`); // wllama itself says nothing
    this.room = Math.min(asked, trained);
  }

  /** wllama compiles itself for each model: that is part of what loading takes. */
  static async open(Wllama, job, file) {
    const errors = [];
    const logger = { debug() {}, log() {}, warn() {}, error: (what) => errors.push(String(what)) };
    const paths = { default: new URL(job.wasm, self.location.href).href };
    const wllama = new Wllama(paths, { logger });
    await wllama.loadModel([file], {
      n_ctx: Math.max(job.prompt_tokens, job.new_tokens + PROBES[1]) + 64,
      n_threads: job.threads,
      n_gpu_layers: 0,
      n_parallel: 1,
      warmup: false,
      log_level: ERRORS,
    });
    return new Model(wllama, errors);
  }

  /** Reads so many words and writes so many tokens: llama.cpp's times. */
  async write(words, tokens) {
    const before = this.errors.length;
    const answer = this.wllama.createCompletion({
      prompt: WORD.repeat(words),
      max_tokens: tokens,
      temperature: 0,
      top_k: 1,
      ignore_eos: true,
      cache_prompt: false,
      logit_bias: { [FORCED_TOKEN]: FORCED_BIAS },
    });
    // What wllama throws where llama.cpp fails is what became of that on the way; the reason is in the log.
    const { timings } = await answer.catch((error) => { throw new Error(this.errors[before] ?? error.message); });
    if (timings.predicted_n !== tokens) throw new Error(`of ${tokens} tokens ${timings.predicted_n} were written`);
    return timings;
  }

  /** Milliseconds for each token that is written: the first comes with the prompt, each of the others is read too. */
  async token(tokens) {
    return (await this.write(1, tokens + 1)).predicted_ms / tokens;
  }
}

/** How many words make a prompt of the job's tokens; and how many tokens, since a model may take fewer. */
async function probe(job, open) {
  const model = await open(Object.values(job.subjects)[0]);
  const counts = [];
  for (const words of PROBES) counts.push((await model.write(words, 1)).prompt_n);
  const each = (counts[1] - counts[0]) / (PROBES[1] - PROBES[0]);
  const around = counts[0] - each * PROBES[0];
  const words = Math.max(1, Math.floor((Math.min(job.prompt_tokens, model.room - 1) - around) / each));
  const tokens = Math.min(job.new_tokens, model.room - Math.ceil(around + each) - 1);
  await say({ end: { conditions: { prompt_words: words, new_tokens: tokens } } });
}

async function start(job, open) {
  const [path] = Object.values(job.subjects);
  const begin = now();
  const model = await open(path);
  const load = now() - begin;
  const { prompt_ms: first } = await model.write(job.prompt_words, 1);
  await model.token(job.new_tokens);
  await say({ start: { load_ms: load, first_inference_ms: first } });
}

async function race(job, open) {
  const models = {};
  for (const [name, path] of Object.entries(job.subjects)) models[name] = await open(path);
  const lengths = new Set();
  const sample = async (name) => {
    const { prompt_ms: prefill, prompt_n: tokens } = await models[name].write(job.prompt_words, 1);
    lengths.add(tokens);
    return { prefill, token: await models[name].token(job.new_tokens) };
  };
  const of = (round, what) => Object.fromEntries(Object.entries(round).map(([name, found]) => [name, found[what]]));
  await rounds(job, sample, (round) => ({ round: of(round, 'token'), prefill_ms: of(round, 'prefill') }));
  await sustain(job, (name) => models[name].token(job.new_tokens));
  if (lengths.size !== 1) throw new Error('the files have different vocabularies');
  const conditions = { prompt_tokens: [...lengths][0], new_tokens: job.new_tokens };
  await say({ end: { calls_per_sample: {}, conditions } });
}

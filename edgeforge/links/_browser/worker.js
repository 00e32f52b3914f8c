// Measures in a web worker as `_worker.py` does in a process: one job, answered in the same lines of JSON.
//
// - `probe`: of language models alone, what their prompt is.
// - `start`: load one model, run it once. Its bytes are here already: how long a network takes is not the model's.
// - `race`: open every model, time them in shuffled rounds, then run some on without a pause.
// - `outputs`: the answers to all samples, as raw float32.
import * as calls from './calls.js';
import * as texts from './texts.js';
import { say } from './turns.js';

async function main() {
  const job = await (await fetch('job.json')).json();
  const { name, ...jobs } = await (job.new_tokens ? texts : calls).prepare(job);
  const brands = (await navigator.userAgentData.getHighEntropyValues(['fullVersionList'])).fullVersionList;
  const [{ brand, version }] = brands.filter((one) => !/not.*brand/i.test(one.brand));
  await say({ runtime: `${name} (WebAssembly) in ${brand} ${version}` });
  await jobs[job.what]();
}

main().catch((error) => say({ error: String(error?.message ?? error) }));
